//! The store on a real disk: closed and opened, restored, killed, robbed of power, damaged, filled up.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod damage;
mod full_disk;
mod kill;
mod offline;
mod power;
mod support;
mod writer;

use std::collections::BTreeSet;
use std::fs;

use tempfile::TempDir;
use vmlet::store::Severity;

use support::*;

#[tokio::test]
async fn a_closed_store_opens_as_it_was() {
    let dir = TempDir::new().unwrap();
    let expected = filled(dir.path()).await;
    let store = open(dir.path()).unwrap();
    assert_eq!(objects(&store), expected);
    drop(store);
    assert_eq!(objects(&open(dir.path()).unwrap()), expected, "a dropped handle closes it, too");
}

#[test]
fn a_store_in_use_says_by_whom() {
    let dir = TempDir::new().unwrap();
    let _store = open(dir.path()).unwrap();
    let error = open(dir.path()).err().unwrap().to_string();
    assert!(error.contains(&format!("in use by process {}", std::process::id())), "{error}");
}

#[tokio::test]
async fn the_export_restores_what_the_log_lost() {
    let dir = TempDir::new().unwrap();
    // One that was being written when a daemon died, and that others may read.
    fs::write(dir.path().join("export.json.tmp"), "half").unwrap();
    let expected = filled(dir.path()).await;
    let (db, export) = (dir.path().join("db"), dir.path().join("export.json"));
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&export).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600, "it holds the VMs' environment");
    fs::rename(&db, dir.path().join("db.corrupt")).unwrap();
    let store = open(dir.path()).unwrap();
    assert_eq!(objects(&store), expected);
    declare(&store, vm("new", "")).await;
    store.close().await;
    assert_eq!(
        objects(&open(dir.path()).unwrap()).len(),
        expected.len() + 1,
        "the restored log is a whole one"
    );

    fs::remove_dir_all(&db).unwrap();
    fs::write(&export, "{\"format\":2,").unwrap();
    let error = open(dir.path()).err().unwrap().to_string();
    assert!(error.contains("export.json cannot be read") && !db.exists(), "{error}");
    fs::remove_file(&export).unwrap();
    assert!(objects(&open(dir.path()).unwrap()).is_empty());
}

#[tokio::test]
async fn a_store_half_made_is_made_anew() {
    let dir = TempDir::new().unwrap();
    let expected = filled(dir.path()).await;
    fs::rename(dir.path().join("db"), dir.path().join("db.new")).unwrap();
    fs::remove_file(dir.path().join("db.new/db")).unwrap();
    assert_eq!(objects(&open(dir.path()).unwrap()), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_reservers_get_distinct_leases() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path()).unwrap();
    install_disk(&store).await;
    let tasks = (0..64).map(|number| {
        let (store, name) = (store.clone(), format!("vm-{number}"));
        tokio::spawn(async move {
            let uid = declare(&store, vm(&name, "")).await;
            let reservation = store.reserve_vm(claim(&name, uid)).await.unwrap();
            (reservation.address().unwrap(), reservation.vmm_user.unwrap())
        })
    });
    let (mut addresses, mut users) = (BTreeSet::new(), BTreeSet::new());
    for task in tasks.collect::<Vec<_>>() {
        let (address, user) = task.await.unwrap();
        addresses.insert(address);
        users.insert(user);
    }
    assert_eq!((addresses.len(), users.len()), (64, 64));
    let (guard, flush) = (store.guard_histogram(), store.flush_histogram());
    println!("guard {guard:?}\nflush {flush:?}");
    assert!(flush.count < 128, "concurrent changes share a flush: {flush:?}");
}

#[tokio::test]
async fn what_was_not_waited_for_is_written_at_the_close_and_copied_if_it_is_new() {
    let dir = TempDir::new().unwrap();
    for number in 0..3 {
        let store = open(dir.path()).unwrap();
        let at = jiff::Timestamp::UNIX_EPOCH;
        store.record_event(&key("web"), None, Severity::Normal, "R", &format!("event {number}"), at);
        // At once, before the thread that writes has looked.
        drop(store);
    }
    let store = open(dir.path()).unwrap();
    assert_eq!(store.events(None).len(), 3);
    let copy = || std::os::unix::fs::MetadataExt::ino(&fs::metadata(dir.path().join("export.json")).unwrap());
    let before = copy();
    store.close().await;
    assert_eq!(copy(), before, "nothing is new since the start");
}
