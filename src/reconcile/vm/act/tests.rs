//! Steps of a VM's task, taken by hand in a scripted world.

use std::mem::{self, discriminant};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::watch;
use tokio::time::Instant;

use super::*;
use crate::agent::{Agent, FakeGuest, FakeScript, LogSink};
use crate::image::Source;
use crate::object::ObjectKey;
use crate::reconcile::task::{Outcome, Reconciler};
use crate::reconcile::vm::InLine;
use crate::reconcile::vm::state::Guest;
use crate::reconcile::vm::step::Failure;
use crate::reconcile::world::World;
use crate::store::Run;
use crate::testing::Rig;

fn manifest(reference: &str) -> String {
    format!(
        "apiVersion: vmlet.dev/v1alpha1\nkind: VM\nmetadata: {{name: web}}\nspec: {{image: {{oci: '{reference}'}}}}"
    )
}

fn wake() -> (watch::Sender<u64>, Wake) {
    let (sender, receiver) = watch::channel(0);
    (sender, Wake::new(receiver))
}

/// A VM that is declared, and its task.
async fn task(rig: &Rig) -> (ObjectKey, VmTask) {
    let key = rig.declare(&manifest("r/a:1")).await;
    let world = Arc::new(World::new(rig.store.clone(), rig.parts(), rig.settings.clone()));
    let uid = rig.store.vm(&key).unwrap().object.metadata.uid.unwrap();
    (key.clone(), VmTask::new(world, key, uid))
}

#[tokio::test(start_paused = true)]
async fn a_panic_keeps_the_place_in_line_and_the_count_of_failures() {
    let rig = Rig::new();
    let (_, mut task) = task(&rig).await;
    task.line = Some(InLine::Called);
    task.panicked("once").await;
    task.panicked("and again").await;
    assert!(matches!(task.line, Some(InLine::Called)));
    assert_eq!(task.attempts.failures(), 2);
}

#[tokio::test(start_paused = true)]
async fn after_a_look_that_panicked_only_time_or_an_edit_causes_another() {
    let rig = Rig::new();
    let (key, mut task) = task(&rig).await;
    let (_sender, mut wake) = wake();
    task.attempts.observe(&rig.store.vm(&key).unwrap().object.metadata, None);
    let held_off = task.panicked("the look").await;
    assert!(matches!(held_off, Outcome::Wait(Some(_))));
    assert_eq!(task.reconcile(&mut wake).await, held_off);
    assert_eq!(rig.store.vm(&key).unwrap().object.status.phase, "", "it did not look");
    rig.declare(&manifest("r/b:1")).await;
    assert_eq!(task.reconcile(&mut wake).await, Outcome::Again);
}

#[tokio::test(start_paused = true)]
async fn a_digest_that_was_asked_for_before_an_edit_is_not_recorded_after_it() {
    let rig = Rig::new();
    let (key, mut task) = task(&rig).await;
    let (_sender, mut wake) = wake();
    let before = rig.store.vm(&key).unwrap();
    rig.declare(&manifest("r/b:1")).await;
    let resolved = task.resolve(&before, &Source::Oci("r/a:1".to_owned()), &mut wake).await;
    assert!(matches!(resolved, Err(StepError::Stale)));
    assert_eq!(rig.store.vm(&key).unwrap().image, None);
}

/// A deletion that is not durable yet may not have happened: what it asks for is not done.
#[tokio::test(start_paused = true)]
async fn a_step_that_touches_the_host_waits_until_what_it_is_based_on_is_durable() {
    let rig = Rig::new();
    let (key, mut task) = task(&rig).await;
    let (_sender, mut wake) = wake();
    while rig.store.vm(&key).unwrap().reservation.is_none() {
        if let Outcome::Wait(_) = task.reconcile(&mut wake).await {
            task.changed().await;
        }
    }
    rig.backend.hold();
    let (store, gone) = (rig.store.clone(), key.clone());
    let now = rig.now();
    tokio::spawn(async move { store.undeclare(&gone, "directory:/m", now).await });
    tokio::task::yield_now().await;
    let deleted = rig.store.vm(&key).unwrap();
    assert!(deleted.object.metadata.deletion_timestamp.is_some());
    let before = rig.effects();
    let (last, step) = (Duration::from_secs(60), task.reconcile(&mut wake));
    assert!(tokio::time::timeout(last, step).await.is_err(), "the step waits");
    assert_eq!(rig.effects(), before);
    rig.backend.release();
    while task.reconcile(&mut wake).await != Outcome::Gone {}
    assert!(rig.store.vm(&key).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_vm_takes_one_boot_permit_though_it_could_have_two() {
    let mut rig = Rig::new();
    rig.settings.max_boots = 2;
    let (key, mut task) = task(&rig).await;
    let boots = task.world.boots.clone();
    let taken = boots.clone().acquire_many_owned(2).await.unwrap();
    let (sender, mut wake) = wake();
    let queued = task.queue(&mut wake).now_or_never();
    assert!(queued.is_none(), "it waits in line");
    sender.send_replace(1);
    task.queue(&mut wake).await.ok().unwrap();
    assert!(task.queue.is_some(), "and keeps its place when it is woken");
    drop(taken);
    assert!(task.permit_at_once());
    assert_eq!(boots.available_permits(), 1);
    assert!(rig.store.vm(&key).is_some());
}

/// Looks and acts until the record is as wanted.
async fn until(
    rig: &Rig,
    key: &ObjectKey,
    task: &mut VmTask,
    wanted: impl Fn(&VmRecord) -> bool,
) -> VmRecord {
    let (_sender, mut wake) = wake();
    loop {
        let record = VmRecord::clone(&rig.store.vm(key).unwrap());
        if wanted(&record) {
            return record;
        }
        if let Outcome::Wait(_) = task.reconcile(&mut wake).await {
            task.changed().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn no_step_touches_the_host_before_what_it_saw_is_durable() {
    let rig = Rig::new();
    let (key, mut task) = task(&rig).await;
    let up = until(&rig, &key, &mut task, |record| matches!(record.run, Run::Up { .. })).await;
    let (_sender, mut wake) = wake();
    let seen = task.observe(&up, Instant::now());
    // The link is tried for again and again meanwhile.
    let effects = || rig.effects().into_iter().filter(|effect| effect != "connect").collect::<Vec<_>>();
    rig.backend.hold();
    // Somebody's change, which may be undone by a crash.
    let changed = rig.store.set_problem(&key, Some(problem())).now_or_never();
    assert!(changed.is_none(), "it is not durable");
    let steps = [
        Step::Reserve { discard_disk: true, impatient: false },
        Step::Relinquish,
        Step::Boot,
        Step::Kill { why: "test".to_owned() },
        Step::RecordExit { rerun: true, failed: false },
        Step::TearDown,
    ];
    for step in steps {
        let (before, text) = (effects(), format!("{step:?}"));
        let act = tokio::time::timeout(Duration::from_secs(60), task.act(&up, &seen, step, &mut wake)).await;
        assert!(act.is_err() && effects() == before, "{text} did not wait: {:?}", effects());
    }
    // Nor is any taken once nothing will be durable any more.
    rig.backend.fail_next(crate::store::Fault::Flush);
    rig.backend.release();
    let before = effects();
    task.act(&up, &seen, Step::TearDown, &mut wake).await;
    assert_eq!(effects(), before);
    assert!(task.attempts.failure().is_some());
}

fn problem() -> crate::store::Problem {
    crate::store::Problem { reason: "R".to_owned(), message: String::new() }
}

#[tokio::test(start_paused = true)]
async fn a_claim_of_an_edited_spec_is_refused() {
    let rig = Rig::new();
    let (key, mut task) = task(&rig).await;
    let pinned = until(&rig, &key, &mut task, |record| record.reservation.is_some()).await;
    rig.declare(&manifest("r/b:1")).await;
    let before = rig.store.vm(&key).unwrap();
    let claimed = task.reserve(&pinned, false, false).await;
    assert!(matches!(claimed, Err(StepError::Stale)));
    assert_eq!(rig.store.vm(&key), Some(before));
}

#[tokio::test(start_paused = true)]
async fn a_pin_and_a_reservation_end_the_row_of_failures_and_a_start_does_not() {
    let rig = Rig::new();
    let (key, mut task) = task(&rig).await;
    let (_sender, mut wake) = wake();
    let fail = |task: &mut VmTask| {
        let step = discriminant(&Step::Boot);
        task.fail(Failure { reason: "R".to_owned(), message: String::new(), transient: true, step });
    };
    let record = rig.store.vm(&key).unwrap();
    fail(&mut task);
    task.resolve(&record, &Source::Oci("r/a:1".to_owned()), &mut wake).await.ok().unwrap();
    assert_eq!((task.attempts.failures(), task.attempts.failure().is_none()), (0, true), "a pin");
    until(&rig, &key, &mut task, |_| {
        let digest = rig.store.vm(&key).unwrap().image.clone().unwrap().digest;
        rig.store.disk(&digest).is_some_and(|disk| disk.is_ready())
    })
    .await;
    let record = rig.store.vm(&key).unwrap();
    fail(&mut task);
    task.reserve(&record, false, false).await.ok().unwrap();
    assert_eq!((task.attempts.failures(), task.attempts.failure().is_none()), (0, true), "a reservation");
    let record = rig.store.vm(&key).unwrap();
    fail(&mut task);
    task.boot(&record).await.ok().unwrap();
    assert_eq!(
        (task.attempts.failures(), task.attempts.failure().is_none()),
        (1, true),
        "a start may be part of a crash loop"
    );
}

#[tokio::test(start_paused = true)]
async fn a_guest_is_asked_anew_in_each_stop() {
    let rig = Rig::new();
    let (key, mut task) = task(&rig).await;
    let up = until(&rig, &key, &mut task, |record| matches!(record.run, Run::Up { .. })).await;
    task.asked = true;
    task.stop(&up, "test".to_owned()).await.ok().unwrap();
    assert!(!task.asked);
}

#[tokio::test(start_paused = true)]
async fn a_process_that_was_killed_is_seen_to_have_ended_and_why() {
    let rig = Rig::new();
    let (key, mut task) = task(&rig).await;
    let up = until(&rig, &key, &mut task, |record| matches!(record.run, Run::Up { .. })).await;
    task.observe(&up, Instant::now());
    task.kill(&up, "test").await.ok().unwrap();
    let seen = task.observe(&up, Instant::now());
    assert_eq!(seen.killed.as_deref(), Some("test"));
    assert!(seen.exit.is_some_and(|exit| exit.signal == Some(9)), "at once, and of a signal");
}

#[tokio::test(start_paused = true)]
async fn the_task_of_a_former_vm_of_the_name_ends() {
    let rig = Rig::new();
    let (key, _) = task(&rig).await;
    let world = Arc::new(World::new(rig.store.clone(), rig.parts(), rig.settings.clone()));
    let mut former = VmTask::new(world, key.clone(), crate::object::Uid::from_u128(5));
    let (_sender, mut wake) = wake();
    assert_eq!(former.reconcile(&mut wake).await, Outcome::Gone);
    assert_eq!(rig.store.vm(&key).unwrap().object.status.phase, "");
}

/// An agent whose guest takes everything and says nothing any more.
async fn deaf() -> Agent {
    let mut link = FakeGuest::new(FakeScript::default()).connect();
    let (near, mut far) = tokio::io::duplex(1 << 16);
    let (hush, hushed) = tokio::sync::oneshot::channel::<()>();
    tokio::spawn(async move {
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut far, &mut link) => {}
            _ = hushed => std::future::pending().await,
        }
    });
    let agent = Agent::connect(Box::new(near), LogSink::nowhere()).await.unwrap();
    hush.send(()).unwrap();
    agent
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_does_not_answer_is_shut_down_by_the_power_button() {
    let rig = Rig::new();
    let (key, mut task) = task(&rig).await;
    let up = until(&rig, &key, &mut task, |record| matches!(record.run, Run::Up { .. })).await;
    let presses = || rig.effects().iter().filter(|effect| effect.starts_with("power button")).count();
    for (agent, presses_so_far) in [(Some(deaf().await), 1), (None, 2)] {
        task.world.set_agent(task.uid, agent);
        let (began, (_sender, mut wake)) = (rig.now(), wake());
        task.ask(&up, &mut wake).await.ok().unwrap();
        assert_eq!((presses(), mem::take(&mut task.asked)), (presses_so_far, true));
        let waited = rig.now().duration_since(began);
        assert!(waited.unsigned_abs() < stop::ASK_TIMEOUT + Duration::from_secs(1), "{waited}");
    }
    // An edit may change the grace period: it does not wait for an answer.
    task.world.set_agent(task.uid, Some(deaf().await));
    let (sender, mut wake) = wake();
    sender.send_replace(1);
    let began = rig.now();
    task.ask(&up, &mut wake).await.ok().unwrap();
    assert_eq!((rig.now(), presses(), task.asked), (began, 2, false));
}

/// What a task takes from a record that says that its VM runs.
#[tokio::test(start_paused = true)]
async fn an_earlier_daemons_word_of_a_guest_counts_for_a_process_that_this_one_did_not_start() {
    let rig = Rig::new();
    let (key, mut first) = task(&rig).await;
    let booted = |record: &VmRecord| {
        let booted = record.object.status.conditions.iter().find(|condition| condition.kind == "Booted");
        booted.is_some_and(|booted| booted.status == true.into())
    };
    let heard = until(&rig, &key, &mut first, booted).await;
    let mut unheard = heard.clone();
    unheard.object.status.conditions.retain(|condition| condition.kind != "Booted");
    let not_booted =
        crate::object::Condition { status: false.into(), ..heard.object.status.conditions[0].clone() };
    unheard
        .object
        .status
        .conditions
        .push(crate::object::Condition { kind: "Booted".to_owned(), ..not_booted });
    for (record, launched, ever) in [(&heard, false, true), (&heard, true, false), (&unheard, false, false)] {
        let mut task = VmTask::new(first.world.clone(), key.clone(), first.uid);
        task.launched = launched;
        let guest = task.observe(record, Instant::now()).guest;
        assert!(matches!(guest, Guest::Silent { ever: seen, .. } if seen == ever), "{launched}: {guest:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_share_in_a_pull_is_let_go_when_the_disk_is_there() {
    let rig = Rig::new();
    let (key, mut task) = task(&rig).await;
    let held = until(&rig, &key, &mut task, |record| record.reservation.is_some()).await;
    let pin = held.image.clone().unwrap();
    task.share = Some(task.world.pulls.join(&pin.source, &pin.digest));
    task.observe(&held, Instant::now());
    assert!(task.share.is_none());
}
