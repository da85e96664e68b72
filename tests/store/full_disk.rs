//! A full disk: what is acknowledged while it fills up stays, and room and a restart mend it.

use std::fs;
use std::net::Ipv4Addr;

use jiff::Timestamp;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tempfile::TempDir;
use vmlet::store::{Declared, Origin, Store, VmUpdate};

use super::support::*;

/// A small filesystem of its own, gone with the value.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn new() -> SmallDisk {
        let dir = TempDir::new().unwrap();
        let (none, flags) = (None::<&str>, nix::mount::MsFlags::empty());
        nix::mount::mount(none, dir.path(), Some("tmpfs"), flags, Some("size=8m"))
            .expect("this test mounts a tmpfs: run it as root");
        SmallDisk(dir)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}

#[tokio::test]
async fn a_full_disk_stops_changes_and_loses_nothing() {
    let disk = SmallDisk::new();
    let dir = disk.0.path().join("store");
    let store = open(&dir).unwrap();
    let uid = declare(&store, vm("web", "")).await;
    let ballast = disk.0.path().join("ballast");
    let mut acknowledged = 0;
    let refused = loop {
        let update = VmUpdate { starts: Some(acknowledged + 1), ..VmUpdate::default() };
        match store.publish_vm(&key("web"), uid, update).await {
            Ok(()) => acknowledged += 1,
            Err(error) => break error.to_string(),
        }
        if acknowledged == 20 {
            // Leave no free block; the log grows into the limit soon.
            let _ = fs::write(&ballast, vec![0; 8 << 20]);
        }
    };
    assert!(refused.contains("Free space") && store.failed().is_some(), "{refused}");
    assert!(store.vm(&key("web")).is_some(), "reads go on");
    store.close().await;
    fs::remove_file(ballast).unwrap();
    let starts = open(&dir).unwrap().vm(&key("web")).unwrap().starts;
    assert!(starts >= acknowledged, "{acknowledged} was acknowledged, {starts} is there");
}

/// Reservations of many at once, while the disk runs full at another place each time.
#[tokio::test(flavor = "multi_thread")]
async fn reservations_that_were_acknowledged_survive_a_disk_that_runs_full() {
    let mut random = StdRng::seed_from_u64(5);
    for round in 0..12 {
        let disk = SmallDisk::new();
        let dir = disk.0.path().join("store");
        let store = open(&dir).unwrap();
        install_disk(&store).await;
        let ballast = disk.0.path().join("ballast");
        fs::write(&ballast, vec![0; 8 << 20]).unwrap_err();
        let room = random.random_range(0..512 << 10);
        let held = fs::metadata(&ballast).unwrap().len();
        fs::File::options().write(true).open(&ballast).unwrap().set_len(held.saturating_sub(room)).unwrap();

        let tasks = (0..32).map(|number| tokio::spawn(reserve_until_full(store.clone(), number)));
        let mut acknowledged = Vec::new();
        for task in tasks.collect::<Vec<_>>() {
            acknowledged.push(task.await.unwrap());
        }
        assert!(store.failed().is_some(), "round {round}: the disk ran full");
        store.close().await;

        fs::remove_file(ballast).unwrap();
        let again = open(&dir).unwrap();
        for (number, told) in acknowledged.into_iter().enumerate() {
            let there = again.vm(&key(&format!("vm-{number}")));
            let Some((starts, address)) = told else { continue };
            let there = there.unwrap_or_else(|| panic!("round {round}: vm-{number} is lost"));
            assert!(there.starts >= starts, "round {round}: vm-{number}");
            if there.starts == starts {
                let held = there.reservation.as_ref().and_then(|held| held.address());
                assert_eq!(held, address, "round {round}: vm-{number} at {starts}");
            }
        }
        declare(&again, vm("late", "")).await;
    }
}

/// Changes a VM until the store refuses. Returns the last starts and address that were acknowledged
/// together.
async fn reserve_until_full(store: Store, number: usize) -> Option<(u32, Option<Ipv4Addr>)> {
    let name = format!("vm-{number}");
    let origin = Origin { source: "directory:/m".to_owned(), path: "a.yaml".into(), line: 1 };
    let declared = store.declare(vm(&name, "some text"), origin, false, Timestamp::UNIX_EPOCH).await;
    let Ok(Declared::Created { uid }) = declared else { return None };
    let mut acknowledged = (0, None);
    for count in 1.. {
        let update = VmUpdate { starts: Some(count), ..VmUpdate::default() };
        if store.publish_vm(&key(&name), uid, update).await.is_err() {
            break;
        }
        let Ok(held) = store.reserve_vm(claim(&name, uid)).await else { break };
        acknowledged = (count, held.address());
    }
    Some(acknowledged)
}

#[tokio::test]
async fn a_store_is_not_half_made_on_a_full_disk() {
    let disk = SmallDisk::new();
    let ballast = disk.0.path().join("ballast");
    fs::write(&ballast, vec![0; 16 << 20]).unwrap_err();
    let dir = disk.0.path().join("store");
    let error = open(&dir).err().expect("there is no room").to_string();
    assert!(error.contains("No space left"), "{error}");
    fs::remove_file(ballast).unwrap();
    declare(&open(&dir).unwrap(), vm("web", "")).await;
}
