//! Panics are failed attempts of one object: counted, told, backed off, and nobody else's.

use std::time::Duration;

use tokio::time::Instant;
use vmlet::store::{Record, Severity};
use vmlet::testing::{ImageScript, VmScript};

use crate::SECOND;
use crate::rig::{Rig, image, image_key, is_ready, panics, says, spec, vm, vm_key, with_vm};

#[tokio::test(start_paused = true)]
async fn a_panic_is_a_failed_attempt_that_is_counted_told_and_backed_off() {
    let rig = Rig::new();
    rig.host.script_image("r/a:1", ImageScript::new('a', SECOND));
    rig.host.script_effect("prepare", panics(4));
    rig.declare(vm("web", spec("256Mi"))).await;
    let mut waits = Vec::new();
    for _ in 0..4 {
        let before =
            rig.store.record(&vm_key("web")).map(|record| record.metadata().resource_version.clone());
        let failed = |record: Option<&Record>| {
            let Some(Record::Vm(vm)) = record else { return false };
            let status = &vm.object.status;
            status.next_retry_time.is_some_and(|at| at > rig.now())
                && says("InternalError")(record)
                && Some(&vm.object.metadata.resource_version) != before.as_ref()
        };
        rig.until(&vm_key("web"), failed).await;
        let status = rig.vm("web").object.status.clone();
        assert_eq!(status.phase, "Backoff");
        assert!(status.conditions[0].message.contains("prepare of vm/web panics, as scripted"), "{status:?}");
        let next = status.next_retry_time.unwrap();
        waits.push(next.duration_since(rig.now()));
        tokio::time::sleep(Duration::try_from(next.duration_since(rig.now())).unwrap()).await;
    }
    assert!(waits[3] > waits[2] && waits[2] > waits[1] && waits[1] > waits[0], "{waits:?}");
    rig.ready(&vm_key("web")).await;
    let events = rig.events("web");
    let told = events.iter().find(|event| event.reason == "InternalError").unwrap();
    assert_eq!((told.count, told.severity), (4, Severity::Warning));
    rig.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_one_objects_task_disturbs_no_other_and_an_edit_cuts_its_wait() {
    let rig = Rig::new();
    rig.host.script_image("r/a:1", ImageScript::new('a', SECOND));
    rig.declare(vm("web", spec("256Mi"))).await;
    rig.ready(&vm_key("web")).await;
    rig.host.script_effect("spawn", panics(u32::MAX));
    rig.declare(vm("bad", spec("256Mi"))).await;
    rig.until(&vm_key("bad"), |record| says("InternalError")(record)).await;
    tokio::time::sleep(3600 * SECOND).await;
    assert!(is_ready(&rig.store.record(&vm_key("web")).unwrap()));
    rig.host.script_effect("spawn", panics(0));
    let began = Instant::now();
    rig.declare(vm("bad", spec("512Mi"))).await;
    rig.ready(&vm_key("bad")).await;
    assert!(began.elapsed() < 3 * SECOND, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_look_that_panics_is_backed_off_and_told_over_the_last_status() {
    let mut rig = with_vm(VmScript::default(), |record| record.is_some_and(is_ready)).await;
    rig.kill().await;
    // The watch over an adopted process is part of the look.
    rig.host.script_effect("watch", panics(3));
    rig.start();
    let told = |record: Option<&Record>| {
        let Some(Record::Vm(vm)) = record else { return false };
        vm.object.status.next_retry_time.is_some()
            && vm
                .object
                .status
                .conditions
                .iter()
                .any(|c| c.kind == "Reconciling" && c.reason == "InternalError")
    };
    rig.until(&vm_key("web"), told).await;
    let settled = |record: Option<&Record>| {
        let Some(Record::Vm(vm)) = record else { return false };
        is_ready(record.unwrap()) && vm.object.status.next_retry_time.is_none()
    };
    rig.until(&vm_key("web"), settled).await;
    let events = rig.events("web");
    assert_eq!(events.iter().find(|event| event.reason == "InternalError").unwrap().count, 3);
    assert_eq!((rig.vm("web").starts, rig.host.running().len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_pull_that_panics_is_tried_again() {
    let rig = Rig::new();
    rig.host.script_image("r/a:1", ImageScript { panics: 2, ..ImageScript::new('a', SECOND) });
    rig.declare(image("a", "r/a:1")).await;
    let failed = rig.until(&image_key("a"), |record| says("InternalError")(record)).await.unwrap();
    let Record::Image(failed) = failed else { unreachable!() };
    assert!(failed.object.status.next_retry_time.is_some());
    rig.ready(&image_key("a")).await;
    assert_eq!((rig.host.pulls("r/a:1"), rig.host.staged()), (3, 0));
}
