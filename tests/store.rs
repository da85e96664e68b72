//! The store on a real disk: crashes, damage, restores, full disks, contention.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use jiff::Timestamp;

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::json;
use tempfile::TempDir;
use uuid::Uuid;
use vmlet::image::{Digest, ImageConfig};
use vmlet::object::{API_VERSION, AnyObject, Kind, ObjectKey, Quantity};
use vmlet::store::{
    Capacity, Declared, NetworkClaim, OpenError, Origin, Record, Store, StoreSettings, VmClaim, VmUpdate,
};

fn open(dir: &Path) -> Result<Store, OpenError> {
    Store::open(dir, StoreSettings::default())
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new(Kind::Vm, "default", name)
}

fn vm(name: &str, env: &str) -> AnyObject {
    let object = json!({
        "apiVersion": API_VERSION, "kind": "VM", "metadata": {"name": name},
        "spec": {"image": {"name": "base"}, "env": [{"name": "E", "value": env}]}
    });
    AnyObject::Vm(serde_json::from_value(object).unwrap())
}

async fn declare(store: &Store, object: AnyObject) -> Uuid {
    let origin = Origin { source: "directory:/m".to_owned(), path: "a.yaml".into(), line: 1 };
    match store.declare(object, origin, false, Timestamp::UNIX_EPOCH).await.unwrap() {
        Declared::Created { uid } => uid,
        other => panic!("not created but {other:?}"),
    }
}

async fn starts(store: &Store, name: &str, uid: Uuid, starts: u32) {
    let update = VmUpdate { starts: Some(starts), ..VmUpdate::default() };
    store.publish_vm(&key(name), uid, update).await.unwrap();
}

fn objects(store: &Store) -> BTreeMap<ObjectKey, Record> {
    let records = Kind::ALL.into_iter().flat_map(|kind| store.list(kind, None).0);
    records.map(|record| (record.key(), record)).collect()
}

/// A closed store of 100 VMs, changed often enough that its log holds old rows, too.
async fn filled(dir: &Path) -> BTreeMap<ObjectKey, Record> {
    let store = open(dir).unwrap();
    for number in 0..100 {
        let name = format!("vm-{number}");
        let uid = declare(&store, vm(&name, &"e".repeat(300))).await;
        starts(&store, &name, uid, number).await;
    }
    let objects = objects(&store);
    store.close().await;
    objects
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Damages a copy of a store and opens it: either nothing is lost, or the error says what to do.
/// True if it opened.
fn survives(original: &Path, expected: &BTreeMap<ObjectKey, Record>, damage: impl FnOnce(&Path)) -> bool {
    let scratch = TempDir::new().unwrap();
    let dir = scratch.path().join("store");
    copy(original, &dir);
    damage(&dir.join("db"));
    match open(&dir) {
        Ok(store) => {
            assert!(objects(&store) == *expected, "it opened with other rows than were written");
            true
        }
        Err(error) => {
            let (text, db) = (error.to_string(), dir.join("db").display().to_string());
            assert!(text.contains(&format!("mv {db} {db}.corrupt")), "{text}");
            assert!(text.contains("export.json"), "{text}");
            false
        }
    }
}

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
async fn flipped_bytes_never_lose_rows_silently() {
    let dir = TempDir::new().unwrap();
    let expected = filled(dir.path()).await;
    let length = fs::metadata(dir.path().join("db/db")).unwrap().len();
    let mut random = StdRng::seed_from_u64(7);
    let opened = (0..40)
        .filter(|round| {
            let offset = if round % 4 == 0 { round * 8 } else { random.random_range(0..length - 4) };
            survives(dir.path(), &expected, |db| {
                let log = fs::File::options().read(true).write(true).open(db.join("db")).unwrap();
                let mut bytes = [0; 4];
                log.read_exact_at(&mut bytes, offset).unwrap();
                log.write_all_at(&bytes.map(|byte| !byte), offset).unwrap();
            })
        })
        .count();
    assert!(opened < 40, "no damage was noticed: the damage does not reach the log");
}

#[tokio::test]
async fn a_shortened_log_never_loses_rows_silently() {
    let dir = TempDir::new().unwrap();
    let expected = filled(dir.path()).await;
    let length = fs::metadata(dir.path().join("db/db")).unwrap().len();
    let opened = (0..16).filter(|part| {
        survives(dir.path(), &expected, |db| {
            let log = fs::File::options().write(true).open(db.join("db")).unwrap();
            log.set_len(length * part / 16).unwrap();
        })
    });
    assert!(opened.count() < 16);
}

#[tokio::test]
async fn a_log_from_before_the_last_acknowledgement_does_not_open() {
    let dir = TempDir::new().unwrap();
    filled(dir.path()).await;
    let old = TempDir::new().unwrap();
    copy(&dir.path().join("db"), old.path());
    let store = open(dir.path()).unwrap();
    declare(&store, vm("late", "")).await;
    let expected = objects(&store);
    store.close().await;
    let rolled_back = |db: &Path| {
        let head = fs::read(db.join("head")).unwrap();
        fs::remove_dir_all(db).unwrap();
        copy(old.path(), db);
        fs::write(db.join("head"), head).unwrap();
    };
    assert!(!survives(dir.path(), &expected, rolled_back));
    assert!(!survives(dir.path(), &expected, |db| fs::remove_file(db.join("db")).unwrap()));
    assert!(!survives(dir.path(), &expected, |db| fs::remove_file(db.join("head")).unwrap()));
    assert!(!survives(dir.path(), &expected, |db| fs::write(db.join("head"), [1; 12]).unwrap()));
}

/// What sled may give back after damage, made without damage: rows missing, old, or altered.
#[tokio::test]
async fn rows_that_are_missing_old_or_altered_are_noticed() {
    let dir = TempDir::new().unwrap();
    let original = filled(dir.path()).await;
    let row = "vm/default/vm-7";
    let before = TempDir::new().unwrap();
    copy(dir.path(), before.path());
    let old = sled::open(before.path().join("db")).unwrap().get(row).unwrap().unwrap();
    let store = open(dir.path()).unwrap();
    starts(&store, "vm-7", original[&key("vm-7")].metadata().uid.unwrap(), 1000).await;
    store.close().await;
    let refusal = |alter: &dyn Fn(&sled::Db)| {
        let scratch = TempDir::new().unwrap();
        copy(dir.path(), scratch.path());
        let db = sled::open(scratch.path().join("db")).unwrap();
        alter(&db);
        db.flush().unwrap();
        // As a kill leaves it: closing goes on behind sled's back, in a thread of its own.
        let killed = TempDir::new().unwrap();
        copy(scratch.path(), killed.path());
        open(killed.path()).err().expect("noticed").to_string()
    };
    let missing = refusal(&|db| _ = db.remove(row).unwrap());
    assert!(missing.contains("it has 100 of 101 rows"), "{missing}");
    let stale = refusal(&|db| _ = db.insert(row, old.clone()).unwrap());
    assert!(stale.contains("not the last ones written"), "{stale}");
    let altered = refusal(&|db| {
        let mut value = db.get(row).unwrap().unwrap().to_vec();
        let end = value.len() - 5;
        value[end] ^= 1;
        db.insert(row, value).unwrap();
    });
    assert!(altered.contains("does not match its checksum"), "{altered}");
    let unchecked = refusal(&|db| _ = db.remove("!check").unwrap());
    assert!(unchecked.contains("check row is missing"), "{unchecked}");
}

#[tokio::test]
async fn a_damaged_snapshot_is_only_an_index() {
    let dir = TempDir::new().unwrap();
    let expected = filled(dir.path()).await;
    let snapshots = |db: &Path| {
        let paths = fs::read_dir(db).unwrap().map(|entry| entry.unwrap().path());
        paths
            .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("snap."))
            .collect::<Vec<PathBuf>>()
    };
    assert!(!snapshots(&dir.path().join("db")).is_empty(), "sled writes one when it closes");
    for length in [0, 3, 20] {
        assert!(
            survives(dir.path(), &expected, |db| {
                for snapshot in snapshots(db) {
                    fs::File::options().write(true).open(snapshot).unwrap().set_len(length).unwrap();
                }
            }),
            "a snapshot of {length} bytes"
        );
    }
}

#[tokio::test]
async fn the_export_restores_what_the_log_lost() {
    let dir = TempDir::new().unwrap();
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
    fs::write(&export, "{\"format\":1,").unwrap();
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
    let digest: Digest = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
    let install = Uuid::new_v4();
    store.claim_disk(&digest, install).await.unwrap();
    let config = ImageConfig::default();
    store.publish_disk(&digest, install, "/d".into(), Quantity::bytes(1), config).await.unwrap();
    let tasks = (0..64).map(|number| {
        let (store, digest, name) = (store.clone(), digest.clone(), format!("vm-{number}"));
        tokio::spawn(async move {
            let uid = declare(&store, vm(&name, "")).await;
            let claim = VmClaim {
                key: key(&name),
                uid,
                generation: 1,
                image: digest,
                network: NetworkClaim::Bridge {
                    subnet: "10.63.0.0/24".parse().unwrap(),
                    fixed: None,
                    ports: Vec::new(),
                },
                vmm_users: Some(1000..1064),
                memory: Quantity::mebibytes(1),
                cpus: 1,
                disk: Quantity::mebibytes(1),
                capacity: Capacity {
                    memory: Quantity::mebibytes(64),
                    cpus: 64,
                    disk: Quantity::mebibytes(64),
                },
                impatient: false,
            };
            let reservation = store.reserve_vm(claim).await.unwrap();
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

const CHILD_DIR: &str = "VMLET_TEST_STORE_DIR";
const WRITERS: u32 = 8;

/// Not a test: what [`acknowledged_publishes_survive_a_kill`] kills.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by acknowledged_publishes_survive_a_kill"]
async fn child_that_publishes_until_killed() {
    let dir = std::env::var_os(CHILD_DIR).expect("set by the parent");
    let store = open(Path::new(&dir)).unwrap();
    let writers = (0..WRITERS).map(|number| {
        let store = store.clone();
        tokio::spawn(async move {
            let name = format!("vm-{number}");
            // Large records are files of their own in sled.
            let uid = declare(&store, vm(&name, &"e".repeat(60_000 * (number as usize % 2)))).await;
            for count in 1.. {
                starts(&store, &name, uid, count).await;
                println!("\nacknowledged {name} {count}");
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
}

#[test]
fn acknowledged_publishes_survive_a_kill() {
    let dir = TempDir::new().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_publishes_until_killed", "--ignored", "--nocapture"])
        .env(CHILD_DIR, dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut acknowledged = BTreeMap::new();
    let mut seen = 0;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let Some((name, count)) = line.strip_prefix("acknowledged ").and_then(|rest| rest.split_once(' '))
        else {
            continue;
        };
        acknowledged.insert(name.to_owned(), count.parse::<u32>().unwrap());
        seen += 1;
        if seen == 400 {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(seen >= 400, "the child ended by itself");
    assert_eq!(acknowledged.len(), WRITERS as usize);
    let store = open(dir.path()).unwrap();
    for (name, count) in acknowledged {
        let starts = store.vm(&key(&name)).unwrap().starts;
        assert!(starts >= count, "{name}: {count} was acknowledged, {starts} is there");
    }
}

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
