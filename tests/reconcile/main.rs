//! The engine over a scripted world: who overlaps with whom, who wins, and what is left.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod admission;
mod declarations;
mod panics;
mod recovery;
mod rig;
mod spans;
mod storage;
mod turns;

use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;
use vmlet::image::{Progress, Source};
use vmlet::object::Quantity;
use vmlet::reconcile::Entropy;
use vmlet::store::{DiskClaim, Record, Run};
use vmlet::testing::{ImageScript, VmScript};

use rig::{Rig, fails, image, image_key, is_ready, reason, vm, vm_key};

const SECOND: Duration = Duration::from_secs(1);

fn phase(record: Option<&Record>) -> String {
    match record {
        Some(Record::Vm(vm)) => vm.object.status.phase.clone(),
        Some(Record::Image(image)) => image.object.status.phase.clone(),
        None => String::new(),
    }
}

#[tokio::test(start_paused = true)]
async fn a_vm_of_a_named_image_comes_up_and_vanishes() {
    let rig = Rig::new();
    rig.host.script_image("r/a:1", ImageScript::new('a', 5 * SECOND));
    rig.declare(vm("web", json!({"image": {"name": "a"}}))).await;
    rig.until(&vm_key("web"), |record| record.is_some_and(|record| reason(record) == "ImageNotFound")).await;
    rig.declare(image("a", "r/a:1")).await;
    rig.ready(&vm_key("web")).await;
    let record = rig.vm("web");
    assert_eq!(record.object.status.addresses, ["10.63.0.2"]);
    assert_eq!((rig.host.running().len(), rig.host.attached()), (1, 1));
    rig.undeclare(&vm_key("web")).await;
    rig.gone(&vm_key("web")).await;
    rig.undeclare(&image_key("a")).await;
    rig.gone(&image_key("a")).await;
    rig.assert_nothing_left().await;
}

#[tokio::test(start_paused = true)]
async fn two_pulls_of_distinct_names_are_in_the_slow_body_at_once() {
    let rig = Rig::new();
    for (name, digit) in [("a", 'a'), ("b", 'b')] {
        rig.host.script_image(&format!("r/{name}:1"), ImageScript::new(digit, 60 * SECOND));
        rig.declare(image(name, &format!("r/{name}:1"))).await;
    }
    let began = Instant::now();
    rig.ready(&image_key("a")).await;
    rig.ready(&image_key("b")).await;
    assert_eq!(rig.host.most_pulling(), 2);
    assert!(began.elapsed() < 65 * SECOND, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn two_pulls_of_one_digest_both_reach_publish_and_exactly_one_wins() {
    let rig = Rig::new();
    rig.host.script_image("r/a:1", ImageScript::new('a', SECOND));
    let source = Source::Oci("r/a:1".to_owned());
    let images = rig.host.parts(rig.clock(), Entropy::seeded(1)).images;
    let digest = images.resolve(&source).await.unwrap();
    let (progress, _) = watch::channel(Progress::default());
    let stage = || images.stage(&source, &digest, &progress);
    let (first, second) = tokio::join!(stage(), stage());
    let staged = [first.unwrap(), second.unwrap()];
    assert_eq!((rig.host.most_pulling(), rig.host.staged()), (2, 2));
    let claims = [Uuid::new_v4(), Uuid::new_v4()];
    let mut granted = 0;
    for (staged, claim) in staged.into_iter().zip(claims) {
        if rig.store.claim_disk(&digest, claim).await.unwrap() == DiskClaim::Granted {
            granted += 1;
            let disk = images.install(staged).await.unwrap();
            rig.store.publish_disk(&digest, claim, disk.path, Quantity::bytes(1), disk.config).await.unwrap();
        }
    }
    assert_eq!((granted, rig.host.staged()), (1, 0));
    assert!(rig.store.disk(&digest).unwrap().is_ready());
}

#[tokio::test(start_paused = true)]
async fn everyone_who_waits_for_one_digest_shares_one_pull() {
    let rig = Rig::new();
    rig.host.script_image("r/a:1", ImageScript::new('a', 30 * SECOND));
    rig.host.script_image("r/same:2", ImageScript::new('a', 30 * SECOND));
    rig.declare(image("a", "r/a:1")).await;
    rig.declare(vm("x", json!({"image": {"oci": "r/a:1"}}))).await;
    rig.declare(vm("y", json!({"image": {"oci": "r/same:2"}}))).await;
    for key in [image_key("a"), vm_key("x"), vm_key("y")] {
        rig.ready(&key).await;
    }
    assert_eq!(rig.host.pulls("r/a:1") + rig.host.pulls("r/same:2"), 1);
}

#[tokio::test(start_paused = true)]
async fn eight_creates_overlap_in_boot_and_their_claims_never_do() {
    let rig = Rig::new();
    rig.host.script_image("r/a:1", ImageScript::new('a', SECOND));
    rig.declare(image("a", "r/a:1")).await;
    rig.ready(&image_key("a")).await;
    let names: Vec<String> = (0..8).map(|number| format!("vm-{number}")).collect();
    for name in &names {
        rig.declare(vm(name, json!({"image": {"name": "a"}}))).await;
    }
    let began = Instant::now();
    for name in &names {
        rig.ready(&vm_key(name)).await;
    }
    assert_eq!(rig.host.most_booting(), 8);
    assert!(began.elapsed() < 2 * SECOND, "{:?}", began.elapsed());
    let mut addresses: Vec<String> =
        names.iter().map(|name| rig.vm(name).object.status.addresses[0].clone()).collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 8);
}

#[tokio::test(start_paused = true)]
async fn boots_keep_to_their_limit_and_the_waiting_say_so() {
    let mut rig = Rig::new();
    rig.kill().await;
    rig.settings.max_boots = 2;
    rig.start();
    rig.host.script_image("r/a:1", ImageScript::new('a', SECOND));
    for number in 0..6 {
        rig.declare(vm(&format!("vm-{number}"), json!({"image": {"oci": "r/a:1"}}))).await;
    }
    let waits = |record: Option<&Record>| record.is_some_and(|record| reason(record) == "WaitingForBoot");
    let mut waited = 0;
    for number in 0..6 {
        let key = vm_key(&format!("vm-{number}"));
        let met = |record: Option<&Record>| waits(record) || record.is_some_and(is_ready);
        waited += usize::from(waits(rig.until(&key, met).await.as_ref()));
    }
    for number in 0..6 {
        rig.ready(&vm_key(&format!("vm-{number}"))).await;
    }
    assert!(waited >= 3, "{waited}");
    assert_eq!(rig.host.most_booting(), 2);
}

#[tokio::test(start_paused = true)]
async fn pulls_keep_to_their_limit_and_the_waiting_say_so() {
    let mut rig = Rig::new();
    rig.kill().await;
    rig.settings.max_pulls = 2;
    rig.start();
    for digit in ['a', 'b', 'c', 'd', 'e'] {
        let reference = format!("r/{digit}:1");
        rig.host.script_image(&reference, ImageScript::new(digit, 10 * SECOND));
        rig.declare(image(&digit.to_string(), &reference)).await;
    }
    let names = ["a", "b", "c", "d", "e"];
    let waits = |name: &&str| {
        let record = rig.store.record(&image_key(name));
        record.is_some_and(|record| reason(&record) == "WaitingForPull")
    };
    rig.eventually(|| names.iter().filter(|name| waits(name)).count() == 3).await;
    for name in names {
        rig.ready(&image_key(name)).await;
    }
    assert_eq!(rig.host.most_pulling(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_deletion_cuts_the_wait_after_a_failure() {
    let rig = Rig::new();
    rig.host.script_image("r/a:1", ImageScript::new('a', SECOND));
    rig.host.script_effect("prepare", fails(u32::MAX));
    rig.declare(vm("web", json!({"image": {"oci": "r/a:1"}}))).await;
    tokio::time::sleep(1000 * SECOND).await;
    let began = Instant::now();
    rig.undeclare(&vm_key("web")).await;
    rig.gone(&vm_key("web")).await;
    assert!(began.elapsed() < 2 * SECOND, "{:?}", began.elapsed());
    rig.assert_nothing_left().await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_pull_delays_no_other_object() {
    let rig = Rig::new();
    rig.host.script_image("r/slow:1", ImageScript::new('a', 3600 * SECOND));
    rig.host.script_image("r/quick:1", ImageScript::new('b', SECOND));
    rig.declare(image("slow", "r/slow:1")).await;
    rig.declare(vm("slow", json!({"image": {"name": "slow"}}))).await;
    rig.declare(image("quick", "r/quick:1")).await;
    rig.declare(vm("quick", json!({"image": {"name": "quick"}}))).await;
    let began = Instant::now();
    rig.ready(&vm_key("quick")).await;
    assert!(began.elapsed() < 4 * SECOND, "{:?}", began.elapsed());
    assert_eq!(rig.vm("slow").object.status.phase, "Pulling");
}

#[tokio::test(start_paused = true)]
async fn deleting_an_image_never_waits_for_its_pull() {
    let rig = Rig::new();
    rig.host.script_image("r/a:1", ImageScript::new('a', 3600 * SECOND));
    rig.declare(image("a", "r/a:1")).await;
    rig.until(&image_key("a"), |record| phase(record) == "Pulling").await;
    rig.eventually(|| rig.host.staged() == 1).await;
    let began = Instant::now();
    rig.undeclare(&image_key("a")).await;
    rig.gone(&image_key("a")).await;
    assert!(began.elapsed() < SECOND, "{:?}", began.elapsed());
    rig.assert_nothing_left().await;
}

#[tokio::test(start_paused = true)]
async fn an_image_in_use_stays_until_its_last_vm_is_gone() {
    let rig = Rig::new();
    rig.host.script_image("r/a:1", ImageScript::new('a', SECOND));
    rig.declare(image("a", "r/a:1")).await;
    rig.declare(vm("web", json!({"image": {"name": "a"}}))).await;
    rig.ready(&vm_key("web")).await;
    rig.undeclare(&image_key("a")).await;
    let held =
        rig.until(&image_key("a"), |record| record.is_some_and(|record| reason(record) == "InUse")).await;
    let said = rig::conditions(&held.unwrap());
    assert!(said.iter().any(|c| c.message.contains("vm/web")), "{said:?}");
    assert_eq!(rig.host.removals(), 0);
    assert!(is_ready(&rig.store.record(&vm_key("web")).unwrap()));
    rig.undeclare(&vm_key("web")).await;
    rig.gone(&image_key("a")).await;
    rig.assert_nothing_left().await;
}

#[tokio::test(start_paused = true)]
async fn an_edit_during_a_pull_wins_at_once() {
    let rig = Rig::new();
    rig.host.script_image("r/a:1", ImageScript::new('a', 3600 * SECOND));
    rig.host.script_image("r/a:2", ImageScript::new('b', SECOND));
    rig.declare(image("a", "r/a:1")).await;
    rig.eventually(|| rig.host.staged() == 1).await;
    let began = Instant::now();
    rig.declare(image("a", "r/a:2")).await;
    rig.ready(&image_key("a")).await;
    assert!(began.elapsed() < 3 * SECOND, "{:?}", began.elapsed());
    assert_eq!(rig.host.staged(), 0);
    assert_eq!(rig.image("a").object.status.digest.as_deref().map(|digest| &digest[7..9]), Some("bb"));
}

#[tokio::test(start_paused = true)]
async fn a_failed_pull_is_everyones_condition_and_its_retry_is_one() {
    let rig = Rig::new();
    rig.host.script_image("r/a:1", ImageScript { failures: 3, ..ImageScript::new('a', SECOND) });
    rig.declare(vm("x", json!({"image": {"oci": "r/a:1"}}))).await;
    rig.declare(vm("y", json!({"image": {"oci": "r/a:1"}}))).await;
    for name in ["x", "y"] {
        let failed = |record: Option<&Record>| phase(record) == "Backoff";
        rig.until(&vm_key(name), failed).await;
        let status = rig.vm(name).object.status.clone();
        assert!(status.next_retry_time.is_some(), "{status:?}");
        let image = status.conditions.iter().find(|c| c.kind == "ImageReady").unwrap();
        assert_eq!(image.reason, "RegistryUnavailable");
    }
    rig.ready(&vm_key("x")).await;
    rig.ready(&vm_key("y")).await;
    assert_eq!(rig.host.pulls("r/a:1"), 4);
}

#[tokio::test(start_paused = true)]
async fn a_missing_reference_waits_longer_each_time_and_an_edit_cuts_the_wait() {
    let rig = Rig::new();
    rig.host.script_image("r/good:1", ImageScript::new('a', SECOND));
    rig.host.script_image("r/missing:1", ImageScript { digest: None, ..ImageScript::new('b', SECOND) });
    rig.declare(vm("web", json!({"image": {"oci": "r/missing:1"}}))).await;
    tokio::time::sleep(3600 * SECOND).await;
    rig.until(&vm_key("web"), |record| phase(record) == "Backoff").await;
    let wait = rig.vm("web").object.status.next_retry_time;
    assert!(wait.is_some());
    let began = Instant::now();
    rig.declare(vm("web", json!({"image": {"oci": "r/good:1"}}))).await;
    rig.ready(&vm_key("web")).await;
    assert!(began.elapsed() < 4 * SECOND, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_crash_loop_backs_off_and_counts_restarts() {
    let rig = Rig::new();
    rig.host.script_image("r/a:1", ImageScript::new('a', SECOND));
    rig.declare(vm("web", json!({"image": {"oci": "r/a:1"}}))).await;
    let mut waits = Vec::new();
    for restarts in 0..4 {
        let up = |record: Option<&Record>| {
            let Some(Record::Vm(vm)) = record else { return false };
            vm.object.status.restarts == restarts && record.is_some_and(is_ready)
        };
        let began = Instant::now();
        rig.until(&vm_key("web"), up).await;
        waits.push(began.elapsed());
        rig.crash("web");
    }
    // A boot takes a second; the waits before it are about 1, 2 and 4 seconds.
    assert!(waits[3] > waits[2] && waits[2] > waits[1], "{waits:?}");
    rig.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn a_run_that_lasted_forgets_the_failures_before_it() {
    let rig = Rig::new();
    rig.host.script_image("r/a:1", ImageScript::new('a', SECOND));
    rig.declare(vm("web", json!({"image": {"oci": "r/a:1"}}))).await;
    let started = |times: u32| {
        move |record: Option<&Record>| {
            matches!(record, Some(Record::Vm(vm)) if vm.starts == times) && record.is_some_and(is_ready)
        }
    };
    for times in 1..6 {
        rig.until(&vm_key("web"), started(times)).await;
        rig.crash("web");
    }
    rig.until(&vm_key("web"), started(6)).await;
    tokio::time::sleep(700 * SECOND).await;
    let began = Instant::now();
    rig.crash("web");
    rig.until(&vm_key("web"), started(7)).await;
    assert!(began.elapsed() < 4 * SECOND, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_boot_that_hangs_is_killed_and_tried_again() {
    let rig = Rig::new();
    rig.host.script_image("r/a:1", ImageScript::new('a', SECOND));
    rig.script("web", VmScript { hangs: u32::MAX, ..VmScript::default() });
    rig.declare(vm("web", json!({"image": {"oci": "r/a:1"}}))).await;
    let failed = |record: Option<&Record>| matches!(record, Some(Record::Vm(vm)) if vm.last_exit.is_some());
    rig.until(&vm_key("web"), failed).await;
    rig.script("web", VmScript::default());
    rig.ready(&vm_key("web")).await;
}

#[tokio::test(start_paused = true)]
async fn failing_steps_are_told_and_retried_until_they_succeed() {
    for step in ["prepare", "spawn", "release"] {
        let rig = Rig::new();
        rig.host.script_image("r/a:1", ImageScript::new('a', SECOND));
        rig.host.script_effect(step, fails(2));
        rig.declare(vm("web", json!({"image": {"oci": "r/a:1"}}))).await;
        rig.ready(&vm_key("web")).await;
        rig.host.script_effect("cleanup", fails(2));
        rig.undeclare(&vm_key("web")).await;
        rig.gone(&vm_key("web")).await;
        rig.assert_nothing_left().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_killed_engine_is_followed_by_one_that_adopts_what_runs() {
    let mut rig = Rig::new();
    rig.host.script_image("r/a:1", ImageScript::new('a', SECOND));
    for name in ["a", "b", "c"] {
        rig.declare(vm(name, json!({"image": {"oci": "r/a:1"}}))).await;
        rig.ready(&vm_key(name)).await;
    }
    let before: Vec<Run> = ["a", "b", "c"].map(|name| rig.vm(name).run.clone()).to_vec();
    rig.kill().await;
    rig.crash("c");
    let mut changes = rig.store.watch(None).unwrap();
    rig.start();
    rig.until(&vm_key("c"), |record| matches!(record, Some(Record::Vm(vm)) if vm.starts == 2)).await;
    rig.ready(&vm_key("c")).await;
    assert_eq!([rig.vm("a").run.clone(), rig.vm("b").run.clone()].as_slice(), &before[..2]);
    let flaps = |record: &Record| record.key() == vm_key("a") && !is_ready(record);
    while let Ok(Ok(change)) = tokio::time::timeout(SECOND, changes.next()).await {
        assert!(!flaps(&change.record), "an adopted VM stays Ready: {:#?}", change.record);
    }
    rig.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn a_name_that_is_declared_again_waits_for_the_old_vm_to_be_gone() {
    let rig = Rig::new();
    rig.host.script_image("r/a:1", ImageScript::new('a', SECOND));
    let spec = json!({"image": {"oci": "r/a:1"}});
    rig.declare(vm("web", spec.clone())).await;
    rig.ready(&vm_key("web")).await;
    let old = rig.vm("web").object.metadata.uid;
    rig.undeclare(&vm_key("web")).await;
    rig.gone(&vm_key("web")).await;
    rig.declare(vm("web", spec)).await;
    rig.ready(&vm_key("web")).await;
    assert_ne!(rig.vm("web").object.metadata.uid, old);
    rig.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn an_image_that_changes_moves_its_vms_when_it_is_ready() {
    let rig = Rig::new();
    rig.host.script_image("r/a:1", ImageScript::new('a', SECOND));
    rig.host.script_image("r/a:2", ImageScript::new('b', 100 * SECOND));
    rig.declare(image("a", "r/a:1")).await;
    rig.declare(vm("web", json!({"image": {"name": "a"}}))).await;
    rig.ready(&vm_key("web")).await;
    let began = Instant::now();
    rig.declare(image("a", "r/a:2")).await;
    tokio::time::sleep(50 * SECOND).await;
    let meanwhile = rig.store.record(&vm_key("web")).unwrap();
    assert!(is_ready(&meanwhile), "it runs on while the new image is pulled: {meanwhile:#?}");
    let moved = |record: Option<&Record>| {
        matches!(record, Some(Record::Vm(vm)) if vm.starts == 2) && record.is_some_and(is_ready)
    };
    rig.until(&vm_key("web"), moved).await;
    assert!(began.elapsed() < 110 * SECOND, "{:?}", began.elapsed());
    rig.eventually(|| rig.store.disks().len() == 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_job_that_ends_stays_ended() {
    let rig = Rig::new();
    rig.host.script_image("r/a:1", ImageScript::new('a', SECOND));
    rig.declare(vm("job", json!({"image": {"oci": "r/a:1"}, "runPolicy": "Once"}))).await;
    rig.ready(&vm_key("job")).await;
    assert!(rig.host.end_workload(&vm_key("job"), 5));
    rig.until(&vm_key("job"), |record| phase(record) == "Stopped").await;
    let status = rig.vm("job").object.status.clone();
    assert_eq!((status.last_exit.as_ref().unwrap().code, status.restarts), (Some(5), 0));
    tokio::time::sleep(3600 * SECOND).await;
    assert_eq!((rig.host.running().len(), rig.host.attached()), (0, 0));
}
