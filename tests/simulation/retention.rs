//! How long base disks are kept that nothing refers to.

use std::time::Duration;

use vmlet::reconcile::Retention;
use vmlet::testing::{Action, EffectScript, Options, Simulation, Teller};

const SECOND: Duration = Duration::from_secs(1);
const GRACE: Duration = Duration::from_secs(600);
/// A base disk's length in a simulation.
const DISK: u64 = 1 << 20;

fn options(grace: Duration) -> Options {
    let mut options = Options { tell_effects: true, ..Options::default() };
    options.settings.retention = Retention { grace, low: 10, high: 20 };
    options
}

fn vm(name: &str, reference: &str) -> String {
    format!(
        "apiVersion: vmlet.dev/v1alpha1\nkind: VM\nmetadata: {{name: {name}}}\nspec: {{image: {{oci: '{reference}'}}}}\n"
    )
}

/// How often, and when last, an effect took place.
fn effects(sim: &Simulation, name: &str) -> (usize, Duration) {
    let timeline = sim.timeline();
    let mut told = timeline.iter().filter(|entry| entry.teller == Teller::World && entry.text == name);
    (told.clone().count(), told.next_back().map(|entry| entry.at).unwrap_or_default())
}

fn converge(sim: &mut Simulation) {
    sim.run_until_converged(600 * SECOND).unwrap();
    assert_eq!(sim.violations(), [""; 0]);
}

#[test]
fn a_disk_that_is_wanted_again_in_its_grace_is_used_as_it_is() {
    let mut sim = Simulation::new(1, options(GRACE));
    sim.write("web.yaml", &vm("web", "r/a:1"));
    converge(&mut sim);
    sim.remove("web.yaml");
    converge(&mut sim);
    sim.run_for(GRACE - 60 * SECOND);
    sim.write("next.yaml", &vm("next", "r/a:1"));
    converge(&mut sim);
    sim.run_for(2 * GRACE);
    assert_eq!(effects(&sim, "begin a pull").0, 1, "one pull for both");
    assert_eq!(effects(&sim, "remove a disk").0, 0, "it is in use again");
    sim.remove("next.yaml");
    converge(&mut sim);
    let unused = sim.now();
    sim.run_for(GRACE + SECOND);
    let (removals, at) = effects(&sim, "remove a disk");
    assert_eq!(removals, 1);
    let late = (at + SECOND).saturating_sub(unused + GRACE);
    assert!(late < 2 * SECOND, "gone when its grace is over, not at the next look: {late:?}");
    converge(&mut sim);
}

#[test]
fn a_restart_does_not_begin_a_grace_anew() {
    let mut sim = Simulation::new(2, options(GRACE));
    sim.write("web.yaml", &vm("web", "r/a:1"));
    converge(&mut sim);
    sim.remove("web.yaml");
    converge(&mut sim);
    let unused = sim.now();
    for _ in 0..5 {
        sim.run_for(GRACE / 6);
        sim.crash(SECOND);
    }
    assert_eq!(effects(&sim, "remove a disk").0, 0);
    sim.run_for((unused + GRACE + 5 * SECOND).saturating_sub(sim.now()));
    assert_eq!(effects(&sim, "remove a disk").0, 1);
    converge(&mut sim);
}

#[test]
fn when_room_is_wanted_the_longest_unused_goes_until_there_is_enough() {
    let mut sim = Simulation::new(3, options(100 * GRACE));
    for name in ["a", "b", "c", "d"] {
        sim.write("web.yaml", &vm(name, &format!("r/{name}:1")));
        converge(&mut sim);
    }
    sim.remove("web.yaml");
    converge(&mut sim);
    // 100 disks' worth of room, 8 % of it free: 20 % are wanted, and four disks give 4.
    sim.script_room(100 * DISK, 88 * DISK);
    sim.run_for(60 * SECOND);
    assert_eq!(effects(&sim, "remove a disk").0, 4, "all that can go");
    for name in ["a", "b", "c", "d"] {
        sim.script_room(100 * DISK, 70 * DISK);
        sim.write("web.yaml", &vm(name, &format!("r/{name}:2")));
        converge(&mut sim);
    }
    sim.remove("web.yaml");
    converge(&mut sim);
    sim.script_room(20 * DISK, 15 * DISK);
    sim.run_for(60 * SECOND);
    assert_eq!(effects(&sim, "remove a disk").0, 7, "5 % free, then 10, 15, 20: that is enough");
    converge(&mut sim);
}

#[test]
fn layers_make_room_before_disks_do() {
    let mut sim = Simulation::new(7, options(100 * GRACE));
    sim.write("web.yaml", &vm("web", "r/a:1"));
    converge(&mut sim);
    sim.remove("web.yaml");
    converge(&mut sim);
    // 9 % free; 11 disks' worth make it 20.
    sim.script_room(100 * DISK, 70 * DISK);
    sim.script_layers(20 * DISK);
    sim.run_for(60 * SECOND);
    assert_eq!((sim.layers(), effects(&sim, "remove a disk").0), (9 * DISK, 0), "that is enough");
    sim.script_room(100 * DISK, 95 * DISK);
    sim.script_layers(2 * DISK);
    sim.run_for(60 * SECOND);
    assert_eq!((sim.layers(), effects(&sim, "remove a disk").0), (0, 1), "that was not");
    converge(&mut sim);
}

#[test]
fn layers_that_cannot_be_removed_hold_up_nothing() {
    let mut sim = Simulation::new(8, options(100 * GRACE));
    sim.write("web.yaml", &vm("web", "r/a:1"));
    converge(&mut sim);
    sim.remove("web.yaml");
    converge(&mut sim);
    sim.script_room(100 * DISK, 90 * DISK);
    sim.script_layers(5 * DISK);
    sim.script_effect("remove layers", EffectScript { failures: 2, ..EffectScript::default() });
    sim.run_for(600 * SECOND);
    assert_eq!(sim.layers(), 0, "tried again");
    converge(&mut sim);
}

#[test]
fn nothing_is_removed_for_room_that_is_there() {
    let mut sim = Simulation::new(4, options(100 * GRACE));
    sim.script_room(10 * DISK, 7 * DISK);
    sim.write("web.yaml", &vm("web", "r/a:1"));
    converge(&mut sim);
    sim.remove("web.yaml");
    converge(&mut sim);
    sim.run_for(3600 * SECOND);
    assert_eq!(effects(&sim, "remove a disk").0, 0, "20 % are free");
}

#[test]
fn a_pull_that_finds_no_room_takes_an_unused_disk_in_its_grace() {
    let mut retention = options(100 * GRACE);
    // Nobody looks at the room.
    retention.settings.retention.low = 0;
    let mut sim = Simulation::new(5, retention);
    sim.script_room(2 * DISK, 0);
    for name in ["a", "b", "c"] {
        sim.write("web.yaml", &vm(name, &format!("r/{name}:1")));
        converge(&mut sim);
    }
    let (removals, _) = effects(&sim, "remove a disk");
    assert_eq!(removals, 1, "the third pull found the first one's disk in its way, and no other");
}

#[test]
fn what_is_in_use_is_never_removed_for_room() {
    let mut sim = Simulation::new(6, options(Duration::ZERO));
    sim.write("web.yaml", &vm("web", "r/a:1"));
    converge(&mut sim);
    sim.script_room(10 * DISK, 9 * DISK);
    sim.write("next.yaml", &vm("next", "r/b:1"));
    sim.run_for(1800 * SECOND);
    assert_eq!(effects(&sim, "remove a disk").0, 0);
    sim.script_room(10 * DISK, 0);
    converge(&mut sim);
    assert_eq!(sim.violations(), [""; 0]);
}

#[test]
fn graces_hold_in_bad_days_too() {
    for seed in 0..40 {
        let mut bad = options(30 * SECOND);
        bad.trouble = vmlet::testing::Trouble::ROUGH;
        bad.tell_effects = false;
        let mut sim = Simulation::new(seed, bad);
        sim.script_room(8 * DISK, 5 * DISK);
        for round in 0..6_u32 {
            let at = SECOND * round * 25;
            let name = ["a", "b", "c"][(round % 3) as usize];
            sim.at(at, Action::Write { path: "web.yaml".to_owned(), text: vm(name, &format!("r/{name}:1")) });
            sim.at(at + 20 * SECOND, Action::Remove { path: "web.yaml".to_owned() });
        }
        sim.run_for(180 * SECOND);
        sim.set_trouble(vmlet::testing::Trouble::NONE);
        sim.run_for(30 * SECOND);
        let settled = sim.run_until_converged(3600 * SECOND);
        assert!(
            settled.is_ok() && sim.violations().is_empty(),
            "seed {seed}: {settled:?} {:?}",
            sim.violations()
        );
    }
}
