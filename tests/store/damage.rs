//! Damage: whatever a disk gives back instead of what was written, nothing is lost silently.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use vmlet::object::ObjectKey;
use vmlet::store::Record;

use super::support::*;

/// Damages a copy of a store and opens it: either nothing is lost, or the error says what to do.
/// True if it opened.
fn survives(original: &Path, expected: &BTreeMap<ObjectKey, Record>, damage: impl FnOnce(&Path)) -> bool {
    let scratch = scratch();
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
            // What it says is what helps.
            fs::rename(dir.join("db"), dir.join("db.corrupt")).unwrap();
            assert!(objects(&open(&dir).unwrap()) == *expected, "the export holds other rows");
            false
        }
    }
}

#[tokio::test]
async fn flipped_bytes_never_lose_rows_silently() {
    let dir = scratch();
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
    let dir = scratch();
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
    let dir = scratch();
    filled(dir.path()).await;
    let old = scratch();
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
    let dir = scratch();
    let original = filled(dir.path()).await;
    let row = "vm/default/vm-7";
    let before = scratch();
    copy(dir.path(), before.path());
    let old = sled::open(before.path().join("db")).unwrap().get(row).unwrap().unwrap();
    let store = open(dir.path()).unwrap();
    starts(&store, "vm-7", original[&key("vm-7")].metadata().uid.unwrap(), 1000).await;
    store.close().await;
    let refusal = |alter: &dyn Fn(&sled::Db)| {
        let altered = scratch();
        copy(dir.path(), altered.path());
        let db = sled::open(altered.path().join("db")).unwrap();
        alter(&db);
        db.flush().unwrap();
        // As a kill leaves it: closing goes on behind sled's back, in a thread of its own.
        let killed = scratch();
        copy(altered.path(), killed.path());
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
    let foreign = refusal(&|db| {
        let check = db.get("!check").unwrap().unwrap();
        let value = String::from_utf8(check[8..].to_vec()).unwrap().replace("\"format\":2,", "");
        let checksum = crc32c::crc32c_append(crc32c::crc32c(b"!check"), value.as_bytes());
        let header = [value.len() as u32, checksum].map(u32::to_le_bytes).concat();
        db.insert("!check", [&header, value.as_bytes()].concat()).unwrap();
    });
    assert!(foreign.contains("of format 1") && !foreign.contains("damaged"), "{foreign}");
}

#[tokio::test]
async fn a_damaged_snapshot_is_only_an_index() {
    let dir = scratch();
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

/// What can happen to a file. Places are parts of its length.
#[derive(Clone, Debug)]
enum Damage {
    Flipped { at: f64, bits: u8 },
    Zeroed { at: f64 },
    Garbled { at: f64, with: u64 },
    Shortened { to: f64 },
    Lengthened { by: usize },
    Gone,
}

/// What a disk loses at once.
const PAGE: usize = 4096;

impl Damage {
    fn any() -> impl Strategy<Value = Damage> {
        let part = || 0.0..1.0;
        prop_oneof![
            4 => (part(), 1..=255_u8).prop_map(|(at, bits)| Damage::Flipped { at, bits }),
            2 => part().prop_map(|at| Damage::Zeroed { at }),
            2 => (part(), any::<u64>()).prop_map(|(at, with)| Damage::Garbled { at, with }),
            2 => part().prop_map(|to| Damage::Shortened { to }),
            1 => (1..2 * PAGE).prop_map(|by| Damage::Lengthened { by }),
            1 => Just(Damage::Gone),
        ]
    }

    fn strike(&self, path: &Path) {
        let mut bytes = fs::read(path).unwrap();
        let place = |part: f64| (bytes.len() as f64 * part) as usize;
        let page = |part: f64| place(part) / PAGE * PAGE..bytes.len().min((place(part) / PAGE + 1) * PAGE);
        match *self {
            Damage::Flipped { at, bits } => {
                let at = place(at);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= bits;
                }
            }
            Damage::Zeroed { at } => {
                let page = page(at);
                bytes[page].fill(0);
            }
            Damage::Garbled { at, with } => {
                let page = page(at);
                StdRng::seed_from_u64(with).fill(&mut bytes[page]);
            }
            Damage::Shortened { to } => bytes.truncate(place(to)),
            Damage::Lengthened { by } => bytes.resize(bytes.len() + by, 7),
            Damage::Gone => return fs::remove_file(path).unwrap(),
        }
        fs::write(path, bytes).unwrap();
    }
}

/// The files below a folder, by their paths below it.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let name = PathBuf::from(entry.file_name());
        match entry.path() {
            path if path.is_dir() => files.extend(self::files(&path).iter().map(|file| name.join(file))),
            _ => files.push(name),
        }
    }
    files.sort();
    files
}

#[test]
fn no_damage_to_any_file_loses_rows_silently() {
    let dir = scratch();
    let expected = tokio::runtime::Runtime::new().unwrap().block_on(filled(dir.path()));
    let files = files(&dir.path().join("db"));
    let kinds = ["db", "conf", "head", "snap.", "blobs/"];
    let known = |kind: &&str| files.iter().any(|file| file.to_string_lossy().starts_with(*kind));
    assert!(kinds.iter().all(known), "{files:?}");
    // The log is most of the store; the small files deserve a share, too.
    let file = prop_oneof![Just(PathBuf::from("db")), prop::sample::select(files)];
    let mut runner =
        TestRunner::new(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(160) });
    let damages = prop::collection::vec((file, Damage::any()), 1..3);
    let result = runner.run(&damages, |damages| {
        survives(dir.path(), &expected, |db| {
            for (file, damage) in &damages {
                // The same file may be struck, and lost, twice.
                if db.join(file).exists() {
                    damage.strike(&db.join(file));
                }
            }
        });
        Ok(())
    });
    if let Err(failure) = result {
        panic!("{failure}");
    }
}
