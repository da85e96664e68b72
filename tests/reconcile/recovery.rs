//! What a start of the daemon finds half done, and settles before any task runs.

use uuid::Uuid;
use vmlet::image::{Digest, Images};
use vmlet::store::{DiskClaim, DiskState};
use vmlet::testing::ImageScript;

use crate::SECOND;
use crate::rig::{Rig, image, image_key};

/// An image that is ready, and a daemon that was killed.
async fn killed() -> (Rig, Digest) {
    let mut rig = Rig::new();
    rig.images.script("r/a:1", ImageScript::new('a', SECOND));
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
    assert_eq!(rig.images.pulls("r/a:1"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_is_gone_is_pulled_again() {
    let (mut rig, digest) = killed().await;
    rig.images.remove(&digest).await.unwrap();
    rig.start();
    rig.eventually(|| rig.images.pulls("r/a:1") == 2).await;
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
    rig.store = vmlet::store::Store::in_memory().0;
    assert_eq!(rig.images.installed().await.unwrap(), [digest]);
    rig.start();
    rig.assert_nothing_left().await;
}
