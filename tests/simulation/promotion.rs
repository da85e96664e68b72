//! Images made of stopped VMs, while things go wrong.

use std::time::Duration;

use vmlet::object::{Kind, ObjectKey};
use vmlet::store::Record;
use vmlet::testing::{EffectScript, Options, Simulation, Trouble};

use crate::calm::settle;
use crate::schedule::vm;

const GOLDEN: &str = "{apiVersion: vmlet.dev/v1alpha1, kind: Image, metadata: {name: golden}, spec: {source: {vm: \
                      {name: builder}}}}\n";

fn builder(policy: &str) -> String {
    vm("builder", "x", &format!("{{image: {{oci: 'r/a:1'}}, runPolicy: {policy}}}"))
}

/// `(phase, reason)` of an object.
fn said(sim: &Simulation, kind: Kind, name: &str) -> (String, String) {
    let record =
        sim.objects().into_iter().find(|record| record.key() == ObjectKey::new(kind, "default", name));
    let (phase, conditions) = match record.expect("it is there") {
        Record::Vm(vm) => (vm.object.status.phase.clone(), vm.object.status.conditions.clone()),
        Record::Image(image) => (image.object.status.phase.clone(), image.object.status.conditions.clone()),
    };
    let ready = conditions.into_iter().find(|condition| condition.kind == "Ready").expect("always");
    (phase, ready.reason)
}

fn simulation(seed: u64, trouble: Trouble) -> Simulation {
    let mut sim = Simulation::new(seed, Options { trouble, tell_effects: true, ..Options::default() });
    sim.write("builder.yaml", &builder("Always"));
    sim.write("golden.yaml", GOLDEN);
    sim
}

fn assert_sound(sim: &Simulation) {
    assert!(sim.violations().is_empty(), "{:#?}\n{:#?}", sim.violations(), sim.timeline());
}

#[test]
fn an_image_waits_for_its_vm_to_stop_and_outlives_it() {
    let mut sim = simulation(1, Trouble::NONE);
    settle(&mut sim).unwrap();
    assert_eq!(said(&sim, Kind::Image, "golden"), ("Pending".to_owned(), "WaitingForVM".to_owned()));
    sim.write("builder.yaml", &builder("Halted"));
    settle(&mut sim).unwrap();
    assert_eq!(said(&sim, Kind::Image, "golden").0, "Ready");
    sim.remove("builder.yaml");
    sim.write("child.yaml", &vm("child", "x", "{image: {name: golden}}"));
    settle(&mut sim).unwrap();
    assert_eq!(said(&sim, Kind::Image, "golden").0, "Ready");
    assert_eq!(said(&sim, Kind::Vm, "child").0, "Running");
    sim.remove("child.yaml");
    sim.remove("golden.yaml");
    settle(&mut sim).unwrap();
    assert_sound(&sim);
}

#[test]
fn a_vm_that_is_to_start_waits_until_its_disk_is_read() {
    let mut sim = simulation(1, Trouble::NONE);
    settle(&mut sim).unwrap();
    // Long enough to be seen.
    sim.script_effect(
        "stage a root",
        EffectScript { takes: Duration::from_secs(30), ..EffectScript::default() },
    );
    sim.write("builder.yaml", &builder("Halted"));
    sim.run_for(Duration::from_secs(20));
    sim.write("builder.yaml", &builder("Always"));
    sim.run_for(Duration::from_secs(5));
    assert_eq!(said(&sim, Kind::Vm, "builder"), ("Waiting".to_owned(), "BeingPromoted".to_owned()));
    settle(&mut sim).unwrap();
    assert_eq!(said(&sim, Kind::Vm, "builder").0, "Running");
    assert_eq!(said(&sim, Kind::Image, "golden").0, "Ready");
    assert_sound(&sim);
}

#[test]
fn a_promotion_that_nobody_wants_any_more_lets_its_vm_go() {
    let mut sim = simulation(1, Trouble::NONE);
    settle(&mut sim).unwrap();
    sim.script_effect(
        "stage a root",
        EffectScript { takes: Duration::from_secs(1000), ..EffectScript::default() },
    );
    sim.write("builder.yaml", &builder("Halted"));
    sim.run_for(Duration::from_secs(20));
    sim.remove("golden.yaml");
    sim.write("builder.yaml", &builder("Always"));
    sim.run_for(Duration::from_secs(20));
    assert_eq!(said(&sim, Kind::Vm, "builder").0, "Running");
    settle(&mut sim).unwrap();
    assert_sound(&sim);
}

/// The daemon dies at every moment of it.
#[test]
fn a_crash_at_any_moment_of_a_promotion_leaves_nothing() {
    let story = |moment: Option<u64>| {
        let mut sim = simulation(7, Trouble::NONE);
        settle(&mut sim).unwrap();
        sim.crash_at_moment(moment);
        sim.write("builder.yaml", &builder("Halted"));
        settle(&mut sim).unwrap();
        assert_eq!(said(&sim, Kind::Image, "golden").0, "Ready", "{moment:?} {:#?}", sim.timeline());
        let moments = sim.moments();
        sim.crash_at_moment(None);
        sim.remove("builder.yaml");
        sim.remove("golden.yaml");
        settle(&mut sim).unwrap();
        assert_sound(&sim);
        moments
    };
    let moments = story(None);
    assert!(moments > 20, "{moments} moments of a promotion");
    for moment in 1..=moments {
        story(Some(moment));
    }
}
