//! Who shares in a pull, and whose trouble is whose: a story a rule, as in `rules`.

use std::time::Duration;

use vmlet::testing::{Action, EffectScript, ImageScript, Options, Simulation, Teller};

use crate::calm::{settle, starts};
use crate::schedule::{image, image_of, vm};

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A world in which only `r/missing:1` is not there, and nothing goes wrong. `r/a:1` and `r/same:1` are one
/// image, which takes a minute.
fn told() -> Simulation {
    let mut sim = Simulation::new(1, Options { tell_effects: true, ..Options::default() });
    for reference in ["r/a:1", "r/same:1"] {
        sim.script_image(reference, ImageScript::new('a', secs(60)));
    }
    sim.script_image("r/b:1", ImageScript::new('b', secs(2)));
    sim.script_image("r/missing:1", ImageScript { digest: None, ..ImageScript::new('d', secs(1)) });
    sim
}

/// `web`, of a reference, with more said of it.
fn web(reference: &str, more: &str) -> String {
    vm("web", "x", &format!("{{image: {{oci: '{reference}'{more}}}}}"))
}

fn effects(sim: &Simulation, name: &str) -> usize {
    sim.timeline().iter().filter(|entry| entry.teller == Teller::World && entry.text == name).count()
}

#[track_caller]
fn settled(sim: &mut Simulation) {
    if let Err(open) = settle(sim) {
        let timeline: Vec<String> = sim.timeline().iter().map(ToString::to_string).collect();
        panic!("{open}\n{}", timeline.join("\n"));
    }
}

/// Whatever takes a pull's last user away ends it: what was pulled then is never installed.
#[test]
fn a_pull_that_nobody_waits_for_any_more_is_given_up() {
    let of = |source: &str| image_of("web", source, "");
    let oci = of("oci: {reference: 'r/a:1'}");
    let edits = [
        (web("r/a:1", ""), web("r/a:1", ", pullPolicy: Never")),
        (web("r/a:1", ""), web("r/missing:1", "")),
        (web("r/a:1", ""), vm("web", "x", "{image: {name: nothing}}")),
        (web("r/a:1", ""), vm("web", "x", "{image: {oci: 'r/a:1'}, runPolicy: Halted}")),
        (oci.clone(), of("oci: {reference: 'r/a:1', pullPolicy: Never}")),
        (oci.clone(), of("oci: {reference: 'r/missing:1'}")),
        (oci, of("vm: {name: nobody}")),
    ];
    for (before, after) in edits {
        let mut sim = told();
        sim.write("web.yaml", &before);
        sim.run_for(secs(10));
        sim.write("web.yaml", &after);
        sim.run_for(secs(600));
        assert_eq!(effects(&sim, "begin a pull"), 1, "{before}");
        assert_eq!(effects(&sim, "install"), 0, "{after}");
        assert_eq!(sim.violations(), Vec::<String>::new());
    }
}

#[test]
fn a_pull_goes_on_when_an_edit_names_the_same_digest() {
    let edits =
        [(web("r/a:1", ""), web("r/same:1", "")), (image("base", "r/a:1"), image("base", "r/same:1"))];
    for (before, after) in edits {
        let mut sim = told();
        sim.write("web.yaml", &before);
        sim.run_for(secs(10));
        sim.write("web.yaml", &after);
        settled(&mut sim);
        assert_eq!(effects(&sim, "begin a pull"), 1, "{after}");
    }
}

/// One registry refuses the digest for good; another, which somebody else named, has it for both.
#[test]
fn a_refusal_is_not_theirs_who_name_another_source() {
    for (first, second) in [("web", "base"), ("base", "web")] {
        let mut sim = told();
        let refused = EffectScript { failures: 1, lasting: true, ..EffectScript::default() };
        sim.script_effect("begin a pull", refused);
        let declared = |name: &str, reference: &str| match name {
            "web" => web(reference, ""),
            _ => image(name, reference),
        };
        sim.write("first.yaml", &declared(first, "r/a:1"));
        // While the first attempt is under way, or after it was refused.
        let waits = if first == "web" { 0 } else { 30 };
        sim.at(
            secs(waits),
            Action::Write { path: "second.yaml".to_owned(), text: declared(second, "r/same:1") },
        );
        sim.run_for(secs(1));
        sim.run_for(secs(120));
        settled(&mut sim);
        assert_eq!((effects(&sim, "install"), starts(&sim, "web")), (1, 1));
    }
}

/// A registry that cannot be reached keeps nobody from another that can.
#[test]
fn after_a_failure_another_source_is_tried() {
    let mut sim = told();
    sim.script_image("r/a:1", ImageScript { failures: 1000, ..ImageScript::new('a', secs(60)) });
    sim.write("web.yaml", &web("r/a:1", ""));
    sim.run_for(secs(1));
    sim.write("base.yaml", &image("base", "r/same:1"));
    // One attempt by the first, and one by the second at once.
    sim.run_for(secs(60 + 60 + 2));
    settled(&mut sim);
    assert_eq!(effects(&sim, "begin a pull"), 2);
    assert!(sim.now() < secs(125), "{:?}", sim.now());
}

/// The failures are its own; and whoever waits for the pull has it tried at once when he is edited.
#[test]
fn an_edit_cuts_the_wait_for_the_next_attempt_short() {
    let edits = [(web("r/b:1", ""), web("r/b:1", ", pullPolicy: Always")), {
        let of = |more: &str| image_of("web", &format!("oci: {{reference: 'r/b:1'{more}}}"), "");
        (of(""), of(", pullPolicy: Always"))
    }];
    for (before, after) in edits {
        let mut sim = told();
        sim.script_effect("pull", EffectScript { failures: 1000, ..EffectScript::default() });
        sim.write("web.yaml", &before);
        sim.run_for(secs(3600));
        sim.script_effect("pull", EffectScript::default());
        let attempts = effects(&sim, "begin a pull");
        sim.write("web.yaml", &after);
        sim.run_for(secs(5));
        settled(&mut sim);
        assert_eq!(effects(&sim, "begin a pull"), attempts + 1);
        assert!(sim.now() < secs(3610), "{:?}", sim.now());
    }
}

/// A VM that asks a registry by its image's name, and is refused for good, asks anew when the image is edited.
#[test]
fn an_edit_of_its_image_ends_a_vms_wait() {
    let mut sim = told();
    let always = |reference: &str| {
        image_of("base", &format!("oci: {{reference: '{reference}', pullPolicy: Always}}"), "")
    };
    sim.write("base.yaml", &always("r/a:1"));
    sim.run_for(secs(100));
    let refused = EffectScript { failures: 1, lasting: true, ..EffectScript::default() };
    sim.script_effect("resolve", refused);
    sim.write("web.yaml", &vm("web", "x", "{image: {name: base}}"));
    sim.run_for(secs(3600));
    assert_eq!(starts(&sim, "web"), 0);
    sim.write("base.yaml", &always("r/b:1"));
    settled(&mut sim);
    assert_eq!(starts(&sim, "web"), 1);
}
