//! One rule of the engine a test: a story in which nothing goes wrong but what is scripted, and which ends
//! otherwise without the rule.

use std::time::Duration;

use vmlet::object::{Kind, ObjectKey, Quantity};
use vmlet::store::Record;
use vmlet::testing::{Action, EffectScript, ImageScript, Options, Simulation, Teller, Trouble, VmScript};

use crate::calm::{every_seed, settle, starts};
use crate::schedule::{image, vm};

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A world in which everything succeeds at once, and tells of each effect.
fn told() -> Simulation {
    with(|_| {})
}

fn with(set: impl FnOnce(&mut Options)) -> Simulation {
    let mut options = Options { tell_effects: true, ..Options::default() };
    set(&mut options);
    let mut sim = Simulation::new(1, options);
    for (reference, digit) in [("r/a:1", 'a'), ("r/b:1", 'b')] {
        sim.script_image(reference, ImageScript::new(digit, secs(2)));
    }
    sim
}

/// The same, with an effect that takes its time.
fn with_slow(effect: &str) -> Simulation {
    let mut sim = told();
    slow(effect, &mut sim);
    sim
}

/// The same, in which `web` runs.
fn running() -> Simulation {
    let mut sim = told();
    sim.write("web.yaml", &web(""));
    settled(&mut sim);
    sim
}

/// The same, in which `web` runs on the `Image` object `base`.
fn running_of_an_image() -> Simulation {
    let mut sim = told();
    sim.write("base.yaml", &image("base", "r/a:1"));
    sim.write("web.yaml", &named("web", "base"));
    settled(&mut sim);
    sim
}

fn slow(effect: &str, sim: &mut Simulation) {
    sim.script_effect(effect, EffectScript { takes: secs(10), ..EffectScript::default() });
}

/// `web` of the usual reference.
fn web(more: &str) -> String {
    of("web", "r/a:1", more)
}

/// A VM of a reference.
fn of(name: &str, reference: &str, more: &str) -> String {
    vm(name, "x", &format!("{{image: {{oci: '{reference}'}}{more}}}"))
}

fn named(name: &str, image: &str) -> String {
    vm(name, "x", &format!("{{image: {{name: {image}}}}}"))
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new(Kind::Vm, "default", name)
}

/// What the timeline tells of a teller that starts so.
fn count(sim: &Simulation, teller: Teller, text: &str) -> usize {
    sim.timeline().iter().filter(|entry| entry.teller == teller && entry.text.starts_with(text)).count()
}

fn effects(sim: &Simulation, name: &str) -> usize {
    sim.timeline().iter().filter(|entry| entry.teller == Teller::World && entry.text == name).count()
}

fn record(sim: &Simulation, key: &ObjectKey) -> Record {
    sim.objects().into_iter().find(|record| record.key() == *key).expect("it is there")
}

/// A condition's reason and message.
fn condition(sim: &Simulation, key: &ObjectKey, kind: &str) -> Option<(String, String)> {
    let record = record(sim, key);
    let conditions = record.object().conditions().to_vec();
    let found = conditions.into_iter().find(|condition| condition.kind == kind)?;
    Some((found.reason, found.message))
}

#[track_caller]
fn settled(sim: &mut Simulation) {
    if let Err(open) = settle(sim) {
        let timeline: Vec<String> = sim.timeline().iter().map(ToString::to_string).collect();
        panic!("{open}\n{}", timeline.join("\n"));
    }
}

#[test]
fn after_missed_changes_every_object_is_looked_at() {
    let mut sim = with(|options| options.history = 3);
    for number in 0..8 {
        let (name, reference) = (format!("i{number}"), format!("r/{number}:1"));
        // One pull: all of them become ready at one instant, and most of that is missed.
        sim.script_image(&reference, ImageScript::new('a', secs(5)));
        sim.write(&format!("{name}.yaml"), &image(&name, &reference));
        sim.write(&format!("v{number}.yaml"), &named(&format!("v{number}"), &name));
    }
    settled(&mut sim);
}

#[test]
fn what_is_not_durable_yet_is_not_acted_upon() {
    every_seed(|seed| {
        let trouble = Trouble { slow_flushes: 1.0, ..Trouble::NONE };
        let mut sim = Simulation::new(seed, Options { trouble, ..Options::default() });
        sim.script_image("r/slow:1", ImageScript::new('b', secs(100_000)));
        sim.write("db.yaml", &of("db", "r/a:1", ""));
        sim.write("web.yaml", &web(", dependsOn: [db]"));
        settle(&mut sim)?;
        // It holds a folder and a disk, waits for an image, and looks whenever the other one changes.
        sim.write("web.yaml", &of("web", "r/slow:1", ", dependsOn: [db]"));
        sim.run_for(secs(5));
        sim.at(Duration::ZERO, Action::KillVmm(key("web")));
        sim.run_for(secs(20));
        sim.write("db.yaml", &of("db", "r/a:1", ", memory: 512Mi"));
        sim.run_for(Duration::from_millis(seed * 50));
        sim.remove("web.yaml");
        settle(&mut sim)
    });
}

#[test]
fn an_edit_while_devices_are_made_starts_no_process() {
    let mut sim = with_slow("prepare");
    sim.write("web.yaml", &web(""));
    sim.run_for(secs(7));
    sim.write("web.yaml", &web(", memory: 512Mi"));
    settled(&mut sim);
    assert_eq!((effects(&sim, "spawn"), starts(&sim, "web")), (1, 1));
}

#[test]
fn an_edit_that_is_taken_back_in_time_costs_no_disk() {
    let mut sim = running();
    sim.write("web.yaml", &web(", rootDisk: {size: 3Gi}"));
    sim.run_for(Duration::from_millis(1));
    slow("detach", &mut sim);
    sim.run_for(secs(15));
    sim.write("web.yaml", &web(""));
    settled(&mut sim);
    assert_eq!((effects(&sim, "remove disk"), starts(&sim, "web")), (0, 2));
}

#[test]
fn an_edit_while_the_process_is_at_its_gate_ends_it_there() {
    let mut sim = with_slow("spawn");
    sim.write("web.yaml", &web(""));
    sim.run_for(secs(7));
    sim.write("web.yaml", &web(", memory: 512Mi"));
    settled(&mut sim);
    assert_eq!((effects(&sim, "spawn"), effects(&sim, "release"), starts(&sim, "web")), (2, 1, 1));
}

#[test]
fn a_vm_says_why_its_image_cannot_be_had() {
    let mut sim = told();
    sim.script_image("r/missing:1", ImageScript { digest: None, ..ImageScript::new('d', secs(1)) });
    sim.script_effect("pull", EffectScript { failures: 1000, ..EffectScript::default() });
    for (name, reference) in [("gone", "r/missing:1"), ("broken", "r/a:1")] {
        sim.write(&format!("{name}.yaml"), &image(name, reference));
        sim.write(&format!("v{name}.yaml"), &named(&format!("v{name}"), name));
    }
    sim.run_for(secs(60));
    let why = |name: &str| condition(&sim, &key(name), "Ready").expect("it says something");
    let (reason, message) = why("vgone");
    assert_eq!(reason, "ImageFailed");
    assert!(
        message.starts_with("image/gone is not ready: ") && message.contains("not in the registry"),
        "{message}"
    );
    let (reason, message) = why("vbroken");
    assert_eq!(reason, "ImageFailed");
    assert!(message.starts_with("image/broken is not ready: pull fails, as scripted"), "{message}");
}

#[test]
fn a_disk_that_is_being_installed_is_not_there_yet() {
    let mut sim = with_slow("install");
    sim.write("base.yaml", &image("base", "r/a:1"));
    sim.write("web.yaml", &named("web", "base"));
    sim.run_for(secs(7));
    let (reason, message) = condition(&sim, &key("web"), "ImageReady").expect("it says something");
    assert_eq!(reason, "Pulling");
    assert!(message.starts_with("image/base is not ready: "), "{message}");
    settled(&mut sim);
}

#[test]
fn a_vm_of_an_edited_image_waits_for_the_new_one() {
    let mut sim = told();
    sim.write("base.yaml", &image("base", "r/a:1"));
    sim.write("old.yaml", &named("old", "base"));
    settled(&mut sim);
    slow("resolve", &mut sim);
    sim.write("base.yaml", &image("base", "r/b:1"));
    sim.write("new.yaml", &named("new", "base"));
    settled(&mut sim);
    assert_eq!((starts(&sim, "old"), starts(&sim, "new")), (2, 1));
}

#[test]
fn an_edited_reference_is_resolved_anew() {
    let mut sim = running();
    sim.write("web.yaml", &of("web", "r/b:1", ""));
    settled(&mut sim);
    assert_eq!(starts(&sim, "web"), 2);
}

#[test]
fn an_edit_to_another_image_does_not_wait_for_the_first() {
    let mut sim = told();
    sim.script_image("r/slow:1", ImageScript::new('c', secs(100_000)));
    sim.write("web.yaml", &of("web", "r/slow:1", ""));
    sim.run_for(secs(10));
    sim.write("web.yaml", &web(""));
    sim.run_for(secs(30));
    assert_eq!(starts(&sim, "web"), 1);
    settled(&mut sim);
}

#[test]
fn a_vm_that_waits_for_its_next_try_holds_no_boot_permit() {
    let mut sim = with(|options| options.settings.max_boots = 1);
    sim.script_effect("spawn of vm/a", EffectScript { failures: 1000, ..EffectScript::default() });
    sim.write("a.yaml", &of("a", "r/a:1", ""));
    sim.run_for(secs(40));
    sim.write("b.yaml", &of("b", "r/a:1", ""));
    sim.run_for(secs(2));
    assert_eq!((starts(&sim, "a"), starts(&sim, "b")), (0, 1));
}

#[test]
fn a_live_edit_does_not_cost_the_place_in_line_for_a_boot_permit() {
    let mut sim = with(|options| options.settings.max_boots = 1);
    for (name, at) in [("a", 0), ("b", 5), ("c", 10)] {
        sim.script_vm(key(name), VmScript { boot: secs(30), ..VmScript::default() });
        let text = of(name, "r/a:1", "");
        sim.at(secs(at), Action::Write { path: format!("{name}.yaml"), text });
    }
    sim.run_for(secs(15));
    sim.write("b.yaml", &of("b", "r/a:1", ", terminationGracePeriodSeconds: 3"));
    sim.run_for(secs(30));
    assert_eq!(["a", "b", "c"].map(|name| starts(&sim, name)), [1, 1, 0]);
    settled(&mut sim);
}

#[test]
fn a_free_boot_permit_is_taken_without_a_word_of_waiting() {
    let sim = running();
    assert_eq!(count(&sim, Teller::Status, "generation 1: Pending, WaitingForBoot"), 0);
}

#[test]
fn a_pull_that_is_refused_for_good_waits_for_an_edit() {
    let mut sim = told();
    sim.script_effect("pull", EffectScript { failures: 1, lasting: true, ..EffectScript::default() });
    sim.write("base.yaml", &image("base", "r/a:1"));
    sim.write("web.yaml", &named("web", "base"));
    sim.run_for(secs(3600));
    let base = ObjectKey::new(Kind::Image, "default", "base");
    assert_eq!(effects(&sim, "begin a pull"), 1);
    let (reason, message) = condition(&sim, &base, "Stalled").expect("it is stalled");
    assert_eq!(
        (reason.as_str(), message.as_str()),
        ("Scripted", "pull fails for good, as scripted (attempt 1 of this pull)")
    );
    assert_eq!(condition(&sim, &key("web"), "Ready").expect("it says why").0, "ImageFailed");
    sim.write("base.yaml", &image("base", "r/b:1"));
    settled(&mut sim);
    assert_eq!(starts(&sim, "web"), 1);
}

#[test]
fn an_install_that_fails_is_given_up_and_tried_again() {
    for done in [false, true] {
        let mut sim = told();
        sim.script_effect("install", EffectScript { failures: 2, done, ..EffectScript::default() });
        sim.write("web.yaml", &web(""));
        sim.run_for(secs(60));
        assert_eq!(starts(&sim, "web"), 1);
        settled(&mut sim);
    }
}

#[test]
fn a_removal_that_fails_is_tried_again() {
    for done in [false, true] {
        let mut sim = running();
        sim.script_effect("remove a disk", EffectScript { failures: 3, done, ..EffectScript::default() });
        sim.remove("web.yaml");
        settled(&mut sim);
        assert_eq!(count(&sim, Teller::World, "remove a disk"), if done { 7 } else { 4 });
    }
}

#[test]
fn a_tear_down_that_fails_is_tried_again() {
    for effect in ["detach", "cleanup of vm/web", "remove disk of vm/web"] {
        let mut sim = running();
        sim.script_effect(effect, EffectScript { failures: 3, ..EffectScript::default() });
        sim.write("web.yaml", &of("web", "r/b:1", ""));
        sim.run_for(secs(60));
        sim.remove("web.yaml");
        settled(&mut sim);
    }
}

#[test]
fn an_image_that_is_wanted_again_while_it_is_removed_is_pulled_after_that() {
    let mut sim = running();
    slow("remove a disk", &mut sim);
    sim.remove("web.yaml");
    sim.run_for(secs(5));
    sim.write("web.yaml", &web(""));
    settled(&mut sim);
    assert_eq!(effects(&sim, "remove a disk"), 1);
}

#[test]
fn a_disk_that_is_installed_for_nobody_goes() {
    let mut sim = with_slow("install");
    sim.write("web.yaml", &web(""));
    sim.run_for(secs(7));
    sim.remove("web.yaml");
    settled(&mut sim);
    assert_eq!(effects(&sim, "install"), 1);
}

#[test]
fn a_disk_goes_when_the_vm_that_pinned_it_pins_another() {
    let mut sim = told();
    sim.write("other.yaml", &of("other", "r/b:1", ""));
    // It never reserves anything.
    sim.write("web.yaml", &web(", dependsOn: [ghost]"));
    settled(&mut sim);
    assert_eq!(effects(&sim, "install"), 2);
    sim.write("web.yaml", &of("web", "r/b:1", ", dependsOn: [ghost]"));
    settled(&mut sim);
    assert_eq!(effects(&sim, "remove a disk"), 1);
}

#[test]
fn a_disk_goes_when_the_image_that_pinned_it_pins_another() {
    let mut sim = told();
    sim.write("other.yaml", &of("other", "r/b:1", ""));
    sim.write("base.yaml", &image("base", "r/a:1"));
    settled(&mut sim);
    sim.write("base.yaml", &image("base", "r/b:1"));
    settled(&mut sim);
    assert_eq!(effects(&sim, "remove a disk"), 1);
}

#[test]
fn a_deleted_image_in_use_pulls_no_more() {
    let mut sim = told();
    sim.script_image("r/slow:1", ImageScript::new('c', secs(100_000)));
    sim.write("base.yaml", &image("base", "r/slow:1"));
    sim.write("web.yaml", &named("web", "base"));
    sim.run_for(secs(10));
    sim.remove("base.yaml");
    // Settled is also: nothing is staged.
    settled(&mut sim);
}

#[test]
fn a_deleted_image_in_use_says_so_once() {
    let mut sim = running_of_an_image();
    sim.remove("base.yaml");
    settled(&mut sim);
    sim.write("web.yaml", &vm("web", "x", "{image: {name: base}, terminationGracePeriodSeconds: 3}"));
    settled(&mut sim);
    assert_eq!(count(&sim, Teller::Status, "generation 1, to be deleted: Terminating, InUse"), 1);
}

#[test]
fn a_step_that_panics_is_a_failed_attempt() {
    let mut sim = told();
    sim.script_effect("spawn", EffectScript { panics: 3, ..EffectScript::default() });
    sim.script_effect("resolve", EffectScript { panics: 2, ..EffectScript::default() });
    sim.script_effect("install", EffectScript { panics: 2, ..EffectScript::default() });
    sim.write("web.yaml", &web(""));
    settled(&mut sim);
    assert_eq!(count(&sim, Teller::Event, "Warning InternalError"), 5);
    // Doubled each time: 1 + 2 seconds, and for the last step 1 + 2 + 4, less a fifth at most.
    assert!(sim.now() > secs(8), "{:?}", sim.now());
}

#[test]
fn while_a_new_image_cannot_be_had_the_vm_runs_and_says_why() {
    let mut sim = told();
    sim.script_image("r/missing:1", ImageScript { digest: None, ..ImageScript::new('d', secs(1)) });
    sim.write("web.yaml", &web(""));
    settled(&mut sim);
    sim.write("web.yaml", &of("web", "r/missing:1", ""));
    sim.run_for(secs(60));
    assert_eq!(condition(&sim, &key("web"), "Ready").expect("it is told").0, "Ready");
    let (reason, message) = condition(&sim, &key("web"), "Reconciling").expect("it is not done");
    assert_eq!(reason, "NotFound");
    assert!(message.contains("r/missing:1 is not in the registry"), "{message}");
}

#[test]
fn a_halt_while_devices_are_made_leaves_no_tap() {
    let mut sim = with_slow("attach");
    sim.write("web.yaml", &web(""));
    sim.run_for(secs(8));
    sim.write("web.yaml", &web(", runPolicy: Halted"));
    settled(&mut sim);
    assert_eq!((effects(&sim, "attach"), effects(&sim, "spawn")), (1, 0));
    assert!(effects(&sim, "detach") > 0, "{:#?}", sim.timeline());
}

#[test]
fn a_deleted_image_goes_when_an_edit_takes_its_last_vm_away() {
    let mut sim = running_of_an_image();
    sim.remove("base.yaml");
    settled(&mut sim);
    assert_eq!(sim.objects().len(), 2, "it is in use");
    sim.write("web.yaml", &of("web", "r/b:1", ""));
    settled(&mut sim);
    assert_eq!(sim.objects().len(), 1);
}

#[test]
fn a_vm_whose_image_cannot_be_had_keeps_no_memory_from_others() {
    let missing = || ImageScript { digest: None, ..ImageScript::new('d', secs(1)) };
    for (image, why) in [("oci: 'r/missing:1'", "no such reference"), ("name: gone", "no such object")] {
        let mut sim = with(|options| options.settings.capacity.memory = Quantity::mebibytes(300));
        sim.script_image("r/missing:1", missing());
        slow("prepare", &mut sim);
        sim.write("web.yaml", &web(", memory: 256Mi"));
        sim.run_for(secs(8));
        // It holds its memory, and does not run yet.
        sim.write("web.yaml", &vm("web", "x", &format!("{{image: {{{image}}}, memory: 256Mi}}")));
        sim.write("other.yaml", &of("other", "r/a:1", ", memory: 256Mi"));
        sim.run_for(secs(200));
        let ready = condition(&sim, &key("other"), "Ready").expect("it is told");
        assert_eq!(ready.0, "Ready", "{why}: {}", ready.1);
    }
}

/// Three VMs whose step takes ten seconds each: together they take no longer.
#[test]
fn slow_steps_of_different_vms_overlap() {
    let names = ["a", "b", "c"];
    for effect in ["resolve", "prepare", "kill", "cleanup"] {
        let mut sim = told();
        let write = |sim: &mut Simulation| {
            for name in names {
                let more = ", terminationGracePeriodSeconds: 0";
                sim.write(&format!("{name}.yaml"), &of(name, "r/a:1", more));
            }
        };
        if matches!(effect, "kill" | "cleanup") {
            write(&mut sim);
            settled(&mut sim);
        }
        slow(effect, &mut sim);
        match effect {
            "kill" | "cleanup" => {
                for name in names {
                    sim.remove(&format!("{name}.yaml"));
                }
                sim.run_for(secs(18));
                let left: Vec<_> = sim.objects().iter().map(Record::key).collect();
                assert!(left.is_empty(), "{effect}: {left:?} are left");
            }
            _ => {
                write(&mut sim);
                sim.run_for(secs(18));
                assert_eq!(names.map(|name| starts(&sim, name)), [1, 1, 1], "{effect}");
            }
        }
        settled(&mut sim);
    }
}

#[test]
fn slow_answers_of_registries_are_waited_for_side_by_side() {
    let mut sim = with_slow("resolve");
    for name in ["a", "b", "c"] {
        sim.write(&format!("{name}.yaml"), &image(name, "r/a:1"));
    }
    sim.run_for(secs(18));
    assert_eq!(effects(&sim, "resolve"), 3);
    settled(&mut sim);
}

#[test]
fn a_deletion_does_not_wait_for_a_registrys_answer() {
    let mut sim = told();
    sim.script_effect("resolve", EffectScript { takes: secs(100_000), ..EffectScript::default() });
    sim.write("base.yaml", &image("base", "r/a:1"));
    sim.write("web.yaml", &web(""));
    sim.run_for(secs(5));
    sim.remove("base.yaml");
    sim.remove("web.yaml");
    sim.run_for(secs(5));
    assert!(sim.objects().is_empty());
}

#[test]
fn a_deletion_of_an_image_does_not_wait_for_its_next_try() {
    let mut sim = told();
    sim.script_effect("resolve", EffectScript { failures: 1000, ..EffectScript::default() });
    sim.write("base.yaml", &image("base", "r/a:1"));
    sim.run_for(secs(600));
    assert!((5..15).contains(&count(&sim, Teller::World, "resolve")), "it waits longer each time");
    sim.remove("base.yaml");
    sim.run_for(secs(2));
    assert!(sim.objects().is_empty());
}

#[test]
fn a_workload_that_ends_again_and_again_is_started_less_and_less_often() {
    let mut sim = told();
    let exit = vmlet::testing::WorkloadExit { after: secs(2), code: 1, times: None };
    sim.script_vm(key("web"), VmScript { exit: Some(exit), ..VmScript::default() });
    sim.write("web.yaml", &web(""));
    sim.run_for(secs(600));
    assert!((5..15).contains(&starts(&sim, "web")), "{} starts", starts(&sim, "web"));
}

#[test]
fn a_start_that_succeeds_after_a_failure_leaves_no_word_of_it() {
    let mut sim = told();
    sim.script_effect("spawn", EffectScript { failures: 1, ..EffectScript::default() });
    sim.write("web.yaml", &web(""));
    settled(&mut sim);
    assert_eq!(condition(&sim, &key("web"), "Reconciling"), None);
}

#[test]
fn every_edit_is_a_shutdown_and_no_kill() {
    let mut sim = running();
    for memory in ["512Mi", "768Mi", "1Gi"] {
        sim.write("web.yaml", &web(&format!(", memory: {memory}")));
        settled(&mut sim);
    }
    assert_eq!((starts(&sim, "web"), effects(&sim, "kill")), (4, 0));
}

#[test]
fn what_changed_meanwhile_is_no_failure() {
    let mut sim = with_slow("prepare");
    sim.write("web.yaml", &web(""));
    sim.run_for(secs(7));
    sim.write("web.yaml", &web(", memory: 512Mi"));
    settled(&mut sim);
    assert_eq!(count(&sim, Teller::Event, "Warning"), 0);
}

#[test]
fn an_image_is_announced_once() {
    let mut sim = running_of_an_image();
    sim.run_for(secs(60));
    let of_base = |entry: &&vmlet::testing::Entry| {
        entry.teller == Teller::Event && entry.object.as_ref().is_some_and(|object| object.name == "base")
    };
    let told: Vec<String> = sim.timeline().iter().filter(of_base).map(|entry| entry.text.clone()).collect();
    assert_eq!(told.iter().filter(|text| text.starts_with("Ready: ")).count(), 1, "{told:?}");
}
