//! Nothing fails, everything takes a moment: what is promised then, exactly.

use std::time::Duration;

use vmlet::object::{Kind, ObjectKey};
use vmlet::store::Record;
use vmlet::testing::{Options, Simulation, Trouble};

use crate::schedule::{image, vm};
use crate::threads;

const PATIENCE: Duration = Duration::from_secs(3600);

pub(crate) fn shuffled(seed: u64) -> Simulation {
    Simulation::new(seed, Options { trouble: Trouble::SHUFFLED, ..Options::default() })
}

pub(crate) fn settle(sim: &mut Simulation) -> Result<(), String> {
    sim.run_until_converged(PATIENCE).map_err(|open| open.join("\n"))?;
    let violations = sim.violations();
    if violations.is_empty() { Ok(()) } else { Err(violations.join("\n")) }
}

pub(crate) fn starts(sim: &Simulation, name: &str) -> u32 {
    let key = ObjectKey::new(Kind::Vm, "default", name);
    let of_name = |record: Record| match record {
        Record::Vm(vm) if vm.object.key() == key => Some(vm.starts),
        _ => None,
    };
    sim.objects().into_iter().find_map(of_name).unwrap_or(0)
}

pub(crate) fn every_seed(test: impl Fn(u64) -> Result<(), String> + Sync) {
    let failed = threads::each(0..40, test);
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn an_edit_is_one_restart() {
    every_seed(|seed| {
        let mut sim = shuffled(seed);
        sim.write("image.yaml", &image("base", "r/a:1"));
        let web = |more: &str| vm("web", "x", &format!("{{image: {{name: base}}{more}}}"));
        sim.write("web.yaml", &web(""));
        settle(&mut sim)?;
        let edits = [
            ", memory: 512Mi",
            ", cpus: 2",
            ", cpus: 2, env: [{name: A, value: b}]",
            ", cpus: 2, rootDisk: {size: 3Gi}",
        ];
        for (number, edit) in (2..).zip(edits) {
            sim.write("web.yaml", &web(edit));
            settle(&mut sim)?;
            if starts(&sim, "web") != number {
                return Err(format!("{edit}: {} starts, not {number}", starts(&sim, "web")));
            }
        }
        let before = starts(&sim, "web");
        sim.write("web.yaml", &web(", cpus: 2, rootDisk: {size: 3Gi}, terminationGracePeriodSeconds: 3"));
        settle(&mut sim)?;
        if starts(&sim, "web") != before {
            return Err("a live edit restarted it".to_owned());
        }
        sim.write("image.yaml", &image("base", "r/a:2"));
        settle(&mut sim)?;
        if starts(&sim, "web") != before + 1 {
            return Err("a new image is one restart".to_owned());
        }
        Ok(())
    });
}

#[test]
fn a_restart_of_the_daemon_restarts_no_vm() {
    every_seed(|seed| {
        let mut sim = shuffled(seed);
        for name in ["a", "b", "c"] {
            sim.write(&format!("{name}.yaml"), &vm(name, "x", "{image: {oci: 'r/a:1'}}"));
        }
        settle(&mut sim)?;
        for _ in 0..5 {
            sim.crash(Duration::from_secs(30));
            settle(&mut sim)?;
        }
        let all: Vec<u32> = ["a", "b", "c"].map(|name| starts(&sim, name)).to_vec();
        if all == [1, 1, 1] { Ok(()) } else { Err(format!("{all:?} starts")) }
    });
}

#[test]
fn a_slow_pull_holds_nobody_else_up() {
    every_seed(|seed| {
        let mut sim = shuffled(seed);
        let slow = vmlet::testing::ImageScript::new('a', Duration::from_secs(100_000));
        sim.script_image("r/slow:1", slow);
        sim.write("slow.yaml", &vm("slow", "x", "{image: {oci: 'r/slow:1'}}"));
        sim.write("quick.yaml", &vm("quick", "x", "{image: {oci: 'r/quick:1'}}"));
        sim.run_for(Duration::from_secs(60));
        if starts(&sim, "quick") == 1 { Ok(()) } else { Err("it waited".to_owned()) }
    });
}
