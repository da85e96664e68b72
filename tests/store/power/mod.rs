//! Power loss. A real writer runs under strace, which records what it writes and what it syncs. Then
//! the power is cut at many instants of this record: whatever was not synced is kept or lost at
//! random, sector by sector, and the store is opened on what is left.

mod disk;
mod imports;
mod trace;

use std::path::Path;
use std::process::{Command, Stdio};

use rand::seq::IteratorRandom as _;
use rand::{SeedableRng as _, rngs::StdRng};
use tempfile::TempDir;

use self::disk::{Disk, Luck};
use self::trace::{Step, steps};
use super::support::*;
use super::writer::{Acknowledged, WRITERS, arm};

/// Changes that each writer makes.
const ROUNDS: u32 = 24;
/// Instants at which the power is cut, and what becomes of each one's unsynced writes.
const CUTS: usize = 120;
const LUCKS: [Luck; 4] = [Luck::AllLost, Luck::AllKept, Luck::Mixed, Luck::Mixed];

#[test]
fn what_was_acknowledged_survives_power_loss() {
    let root = TempDir::new().unwrap();
    let record = root.path().join("trace");
    let parent = root.path().join("disk");
    std::fs::create_dir(&parent).unwrap();
    run_traced(&record, |command| arm(command, &parent.join("store"), ROUNDS));
    let steps = steps(&record);
    let blobs = parent.join("store/db/blobs");
    let writes_blob =
        |step: &Step| matches!(step, Step::Call(call) if call.name == "write" && call.args.mention(&blobs));
    assert!(steps.iter().any(writes_blob), "no record was large enough to be a file of its own");

    let seed = std::env::var("VMLET_SEED").ok().map_or(11, |seed| seed.parse().unwrap());
    let mut random = StdRng::seed_from_u64(seed);
    let mut cuts = (0..steps.len()).choose_multiple(&mut random, CUTS);
    cuts.sort_unstable();
    let (mut disk, mut acknowledged) = (Disk::new(&parent), Acknowledged::default());
    let (mut images, mut refused) = (0, Vec::new());
    for (number, step) in steps.iter().enumerate() {
        match step {
            Step::Says(line) => line.lines().for_each(|line| acknowledged.note(line)),
            Step::Call(call) => disk.take(call),
        }
        if cuts.binary_search(&number).is_err() {
            continue;
        }
        for luck in LUCKS {
            images += 1;
            // In memory: what is done with an image needs no disk.
            let image = scratch();
            disk.after_power_loss(luck, &mut random, image.path());
            match open(&image.path().join("store")) {
                Ok(store) => acknowledged.check(&store),
                Err(error) => refused.push(format!("cut {number} ({luck:?}): {error}")),
            }
        }
    }
    println!("{} acknowledgements, {CUTS} cuts, {images} images, seed {seed}", acknowledged.count);
    assert_eq!(acknowledged.vms(), WRITERS);
    assert!(refused.is_empty(), "{} of {images} stores did not open: {refused:#?}", refused.len());
}

const WITHOUT_COPY: &str = "VMLET_TEST_WITHOUT_COPY_DIR";

/// Not a test: the process. Declares a VM in a new store beside which no copy can be written.
#[tokio::test]
#[ignore = "run by the test of power loss"]
async fn child_without_a_copy() {
    let dir = std::env::var_os(WITHOUT_COPY).expect("set by the parent");
    let dir = Path::new(&dir);
    std::fs::create_dir(dir).unwrap();
    std::fs::create_dir(dir.join("export.json.tmp")).unwrap();
    for folder in [dir, dir.parent().unwrap()] {
        std::fs::File::open(folder).unwrap().sync_all().unwrap();
    }
    declare(&open(dir).unwrap(), vm("web", "")).await;
    println!("\nacknowledged");
}

/// Elsewhere the copy that each start writes makes the log's name safe, too.
#[test]
fn a_new_log_is_safe_though_no_copy_can_be_written() {
    let root = TempDir::new().unwrap();
    let (record, parent) = (root.path().join("trace"), root.path().join("disk"));
    std::fs::create_dir(&parent).unwrap();
    run_traced(&record, |command| {
        let child = ["--exact", "power::child_without_a_copy", "--ignored", "--nocapture"];
        command.args(child).env(WITHOUT_COPY, parent.join("store"));
    });
    let mut disk = Disk::new(&parent);
    let acknowledged = steps(&record).iter().any(|step| match step {
        Step::Says(line) => line.contains("acknowledged"),
        Step::Call(call) => {
            disk.take(call);
            false
        }
    });
    assert!(acknowledged);
    let image = scratch();
    disk.after_power_loss(Luck::AllLost, &mut StdRng::seed_from_u64(1), image.path());
    assert_eq!(objects(&open(&image.path().join("store")).unwrap()).len(), 1);
}

/// Runs this binary, as it is armed, to its end.
fn run_traced(record: &Path, arm: impl FnOnce(&mut Command)) {
    let mut command = Command::new("strace");
    let options = ["-f", "-y", "-xx", "--string-limit=100000000", "-e", trace::CALLS, "-o"];
    command.args(options).arg(record).arg(std::env::current_exe().unwrap());
    arm(&mut command);
    let status = command.stdout(Stdio::null()).status();
    let status = status.expect("strace runs (scripts/install-deps.sh installs it)");
    assert!(status.success(), "what was traced failed");
}
