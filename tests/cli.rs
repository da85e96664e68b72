//! The command line as its users meet it: the real binary against a real socket.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "cli/image.rs"]
mod image;
#[path = "cli/simulate.rs"]
mod simulate;
#[path = "common/storage.rs"]
mod storage;
#[path = "cli/store.rs"]
mod store;

use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use assert_cmd::Command;
use async_trait::async_trait;
use insta::assert_snapshot;
use jiff::Timestamp;
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use vmlet::agent::{Agent, FakeGuest, FakeScript, LogSink};
use vmlet::api::{Guests, Sources, bind, serve};
use vmlet::boot::Boot;
use vmlet::hypervisor::{GuestStream, ProcessIdentity};
use vmlet::image::{Digest, ImageConfig};
use vmlet::manifest::{Readiness, decode};
use vmlet::metrics::Metrics;
use vmlet::object::{Condition, ConditionStatus, Kind, ObjectKey, Uid, VmStatus};
use vmlet::reconcile::Clock;
use vmlet::store::{
    Capacity, DiskClaim, NetworkClaim, Origin, Run, Severity, Store, Subject, VmClaim, VmUpdate,
};
use vmlet::timeline::{self, Outcome, Phase, Recorder};

const MANIFEST: &str = "\
apiVersion: vmlet.dev/v1alpha1
kind: Image
metadata: {name: debian}
spec: {source: {oci: {reference: 'debian:12'}}}
---
apiVersion: vmlet.dev/v1alpha1
kind: VM
metadata: {name: web, labels: {tier: front}}
spec: {image: {name: debian}}
---
apiVersion: vmlet.dev/v1alpha1
kind: VM
metadata: {name: ci-1}
spec: {image: {oci: 'alpine:3'}}
";

/// Every VM has the same scripted guest and folder.
struct OneGuest {
    agent: Agent,
    dir: PathBuf,
}

#[async_trait]
impl Guests for OneGuest {
    fn agent(&self, _: Uid) -> Option<Agent> {
        Some(self.agent.clone())
    }

    fn vm_dir(&self, _: Uid) -> PathBuf {
        self.dir.clone()
    }

    fn driver(&self) -> String {
        "qemu, tcg".to_owned()
    }

    async fn console(&self, _: Uid) -> Result<GuestStream, String> {
        Err("nobody made one".to_owned())
    }
}

/// A daemon's API, served by this process.
struct Daemon {
    dir: TempDir,
    runtime: Runtime,
    store: Store,
    recorder: Recorder,
    readiness: watch::Sender<Readiness>,
    _guest: FakeGuest,
}

impl Daemon {
    /// With the objects of [`MANIFEST`].
    fn start() -> Self {
        let daemon = Daemon::empty();
        daemon.declare(MANIFEST);
        daemon.ready("web");
        daemon
    }

    fn empty() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime = Runtime::new().unwrap();
        let (store, _) = Store::in_memory();
        let guest = FakeGuest::new(FakeScript::default());
        let recorder = Recorder::new(Clock::Host);
        let (readiness, read) = watch::channel(Readiness::Applied);
        runtime.block_on(async {
            let log = LogSink::new(dir.path().join("fake.log"), 1 << 20);
            let agent = Agent::connect(guest.connect(), log).await.unwrap();
            let guests = Arc::new(OneGuest { agent, dir: dir.path().to_owned() });
            let listener = bind(&dir.path().join("vmlet.sock")).await.unwrap();
            let (store, recorder) = (store.clone(), recorder.clone());
            let storage = Arc::new(storage::Scripted::default());
            let metrics = Metrics::default();
            let sources = Sources { store, guests, recorder, metrics, readiness: read, storage };
            tokio::spawn(serve(listener, sources, CancellationToken::new()));
        });
        Daemon { dir, runtime, store, recorder, readiness, _guest: guest }
    }

    fn declare(&self, yaml: &str) {
        let decoded = decode(Path::new("all.yaml"), yaml.as_bytes());
        assert_eq!(decoded.diagnostics, []);
        for located in decoded.objects {
            let origin =
                Origin { source: "directory:/m".into(), path: "/m/all.yaml".into(), line: located.line };
            let declared = self.store.declare(located.object, origin, false, Timestamp::now());
            self.runtime.block_on(declared).unwrap();
        }
    }

    /// Declares what the files of a folder hold, as a daemon that reads it would have.
    fn declare_folder(&self, root: &Path) {
        for entry in std::fs::read_dir(root).unwrap() {
            let path = entry.unwrap().path();
            let decoded = decode(&path, &std::fs::read(&path).unwrap());
            for located in decoded.objects {
                let source = format!("directory:{}", root.display());
                let path = path.strip_prefix(root).unwrap().to_owned();
                let origin = Origin { source, path, line: located.line };
                let declared = self.store.declare(located.object, origin, false, Timestamp::now());
                self.runtime.block_on(declared).unwrap();
            }
        }
    }

    /// Reserves what the VM needs and records a process of it, started with its present spec.
    fn start_vm(&self, name: &str) {
        let key = ObjectKey::new(Kind::Vm, "default", name);
        let object = self.store.vm(&key).unwrap().object.clone();
        let uid = object.metadata.uid.unwrap();
        let digest: Digest = format!("sha256:{}", "a".repeat(64)).parse().unwrap();
        let started = async {
            let claim = Uid::new_v4();
            if self.store.claim_disk(&digest, claim).await.unwrap() == DiskClaim::Granted {
                let (path, config) = ("/d".into(), ImageConfig::default());
                self.store.publish_disk(&digest, claim, path, object.spec.memory, config).await.unwrap();
            }
            let claim = VmClaim {
                cpus: 1,
                impatient: false,
                key: key.clone(),
                uid,
                generation: 1,
                image: digest.clone(),
                network: NetworkClaim::Bridge {
                    subnet: "10.63.0.0/24".parse().unwrap(),
                    fixed: None,
                    ports: vec![],
                },
                vmm_users: None,
                memory: object.spec.memory,
                disk: object.spec.root_disk.size,
                capacity: Capacity { memory: "1Ti".parse().unwrap(), cpus: 64, disk: "1Ti".parse().unwrap() },
            };
            self.store.reserve_vm(claim).await.unwrap();
            let process = ProcessIdentity { pid: 1, start_time: 1, boot_id: "b".into() };
            let spec = object.spec.clone();
            let run =
                Run::Up { process, spec, boot: Boot::default(), since: Timestamp::now(), stopping: None };
            let update = VmUpdate { run: Some(run), ..VmUpdate::default() };
            self.store.publish_vm(&key, uid, update).await.unwrap();
        };
        self.runtime.block_on(started);
    }

    fn ready(&self, name: &str) {
        let key = ObjectKey::new(Kind::Vm, "default", name);
        let record = self.store.vm(&key).unwrap();
        let condition = Condition {
            kind: "Ready".into(),
            status: ConditionStatus::True,
            observed_generation: 1,
            last_transition_time: Timestamp::now(),
            reason: "Running".into(),
            message: "the workload runs".into(),
        };
        let status = VmStatus {
            phase: "Running".into(),
            conditions: vec![condition],
            observed_generation: 1,
            addresses: vec!["10.63.0.4".into()],
            ..VmStatus::default()
        };
        let update = VmUpdate { status: Some(status), ..VmUpdate::default() };
        let uid = record.object.metadata.uid.unwrap();
        self.runtime.block_on(self.store.publish_vm(&key, uid, update)).unwrap();
    }

    fn vmlet(&self, words: &[&str]) -> Command {
        let mut command = vmlet(words);
        command.env("VMLET_HOST", self.dir.path().join("vmlet.sock"));
        command
    }

    fn run(&self, words: &[&str]) -> (i32, String, String) {
        outcome(&self.vmlet(words).output().unwrap())
    }

    /// The output of a verb that succeeds.
    fn text(&self, words: &[&str]) -> String {
        let (code, stdout, stderr) = self.run(words);
        assert_eq!((code, stderr.as_str()), (0, ""), "{words:?}");
        stdout
    }
}

fn vmlet(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmlet"));
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.timeout(Duration::from_secs(120)).args(words);
    command
}

fn outcome(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

fn seconds(age: &str) -> Option<u32> {
    age.strip_suffix('s')?.parse().ok()
}

/// The text with ages, uids and times made equal.
fn steady(text: &str) -> String {
    let mut lines = Vec::new();
    for line in text.lines() {
        let words: Vec<String> = line
            .split(' ')
            .map(|word| match word {
                age if seconds(age).is_some() => "0s".to_owned(),
                age if age.strip_prefix('(').and_then(seconds).is_some() => "(0s".to_owned(),
                time if time.parse::<Timestamp>().is_ok() => "TIME".to_owned(),
                time if time.strip_suffix(',').is_some_and(|time| time.parse::<Timestamp>().is_ok()) => {
                    "TIME,".to_owned()
                }
                uid if uid.parse::<Uid>().is_ok() => "UID".to_owned(),
                other => other.to_owned(),
            })
            .collect();
        lines.push(words.join(" "));
    }
    lines.join("\n")
}

#[test]
fn help() {
    for verb in [
        "", "get", "wait", "exec", "logs", "timeline", "validate", "diff", "simulate", "why", "store",
        "image",
    ] {
        let words: Vec<&str> = [verb, "-h"].into_iter().filter(|word| !word.is_empty()).collect();
        let (code, stdout, _) = outcome(&vmlet(&words).output().unwrap());
        assert_eq!(code, 0);
        assert_snapshot!(format!("help_{verb}"), stdout);
    }
}

#[test]
fn tables() {
    let daemon = Daemon::start();
    assert_snapshot!("get_vms", steady(&daemon.text(&["get", "vms"])));
    assert_snapshot!("get_vms_wide", steady(&daemon.text(&["get", "vms", "-o", "wide"])));
    assert_snapshot!("get_all", steady(&daemon.text(&["get", "all", "-A"])));
    assert_eq!(daemon.text(&["get", "vms", "-o", "name", "-l", "tier=front"]), "vm/web\n");
    let (code, stdout, stderr) = daemon.run(&["get", "vms", "-n", "other"]);
    assert_eq!((code, stdout.as_str()), (0, ""));
    assert_eq!(stderr, "No resources found in other namespace.\n");
}

#[test]
fn objects() {
    let daemon = Daemon::start();
    let list: Value = serde_json::from_str(&daemon.text(&["get", "all", "-o", "json"])).unwrap();
    assert_eq!((list["kind"].as_str(), list["items"].as_array().map(Vec::len)), (Some("List"), Some(3)));
    let web: Value = serde_json::from_str(&daemon.text(&["get", "vm/web", "-o", "json"])).unwrap();
    assert_eq!(web["metadata"]["name"], "web");
    // What `get -o yaml` prints is a manifest.
    let yaml = daemon.text(&["get", "vm", "web", "-o", "yaml"]);
    assert_eq!(decode(Path::new("web.yaml"), yaml.as_bytes()).diagnostics, []);
}

#[test]
fn one_missing_object_does_not_hide_the_others() {
    let daemon = Daemon::start();
    let (code, stdout, stderr) = daemon.run(&["get", "vm", "web", "nope"]);
    assert_eq!(code, 1);
    assert!(stdout.contains("web "), "{stdout}");
    assert_eq!(
        stderr,
        "error: vms.vmlet.dev \"nope\" not found\nhint: `vmlet get all -A` shows what there is\n"
    );
}

#[test]
fn describe() {
    let daemon = Daemon::start();
    let key = ObjectKey::new(Kind::Vm, "default", "web");
    let now = Timestamp::now();
    daemon.store.record_event(&key, None, Severity::Normal, "Started", "hostile \x1b[2J text", now);
    assert_snapshot!("describe_vm", steady(&daemon.text(&["describe", "vm/web"])));
    assert_snapshot!("events", steady(&daemon.text(&["events", "--for", "vm/web"])));
}

#[test]
fn deletion_is_refused_with_the_file() {
    let daemon = Daemon::start();
    let (code, _, stderr) = daemon.run(&["delete", "vm/web"]);
    assert_eq!(code, 1);
    assert_snapshot!("delete", stderr);
}

#[test]
fn waiting() {
    let daemon = Daemon::start();
    assert_eq!(daemon.text(&["wait", "--for", "condition=Ready", "vm/web"]), "vm/web condition met\n");
    assert_eq!(daemon.text(&["wait", "--for", "delete", "vm/nope"]), "vm/nope deleted\n");
    let (code, _, stderr) =
        daemon.run(&["wait", "--for", "condition=Ready", "vm", "--all", "--timeout", "100ms"]);
    assert_eq!(code, 1);
    assert_snapshot!("wait_timed_out", stderr);
    let (code, _, stderr) = daemon.run(&["wait", "--for", "condition=Ready", "vm/nope"]);
    assert_eq!((code, stderr.lines().last()), (1, Some("hint: `vmlet get all -A` shows what there is")));
    assert!(stderr.contains("error: vm/nope not found"), "{stderr}");
    assert_eq!(daemon.run(&["wait", "--for", "Ready", "vm/web"]).0, 2);
    assert_eq!(daemon.run(&["wait", "--for", "delete", "vm"]).0, 2);
    // The condition comes while it is waited for.
    std::thread::scope(|scope| {
        let wait = scope.spawn(|| daemon.text(&["wait", "--for", "condition=Ready", "vm", "--all"]));
        daemon.ready("ci-1");
        let met = wait.join().unwrap();
        assert!(met.contains("vm/ci-1 condition met") && met.contains("vm/web condition met"), "{met}");
    });
    // What is waited for appears a moment after, as the manifest that a script has just dropped.
    let empty = Daemon::empty();
    std::thread::scope(|scope| {
        let named = scope.spawn(|| empty.run(&["wait", "--for", "condition=Ready", "vm/web"]));
        let all = scope.spawn(|| empty.run(&["wait", "--for", "condition=Ready", "vm", "--all"]));
        // They look first. A wait that is too short for that only sees less.
        std::thread::sleep(Duration::from_millis(500));
        empty.declare(MANIFEST);
        empty.ready("web");
        empty.ready("ci-1");
        for (code, met, _) in [named.join().unwrap(), all.join().unwrap()] {
            assert!(code == 0 && met.contains("vm/web condition met"), "{met}");
        }
    });
}

#[test]
fn a_wait_begins_when_the_manifests_are_read() {
    let daemon = Daemon::start();
    let why = "the manifests are being read";
    daemon.readiness.send_replace(Readiness::Reading(why.into()));
    let wait = ["wait", "--for", "condition=Ready", "vm", "--all", "--timeout"];
    let (code, _, stderr) = daemon.run(&[&wait[..], &["100ms"]].concat());
    assert_eq!((code, stderr), (1, format!("error: timed out waiting: {why}\n")));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| daemon.text(&[&wait[..], &["20s"]].concat()));
        daemon.declare(&MANIFEST.replace("ci-1", "late"));
        daemon.ready("ci-1");
        daemon.ready("late");
        daemon.readiness.send_replace(Readiness::Applied);
        assert!(waiting.join().unwrap().contains("vm/late condition met"));
    });
}

#[test]
fn timelines() {
    let daemon = Daemon::start();
    let (code, stdout, stderr) = daemon.run(&["timeline"]);
    assert_eq!((code, stdout.as_str(), stderr.as_str()), (0, "", "Nothing happened.\n"));
    let object = |name: &str| timeline::Subject::Object(ObjectKey::new(Kind::Vm, "default", name));
    let pull =
        timeline::Subject::Pull { reference: "127.0.0.1:5055/busybox:1".into(), digest: "sha256:aa".into() };
    daemon.recorder.open(pull, Phase::Pull, "", None).end(Outcome::Done);
    daemon
        .recorder
        .open(object("web"), Phase::ImageWait, "busybox:1", Some("sha256:aa".into()))
        .end(Outcome::Done);
    daemon.recorder.open(object("ci-1"), Phase::Boot, "", None).fail("no kernel");
    let text = daemon.text(&["timeline"]);
    for row in ["pull busybox:1 ", "vm/web ", "vm/ci-1 "] {
        assert!(text.lines().any(|line| line.starts_with(row)), "no row {row} in\n{text}");
    }
    assert!(!text.contains('\x1b'), "no colours off a terminal");
    let json: Value = serde_json::from_str(&daemon.text(&["timeline", "vm/web", "-o", "json"])).unwrap();
    let subject = |index: usize| &json["spans"][index];
    assert_eq!(subject(0)["pull"]["digest"], "sha256:aa");
    assert_eq!((&subject(1)["object"]["name"], &subject(1)["awaits"]), (&"web".into(), &"sha256:aa".into()));
    assert_eq!(json["spans"].as_array().unwrap().len(), 2);
    assert!(daemon.text(&["timeline", "vms", "-o", "svg"]).starts_with("<svg "));
    let (code, _, stderr) = daemon.run(&["timeline", "vm/nope"]);
    assert_eq!(code, 1);
    assert_snapshot!("timeline_unknown", stderr);
    assert_eq!(daemon.run(&["timeline", "--since", "yesterday"]).0, 2);
}

#[test]
fn commands_in_vms() {
    let daemon = Daemon::start();
    assert_eq!(daemon.run(&["exec", "web", "--", "exit", "3"]).0, 3);
    assert_eq!(daemon.run(&["exec", "vm/web", "--", "exit", "0"]).0, 0);
    let input = "line\n".repeat(100_000);
    let cat = daemon.vmlet(&["exec", "-i", "web", "--", "cat"]).write_stdin(input.clone()).output().unwrap();
    assert_eq!(cat.status.code(), Some(0));
    assert!(cat.stdout == input.as_bytes(), "all of the input comes back");
    let (code, _, stderr) = daemon.run(&["exec", "web", "--", "unknown"]);
    assert_eq!(code, 1);
    assert!(stderr.starts_with("error: "), "{stderr}");
}

#[test]
fn logs() {
    let daemon = Daemon::start();
    let (code, _, stderr) = daemon.run(&["logs", "web"]);
    assert_eq!(code, 1);
    assert_eq!(stderr, "error: vm/web has no workload.log (yet): it is Running\n");
    std::fs::write(daemon.dir.path().join("workload.log"), "one\ntwo\nthree\n").unwrap();
    assert_eq!(daemon.text(&["logs", "web"]), "one\ntwo\nthree\n");
    assert_eq!(daemon.text(&["logs", "--tail", "1", "vm/web"]), "three\n");
    std::fs::write(daemon.dir.path().join("console.log"), "booting\n").unwrap();
    assert_eq!(daemon.text(&["console", "web"]), "booting\n");
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let daemon = Daemon::start();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_vmlet"));
    command.args(["get", "vms"]).env("VMLET_HOST", daemon.dir.path().join("vmlet.sock")).stdout(writer);
    let output = command.stderr(std::process::Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
    assert_eq!(outcome(&output), (0, String::new(), String::new()));
}

#[test]
fn no_daemon_and_wrong_use() {
    let (code, _, stderr) =
        outcome(&vmlet(&["get", "vms", "--socket", "/nonexistent/sock"]).output().unwrap());
    assert_eq!(code, 1);
    assert_snapshot!("no_daemon", stderr);
    let (code, _, stderr) = outcome(&vmlet(&["get", "pods"]).output().unwrap());
    assert_eq!((code, stderr.lines().next().unwrap().starts_with("error: unknown kind")), (2, true));
    assert_eq!(outcome(&vmlet(&["frobnicate"]).output().unwrap()).0, 2);
}

#[test]
fn validate() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("good.yaml"), MANIFEST).unwrap();
    let run = |words: &[&str]| outcome(&vmlet(words).current_dir(dir.path()).output().unwrap());
    let (code, stdout, _) = run(&["validate", "good.yaml"]);
    assert_eq!((code, stdout.as_str()), (0, "3 objects in 1 file are valid\n"));
    assert_eq!(run(&["validate", "."]).0, 0);
    let bad = "apiVersion: vmlet.dev/v1alpha1\nkind: VM\nmetadata: {name: web}\nspec:\n  image: {oci: a}\n  memroy: 256Mi\n";
    std::fs::write(dir.path().join("bad.yaml"), bad).unwrap();
    let (code, stdout, stderr) = run(&["validate", "bad.yaml"]);
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert_snapshot!("validate", stderr);
    let (code, stdout, _) = run(&["validate", "-o", "json", "."]);
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, report["valid"].as_bool()), (1, Some(false)));
    assert_eq!(report["diagnostics"][0]["field"], "spec.memroy");
    std::fs::write(dir.path().join("bad.yaml"), MANIFEST).unwrap();
    let (code, _, stderr) = run(&["validate", "good.yaml", "bad.yaml"]);
    assert_eq!(code, 1);
    assert!(stderr.contains("vm/web is declared already at good.yaml:"), "{stderr}");
    assert_eq!(run(&["validate", "absent.yaml"]).0, 1);
}

const FOLDER: &str = "\
apiVersion: vmlet.dev/v1alpha1
kind: Image
metadata: {name: base}
spec: {source: {oci: {reference: '127.0.0.1:5055/debian:12'}}}
---
apiVersion: vmlet.dev/v1alpha1
kind: VM
metadata: {name: app, labels: {tier: front}}
spec: {image: {name: base}, env: [{name: A, value: '1'}]}
---
apiVersion: vmlet.dev/v1alpha1
kind: VM
metadata: {name: db}
spec: {image: {name: base}}
";
const OLD: &str = "\
apiVersion: vmlet.dev/v1alpha1
kind: VM
metadata: {name: old}
spec: {image: {oci: 'alpine:3'}}
";

#[test]
fn diff() {
    let daemon = Daemon::start();
    let root = daemon.dir.path().join("manifests");
    std::fs::create_dir(&root).unwrap();
    std::fs::write(root.join("all.yaml"), FOLDER).unwrap();
    std::fs::write(root.join("old.yaml"), OLD).unwrap();
    daemon.declare_folder(&root);
    for name in ["app", "db", "old"] {
        daemon.start_vm(name);
    }
    let steady = |text: &str| text.replace(&daemon.dir.path().display().to_string(), "DIR");
    let diff = |words: &[&str]| {
        let mut command = daemon.vmlet(&[&["diff"], words].concat());
        let (code, stdout, stderr) = outcome(&command.current_dir(daemon.dir.path()).output().unwrap());
        (code, steady(&stdout), steady(&stderr))
    };
    assert_eq!(diff(&["manifests"]), (0, "nothing changes\n".to_owned(), String::new()));

    let edited = FOLDER
        .replace("debian:12", "debian:13")
        .replace("tier: front", "tier: edge")
        .replace("env: [{name: A, value: '1'}]", "memory: 512Mi, env: [{name: A, value: '2'}]");
    std::fs::write(root.join("all.yaml"), &edited).unwrap();
    std::fs::rename(root.join("old.yaml"), daemon.dir.path().join("gone")).unwrap();
    std::fs::write(root.join("new.yaml"), OLD.replace("name: old", "name: new")).unwrap();
    let (code, stdout, stderr) = diff(&["manifests"]);
    assert_eq!((code, stderr.as_str()), (1, ""));
    assert_snapshot!("diff", stdout);

    let (code, stdout, _) = diff(&["-o", "json", "manifests"]);
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(code, 1);
    assert_eq!(report["summary"]["restarts"].as_array().map(Vec::len), Some(2));
    let app = report["changes"].as_array().unwrap().iter().find(|change| change["object"]["name"] == "app");
    assert_eq!(app.unwrap()["fields"][1]["effect"], "restart");

    // One file, and a copy of the folder: nothing is deleted.
    let (code, stdout, stderr) = diff(&["manifests/new.yaml"]);
    assert_eq!(code, 1);
    assert_snapshot!("diff_file", stdout + &stderr);
    let copy = daemon.dir.path().join("copy");
    std::fs::create_dir(&copy).unwrap();
    std::fs::write(copy.join("all.yaml"), FOLDER.replace("image: {name: base}}", "image: {name: missing}}"))
        .unwrap();
    let (code, stdout, stderr) = diff(&["copy"]);
    assert_eq!(code, 1);
    assert_snapshot!("diff_copy", stdout + &stderr);
}

#[test]
fn diff_fails_with_2() {
    let daemon = Daemon::start();
    let root = daemon.dir.path().join("manifests");
    std::fs::create_dir(&root).unwrap();
    std::fs::write(root.join("old.yaml"), OLD).unwrap();
    daemon.declare_folder(&root);
    let path = root.display().to_string();
    std::fs::write(root.join("two.yaml"), OLD).unwrap();
    let (code, stdout, stderr) = daemon.run(&["diff", &path]);
    assert_eq!((code, stdout.as_str()), (2, "nothing changes\n"));
    assert_eq!(
        stderr,
        "error: two.yaml:1 declares vm/old too; old.yaml:1 stays in force: rename or remove one of the two\n"
    );
    std::fs::write(root.join("two.yaml"), OLD.replace("kind: VM", "kind: VMM")).unwrap();
    let (code, _, stderr) = daemon.run(&["diff", &path]);
    assert_eq!(code, 2);
    assert!(stderr.contains("kind \"VMM\" is unknown") && stderr.contains("two.yaml:2:7"), "{stderr}");
    assert_eq!(daemon.run(&["diff", "/nonexistent"]).0, 2);
    assert_eq!(outcome(&vmlet(&["diff", "--socket", "/nonexistent/sock", &path]).output().unwrap()).0, 2);
}

#[test]
fn why() {
    let daemon = Daemon::start();
    let now = Timestamp::now();
    let image = ObjectKey::new(Kind::Image, "default", "debian");
    daemon.store.record_event(&image, None, Severity::Warning, "PullFailed", "connection reset by peer", now);
    daemon.start_vm("web");
    let event = |reason, message| {
        let web = ObjectKey::new(Kind::Vm, "default", "web");
        daemon.store.record_event(&web, None, Severity::Normal, reason, message, now);
    };
    event("Started", "hostile \x1b[2J text");
    let mac = daemon
        .store
        .vm(&ObjectKey::new(Kind::Vm, "default", "web"))
        .unwrap()
        .reservation
        .clone()
        .unwrap()
        .nic
        .unwrap()
        .mac;
    let ready = steady(&daemon.text(&["why", "vm/web"])).replace(&mac, "MAC");
    assert_snapshot!("why_ready", ready);
    assert_snapshot!("why_image", steady(&daemon.text(&["why", "image/debian"])));
    let answer: Value = serde_json::from_str(&daemon.text(&["why", "vm", "ci-1", "-o", "json"])).unwrap();
    assert_eq!((answer["object"].as_str(), answer["ready"].as_bool()), (Some("vm/ci-1"), Some(false)));

    // A manifest that declares no object yet.
    let broken = Subject::Manifest { path: "/m/new.yaml".into() };
    let message = "/m/new.yaml:3:1: spec.memroy is not a field of VM (did you mean `memory`?)";
    daemon.store.record_event(broken, None, Severity::Warning, "InvalidManifest", message, now);
    let (code, _, stderr) = daemon.run(&["why", "vm/wbe"]);
    assert_eq!(code, 1);
    assert_snapshot!("why_unknown", stderr);
    let events = daemon.text(&["events"]);
    assert!(events.contains("/m/new.yaml") && events.contains("InvalidManifest"), "{events}");
    assert_eq!(daemon.run(&["why", "vms"]).0, 2);
}

#[test]
fn documents_for_other_tools() {
    for shell in ["bash", "zsh", "fish"] {
        let (code, stdout, _) = outcome(&vmlet(&["completions", shell]).output().unwrap());
        assert!(code == 0 && stdout.contains("validate"), "{shell}");
    }
    let (_, crd, _) = outcome(&vmlet(&["schema", "--crd", "vm"]).output().unwrap());
    let crd: Value = serde_json::from_str(&crd).unwrap();
    assert_eq!(crd["kind"], "CustomResourceDefinition");
    let (code, findings, _) = outcome(&vmlet(&["doctor", "-o", "json"]).output().unwrap());
    let findings: Value = serde_json::from_str(&findings).unwrap();
    let failed = findings.as_array().unwrap().iter().any(|finding| finding["status"] == "Fail");
    assert_eq!(code, i32::from(failed));
}

#[test]
fn validate_shows_circles_of_dependencies() {
    let dir = tempfile::tempdir().unwrap();
    let vm = |name: &str, on: &str| {
        format!(
            "apiVersion: vmlet.dev/v1alpha1\nkind: VM\nmetadata: {{name: {name}}}\nspec: {{image: {{name: i}}, dependsOn: [{on}]}}\n"
        )
    };
    std::fs::write(dir.path().join("a.yaml"), format!("{}---\n{}", vm("z", ""), vm("a", "z, b"))).unwrap();
    std::fs::write(dir.path().join("b.yaml"), vm("b", "a")).unwrap();
    let path = dir.path().to_str().unwrap();
    let run = |words: &[&str]| outcome(&vmlet(words).output().unwrap());
    let (code, _, stderr) = run(&["validate", path]);
    assert_eq!(code, 1);
    let shown = stderr.replace(path, "DIR");
    assert!(shown.starts_with(
        "error: vm/a: spec.dependsOn makes a circle: vm/a → vm/b → vm/a; remove one of these dependencies\n  --> DIR/a.yaml:6:1\n"
    ), "{shown}");
    assert!(shown.contains("1 error in 2 files"), "{shown}");
    std::fs::write(dir.path().join("b.yaml"), vm("b", "b")).unwrap();
    let (code, _, stderr) = run(&["validate", path]);
    assert!(code == 1 && stderr.contains("a VM cannot wait for itself"), "{stderr}");
}
