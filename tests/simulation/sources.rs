//! Images that are not in a registry, in the engine.

use std::time::Duration;

use vmlet::object::{Kind, ObjectKey};
use vmlet::store::{Record, Run};
use vmlet::testing::{ImageScript, Options, Simulation, Trouble, VmScript, WorkloadExit};

use crate::schedule::{image_of, vm};

const PATIENCE: Duration = Duration::from_secs(3600);

fn converge(sim: &mut Simulation) {
    let settled = sim.run_until_converged(PATIENCE);
    settled.unwrap_or_else(|open| panic!("{}", open.join("\n")));
    assert_eq!(sim.violations(), Vec::<String>::new());
}

/// The image that the VM runs on, and what its status says of it.
fn runs(sim: &Simulation) -> Option<(String, String)> {
    sim.objects().into_iter().find_map(|record| match record {
        Record::Vm(vm) if matches!(vm.run, Run::Up { .. }) => {
            let held = vm.reservation.as_ref()?.image.to_string();
            Some((held, vm.object.status.image.as_ref()?.reference.clone()))
        }
        _ => None,
    })
}

#[test]
fn a_vm_follows_its_image_from_one_kind_of_source_to_the_next() {
    let sum = "0".repeat(64);
    let sources = [
        ("oci: {reference: 'r/a:1'}", "r/a:1"),
        ("ociLayout: {path: /srv/app.tar, reference: 'app:1'}", "/srv/app.tar (app:1)"),
        ("ociLayout: {path: /srv/app.tar, reference: 'app:2'}", "/srv/app.tar (app:2)"),
        (
            &format!("bundle: {{url: 'https://images.example/app.tar', sha256: '{sum}'}}"),
            "https://images.example/app.tar",
        ),
        ("bundle: {path: /srv/bundle.tar}", "/srv/bundle.tar"),
        ("files: {root: /srv/root.ext4}", "/srv/root.ext4"),
    ];
    for seed in 0..8 {
        let mut sim = Simulation::new(seed, Options { trouble: Trouble::SHUFFLED, ..Options::default() });
        sim.write("web.yaml", &vm("web", "x", "{image: {name: base}}"));
        let mut seen = std::collections::BTreeSet::new();
        for (source, name) in &sources {
            sim.write("image.yaml", &image_of("base", source, ""));
            converge(&mut sim);
            let (digest, shown) = runs(&sim).unwrap();
            assert!(shown == *name && seen.insert(digest), "seed {seed}: {shown}");
            // What was read of a source outlives the daemon.
            sim.crash(Duration::from_secs(1));
            converge(&mut sim);
            assert_eq!(runs(&sim).unwrap().1, *name);
        }
    }
}

#[test]
fn no_vm_starts_on_files_that_changed() {
    let mut sim = Simulation::new(7, Options { trouble: Trouble::SHUFFLED, ..Options::default() });
    let script = |changed| ImageScript { changed, ..ImageScript::of("/srv/root.ext4") };
    sim.script_image("/srv/root.ext4", script(false));
    sim.write("image.yaml", &image_of("base", "files: {root: /srv/root.ext4}", ""));
    let exit = WorkloadExit { after: Duration::from_secs(600), code: 1, times: Some(1) };
    let web = ObjectKey::new(Kind::Vm, "default", "web");
    sim.script_vm(web.clone(), VmScript { exit: Some(exit), ..VmScript::default() });
    sim.write("web.yaml", &vm("web", "x", "{image: {name: base}}"));
    sim.run_for(Duration::from_secs(300));
    assert!(runs(&sim).is_some());
    // It runs on, but when it ends it is not started again.
    sim.script_image("/srv/root.ext4", script(true));
    sim.run_for(Duration::from_secs(100));
    assert!(runs(&sim).is_some());
    sim.run_for(Duration::from_secs(400));
    assert!(runs(&sim).is_none());
    let ready = sim.objects().into_iter().find_map(|record| {
        let vmlet::object::AnyObject::Vm(vm) = record.object() else { return None };
        vm.status.conditions.iter().find(|condition| condition.kind == "Ready").cloned()
    });
    let ready = ready.unwrap();
    assert_eq!(ready.reason, "FilesChanged", "{}", ready.message);
    sim.script_image("/srv/root.ext4", script(false));
    converge(&mut sim);
    assert!(runs(&sim).is_some());
}
