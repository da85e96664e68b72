//! `vmlet store`, on real state folders.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use insta::assert_snapshot;
use jiff::Timestamp;
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use vmlet::agent::Agent;
use vmlet::api::{Guests, Sources, bind, serve};
use vmlet::manifest::{Readiness, decode};
use vmlet::metrics::Metrics;
use vmlet::object::{Kind, Uid};
use vmlet::reconcile::Clock;
use vmlet::store::{Origin, Store, StoreSettings};
use vmlet::timeline::Recorder;

use super::{MANIFEST, outcome, steady, vmlet};

/// A state folder with a store of one image and two VMs.
struct State(TempDir);

impl State {
    fn filled() -> State {
        let state = State(tempfile::tempdir().unwrap());
        Runtime::new().unwrap().block_on(async {
            let store = state.open();
            for located in decode(Path::new("all.yaml"), MANIFEST.as_bytes()).objects {
                let origin = Origin { source: "directory:/m".into(), path: "all.yaml".into(), line: 1 };
                store.declare(located.object, origin, false, Timestamp::now()).await.unwrap();
            }
            store.close().await;
        });
        state
    }

    fn open(&self) -> Store {
        Store::open(&self.0.path().join("store"), StoreSettings::default()).unwrap()
    }

    /// Runs `vmlet store` on it. Paths of this machine are made equal.
    fn vmlet(&self, words: &[&str]) -> (i32, String, String) {
        let mut command = vmlet(&["store"]);
        command.args(words).env("VMLET_STATE", self.0.path()).env("VMLET_HOST", self.0.path().join("socket"));
        let (code, stdout, stderr) = outcome(&command.output().unwrap());
        let equal = |text: String| {
            let text = text.replace(&self.0.path().display().to_string(), "STATE");
            text.replace(&format!("process {}", std::process::id()), "process PID")
        };
        (code, equal(stdout), equal(stderr))
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    fn objects(&self) -> Vec<String> {
        let store = self.open();
        let records = Kind::ALL.into_iter().flat_map(|kind| store.list(kind, None).0);
        records.map(|record| format!("{} {:?}", record.key(), record.metadata().uid)).collect()
    }
}

struct NoGuests;

#[async_trait::async_trait]
impl Guests for NoGuests {
    fn agent(&self, _: Uid) -> Option<Agent> {
        None
    }

    fn vm_dir(&self, uid: Uid) -> std::path::PathBuf {
        uid.to_string().into()
    }

    fn driver(&self) -> String {
        "qemu, tcg".to_owned()
    }

    async fn console(&self, _: Uid) -> Result<vmlet::hypervisor::GuestStream, String> {
        Err("no guest runs".to_owned())
    }
}

#[test]
fn a_sound_store() {
    let state = State::filled();
    let (code, stdout, stderr) = state.vmlet(&["check"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert_snapshot!("store_check", steady(&stdout));
    let (_, json, _) = state.vmlet(&["check", "-o", "json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["sound"], &json["counts"]["vms"]), (&true.into(), &2.into()));
}

#[test]
fn a_damaged_store() {
    let state = State::filled();
    let log = state.0.path().join("store/db/db");
    let before = fs::read(&log).unwrap();
    let mut bytes = before.clone();
    let place = bytes.windows(4).position(|window| window == b"tier").unwrap();
    bytes[place] ^= 1;
    fs::write(&log, &bytes).unwrap();
    let (code, stdout, stderr) = state.vmlet(&["check"]);
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert!(stderr.contains("mv STATE/store/db STATE/store/db.corrupt"), "{stderr}");
    let (code, json, _) = state.vmlet(&["check", "-o", "json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, &json["sound"]), (1, &false.into()));
    assert_eq!(state.vmlet(&["export"]).0, 1);
    assert!(fs::read(&log).unwrap() == bytes, "looking changes nothing");
}

#[test]
fn a_store_that_is_not_there_or_in_use() {
    let empty = State(tempfile::tempdir().unwrap());
    let (code, _, stderr) = empty.vmlet(&["check"]);
    assert_eq!(code, 2);
    assert_snapshot!("store_missing", stderr);
    let state = State::filled();
    let open = state.open();
    let (code, _, stderr) = state.vmlet(&["check"]);
    assert_eq!(code, 2);
    assert_snapshot!("store_in_use", stderr);
    let (code, _, stderr) = state.vmlet(&["export"]);
    assert_eq!(code, 1);
    assert_snapshot!("store_export_no_daemon", stderr);
    drop(open);
}

#[test]
fn a_copy_of_the_closed_store_and_back() {
    let state = State::filled();
    let copy = state.path("copy.json");
    let (code, stdout, _) = state.vmlet(&["export", "-o", &copy]);
    assert_eq!(
        (code, stdout.as_str()),
        (0, "exported 2 VMs, 1 image, 0 base disks, 0 events of the closed store to STATE/copy.json\n")
    );
    assert_eq!(fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600);
    let (_, printed, _) = state.vmlet(&["export"]);
    assert!(serde_json::from_str::<Value>(&printed).unwrap()["rows"]["vm/default/web"].is_object());

    let other = State(tempfile::tempdir().unwrap());
    let (code, stdout, stderr) = other.vmlet(&["import", &copy]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert_snapshot!("store_import", steady(&stdout));
    assert_eq!(other.objects(), state.objects(), "uids included");
}

#[test]
fn a_store_is_replaced_only_when_told_so() {
    let (state, other) = (State::filled(), State::filled());
    let copy = state.path("copy.json");
    state.vmlet(&["export", "-o", &copy]);
    let before = other.objects();
    let (code, _, stderr) = other.vmlet(&["import", &copy]);
    assert_eq!(code, 2);
    assert_snapshot!("store_import_exists", stderr);
    assert_eq!(other.objects(), before);

    let (code, stdout, _) = other.vmlet(&["import", "--replace", &copy]);
    assert_eq!(code, 0);
    assert_eq!(other.objects(), state.objects());
    let (_, aside) = stdout.trim_end().rsplit_once("is in STATE/").expect("it says where");
    fs::rename(other.path("store/db"), other.path("gone")).unwrap();
    fs::rename(other.path(aside), other.path("store/db")).unwrap();
    assert_eq!(other.objects(), before, "the old store is whole");
}

#[test]
fn what_is_no_copy() {
    let state = State(tempfile::tempdir().unwrap());
    let file = state.path("copy.json");
    for (text, code) in
        [("{\"format\":1,", 1), ("{\"format\":9,\"takenAt\":\"2026-01-01T00:00:00Z\",\"rows\":{}}", 1)]
    {
        fs::write(&file, text).unwrap();
        let (got, _, stderr) = state.vmlet(&["import", &file]);
        assert_eq!(got, code);
        assert!(stderr.contains("is no copy of a store"), "{stderr}");
    }
    assert_eq!(state.vmlet(&["import", "/nowhere.json"]).0, 2);
    assert!(!state.0.path().join("store").exists());
}

#[test]
fn a_copy_of_the_running_daemons_store() {
    let state = State::filled();
    let runtime = Runtime::new().unwrap();
    let store = state.open();
    runtime.block_on(async {
        let listener = bind(&state.0.path().join("socket")).await.unwrap();
        let (guests, (_, readiness)) = (Arc::new(NoGuests), watch::channel(Readiness::default()));
        let (recorder, metrics) = (Recorder::new(Clock::Host), Metrics::default());
        let storage = Arc::new(crate::storage::Scripted::default());
        let sources = Sources { store, guests, recorder, metrics, readiness, storage };
        tokio::spawn(serve(listener, sources, CancellationToken::new()));
    });
    let copy = state.path("copy.json");
    let (code, stdout, stderr) = state.vmlet(&["export", "-o", &copy]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(stdout.contains("of the daemon to"), "{stdout}");
    let copy: Value = serde_json::from_slice(&fs::read(copy).unwrap()).unwrap();
    assert!(copy["rows"]["vm/default/ci-1"].is_object());
}
