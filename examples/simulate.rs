//! Tests manifests by a program: `cargo run --example simulate`.
//!
//! What a scenario file cannot say can be said here: what is done next may depend on what was seen.

use std::path::Path;
use std::time::Duration;

use vmlet::object::{Kind, ObjectKey};
use vmlet::store::Record;
use vmlet::testing::{Action, ImageScript, Options, Scenario, Simulation, Trouble};

const WEB: &str = "
apiVersion: vmlet.dev/v1alpha1
kind: VM
metadata: {name: web}
spec: {image: {oci: 'registry.example/web:1'}, runPolicy: Always}
";

fn main() {
    files();
    program();
}

/// A folder and a scenario file, with some seeds: what `vmlet simulate` does.
fn files() {
    let gitops = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/gitops");
    let scenario = gitops.join("scenarios/bad-day.yaml");
    let scenario = Scenario::load(&gitops.join("manifests"), Some(&scenario)).expect("both are valid");
    for seed in 0..5 {
        let outcome = scenario.run(seed);
        assert!(outcome.violations.is_empty(), "seed {seed}: {:#?}", outcome.violations);
    }
    println!("the bad day of examples/gitops ends well");
}

/// Step by step: whenever `web` is up its VMM is killed, five times.
fn program() {
    let web = ObjectKey::new(Kind::Vm, "default", "web");
    let mut sim = Simulation::new(7, Options { trouble: Trouble::SHUFFLED, ..Options::default() });
    sim.script_image("registry.example/web:1", ImageScript::new('a', Duration::from_secs(20)));
    sim.write("web.yaml", WEB);
    let up = sim.run_until_converged(Duration::from_secs(600)).expect("web becomes ready");
    println!("web is up after {up:?}");
    for _ in 0..5 {
        sim.at(sim.now(), Action::KillVmm(web.clone()));
        sim.run_for(Duration::from_secs(1));
        sim.run_until_converged(Duration::from_secs(600)).expect("web comes back");
    }
    assert_eq!(sim.violations(), Vec::<String>::new());
    let starts = sim.objects().into_iter().map(|record| match record {
        Record::Vm(vm) => vm.starts,
        Record::Image(_) => 0,
    });
    println!("web was started {} times, and is up after {:?}", starts.sum::<u32>(), sim.now());
}

#[test]
fn it_ends_well() {
    main();
}
