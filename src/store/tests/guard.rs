//! What is done under the store's one guard, and what is not.

use super::super::*;
use super::support::*;

/// Of many attempts one is enough: how busy the machine is decides how long one takes, and not which of two.
const ATTEMPTS: usize = 20;

#[test]
fn no_batch_is_encoded_under_the_guard() {
    let large = "x".repeat(8 << 20);
    let held = || {
        let (store, _) = Store::in_memory();
        let uid = declare(&store, vm("web"));
        let update = VmUpdate { status: phase(&large), ..VmUpdate::default() };
        now(store.publish_vm(&key("web"), uid, update)).unwrap();
        (store.guard_histogram().max_us, store.flush_histogram().max_us)
    };
    let brief = (0..ATTEMPTS).map(|_| held()).any(|(guard, flush)| guard * 4 < flush);
    assert!(brief, "the guard was held for as long as encoding takes");
}

#[test]
fn the_guard_is_held_for_microseconds() {
    let longest = || {
        let (store, _) = store_with_disk();
        let uid = declare(&store, vm("web"));
        now(store.reserve_vm(claim("web", uid))).unwrap();
        let update = VmUpdate { status: phase("x"), run: Some(running()), ..VmUpdate::default() };
        now(store.publish_vm(&key("web"), uid, update)).unwrap();
        store.list(Kind::Vm, None);
        store.guard_histogram().max_us
    };
    let brief = (0..ATTEMPTS).map(|_| longest()).any(|longest| longest < 500);
    assert!(brief, "a read or a transaction took longer than half a millisecond, each time");
}

#[tokio::test]
async fn no_copy_is_written_under_the_guard() {
    let large = "x".repeat(8 << 20);
    for _ in 0..ATTEMPTS {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), StoreSettings::default()).unwrap();
        let declared = store.declare(vm("web"), origin("a.yaml"), false, at(1)).await.unwrap();
        let Declared::Created { uid } = declared else { panic!("{declared:?}") };
        let update = VmUpdate { status: phase(&large), ..VmUpdate::default() };
        store.publish_vm(&key("web"), uid, update).await.unwrap();
        let reader = store.clone();
        store.close().await;
        let copied = std::fs::metadata(dir.path().join("export.json")).unwrap().len();
        assert!(copied > 8 << 20, "the copy at the end is a whole one: {copied}");
        if reader.guard_histogram().max_us * 4 < reader.flush_histogram().max_us {
            return;
        }
    }
    panic!("the guard was held for as long as writing takes");
}

#[test]
fn a_watcher_that_lags_takes_few_changes_at_a_time() {
    let (store, _) = Store::in_memory();
    let mut watch = store.watch(None).unwrap();
    let uid = declare(&store, vm("web"));
    for number in 0..1000 {
        let update = VmUpdate { starts: Some(number + 1), ..VmUpdate::default() };
        now(store.publish_vm(&key("web"), uid, update)).unwrap();
    }
    let before = store.guard_histogram().count;
    for _ in 0..1001 {
        now(watch.next()).unwrap();
    }
    let held = store.guard_histogram().count - before;
    assert!((4..100).contains(&held), "a thousand changes under {held} holds of the guard");
}
