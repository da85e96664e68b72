//! Pulls, removals and prunes on demand, beside objects that want the same disks.

use std::time::Duration;

use futures_util::StreamExt;
use serde_json::json;
use tokio::time::Instant;
use vmlet::image::{Digest, Source};
use vmlet::reconcile::Retention;
use vmlet::storage::{PruneOrder, PullUpdate, RemovalError, Storage};
use vmlet::store::RemoveDiskError;
use vmlet::testing::ImageScript;

use crate::rig::{Rig, fails, image, image_key, vm, vm_key};

const SECOND: Duration = Duration::from_secs(1);
const GRACE: Duration = Duration::from_secs(600);

fn rig(grace: Duration) -> Rig {
    Rig::with(Retention { grace, low: 10, high: 15 })
}

fn source(reference: &str) -> Source {
    Source::Oci(reference.to_owned())
}

fn digest(digit: char) -> Digest {
    format!("sha256:{}", digit.to_string().repeat(64)).parse().unwrap()
}

async fn pull(rig: &Rig, reference: &str) -> Vec<PullUpdate> {
    rig.engine().pull(source(reference)).collect().await
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_is_pulled_on_demand_is_kept_for_its_grace() {
    let rig = rig(GRACE);
    rig.host.script_image("r/a:1", ImageScript::new('a', 5 * SECOND));
    let updates = pull(&rig, "r/a:1").await;
    assert_eq!(updates[0], PullUpdate::Resolving);
    assert!(updates.iter().any(|update| matches!(update, PullUpdate::Pulling { .. })), "{updates:?}");
    let Some(PullUpdate::Done { already_there: false, kept_until: Some(until), .. }) = updates.last() else {
        panic!("{updates:?}");
    };
    assert_eq!(until.duration_since(rig.now()).as_secs(), 600);
    let disk = rig.store.disk(&digest('a')).unwrap();
    assert_eq!(disk.unused.unwrap().source.as_deref(), Some("r/a:1"));
    // Asked for again, its time begins anew; and nothing is pulled.
    tokio::time::sleep(GRACE / 2).await;
    let again = pull(&rig, "r/a:1").await;
    assert!(matches!(again.last(), Some(PullUpdate::Done { already_there: true, .. })), "{again:?}");
    assert_eq!(rig.host.pulls("r/a:1"), 1);
    let began = Instant::now();
    rig.eventually(|| rig.store.disks().is_empty()).await;
    assert!(began.elapsed() >= GRACE && began.elapsed() < GRACE + SECOND, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_pull_on_demand_shares_in_the_pull_of_objects() {
    let rig = rig(GRACE);
    rig.host.script_image("r/a:1", ImageScript::new('a', 60 * SECOND));
    rig.declare(image("a", "r/a:1")).await;
    tokio::time::sleep(20 * SECOND).await;
    let running = rig.engine().report().await.pulls;
    assert_eq!((running.len(), running[0].source.as_str()), (1, "r/a:1"));
    let updates = pull(&rig, "r/a:1").await;
    assert!(
        matches!(updates.last(), Some(PullUpdate::Done { kept_until: None, .. })),
        "it is in use: {updates:?}"
    );
    rig.ready(&image_key("a")).await;
    assert_eq!(rig.host.pulls("r/a:1"), 1);
    assert!(rig.engine().report().await.pulls.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_pull_that_nobody_watches_any_more_is_given_up() {
    let rig = rig(GRACE);
    rig.host.script_image("r/a:1", ImageScript::new('a', 60 * SECOND));
    let pulling = async { drop(pull(&rig, "r/a:1").await) };
    assert!(tokio::time::timeout(10 * SECOND, pulling).await.is_err());
    tokio::time::sleep(SECOND).await;
    assert_eq!((rig.host.pulls("r/a:1"), rig.host.staged()), (1, 0));
    assert!(rig.engine().report().await.pulls.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_told_at_once_and_an_object_goes_on_trying() {
    let rig = rig(GRACE);
    rig.host.script_image("r/a:1", ImageScript { failures: 8, ..ImageScript::new('a', SECOND) });
    let updates = pull(&rig, "r/a:1").await;
    assert!(
        matches!(updates.last(), Some(PullUpdate::Failed { reason, .. }) if reason == "RegistryUnavailable")
    );
    rig.host.script_image("r/missing:1", ImageScript { digest: None, ..ImageScript::new('b', SECOND) });
    let missing = pull(&rig, "r/missing:1").await;
    assert!(matches!(missing.last(), Some(PullUpdate::Failed { reason, .. }) if reason == "NotFound"));
    rig.declare(image("a", "r/a:1")).await;
    // Deep in its backoff by then: whoever asks does not wait for it, and helps the object, too.
    rig.eventually(|| rig.host.pulls("r/a:1") == 8).await;
    tokio::time::sleep(2 * SECOND).await;
    let began = Instant::now();
    let updates = pull(&rig, "r/a:1").await;
    assert!(
        matches!(updates.last(), Some(PullUpdate::Failed { .. } | PullUpdate::Done { .. })),
        "{updates:?}"
    );
    assert!(began.elapsed() < 10 * SECOND, "{:?}", began.elapsed());
    rig.ready(&image_key("a")).await;
}

#[tokio::test(start_paused = true)]
async fn only_what_nothing_refers_to_is_removed_on_demand() {
    let rig = rig(GRACE);
    for (name, digit) in [("a", 'a'), ("b", 'b'), ("c", 'c')] {
        rig.host.script_image(&format!("r/{name}:1"), ImageScript::new(digit, SECOND));
        pull(&rig, &format!("r/{name}:1")).await;
    }
    rig.declare(vm("web", json!({"image": {"oci": "r/a:1"}}))).await;
    rig.ready(&vm_key("web")).await;
    let engine = rig.engine();
    let refused = engine.remove(digest('a')).await;
    let Err(RemovalError::Refused(RemoveDiskError::InUse { by })) = refused else { panic!("{refused:?}") };
    assert_eq!(by, [vm_key("web")]);
    assert_eq!(engine.remove(digest('b')).await.unwrap().digest, digest('b'));
    assert!(rig.store.disk(&digest('b')).is_none(), "gone when it is said to be");
    let unknown = engine.remove(digest('b')).await;
    assert!(matches!(unknown, Err(RemovalError::Refused(RemoveDiskError::Unknown))), "{unknown:?}");
    let planned = engine.prune(PruneOrder { dry_run: true, ..PruneOrder::default() }).await.unwrap();
    assert_eq!(rig.host.removals(), 1, "a dry run removes nothing");
    let pruned = engine.prune(PruneOrder::default()).await.unwrap();
    let digests: Vec<_> = pruned.disks.iter().map(|disk| disk.digest.clone()).collect();
    assert_eq!((digests, planned.disks.len()), (vec![digest('c')], 1));
    let report = engine.report().await;
    assert_eq!(report.disks.len(), 1);
    assert_eq!(
        (&report.disks[0].used_by[..], &report.disks[0].sources[..]),
        (&["vm/web".to_owned()][..], &["r/a:1".to_owned()][..])
    );
}

#[tokio::test(start_paused = true)]
async fn a_removal_on_demand_that_fails_says_so_and_is_tried_again() {
    let rig = rig(GRACE);
    rig.host.script_image("r/a:1", ImageScript::new('a', SECOND));
    pull(&rig, "r/a:1").await;
    rig.host.script_effect("remove a disk", fails(1));
    let pruned = rig.engine().prune(PruneOrder::default()).await;
    assert!(matches!(pruned, Err(RemovalError::Files { .. })), "{pruned:?}");
    rig.eventually(|| rig.store.disks().is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn what_was_pulled_ahead_serves_a_vm_that_never_pulls() {
    let rig = rig(GRACE);
    rig.host.script_image("r/a:1", ImageScript::new('a', SECOND));
    pull(&rig, "r/a:1").await;
    rig.declare(vm("web", json!({"image": {"oci": "r/a:1", "pullPolicy": "Never"}}))).await;
    rig.ready(&vm_key("web")).await;
    assert_eq!(rig.host.pulls("r/a:1"), 1);
}

#[tokio::test(start_paused = true)]
async fn without_a_grace_a_disk_that_was_pulled_on_demand_goes_at_once() {
    let rig = rig(Duration::ZERO);
    rig.host.script_image("r/a:1", ImageScript::new('a', SECOND));
    let updates = pull(&rig, "r/a:1").await;
    assert!(matches!(updates.last(), Some(PullUpdate::Done { .. })), "{updates:?}");
    rig.assert_nothing_left().await;
}

#[tokio::test(start_paused = true)]
async fn what_boots_on_a_disk_is_told_with_it() {
    let rig = rig(GRACE);
    rig.host.script_image("r/a:1", ImageScript::new('a', SECOND));
    rig.host.script_image("r/k:1", ImageScript::new('b', SECOND));
    let mut own = image("own", "r/a:1");
    let kernel = json!({"oci": {"reference": "r/k:1"}, "commandLine": "loglevel=6"});
    own["spec"]["kernel"] = kernel;
    for object in [own, image("plain", "r/a:1"), vm("web", json!({"image": {"oci": "r/a:1"}}))] {
        rig.declare(object).await;
    }
    for key in [image_key("own"), image_key("plain"), vm_key("web")] {
        rig.ready(&key).await;
    }
    let disks = rig.engine().report().await.disks;
    let of = |digit| disks.iter().find(|disk| disk.digest == digest(digit)).unwrap();
    let kernels = serde_json::to_value(&of('a').kernels).unwrap();
    let release = &kernels[0]["release"];
    assert!(release.is_string(), "{kernels}");
    let expected = json!([
        {"from": "the kernel of r/k:1", "release": release, "commandLine": "loglevel=6", "usedBy": ["image/own"]},
        {"from": "the host's kernel", "release": kernels[1]["release"], "usedBy": ["image/plain", "vm/web"]},
    ]);
    assert_eq!(kernels, expected);
    // The image that the kernel is in cannot go, and its report says why.
    assert_eq!(
        (&of('b').used_by[..], &of('b').sources[..]),
        (&["image/own".to_owned()][..], &["r/k:1".to_owned()][..])
    );
    let refused = rig.engine().remove(digest('b')).await;
    assert!(matches!(refused, Err(RemovalError::Refused(RemoveDiskError::InUse { .. }))), "{refused:?}");
}
