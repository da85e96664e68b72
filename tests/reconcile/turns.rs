//! Bad moments: edits and deletions in the middle of slow steps. The newer wish wins promptly, and nothing
//! of the older one is left.

use serde_json::json;
use tokio::time::Instant;
use vmlet::store::Record;
use vmlet::testing::{EffectScript, ImageScript, VmScript};

use crate::rig::{Rig, fails, image, image_key, is_ready, panics, says, spec, vm, vm_key, with_vm};
use crate::{SECOND, phase};

/// A VM whose disks take ten seconds to be made.
async fn with_slow_disks() -> Rig {
    let rig = Rig::new();
    rig.host.script_image("r/a:1", ImageScript::new('a', SECOND));
    rig.host.script_effect("prepare", EffectScript { takes: 10 * SECOND, ..EffectScript::default() });
    rig.declare(vm("web", spec("256Mi"))).await;
    rig.until(&vm_key("web"), |record| says("Booting")(record)).await;
    rig
}

fn slow_boot() -> VmScript {
    VmScript { boot: 40 * SECOND, ..VmScript::default() }
}

#[tokio::test(start_paused = true)]
async fn an_edit_while_disks_are_made_starts_the_vm_once_with_the_new_spec() {
    let rig = with_slow_disks().await;
    rig.declare(vm("web", spec("512Mi"))).await;
    rig.ready(&vm_key("web")).await;
    let record = rig.vm("web");
    assert_eq!((record.starts, record.object.status.restarts), (1, 0), "the old spec was never started");
    assert_eq!(record.reservation.as_ref().unwrap().memory.to_string(), "512Mi");
    rig.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn a_deletion_while_disks_are_made_starts_nothing() {
    let rig = with_slow_disks().await;
    let began = Instant::now();
    rig.host.script_effect("spawn", panics(1));
    rig.undeclare(&vm_key("web")).await;
    let mut changes = rig.store.watch(None).unwrap();
    rig.gone(&vm_key("web")).await;
    assert!(began.elapsed() <= 11 * SECOND, "{:?}", began.elapsed());
    while let Ok(Ok(change)) = tokio::time::timeout(SECOND, changes.next()).await {
        let Record::Vm(vm) = &change.record else { continue };
        assert_eq!(vm.starts, 0, "a deleted VM was started");
    }
    assert!(rig.events("web").iter().all(|event| event.reason != "InternalError"), "it was not even spawned");
    rig.assert_nothing_left().await;
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_is_halted_while_disks_are_made_is_not_spawned() {
    let rig = with_slow_disks().await;
    rig.host.script_effect("spawn", panics(1));
    rig.declare(vm("web", json!({"image": {"oci": "r/a:1"}, "memory": "256Mi", "runPolicy": "Halted"})))
        .await;
    rig.until(&vm_key("web"), |record| phase(record) == "Stopped").await;
    tokio::time::sleep(60 * SECOND).await;
    assert!(rig.events("web").iter().all(|event| event.reason != "InternalError"));
    assert_eq!(rig.vm("web").starts, 0);
}

/// A start that is given up halfway leaves its tap to the step that comes next, whichever it is.
#[tokio::test(start_paused = true)]
async fn the_tap_of_a_start_that_failed_is_not_left() {
    for next in ["none", "halted", "deleted"] {
        let rig = Rig::new();
        rig.host.script_image("r/a:1", ImageScript::new('a', SECOND));
        rig.host.script_effect("spawn", fails(u32::MAX));
        rig.declare(vm("web", spec("256Mi"))).await;
        rig.eventually(|| rig.host.attached() == 1).await;
        match next {
            "none" => {
                rig.host.script_effect("spawn", fails(0));
                let bare = json!({"image": {"oci": "r/a:1"}, "memory": "256Mi", "network": {"mode": "none"}});
                rig.declare(vm("web", bare)).await;
                rig.ready(&vm_key("web")).await;
            }
            "halted" => {
                let halted = json!({"image": {"oci": "r/a:1"}, "memory": "256Mi", "runPolicy": "Halted"});
                rig.declare(vm("web", halted)).await;
                rig.until(&vm_key("web"), |record| phase(record) == "Stopped").await;
                rig.eventually(|| !rig.vm("web").reservation.as_ref().unwrap().can_run()).await;
            }
            _ => {
                rig.undeclare(&vm_key("web")).await;
                rig.gone(&vm_key("web")).await;
            }
        }
        assert_eq!(rig.host.attached(), 0, "{next}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_waits_after_a_crash_has_no_tap() {
    let rig = with_vm(VmScript::default(), |record| record.is_some_and(is_ready)).await;
    rig.host.script_effect("spawn", fails(u32::MAX));
    rig.crash("web");
    rig.until(&vm_key("web"), |record| phase(record) == "Backoff").await;
    assert_eq!(rig.host.attached(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_deletion_during_the_boot_does_not_wait_for_it() {
    let up = |record: Option<&Record>| matches!(record, Some(Record::Vm(vm)) if vm.starts == 1);
    let rig = with_vm(slow_boot(), up).await;
    let began = Instant::now();
    rig.undeclare(&vm_key("web")).await;
    rig.gone(&vm_key("web")).await;
    assert!(began.elapsed() < SECOND, "a guest that was never heard of is killed: {:?}", began.elapsed());
    rig.assert_nothing_left().await;
}

#[tokio::test(start_paused = true)]
async fn an_edit_during_the_boot_does_not_wait_for_it() {
    let up = |record: Option<&Record>| matches!(record, Some(Record::Vm(vm)) if vm.starts == 1);
    let rig = with_vm(slow_boot(), up).await;
    let began = Instant::now();
    rig.script("web", VmScript::default());
    rig.declare(vm("web", spec("512Mi"))).await;
    rig.ready(&vm_key("web")).await;
    assert!(began.elapsed() < 3 * SECOND, "{:?}", began.elapsed());
    assert_eq!(rig.vm("web").starts, 2);
    rig.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn a_deletion_during_a_vms_own_pull_cancels_it() {
    let rig = Rig::new();
    rig.host.script_image("r/a:1", ImageScript::new('a', 3600 * SECOND));
    rig.declare(vm("web", spec("256Mi"))).await;
    rig.eventually(|| rig.host.staged() == 1).await;
    let began = Instant::now();
    rig.undeclare(&vm_key("web")).await;
    rig.gone(&vm_key("web")).await;
    assert!(began.elapsed() < SECOND, "{:?}", began.elapsed());
    rig.assert_nothing_left().await;
}

#[tokio::test(start_paused = true)]
async fn an_edit_during_the_stop_counts_for_it() {
    let rig = Rig::new();
    rig.host.script_image("r/a:1", ImageScript::new('a', SECOND));
    // Guests that do not shut down: only the grace period ends them.
    rig.script("web", VmScript { deaf: true, ..VmScript::default() });
    rig.declare(vm("web", spec("256Mi"))).await;
    rig.ready(&vm_key("web")).await;
    rig.declare(vm(
        "web",
        json!({"image": {"oci": "r/a:1"}, "memory": "512Mi",
        "terminationGracePeriodSeconds": 3600}),
    ))
    .await;
    rig.until(&vm_key("web"), |record| phase(record) == "Stopping").await;
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!(rig.vm("web").object.status.phase, "Stopping");
    let began = Instant::now();
    rig.declare(vm(
        "web",
        json!({"image": {"oci": "r/a:1"}, "memory": "1Gi",
        "terminationGracePeriodSeconds": 0}),
    ))
    .await;
    rig.ready(&vm_key("web")).await;
    assert!(began.elapsed() < 5 * SECOND, "{:?}", began.elapsed());
    let record = rig.vm("web");
    assert_eq!((record.starts, record.reservation.as_ref().unwrap().memory.to_string().as_str()), (2, "1Gi"));
}

#[tokio::test(start_paused = true)]
async fn an_image_that_is_deleted_as_a_vm_of_it_is_created_is_kept_or_pulled_anew() {
    for vm_first in [true, false] {
        let rig = Rig::new();
        rig.host.script_image("r/a:1", ImageScript::new('a', SECOND));
        rig.declare(image("a", "r/a:1")).await;
        rig.ready(&image_key("a")).await;
        let web = || vm("web", json!({"image": {"name": "a"}}));
        if vm_first {
            rig.declare(web()).await;
            rig.undeclare(&image_key("a")).await;
            rig.until(&image_key("a"), |record| says("InUse")(record)).await;
            rig.undeclare(&vm_key("web")).await;
            rig.gone(&vm_key("web")).await;
        } else {
            rig.undeclare(&image_key("a")).await;
            rig.declare(web()).await;
            // The image may be gone already, or stay because of the VM; either way the VM never runs on it.
            tokio::time::sleep(10 * SECOND).await;
            assert!(rig.vm("web").starts == 0 && rig.host.running().is_empty());
            rig.undeclare(&vm_key("web")).await;
            rig.gone(&vm_key("web")).await;
        }
        rig.gone(&image_key("a")).await;
        rig.assert_nothing_left().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_is_being_removed_is_pulled_anew_for_a_vm_that_names_it_directly() {
    let rig = with_vm(VmScript::default(), |record| record.is_some_and(is_ready)).await;
    rig.undeclare(&vm_key("web")).await;
    rig.gone(&vm_key("web")).await;
    // At this instant the collector is woken for the disk.
    rig.declare(vm("next", spec("256Mi"))).await;
    rig.ready(&vm_key("next")).await;
    let digest = rig.vm("next").image.as_ref().unwrap().digest.clone();
    assert!(rig.store.disk(&digest).unwrap().is_ready());
    rig.undeclare(&vm_key("next")).await;
    rig.gone(&vm_key("next")).await;
    rig.assert_nothing_left().await;
}

#[tokio::test(start_paused = true)]
async fn a_deleted_image_goes_when_an_edit_takes_its_last_vm_away() {
    let rig = Rig::new();
    rig.host.script_image("r/a:1", ImageScript::new('a', SECOND));
    rig.host.script_image("r/b:1", ImageScript::new('b', SECOND));
    rig.declare(image("a", "r/a:1")).await;
    rig.declare(vm("web", json!({"image": {"name": "a"}}))).await;
    rig.ready(&vm_key("web")).await;
    rig.undeclare(&image_key("a")).await;
    rig.until(&image_key("a"), |record| says("InUse")(record)).await;
    rig.declare(vm("web", json!({"image": {"oci": "r/b:1"}}))).await;
    rig.gone(&image_key("a")).await;
    rig.ready(&vm_key("web")).await;
}
