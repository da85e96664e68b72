//! The power is cut while a store is closed, and while another is put into its place: at every instant there
//! is a whole store, and a whole copy beside it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use vmlet::store::{ClosedStore, Store, import};

use super::*;

const DIR: &str = "VMLET_TEST_IMPORT_DIR";

/// Not a test: the process. Declares a VM, closes the store, and puts a store of two in its place.
#[tokio::test]
#[ignore = "run by the test of power loss"]
async fn child_that_imports() {
    let dir = std::env::var_os(DIR).expect("set by the parent");
    let dir = Path::new(&dir);
    let store = open(dir).unwrap();
    declare(&store, vm("old", "")).await;
    store.close().await;
    println!("\nclosed");
    let (other, _backend) = Store::in_memory();
    for name in ["new", "newer"] {
        declare(&other, vm(name, "")).await;
    }
    import(dir, &other.export().unwrap(), true).unwrap();
    println!("\nimported");
}

/// How far the process is known to have come.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
enum Known {
    Begun,
    Closed,
    Imported,
}

#[test]
fn there_is_a_whole_store_whenever_the_power_fails() {
    let root = TempDir::new().unwrap();
    let (record, parent) = (root.path().join("trace"), root.path().join("disk"));
    fs::create_dir(&parent).unwrap();
    run_traced(&record, |command| {
        let child = ["--exact", "power::imports::child_that_imports", "--ignored", "--nocapture"];
        command.args(child).env(DIR, parent.join("store"));
    });
    let (mut disk, mut known, mut random) = (Disk::new(&parent), Known::Begun, StdRng::seed_from_u64(5));
    let mut images = 0;
    for (number, step) in steps(&record).iter().enumerate() {
        match step {
            Step::Says(line) if line.contains("closed") => known = Known::Closed,
            Step::Says(line) if line.contains("imported") => known = Known::Imported,
            Step::Says(_) => {}
            Step::Call(call) => disk.take(call),
        }
        if known == Known::Begun {
            continue;
        }
        for luck in LUCKS {
            images += 1;
            let image = scratch();
            disk.after_power_loss(luck, &mut random, image.path());
            check(&image.path().join("store"), known, &format!("cut {number} ({luck:?}, {known:?})"));
        }
    }
    assert!(known == Known::Imported && images > 100, "{known:?}, {images} images");
}

fn check(dir: &Path, known: Known, cut: &str) {
    let copy = ClosedStore::take(dir).unwrap().exported_at();
    assert!(matches!(copy, Ok(Some(_))), "{cut}: {copy:?}");
    let whole = |what: &str| {
        let store = open(dir).unwrap_or_else(|error| panic!("{cut}: {what}: {error}"));
        let names: BTreeSet<String> = objects(&store).into_keys().map(|key| key.name).collect();
        let (old, new) = (BTreeSet::from(["old".to_owned()]), ["new", "newer"].map(str::to_owned).into());
        assert!(names == new || names == old && known < Known::Imported, "{cut}: {what} holds {names:?}");
    };
    // The copy first: an open store makes it anew.
    fs::rename(dir.join("db"), dir.join("log")).unwrap_or_else(|error| panic!("{cut}: no log: {error}"));
    whole("the copy");
    fs::remove_dir_all(dir.join("db")).unwrap();
    fs::rename(dir.join("log"), dir.join("db")).unwrap();
    whole("the log");
}
