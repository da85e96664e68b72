//! Images with kernels of their own: VMs follow them, and nothing that is booted goes.

use std::time::Duration;

use vmlet::object::{Kind, ObjectKey};
use vmlet::store::{Record, Run};
use vmlet::testing::{ImageScript, Options, Simulation, Trouble};

use crate::schedule::{image, image_of, vm};
use crate::threads;

const PATIENCE: Duration = Duration::from_secs(3600);

/// An image with this in its `kernel`.
pub(crate) fn image_with(name: &str, reference: &str, kernel: &str) -> String {
    image_of(name, &format!("oci: {{reference: '{reference}'}}"), &format!(", kernel: {{{kernel}}}"))
}

fn settle(sim: &mut Simulation) -> Result<(), String> {
    sim.run_until_converged(PATIENCE).map_err(|open| open.join("\n"))?;
    let violations = sim.violations();
    if violations.is_empty() { Ok(()) } else { Err(violations.join("\n")) }
}

/// The VM's kernel, its command line, and how often it was started.
fn booted(sim: &Simulation) -> Option<(Option<String>, Option<String>, u32)> {
    sim.objects().into_iter().find_map(|record| match record {
        Record::Vm(vm) => match &vm.run {
            Run::Up { boot, .. } => {
                let kernel = boot.kernel.as_ref().map(ToString::to_string);
                Some((kernel, boot.command_line.clone(), vm.starts))
            }
            _ => None,
        },
        Record::Image(_) => None,
    })
}

fn pinned_disks(sim: &Simulation) -> Vec<String> {
    let images = sim.objects().into_iter().filter_map(|record| match record {
        Record::Image(image) => image.image.clone(),
        Record::Vm(_) => None,
    });
    images.flat_map(|pin| pin.disks().map(ToString::to_string).collect::<Vec<_>>()).collect()
}

#[test]
fn an_edited_kernel_is_one_restart_and_a_crash_none() {
    let failed = threads::each(0..40, |seed| {
        let mut sim = Simulation::new(seed, Options { trouble: Trouble::SHUFFLED, ..Options::default() });
        sim.write("image.yaml", &image("base", "r/a:1"));
        sim.write("web.yaml", &vm("web", "x", "{image: {name: base}}"));
        settle(&mut sim)?;
        let mut kernels = vec![booted(&sim).ok_or("it does not run")?.0];
        let edits = [
            "image: {}",
            "oci: {reference: 'r/k:1'}",
            "file: {kernel: /srv/vmlinuz}",
            "file: {kernel: /srv/vmlinuz}, commandLine: 'loglevel=7'",
        ];
        for (starts, edit) in (2..).zip(edits) {
            sim.write("image.yaml", &image_with("base", "r/a:1", edit));
            settle(&mut sim)?;
            let seen = booted(&sim).ok_or("it does not run")?;
            if seen.2 != starts {
                return Err(format!("{edit}: {} starts, not {starts}", seen.2));
            }
            kernels.push(seen.0.clone());
            // The pin outlives the daemon, and the sweep at its start keeps what is pinned.
            sim.crash(Duration::from_secs(5));
            settle(&mut sim)?;
            if booted(&sim) != Some(seen) {
                return Err(format!("{edit}: another one after a restart of the daemon"));
            }
        }
        let distinct: std::collections::BTreeSet<_> = kernels.iter().collect();
        if distinct.len() != 4 || kernels[0].is_some() || kernels[3] != kernels[4] {
            return Err(format!("{kernels:?}"));
        }
        sim.write("image.yaml", &image("base", "r/a:1"));
        settle(&mut sim)?;
        match booted(&sim) {
            Some((None, None, 6)) => Ok(()),
            other => Err(format!("not the host's again: {other:?}")),
        }
    });
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn a_kernels_image_is_kept_while_it_is_used_and_goes_with_its_last_user() {
    let failed = threads::each(0..40, |seed| {
        let mut sim = Simulation::new(seed, Options { trouble: Trouble::SHUFFLED, ..Options::default() });
        sim.script_image("r/k:1", ImageScript::new('b', Duration::from_secs(9)));
        sim.write("image.yaml", &image_with("base", "r/a:1", "oci: {reference: 'r/k:1'}"));
        sim.write("web.yaml", &vm("web", "x", "{image: {name: base}}"));
        settle(&mut sim)?;
        let kept = format!("sha256:{}", "b".repeat(64));
        if !pinned_disks(&sim).contains(&kept) {
            return Err("the kernel's image is not pinned".to_owned());
        }
        // The image cannot go before its VM; nothing else refers to the kernel's image then.
        sim.remove("image.yaml");
        sim.run_for(Duration::from_secs(30));
        if booted(&sim).is_none_or(|(kernel, ..)| kernel.is_none()) {
            return Err("the VM lost its kernel".to_owned());
        }
        sim.remove("web.yaml");
        settle(&mut sim)?;
        // What the oracle holds against: no disk is there that nobody refers to.
        if sim.objects().is_empty() { Ok(()) } else { Err("something stayed".to_owned()) }
    });
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn a_vm_waits_for_a_kernel_that_cannot_be_had_and_says_so() {
    let mut sim = Simulation::new(1, Options::default());
    let missing = ImageScript { digest: None, ..ImageScript::new('b', Duration::from_secs(1)) };
    sim.script_image("r/k:1", missing);
    sim.write("image.yaml", &image_with("base", "r/a:1", "oci: {reference: 'r/k:1'}"));
    sim.write("web.yaml", &vm("web", "x", "{image: {name: base}}"));
    settle(&mut sim).unwrap();
    let web = ObjectKey::new(Kind::Vm, "default", "web");
    let said = sim.objects().into_iter().find_map(|record| match record {
        Record::Vm(vm) if vm.object.key() == web => {
            let conditions = vm.object.status.conditions.clone();
            conditions.into_iter().find(|condition| condition.kind == "Ready")
        }
        _ => None,
    });
    let message = said.unwrap().message;
    assert!(message.contains("r/k:1 is not in the registry"), "{message}");
    assert_eq!(booted(&sim), None);
    // It comes: all goes on by itself.
    sim.script_image("r/k:1", ImageScript::new('b', Duration::from_secs(1)));
    sim.run_for(Duration::from_secs(600));
    assert!(booted(&sim).is_some_and(|(kernel, ..)| kernel.is_some()));
}

#[test]
fn kernels_and_images_of_all_kinds_survive_trouble() {
    let kernels = [
        "host: {}",
        "image: {}",
        "oci: {reference: 'r/a:1'}",
        "oci: {reference: 'r/k:1'}",
        "file: {kernel: /k}",
    ];
    let failed = threads::each(0..60, |seed| {
        let mut sim = Simulation::new(seed, Options { trouble: Trouble::ROUGH, ..Options::default() });
        for edit in 0..8 {
            let kernel = kernels[(seed as usize * 3 + edit * 7) % kernels.len()];
            sim.write("image.yaml", &image_with("base", ["r/a:1", "r/a:2"][edit / 3 % 2], kernel));
            sim.write("web.yaml", &vm("web", "x", "{image: {name: base}}"));
            sim.run_for(Duration::from_secs(7 * (edit as u64 + 1)));
            if edit == 4 {
                sim.crash(Duration::from_secs(3));
            }
        }
        sim.set_trouble(Trouble::NONE);
        settle(&mut sim)
    });
    assert!(failed.is_empty(), "{failed:#?}");
}
