//! Images made of stopped VMs, while things go wrong.

use std::time::Duration;

use vmlet::object::{Kind, ObjectKey};
use vmlet::store::Record;
use vmlet::testing::{EffectScript, Options, Simulation, Teller, Trouble, VmScript};

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

/// The effects of these names since then, each with how long after it.
fn effects<'a>(sim: &Simulation, names: &[&'a str], since: Duration) -> Vec<(&'a str, Duration)> {
    let told = sim.timeline().into_iter().filter(|entry| entry.teller == Teller::World && entry.at >= since);
    told.filter_map(|entry| Some((*names.iter().find(|name| **name == entry.text)?, entry.at - since)))
        .collect()
}

/// The builder runs, is halted, and the guest that reads its disk has just started.
fn reading(sim: &mut Simulation) {
    settle(sim).unwrap();
    sim.write("builder.yaml", &builder("Halted"));
    while effects(sim, &["spawn"], Duration::ZERO).len() < 2 {
        sim.run_for(Duration::from_millis(50));
    }
}

#[test]
fn a_guest_that_reads_for_nobody_is_ended_and_gone_before_its_vm_starts() {
    let mut sim = simulation(1, Trouble::NONE);
    reading(&mut sim);
    sim.script_effect("kill", EffectScript { takes: Duration::from_millis(500), ..EffectScript::default() });
    let began = sim.now();
    sim.remove("golden.yaml");
    sim.write("builder.yaml", &builder("Always"));
    settle(&mut sim).unwrap();
    let told = effects(&sim, &["kill", "cleanup", "prepare"], began);
    let order: Vec<&str> = told.iter().map(|(name, _)| *name).collect();
    assert_eq!(order, ["kill", "cleanup", "prepare"]);
    assert!(told[0].1 < Duration::from_secs(2), "it is not read to its end: {told:?}");
    assert_sound(&sim);
}

#[test]
fn what_a_promotion_leaves_is_removed_however_often_that_fails() {
    let mut sim = simulation(1, Trouble::NONE);
    reading(&mut sim);
    sim.script_effect("cleanup", EffectScript { failures: 3, ..EffectScript::default() });
    settle(&mut sim).unwrap();
    sim.write("builder.yaml", &builder("Always"));
    settle(&mut sim).unwrap();
    assert_eq!(said(&sim, Kind::Vm, "builder").0, "Running");
    assert_sound(&sim);
}

#[test]
fn a_guest_that_dies_or_hangs_over_a_disk_is_followed_by_another() {
    let (panics, hangs) =
        (VmScript { panics: 1, ..VmScript::default() }, VmScript { hangs: 1, ..VmScript::default() });
    for script in [panics, hangs] {
        let mut sim = simulation(1, Trouble::NONE);
        settle(&mut sim).unwrap();
        sim.script_vm(ObjectKey::new(Kind::Vm, "default", "builder"), script);
        sim.write("builder.yaml", &builder("Halted"));
        sim.run_for(Duration::from_secs(3 * 3600));
        assert_eq!(said(&sim, Kind::Image, "golden").0, "Ready");
        assert_eq!(effects(&sim, &["spawn"], Duration::ZERO).len(), 3, "the VM, and two that read its disk");
        assert_sound(&sim);
    }
}
