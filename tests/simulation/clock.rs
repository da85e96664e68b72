//! The host's wall clock is set, forwards and back, by hours: nothing that is waited for comes sooner or later.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use vmlet::object::{Kind, ObjectKey};
use vmlet::store::{Record, Run};
use vmlet::testing::{EffectScript, Options, Simulation, VmScript};

use crate::calm::{settle, starts};
use crate::schedule::vm;

const SETTINGS: [i64; 2] = [-5, 5];

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn key() -> ObjectKey {
    ObjectKey::new(Kind::Vm, "default", "web")
}

fn web(more: &str) -> String {
    vm("web", "x", &format!("{{image: {{oci: 'r/a:1'}}{more}}}"))
}

fn told() -> Simulation {
    Simulation::new(1, Options { tell_effects: true, ..Options::default() })
}

fn count(sim: &Simulation, effect: &str) -> usize {
    sim.timeline()
        .iter()
        .filter(|entry| entry.text == effect || entry.text.starts_with(&format!("{effect}:")))
        .count()
}

fn is_up(sim: &Simulation) -> bool {
    sim.objects().iter().any(|record| matches!(record, Record::Vm(vm) if matches!(vm.run, Run::Up { .. })))
}

/// The VM's next try, in seconds from now by the wall clock, which was set by so many hours.
fn next_try(sim: &Simulation, hours: i64) -> Option<i64> {
    let record = sim.objects().into_iter().find(|record| record.key() == key());
    let Some(Record::Vm(vm)) = record else { return None };
    let passed = SignedDuration::try_from(sim.now()).unwrap();
    let now = Timestamp::from_second(1_800_000_000).unwrap() + passed + SignedDuration::from_hours(hours);
    Some(vm.object.status.next_retry_time?.duration_since(now).as_secs())
}

#[test]
fn a_failed_step_is_tried_again_when_it_was_to_be() {
    for hours in SETTINGS {
        let mut sim = told();
        sim.script_effect("spawn", EffectScript { failures: 1000, ..EffectScript::default() });
        sim.write("web.yaml", &web(""));
        sim.run_for(secs(60));
        let tries = count(&sim, "spawn");
        sim.set_clock(SignedDuration::from_hours(hours));
        // Looked at anew, and not because of the gate.
        sim.write("db.yaml", &vm("db", "x", "{image: {oci: 'r/a:1'}, runPolicy: Halted}"));
        sim.write("web.yaml", &web(", terminationGracePeriodSeconds: 30"));
        sim.run_for(secs(1));
        let now = count(&sim, "spawn");
        sim.run_for(secs(600));
        let more = count(&sim, "spawn") - now;
        assert!(now - tries <= 1 && (2..15).contains(&more), "{hours} h: {tries}, {now}, then {more}");
        let next = next_try(&sim, hours).expect("it is tried again");
        assert!((0..=300).contains(&next), "{hours} h: the next try is in {next} s");
    }
}

#[test]
fn a_boot_has_its_time() {
    for hours in SETTINGS {
        let mut sim = told();
        sim.script_vm(key(), VmScript { boot: secs(40), ..VmScript::default() });
        sim.write("web.yaml", &web(""));
        sim.run_for(secs(20));
        sim.set_clock(SignedDuration::from_hours(hours));
        sim.run_for(secs(60));
        assert_eq!((starts(&sim, "web"), count(&sim, "kill")), (1, 0), "{hours} h");
        settle(&mut sim).unwrap_or_else(|open| panic!("{hours} h: {open}"));
    }
}

#[test]
fn a_shutdown_has_its_grace_and_no_more() {
    for hours in SETTINGS {
        let mut sim = told();
        sim.script_vm(key(), VmScript { deaf: true, ..VmScript::default() });
        sim.write("web.yaml", &web(", terminationGracePeriodSeconds: 60"));
        sim.run_for(secs(60));
        sim.write("web.yaml", &web(", terminationGracePeriodSeconds: 60, runPolicy: Halted"));
        sim.run_for(secs(10));
        sim.set_clock(SignedDuration::from_hours(hours));
        sim.run_for(secs(30));
        assert_eq!((is_up(&sim), count(&sim, "kill")), (true, 0), "{hours} h: it has its grace");
        sim.run_for(secs(60));
        assert_eq!((is_up(&sim), count(&sim, "kill")), (false, 1), "{hours} h: it is over");
    }
}

/// What was recorded by a daemon whose clock was ahead is not waited for.
#[test]
fn a_shutdown_that_began_in_the_future_ends() {
    let mut sim = told();
    sim.script_vm(key(), VmScript { deaf: true, ..VmScript::default() });
    sim.write("web.yaml", &web(", terminationGracePeriodSeconds: 60"));
    sim.run_for(secs(60));
    sim.write("web.yaml", &web(", terminationGracePeriodSeconds: 60, runPolicy: Halted"));
    sim.run_for(secs(10));
    sim.set_clock(SignedDuration::from_hours(-5));
    sim.crash(secs(1));
    sim.run_for(secs(90));
    assert_eq!((is_up(&sim), count(&sim, "kill")), (false, 1));
}
