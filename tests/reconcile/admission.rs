//! Memory, processors and disk space for some: who waits, who is let in, what is told; and VMs that
//! wait for other VMs.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;
use vmlet::object::{Condition, Quantity};
use vmlet::store::{Record, Severity};
use vmlet::testing::ImageScript;

use crate::rig::{self, Rig, is_ready, reason, vm, vm_key};
use crate::{SECOND, phase};

/// A world with 1 GiB of memory for VMs, in which images are pulled at once.
async fn small() -> Rig {
    let mut rig = Rig::new();
    rig.kill().await;
    rig.settings.capacity.memory = Quantity::mebibytes(1024);
    rig.start();
    rig.host.script_image("r/a:1", ImageScript::new('a', Duration::ZERO));
    rig
}

async fn declare(rig: &Rig, name: &str, memory: &str, priority: i32) {
    rig.declare(vm(name, json!({"image": {"oci": "r/a:1"}, "memory": memory, "priority": priority}))).await;
}

async fn waits(rig: &Rig, name: &str) {
    rig.until(&vm_key(name), |record| phase(record) == "Waiting").await;
}

fn condition(rig: &Rig, name: &str, kind: &str) -> Condition {
    let record = rig.store.record(&vm_key(name)).unwrap();
    rig::conditions(&record).into_iter().find(|condition| condition.kind == kind).unwrap()
}

fn warnings(rig: &Rig, name: &str) -> usize {
    let events = rig.events(name);
    events.iter().filter(|event| event.severity == Severity::Warning).count()
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_does_not_fit_waits_in_line_and_is_started_by_the_release() {
    let rig = small().await;
    declare(&rig, "a", "768Mi", 0).await;
    rig.ready(&vm_key("a")).await;
    declare(&rig, "b", "512Mi", 0).await;
    waits(&rig, "b").await;
    let reserved = condition(&rig, "b", "Reserved");
    assert_eq!(reserved.status, false.into());
    assert_eq!(
        (reserved.reason.as_str(), reserved.message.as_str()),
        ("InsufficientMemory", "needs 512Mi of memory, 256Mi is free; 1st in line")
    );
    tokio::time::sleep(3600 * SECOND).await;
    let status = rig.vm("b").object.status.clone();
    assert_eq!(
        (status.phase.as_str(), status.next_retry_time),
        ("Waiting", None),
        "it is in line, not in backoff"
    );
    assert_eq!(warnings(&rig, "b"), 0);
    let began = Instant::now();
    rig.undeclare(&vm_key("a")).await;
    rig.ready(&vm_key("b")).await;
    assert!(began.elapsed() < 4 * SECOND, "a stop and a boot: {:?}", began.elapsed());
    rig.undeclare(&vm_key("b")).await;
    rig.gone(&vm_key("b")).await;
    rig.assert_nothing_left().await;
}

#[tokio::test(start_paused = true)]
async fn the_line_is_served_by_priority_and_a_new_priority_counts_at_once() {
    let rig = small().await;
    declare(&rig, "all", "1Gi", 0).await;
    rig.ready(&vm_key("all")).await;
    for (name, priority) in [("low", -1), ("old", 0), ("vip", 5)] {
        declare(&rig, name, "1Gi", priority).await;
        waits(&rig, name).await;
    }
    declare(&rig, "low", "1Gi", 9).await;
    let first = |record: Option<&Record>| match record {
        Some(Record::Vm(vm)) => vm.object.status.conditions.iter().any(|c| c.message.contains("1st in line")),
        _ => false,
    };
    rig.until(&vm_key("low"), first).await;
    for (next, before) in [("low", "all"), ("vip", "low"), ("old", "vip")] {
        rig.undeclare(&vm_key(before)).await;
        rig.ready(&vm_key(next)).await;
    }
    rig.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn a_big_vm_is_passed_for_its_patience_and_not_longer() {
    let rig = small().await;
    declare(&rig, "base", "512Mi", 0).await;
    rig.ready(&vm_key("base")).await;
    declare(&rig, "big", "1Gi", 0).await;
    waits(&rig, "big").await;
    declare(&rig, "early", "256Mi", 0).await;
    rig.ready(&vm_key("early")).await;
    tokio::time::sleep(rig.settings.patience).await;
    declare(&rig, "late", "128Mi", 0).await;
    waits(&rig, "late").await;
    let said = condition(&rig, "late", "Reserved").message;
    assert!(said.contains("vm/big"), "{said}");
    for name in ["base", "early"] {
        rig.undeclare(&vm_key(name)).await;
        rig.gone(&vm_key(name)).await;
    }
    rig.ready(&vm_key("big")).await;
    assert_eq!(rig.vm("late").object.status.phase, "Waiting");
}

#[tokio::test(start_paused = true)]
async fn a_waiting_vm_that_is_halted_edited_or_deleted_leaves_the_line() {
    let rig = small().await;
    declare(&rig, "base", "512Mi", 0).await;
    rig.ready(&vm_key("base")).await;
    declare(&rig, "big", "1Gi", 0).await;
    waits(&rig, "big").await;
    tokio::time::sleep(rig.settings.patience + SECOND).await;
    for name in ["one", "two"] {
        declare(&rig, name, "256Mi", 0).await;
        waits(&rig, name).await;
    }
    let halted = json!({"image": {"oci": "r/a:1"}, "memory": "1Gi", "runPolicy": "Halted"});
    rig.declare(vm("big", halted)).await;
    rig.ready(&vm_key("one")).await;
    rig.ready(&vm_key("two")).await;
    rig.until(&vm_key("big"), |record| phase(record) == "Stopped").await;
    declare(&rig, "big", "600Mi", 0).await;
    waits(&rig, "big").await;
    rig.undeclare(&vm_key("big")).await;
    rig.gone(&vm_key("big")).await;
    // What fits after an edit is started at once.
    declare(&rig, "big", "600Mi", 0).await;
    waits(&rig, "big").await;
    rig.undeclare(&vm_key("one")).await;
    rig.gone(&vm_key("one")).await;
    let began = Instant::now();
    declare(&rig, "big", "256Mi", 0).await;
    rig.ready(&vm_key("big")).await;
    assert!(began.elapsed() < 2 * SECOND, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn what_can_never_fit_is_stalled_and_an_edit_mends_it() {
    let rig = small().await;
    declare(&rig, "huge", "2Gi", 0).await;
    rig.until(&vm_key("huge"), |record| phase(record) == "Failed").await;
    let stalled = condition(&rig, "huge", "Stalled");
    assert_eq!(stalled.reason, "ExceedsCapacity");
    assert!(
        stalled.message.starts_with("needs 2Gi of memory, and all VMs together may have 1Gi"),
        "{stalled:?}"
    );
    declare(&rig, "huge", "1Gi", 0).await;
    rig.ready(&vm_key("huge")).await;
}

#[tokio::test(start_paused = true)]
async fn jobs_that_ended_and_halted_vms_make_room() {
    let rig = small().await;
    let job = json!({"image": {"oci": "r/a:1"}, "memory": "1Gi", "runPolicy": "Once"});
    rig.declare(vm("job", job)).await;
    rig.ready(&vm_key("job")).await;
    declare(&rig, "next", "1Gi", 0).await;
    waits(&rig, "next").await;
    let address = rig.vm("job").object.status.addresses.clone();
    assert!(rig.host.end_workload(&vm_key("job"), 0));
    rig.ready(&vm_key("next")).await;
    assert_eq!(rig.vm("job").object.status.addresses, address, "its address stays its own");
    let halted = json!({"image": {"oci": "r/a:1"}, "memory": "1Gi", "runPolicy": "Halted"});
    rig.declare(vm("next", halted)).await;
    declare(&rig, "third", "1Gi", 0).await;
    rig.ready(&vm_key("third")).await;
}

#[tokio::test(start_paused = true)]
async fn two_running_vms_that_grow_over_the_limit_do_not_wait_for_each_other() {
    let rig = small().await;
    for name in ["a", "b"] {
        declare(&rig, name, "512Mi", 0).await;
        rig.ready(&vm_key(name)).await;
    }
    declare(&rig, "a", "640Mi", 0).await;
    declare(&rig, "b", "640Mi", 0).await;
    let one =
        || ["a", "b"].iter().filter(|name| is_ready(&rig.store.record(&vm_key(name)).unwrap())).count() == 1;
    let waiting = || ["a", "b"].iter().any(|name| rig.vm(name).object.status.phase == "Waiting");
    rig.eventually(|| one() && waiting()).await;
    rig.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn who_waited_before_a_restart_of_the_daemon_waits_after_it() {
    let mut rig = small().await;
    declare(&rig, "a", "1Gi", 0).await;
    rig.ready(&vm_key("a")).await;
    declare(&rig, "b", "512Mi", 0).await;
    waits(&rig, "b").await;
    rig.kill().await;
    rig.start();
    rig.undeclare(&vm_key("a")).await;
    rig.ready(&vm_key("b")).await;
}

#[tokio::test(start_paused = true)]
async fn a_vm_starts_only_once_those_that_it_depends_on_are_ready() {
    let rig = Rig::new();
    rig.host.script_image("r/a:1", ImageScript::new('a', SECOND));
    rig.host.script_image("r/slow:1", ImageScript::new('b', 60 * SECOND));
    rig.declare(vm("web", json!({"image": {"oci": "r/a:1"}, "dependsOn": ["db"]}))).await;
    let told = |text: &'static str| {
        move |record: Option<&Record>| {
            let Some(record) = record else { return false };
            phase(Some(record)) == "Waiting"
                && reason(record) == "DependencyNotReady"
                && rig::conditions(record)[0].message.contains(text)
        }
    };
    rig.until(&vm_key("web"), told("vm/db does not exist")).await;
    rig.declare(vm("db", json!({"image": {"oci": "r/slow:1"}}))).await;
    rig.until(&vm_key("web"), told("vm/db is Pulling")).await;
    assert!(rig.vm("web").reservation.is_none());
    rig.ready(&vm_key("db")).await;
    let began = Instant::now();
    rig.ready(&vm_key("web")).await;
    assert!(began.elapsed() < 2 * SECOND, "{:?}", began.elapsed());
    // Only the start is gated.
    rig.undeclare(&vm_key("db")).await;
    rig.gone(&vm_key("db")).await;
    tokio::time::sleep(60 * SECOND).await;
    assert!(is_ready(&rig.store.record(&vm_key("web")).unwrap()));
    assert_eq!(rig.vm("web").starts, 1);
    // And each start is.
    rig.crash("web");
    rig.until(&vm_key("web"), told("vm/db does not exist")).await;
    rig.declare(vm("web", json!({"image": {"oci": "r/a:1"}}))).await;
    rig.ready(&vm_key("web")).await;
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_another_vm_holds_no_memory_that_it_may_need() {
    let rig = small().await;
    let web = |policy: &str| json!({"image": {"oci": "r/a:1"}, "memory": "512Mi", "dependsOn": ["db"], "runPolicy": policy});
    declare(&rig, "db", "512Mi", 0).await;
    rig.declare(vm("web", web("Always"))).await;
    rig.ready(&vm_key("web")).await;
    // The database is to grow into what its dependent has, which has just stopped.
    rig.declare(vm("web", web("Halted"))).await;
    declare(&rig, "db", "1Gi", 0).await;
    rig.ready(&vm_key("db")).await;
    rig.declare(vm("web", web("Always"))).await;
    waits(&rig, "web").await;
    assert_eq!(condition(&rig, "web", "Reserved").reason, "InsufficientMemory");
}
