//! When a registry is asked: pull policies, as the kubelet means them.

use std::time::Duration;

use vmlet::object::{Kind, ObjectKey};
use vmlet::store::{Record, Run, VmRecord};
use vmlet::testing::{ImageScript, Options, Simulation, Trouble};

use crate::schedule::vm;
use crate::threads;

const SOURCE: &str = "r/a:1";

fn simulation(seed: u64) -> Simulation {
    let mut sim = Simulation::new(seed, Options { trouble: Trouble::SHUFFLED, ..Options::default() });
    tag_moves_to(&mut sim, 'a');
    sim
}

fn tag_moves_to(sim: &mut Simulation, digit: char) {
    sim.script_image(SOURCE, ImageScript::new(digit, Duration::from_secs(3)));
}

fn image(policy: &str) -> String {
    format!(
        "apiVersion: vmlet.dev/v1alpha1\nkind: Image\nmetadata: {{name: base}}\n\
         spec: {{source: {{oci: {{reference: '{SOURCE}', pullPolicy: {policy}}}}}}}\n"
    )
}

fn record(sim: &Simulation, name: &str) -> VmRecord {
    let key = ObjectKey::new(Kind::Vm, "default", name);
    let of_name = |record: Record| match record {
        Record::Vm(vm) if vm.object.key() == key => Some(VmRecord::clone(&vm)),
        _ => None,
    };
    sim.objects().into_iter().find_map(of_name).unwrap()
}

/// How often a VM was started, and the first digit of the digest that it runs.
fn runs(sim: &Simulation, name: &str) -> (u32, Option<char>) {
    let vm = record(sim, name);
    let digest = vm.reservation.map(|held| held.image.as_str().chars().nth(7).unwrap());
    (vm.starts, digest)
}

fn every_seed(test: impl Fn(u64) -> Result<(), String> + Sync) {
    let failed = threads::each(0..20, test);
    assert!(failed.is_empty(), "{failed:#?}");
}

fn expect(sim: &Simulation, name: &str, starts: u32, digit: char) -> Result<(), String> {
    match runs(sim, name) {
        found if found == (starts, Some(digit)) => Ok(()),
        found => Err(format!("{name}: {found:?}, not {starts} starts and {digit}")),
    }
}

#[test]
fn always_asks_before_each_start_and_leaves_alone_what_runs() {
    every_seed(|seed| {
        let mut sim = simulation(seed);
        let specs = [
            ("named", "image: {name: base}".to_owned()),
            ("direct", format!("image: {{oci: '{SOURCE}', pullPolicy: Always}}")),
            ("other", format!("image: {{oci: '{SOURCE}'}}")),
        ];
        let write = |sim: &mut Simulation, policy: &str| {
            for (name, image) in &specs {
                let spec = format!("{{{image}, terminationGracePeriodSeconds: 1, runPolicy: {policy}}}");
                sim.write(&format!("{name}.yaml"), &vm(name, "x", &spec));
            }
            sim.run_for(Duration::from_secs(300));
        };
        sim.write("image.yaml", &image("Always"));
        write(&mut sim, "Always");
        tag_moves_to(&mut sim, 'b');
        sim.crash(Duration::from_secs(5));
        sim.run_for(Duration::from_secs(300));
        for (name, _) in &specs {
            expect(&sim, name, 1, 'a')?;
        }
        write(&mut sim, "Halted");
        write(&mut sim, "Always");
        expect(&sim, "named", 2, 'b')?;
        expect(&sim, "direct", 2, 'b')?;
        expect(&sim, "other", 2, 'a')?;
        let violations = sim.violations();
        if violations.is_empty() { Ok(()) } else { Err(violations.join("\n")) }
    });
}

/// The kernel that a VM runs, and its command line.
fn kernel(sim: &Simulation, name: &str) -> Option<(String, Option<String>)> {
    match record(sim, name).run {
        Run::Up { boot, .. } => Some((boot.kernel?.to_string(), boot.command_line)),
        _ => None,
    }
}

/// The root is asked for, the kernel of another image is what the Image pinned: until that is edited.
#[test]
fn always_asks_for_the_root_and_not_for_its_kernel() {
    every_seed(|seed| {
        let mut sim = simulation(seed);
        let kernel_moves_to = |sim: &mut Simulation, digit| {
            sim.script_image("r/k:1", ImageScript::new(digit, Duration::from_secs(2)));
        };
        let declare = |sim: &mut Simulation, more: &str| {
            let kernel = format!("kernel: {{oci: {{reference: 'r/k:1'}}{more}}}");
            sim.write("image.yaml", &image("Always").replace("}}}\n", &format!("}}}}, {kernel}}}\n")));
        };
        let run = |sim: &mut Simulation, policy: &str| {
            let spec =
                format!("{{image: {{name: base}}, terminationGracePeriodSeconds: 1, runPolicy: {policy}}}");
            sim.write("web.yaml", &vm("web", "x", &spec));
            sim.run_for(Duration::from_secs(300));
        };
        kernel_moves_to(&mut sim, 'c');
        declare(&mut sim, "");
        run(&mut sim, "Always");
        expect(&sim, "web", 1, 'a')?;
        let first = kernel(&sim, "web").ok_or("it does not run on the kernel of another image")?;
        tag_moves_to(&mut sim, 'b');
        kernel_moves_to(&mut sim, 'd');
        sim.crash(Duration::from_secs(5));
        sim.run_for(Duration::from_secs(300));
        expect(&sim, "web", 1, 'a')?;
        run(&mut sim, "Halted");
        run(&mut sim, "Always");
        expect(&sim, "web", 2, 'b')?;
        if kernel(&sim, "web").as_ref() != Some(&first) {
            return Err(format!("{:?} after {first:?}", kernel(&sim, "web")));
        }
        declare(&mut sim, ", commandLine: 'loglevel=7'");
        sim.run_for(Duration::from_secs(300));
        expect(&sim, "web", 3, 'b')?;
        match kernel(&sim, "web") {
            Some((id, Some(words))) if id != first.0 && words == "loglevel=7" => {}
            other => return Err(format!("{other:?} after an edit, before it {first:?}")),
        }
        let violations = sim.violations();
        if violations.is_empty() { Ok(()) } else { Err(violations.join("\n")) }
    });
}

#[test]
fn never_waits_until_another_brings_the_image() {
    every_seed(|seed| {
        let mut sim = simulation(seed);
        sim.write("image.yaml", &image("Never"));
        sim.write("named.yaml", &vm("named", "x", "{image: {name: base}}"));
        let direct = format!("{{image: {{oci: '{SOURCE}', pullPolicy: Never}}}}");
        sim.write("direct.yaml", &vm("direct", "x", &direct));
        sim.run_for(Duration::from_secs(60));
        for name in ["named", "direct"] {
            let vm = record(&sim, name);
            let why = vm.object.status.conditions.iter().map(|condition| &condition.message);
            if vm.starts > 0 || !why.clone().any(|why| why.contains("pullPolicy is Never")) {
                return Err(format!("{name}: {} starts, {:?}", vm.starts, why.collect::<Vec<_>>()));
            }
        }
        sim.write("other.yaml", &vm("other", "x", &format!("{{image: {{oci: '{SOURCE}'}}}}")));
        sim.run_for(Duration::from_secs(900));
        for name in ["named", "direct", "other"] {
            expect(&sim, name, 1, 'a')?;
        }
        Ok(())
    });
}
