//! The daemon dies: what was acknowledged is there, and nothing is half there.

use std::collections::BTreeMap;

use futures_util::FutureExt;
use proptest::prelude::*;

use super::super::*;
use super::support::*;

type Objects = BTreeMap<ObjectKey, Record>;

fn objects(store: &Store) -> Objects {
    let records = Kind::ALL.into_iter().flat_map(|kind| store.list(kind, None).0);
    records.map(|record| (record.key(), record)).collect()
}

#[derive(Clone, Debug)]
enum Step {
    Declare(u8, bool),
    Undeclare(u8),
    Reserve(u8),
    Release(u8),
    Remove(u8),
    Event(u8),
    HoldFlushes,
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..4_u8, any::<bool>()).prop_map(|(name, label)| Step::Declare(name, label)),
        1 => (0..4_u8).prop_map(Step::Undeclare),
        3 => (0..4_u8).prop_map(Step::Reserve),
        1 => (0..4_u8).prop_map(Step::Release),
        1 => (0..4_u8).prop_map(Step::Remove),
        1 => (0..4_u8).prop_map(Step::Event),
        2 => Just(Step::HoldFlushes),
        1 => Just(Step::Flush),
    ]
}

/// Takes a step. True if it was acknowledged, and with it all before it; a refusal is no such thing.
fn take(store: &Store, backend: &MemoryBackend, step: &Step) -> bool {
    let name = |number: &u8| format!("vm-{number}");
    let uid = |number: &u8| {
        let record = store.vm(&key(&name(number)));
        record.and_then(|vm| vm.object.metadata.uid).unwrap_or_default()
    };
    match step {
        Step::Declare(number, label) => {
            let mut object = vm(&name(number));
            object.metadata_mut().labels.insert("on".to_owned(), label.to_string());
            store.declare(object, origin("a"), false, at(1)).now_or_never().is_some_and(|done| done.is_ok())
        }
        Step::Undeclare(n) => store
            .undeclare(&key(&name(n)), "directory:/m", at(2))
            .now_or_never()
            .is_some_and(|done| done.is_ok()),
        Step::Reserve(n) => {
            store.reserve_vm(claim(&name(n), uid(n))).now_or_never().is_some_and(|done| done.is_ok())
        }
        Step::Release(n) => {
            store.release_vm(&key(&name(n)), uid(n)).now_or_never().is_some_and(|done| done.is_ok())
        }
        Step::Remove(n) => {
            store.remove_vm(&key(&name(n)), uid(n)).now_or_never().is_some_and(|done| done.is_ok())
        }
        Step::Event(n) => {
            store.record_event(&key(&name(n)), None, Severity::Normal, "R", "m", at(3));
            false
        }
        Step::HoldFlushes => {
            backend.hold();
            false
        }
        Step::Flush => {
            backend.release();
            true
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_was_acknowledged_survives_and_nothing_is_half_there(
        steps in prop::collection::vec(step(), 0..60),
        kept in 0..20_usize,
    ) {
        let (store, backend) = store_with_disk();
        let mut states = vec![objects(&store)];
        let mut acknowledged = 0;
        for step in &steps {
            let done = take(&store, &backend, step);
            states.push(objects(&store));
            if done {
                acknowledged = states.len() - 1;
            }
        }
        let (again, _) = backend.crash(kept);
        let survived = objects(&again);
        prop_assert!(
            states[acknowledged..].contains(&survived),
            "after a crash the store is none of the states since the last acknowledgement"
        );
    }
}

#[test]
fn a_failed_write_stops_every_change_and_no_read() {
    for fault in [Fault::Apply, Fault::Flush] {
        let (store, backend) = Store::in_memory();
        let uid = declare(&store, vm("kept"));
        assert_eq!(store.failed(), None);
        backend.fail_next(fault);
        let failed = now(store.declare(vm("lost"), origin("a.yaml"), false, at(1)));
        let Err(DeclareError::Store(StoreError::Failed { why })) = failed else { panic!("{failed:?}") };
        assert_eq!((why.as_str(), store.failed()), ("a fault was ordered", Some(why.clone())));
        let status = VmUpdate { status: phase("x"), ..VmUpdate::default() };
        let refused = now(store.publish_vm(&key("kept"), uid, status));
        assert!(matches!(refused, Err(PublishError::Store(StoreError::Failed { .. }))), "{refused:?}");
        assert!(now(store.set_problem(&key("kept"), None)).is_err());
        assert!(store.vm(&key("kept")).is_some());

        let (again, _) = backend.crash(1);
        assert!(again.vm(&key("kept")).is_some());
        assert_eq!(again.vm(&key("lost")).is_some(), fault == Fault::Flush, "written, though never known so");
        assert_eq!(again.failed(), None);
    }
}

#[test]
fn who_waits_when_a_flush_fails_is_told() {
    let (store, backend) = Store::in_memory();
    backend.hold();
    let mut waiting = Box::pin(store.declare(vm("a"), origin("a"), false, at(1)));
    assert!((&mut waiting).now_or_never().is_none());
    backend.fail_next(Fault::Flush);
    backend.release();
    assert!(matches!(now(waiting), Err(DeclareError::Store(StoreError::Failed { .. }))));
}

#[test]
fn what_was_durable_before_a_failure_is_acknowledged_after_it() {
    let (store, backend) = Store::in_memory();
    backend.hold();
    let mut waiting = Box::pin(store.declare(vm("a"), origin("a"), false, at(1)));
    assert!((&mut waiting).now_or_never().is_none());
    backend.release();
    backend.fail_next(Fault::Apply);
    assert!(now(store.declare(vm("b"), origin("a"), false, at(1))).is_err());
    assert!(matches!(now(waiting), Ok(Declared::Created { .. })));
}

#[test]
fn a_dropped_call_has_taken_place() {
    let (store, backend) = Store::in_memory();
    backend.hold();
    assert!(store.declare(vm("a"), origin("a"), false, at(1)).now_or_never().is_none());
    backend.release();
    let (again, _) = backend.crash(0);
    assert!(again.vm(&key("a")).is_some());
}

#[tokio::test]
async fn a_closed_store_reads_and_refuses() {
    let (store, _backend) = Store::in_memory();
    store.declare(vm("a"), origin("a"), false, at(1)).await.unwrap();
    store.clone().close().await;
    let refused = store.declare(vm("b"), origin("a"), false, at(1)).await;
    assert!(matches!(refused, Err(DeclareError::Store(StoreError::Closed))));
    assert!(store.vm(&key("a")).is_some());
}

#[test]
fn a_transaction_that_panics_is_never_half_written() {
    let (store, backend) = Store::in_memory();
    declare(&store, vm("kept"));
    let record = store.record(&key("kept")).unwrap();
    let panicking = std::panic::AssertUnwindSafe(|| {
        store.engine().transact(|state| {
            state.put(record);
            panic!("a bug");
        })
    });
    assert!(std::panic::catch_unwind(panicking).is_err());
    let refused = now(store.declare(vm("b"), origin("a"), false, at(1)));
    assert!(matches!(refused, Err(DeclareError::Store(StoreError::Failed { .. }))), "{refused:?}");
    backend.release();
    assert_eq!(store.failed().as_deref(), Some("a transaction panicked"));
    let (again, _) = backend.crash(9);
    assert!(again.vm(&key("kept")).is_some() && again.vm(&key("b")).is_none());
}

#[test]
fn a_store_that_failed_is_not_copied() {
    let (store, backend) = Store::in_memory();
    declare(&store, vm("a"));
    store.record_event(&key("a"), None, Severity::Normal, "R", "m", at(3));
    install(&store, &digest(1));
    let counts = store.export().unwrap().counts();
    assert_eq!(counts, Counts { vms: 1, images: 0, disks: 1, events: 1 });
    backend.fail_next(Fault::Apply);
    assert!(now(store.declare(vm("b"), origin("a"), false, at(1))).is_err());
    assert!(matches!(store.export(), Err(StoreError::Failed { .. })), "nobody knows what of it is true");
}
