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
    let seen: Vec<_> = (0..ATTEMPTS).map(|_| held()).collect();
    assert!(seen.iter().any(|(guard, flush)| guard * 4 < *flush), "held and flushed, in µs: {seen:?}");
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
    let seen: Vec<_> = (0..ATTEMPTS).map(|_| median()).collect();
    assert!(seen.iter().any(|median| *median < 500), "half of all took at most, in µs: {seen:?}");
}
