use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use futures_util::FutureExt;

use super::super::*;
use super::support::*;

fn small() -> (Store, MemoryBackend) {
    let settings = StoreSettings { history: 4, events_per_object: 3, events: 5, ..StoreSettings::default() };
    Store::in_memory_with(settings)
}

fn publish(store: &Store, name: &str, uid: uuid::Uuid, text: &str) {
    let update = VmUpdate { status: phase(text), ..VmUpdate::default() };
    now(store.publish_vm(&key(name), uid, update)).unwrap();
}

#[test]
fn a_watcher_sees_the_life_of_an_object_in_order() {
    let (store, _) = Store::in_memory();
    let mut watch = store.watch(None).unwrap();
    let uid = declare(&store, vm("web"));
    publish(&store, "web", uid, "Pending");
    now(store.undeclare(&key("web"), "directory:/m", at(2))).unwrap();
    now(store.remove_vm(&key("web"), uid)).unwrap();
    let seen: Vec<Change> = (0..4).map(|_| now(watch.next()).unwrap()).collect();
    let kinds: Vec<ChangeKind> = seen.iter().map(|change| change.kind).collect();
    assert_eq!(kinds, [ChangeKind::Added, ChangeKind::Modified, ChangeKind::Modified, ChangeKind::Deleted]);
    assert!(seen.windows(2).all(|pair| pair[0].version < pair[1].version));
    assert!(seen.iter().all(|change| change.version == version(&change.record)));
    assert!(watch.next().now_or_never().is_none(), "nothing more happened");
}

#[test]
fn a_watch_goes_on_from_a_list_without_gap_or_repetition() {
    let (store, _) = Store::in_memory();
    declare(&store, vm("a"));
    let (records, at_version) = store.list(Kind::Vm, None);
    declare(&store, vm("b"));
    let mut watch = store.watch(Some(at_version)).unwrap();
    assert_eq!(records.len(), 1);
    assert_eq!(now(watch.next()).unwrap().record.key(), key("b"));
    assert!(watch.next().now_or_never().is_none());
}

#[test]
fn watchers_see_only_what_is_durable_and_readers_do_not_wait() {
    let (store, backend) = Store::in_memory();
    let mut watch = store.watch(None).unwrap();
    backend.hold();
    let mut declared = Box::pin(store.declare(vm("web"), origin("a.yaml"), false, at(1)));
    assert!((&mut declared).now_or_never().is_none(), "it is not durable");
    let uid = store.vm(&key("web")).expect("readers see it").object.metadata.uid.unwrap();
    publish(&store, "web", uid, "a status is not waited for");
    assert!(watch.next().now_or_never().is_none());
    backend.release();
    now(declared).unwrap();
    assert_eq!(now(watch.next()).unwrap().kind, ChangeKind::Added);
    assert_eq!(now(watch.next()).unwrap().kind, ChangeKind::Modified);
}

#[test]
fn a_watcher_that_lags_too_far_is_told_and_holds_nobody_up() {
    let (store, _) = small();
    let start = store.list(Kind::Vm, None).1;
    let mut slow = store.watch(None).unwrap();
    for name in ["a", "b", "c", "d"] {
        declare(&store, vm(name));
    }
    assert_eq!(now(store.watch(Some(start)).unwrap().next()).unwrap().record.key(), key("a"));
    declare(&store, vm("e"));
    assert_eq!(store.watch(Some(start)).err(), Some(Expired));
    assert_eq!(now(slow.next()), Err(Expired));
    assert_eq!(now(slow.next()), Err(Expired), "it stays so");
    assert!(store.watch(Some(start + 1)).is_ok());
}

#[test]
fn versions_that_never_were_are_expired() {
    let (store, backend) = Store::in_memory();
    let seen = store.list(Kind::Vm, None).1;
    assert_eq!(store.watch(Some(seen + 1)).err(), Some(Expired));
    let (again, _) = backend.crash(0);
    assert_eq!(again.watch(Some(seen)).err(), Some(Expired), "changes before the start are not kept");
    assert!(again.list(Kind::Vm, None).1 > seen);
}

#[test]
fn a_version_shown_before_a_crash_never_comes_to_mean_another_change() {
    let (store, backend) = Store::in_memory();
    backend.hold();
    assert!(store.declare(vm("web"), origin("a"), false, at(1)).now_or_never().is_none());
    let shown = store.list(Kind::Vm, None).1;
    let (again, _) = backend.crash(0);
    assert!(again.record(&key("web")).is_none());
    declare(&again, vm("other"));
    assert!(version(&again.record(&key("other")).unwrap()) > shown);
}

#[test]
fn versions_jump_from_the_last_one_that_was_shown() {
    let (store, backend) = Store::in_memory();
    let version = |store: &Store| store.list(Kind::Vm, None).1;
    let jump = version(&store);
    declare(&store, vm("a"));
    let last = version(&store);
    let (again, _) = backend.crash(0);
    assert_eq!(version(&again), last + jump, "or those of a long life would come again");
}

#[tokio::test]
async fn a_waiting_watcher_wakes_up() {
    let (store, _) = Store::in_memory();
    let mut watch = store.watch(None).unwrap();
    let waiting = tokio::spawn(async move { watch.next().await });
    tokio::task::yield_now().await;
    store.declare(vm("web"), origin("a"), false, at(1)).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap().record.key(), key("web"));
}

fn record(store: &Store, name: &str, message: &str, second: i64) {
    store.record_event(&key(name), None, Severity::Normal, "Pulled", message, at(second));
}

#[test]
fn equal_events_are_counted_and_come_last() {
    let (store, backend) = small();
    let mut watch = store.watch_events();
    record(&store, "web", "one", 1);
    record(&store, "web", "two", 2);
    record(&store, "web", "one", 3);
    let shown = |store: &Store| {
        let events = store.events(Some(&(&key("web")).into()));
        events.iter().map(|event| (event.message.clone(), event.count)).collect::<Vec<_>>()
    };
    assert_eq!(shown(&store), [("two".to_owned(), 1), ("one".to_owned(), 2)]);
    let one = store.events(None).pop().unwrap();
    assert_eq!((one.first_seen, one.last_seen), (at(1), at(3)));
    let counts: Vec<u32> = (0..3).map(|_| now(watch.next()).unwrap().count).collect();
    assert_eq!(counts, [1, 1, 2]);
    store.record_event(&key("web"), None, Severity::Warning, "Pulled", "one", at(4));
    assert_eq!(store.events(None).len(), 3, "another severity is another event");
    let (again, _) = backend.crash(0);
    assert_eq!(again.events(None), store.events(None));
}

#[test]
fn events_are_bounded_for_each_object_in_all_and_in_length() {
    let (store, backend) = small();
    for number in 0..10 {
        record(&store, "noisy", &number.to_string(), number);
    }
    let messages =
        |store: &Store| store.events(None).into_iter().map(|event| event.message).collect::<Vec<_>>();
    assert_eq!(messages(&store), ["7", "8", "9"]);
    for name in ["a", "b", "c"] {
        record(&store, name, name, 20);
    }
    assert_eq!(messages(&store), ["8", "9", "a", "b", "c"]);
    record(&store, "long", &"ü".repeat(4000), 30);
    let long = store.events(Some(&(&key("long")).into())).pop().unwrap().message;
    assert!(long.len() <= 1024 && long.ends_with("ü…"), "{}", long.len());
    let (again, _) = backend.crash(0);
    assert_eq!(again.events(None), store.events(None), "what was dropped is gone from the log too");
}

#[test]
fn a_slow_watcher_of_events_is_told() {
    let (store, _) = Store::in_memory();
    let mut watch = store.watch_events();
    for number in 0..2000 {
        record(&store, "web", &number.to_string(), number);
    }
    assert_eq!(now(watch.next()), Err(Expired));
    assert!(now(watch.next()).is_ok());
}

#[test]
fn the_guard_and_the_flushes_are_timed() {
    let (store, _) = Store::in_memory();
    let before = (store.guard_histogram().count, store.flush_histogram().count);
    declare(&store, vm("web"));
    let (guard, flush) = (store.guard_histogram(), store.flush_histogram());
    assert!(guard.count > before.0 && flush.count == before.1 + 1);
    assert!(guard.p50_us <= guard.p99_us && guard.p99_us <= guard.max_us);
}

/// Reads from another thread while a batch is written, and while it is flushed.
#[test]
fn no_batch_is_written_or_flushed_under_the_guard() {
    let (store, backend) = Store::in_memory();
    let (reader, seen) = (store.clone(), Arc::new(Mutex::new(Vec::new())));
    let told = Arc::clone(&seen);
    backend.judge(Arc::new(move |moment| {
        let (store, (sender, read)) = (reader.clone(), mpsc::channel());
        std::thread::spawn(move || sender.send(store.list(Kind::Vm, None).0.len()));
        told.lock().unwrap().push((moment, read.recv_timeout(Duration::from_secs(5)).ok()));
        Verdict::Go
    }));
    declare(&store, vm("web"));
    assert_eq!(*seen.lock().unwrap(), [(Moment::Apply, Some(1)), (Moment::Flush, Some(1))]);
}
