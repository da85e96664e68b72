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
    let median = || {
        let (store, _) = store_with_disk();
        for number in 0..20 {
            let name = format!("vm-{number}");
            let uid = declare(&store, vm(&name));
            now(store.publish_vm(&key(&name), uid, VmUpdate { status: phase("x"), ..VmUpdate::default() }))
                .unwrap();
        }
        store.guard_histogram().p50_us
    };
    let brief = (0..ATTEMPTS).map(|_| median()).any(|median| median < 500);
    assert!(brief, "half of all holds took longer than half a millisecond");
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
