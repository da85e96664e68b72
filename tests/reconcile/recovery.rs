//! What a start of the daemon finds half done, and settles before any task runs.

use serde_json::json;
use tokio::time::Instant;
use uuid::Uuid;
use vmlet::image::Digest;
use vmlet::store::{DiskClaim, DiskState, Record, Severity};
use vmlet::testing::{ImageScript, VmScript};

use crate::SECOND;
use crate::rig::{Rig, image, image_key, is_ready, spec, vm, vm_key, with_vm};

/// An image that is ready, and a daemon that was killed.
async fn killed() -> (Rig, Digest) {
    let mut rig = Rig::new();
    rig.host.script_image("r/a:1", ImageScript::new('a', SECOND));
    rig.declare(image("a", "r/a:1")).await;
    rig.ready(&image_key("a")).await;
    rig.kill().await;
    let digest = rig.image("a").image.clone().unwrap().digest;
    (rig, digest)
}

#[tokio::test(start_paused = true)]
async fn a_claim_without_a_disk_is_given_up() {
    let mut rig = Rig::new();
    rig.kill().await;
    let digest = ImageScript::new('a', SECOND).digest.unwrap();
    assert_eq!(rig.store.claim_disk(&digest, Uuid::new_v4()).await.unwrap(), DiskClaim::Granted);
    rig.start();
    rig.assert_nothing_left().await;
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_was_installed_but_not_published_is_adopted() {
    let (mut rig, digest) = killed().await;
    rig.store.lose_disk(&digest).await.unwrap();
    assert_eq!(rig.store.claim_disk(&digest, Uuid::new_v4()).await.unwrap(), DiskClaim::Granted);
    rig.start();
    rig.eventually(|| rig.store.disk(&digest).is_some_and(|disk| disk.is_ready())).await;
    assert_eq!(rig.host.pulls("r/a:1"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_is_gone_is_pulled_again() {
    let (mut rig, digest) = killed().await;
    rig.host.lose_disk(&digest);
    rig.start();
    rig.eventually(|| rig.host.pulls("r/a:1") == 2).await;
    rig.eventually(|| rig.store.disk(&digest).is_some_and(|disk| disk.is_ready())).await;
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_nobody_refers_to_any_more_is_removed() {
    let (mut rig, digest) = killed().await;
    let uid = rig.image("a").object.metadata.uid.unwrap();
    rig.undeclare(&image_key("a")).await;
    rig.store.remove_image(&image_key("a"), uid).await.unwrap();
    assert!(matches!(rig.store.disk(&digest).unwrap().state, DiskState::Ready { .. }));
    rig.start();
    rig.assert_nothing_left().await;
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_no_record_claims_is_removed() {
    let (mut rig, digest) = killed().await;
    rig.forget_everything();
    assert_eq!(rig.host.disks(), [digest]);
    rig.start();
    rig.assert_nothing_left().await;
}

#[tokio::test(start_paused = true)]
async fn after_a_reboot_of_the_host_everything_starts_again_on_its_disk_and_address() {
    let mut rig = Rig::new();
    rig.host.script_image("r/a:1", ImageScript::new('a', SECOND));
    rig.declare(vm("job", json!({"image": {"oci": "r/a:1"}, "runPolicy": "Once"}))).await;
    rig.declare(vm("web", spec("256Mi"))).await;
    for name in ["job", "web"] {
        rig.ready(&vm_key(name)).await;
    }
    let before = ["job", "web"].map(|name| rig.vm(name).reservation.clone());
    let folders = rig.host.folders().len();
    rig.kill().await;
    rig.host.reboot();
    let began = Instant::now();
    rig.start();
    for name in ["job", "web"] {
        let again = |record: Option<&Record>| {
            matches!(record, Some(Record::Vm(vm)) if vm.starts == 2) && record.is_some_and(is_ready)
        };
        rig.until(&vm_key(name), again).await;
        let status = rig.vm(name).object.status.clone();
        assert_eq!(status.last_exit.as_ref().unwrap().reason, "HostReboot");
        let events = rig.events(name);
        assert!(events.iter().all(|event| event.severity == Severity::Normal), "{events:?}");
    }
    assert!(began.elapsed() < 2 * SECOND, "there is no backoff: {:?}", began.elapsed());
    assert_eq!(["job", "web"].map(|name| rig.vm(name).reservation.clone()), before);
    assert_eq!((rig.host.folders().len(), rig.host.pulls("r/a:1")), (folders, 1));
    rig.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn a_vmm_in_a_folder_that_no_record_claims_is_ended_with_it() {
    let mut rig = with_vm(VmScript::default(), |record| record.is_some_and(is_ready)).await;
    rig.kill().await;
    assert_eq!((rig.host.folders().len(), rig.host.running().len()), (1, 1));
    // As after a restore of an export from before the VM.
    rig.forget_everything();
    rig.start();
    rig.eventually(|| rig.host.running().is_empty() && rig.host.folders().is_empty()).await;
    rig.assert_sound();
}
