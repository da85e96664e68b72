//! From a manifest to a Ready VM, its image present, beside bare QEMU with the same arguments.

mod common;
#[path = "../tests/common/oci.rs"]
#[allow(dead_code, clippy::unwrap_used, reason = "shared with the tests")]
mod oci;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Target, figure};
use oci::{Image, Item, Layer, tar};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Runs of each kind, one in turn with the other; the figure is their median.
const RUNS: usize = 5;
/// VMs that are dropped at once.
const MANY: usize = 8;
/// What the workload says on the console as its first word.
const UP: &str = "the workload is up";
/// Bounds what a machine without QEMU, or a hanging guest, can cost.
const PATIENCE: Duration = Duration::from_secs(180);
/// How often a bare QEMU's console, or a new daemon's socket, is looked at.
const LOOK: Duration = Duration::from_millis(2);

fn main() {
    let daemon = Daemon::start();
    let bare = Bare::of(&daemon);
    for (count, most) in [(1, 1.1), (MANY, 1.1)] {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for run in 0..RUNS {
            ours.push(daemon.boot(run, count));
            theirs.push(bare.boot(count));
        }
        let (ours, theirs) = (median(ours), median(theirs));
        let what = if count == 1 { "a manifest".to_owned() } else { format!("{count} manifests at once") };
        figure(&format!("{what}, image present: Ready"), ours, "s", Target::None);
        figure("  bare QEMU, same arguments: the workload's word", theirs, "s", Target::None);
        figure("  ratio", ours / theirs, "x", Target::AtMost(most));
    }
}

/// A daemon with an image, and a VM, `first`, that runs.
struct Daemon {
    dir: TempDir,
    child: Child,
}

impl Daemon {
    fn start() -> Daemon {
        let dir = common::folder();
        // VMMs run as users of their own and pass through this folder.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).expect("it is ours");
        fs::create_dir(dir.path().join("manifests")).expect("it is ours");
        busybox().write_layout(&dir.path().join("image"), "busybox:1");
        let log = fs::File::create(dir.path().join("daemon.log")).expect("it is ours");
        let child = vmlet(dir.path())
            .args(["daemon", "--network", "user", "--max-boots", &MANY.to_string(), "--image-grace", "0"])
            .arg("--manifests")
            .arg(dir.path().join("manifests"))
            .arg("--state")
            .arg(dir.path().join("state"))
            .stderr(log)
            .spawn()
            .expect("it was built for this bench");
        let daemon = Daemon { dir, child };
        daemon.answers();
        let source = json!({"ociLayout": {"path": daemon.dir.path().join("image")}});
        daemon.write("image", &[object("Image", "busybox", json!({"source": source}))]);
        daemon.write("first", &[vm("first")]);
        daemon.wait("condition=Ready", &["first".to_owned()]);
        daemon
    }

    fn answers(&self) {
        let start = Instant::now();
        while std::os::unix::net::UnixStream::connect(self.dir.path().join("api.sock")).is_err() {
            assert!(start.elapsed() < PATIENCE, "the daemon does not answer:\n{}", self.log());
            std::thread::sleep(LOOK);
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("daemon.log")).unwrap_or_default()
    }

    /// The time from the manifest's appearance until all its VMs are Ready, in seconds.
    fn boot(&self, run: usize, count: usize) -> f64 {
        let names: Vec<String> = (0..count).map(|number| format!("vm-{run}-{number}")).collect();
        let vms: Vec<Value> = names.iter().map(|name| vm(name)).collect();
        let start = Instant::now();
        self.write("vms", &vms);
        self.wait("condition=Ready", &names);
        let took = start.elapsed().as_secs_f64();
        fs::remove_file(self.dir.path().join("manifests/vms.yaml")).expect("it was written");
        self.wait("delete", &names);
        took
    }

    /// Writes a manifest as editors do: beside, then over.
    fn write(&self, name: &str, objects: &[Value]) {
        let texts: Vec<String> = objects.iter().map(Value::to_string).collect();
        let folder = self.dir.path().join("manifests");
        let beside = folder.join(format!(".{name}.new"));
        fs::write(&beside, texts.join("\n---\n")).expect("there is room");
        fs::rename(beside, folder.join(format!("{name}.yaml"))).expect("the same folder");
    }

    fn wait(&self, goal: &str, vms: &[String]) {
        let ended = vmlet(self.dir.path())
            .args(["wait", "--timeout", "3m", "--for", goal, "vm"])
            .args(vms)
            .output()
            .expect("it was built for this bench");
        assert!(ended.status.success(), "{}\n{}", String::from_utf8_lossy(&ended.stderr), self.log());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.dir.path().join("manifests/first.yaml"));
        self.wait("delete", &["first".to_owned()]);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// QEMU as the daemon runs it, without the daemon.
struct Bare {
    /// The program and its arguments, with paths in place of descriptors.
    line: Vec<String>,
    /// A VM's folder: its configuration; the root disk is made anew for each run.
    of: PathBuf,
}

impl Bare {
    /// What the daemon's `first` VM was started with.
    fn of(daemon: &Daemon) -> Bare {
        let shown = vmlet(daemon.dir.path()).args(["get", "vm", "first", "-o", "json"]).output();
        let shown: Value =
            serde_json::from_slice(&shown.expect("as above").stdout).expect("the daemon answers");
        let (pid, uid) = (&shown["status"]["pid"], shown["metadata"]["uid"].as_str().expect("it has one"));
        let process = PathBuf::from(format!("/proc/{pid}"));
        let line = fs::read(process.join("cmdline")).expect("it runs");
        let mut line: Vec<String> = line
            .split(|byte| *byte == 0)
            .map(|word| String::from_utf8(word.to_vec()).expect("vmlet wrote it"))
            .collect();
        line.pop();
        let files = fs::read_dir(process.join("fd")).expect("it runs").flatten();
        let files = files.filter_map(|fd| {
            let number = fd.file_name().into_string().ok()?;
            Some((number, fs::read_link(fd.path()).ok()?.to_str()?.to_owned()))
        });
        for (number, file) in files {
            for word in &mut line {
                if *word == format!("/proc/self/fd/{number}") {
                    word.clone_from(&file);
                }
                // QEMU has moved the base disk to another number.
                if file.ends_with("/disk.ext4") {
                    *word = word.replace("/dev/fdset/1", &file);
                }
            }
        }
        // The option that passes a descriptor, with its argument.
        let passed = line.iter().position(|word| word == "-add-fd").expect("the base disk is passed");
        line.drain(passed..passed + 2);
        Bare { line, of: daemon.dir.path().join("state/vms").join(uid) }
    }

    /// The time from the first start until every workload has spoken, in seconds.
    fn boot(&self, count: usize) -> f64 {
        let folders: Vec<TempDir> = (0..count).map(|_| self.folder()).collect();
        let start = Instant::now();
        let mut running: Vec<(Child, &Path)> =
            folders.iter().map(|folder| (self.spawn(folder.path()), folder.path())).collect();
        running.iter().for_each(|(_, folder)| until_up(folder, start));
        let took = start.elapsed().as_secs_f64();
        for (child, _) in &mut running {
            let _ = child.kill();
            let _ = child.wait();
        }
        took
    }

    fn folder(&self) -> TempDir {
        let folder = common::folder();
        fs::create_dir(folder.path().join("run")).expect("it is ours");
        fs::copy(self.of.join("config.img"), folder.path().join("config.img")).expect("the VM has one");
        folder
    }

    /// Starts QEMU on a new root disk: making one is part of what a shell script would do.
    fn spawn(&self, folder: &Path) -> Child {
        let root = folder.join("root.ext4");
        let size = fs::metadata(self.of.join("root.ext4")).expect("the VM has one").len();
        let file = fs::File::options().read(true).write(true).create_new(true).open(root);
        vmlet::image::ext4::format_empty(&file.expect("a new file"), size, [1; 16], false)
            .expect("there is room");
        Command::new(&self.line[0])
            .args(&self.line[1..])
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("the daemon ran it")
    }
}

fn until_up(folder: &Path, start: Instant) {
    let log = folder.join("console.log");
    while !fs::read_to_string(&log).is_ok_and(|text| text.contains(UP)) {
        assert!(start.elapsed() < PATIENCE, "no word:\n{}", fs::read_to_string(&log).unwrap_or_default());
        std::thread::sleep(LOOK);
    }
}

/// The command line, against the daemon of this folder.
fn vmlet(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmlet"));
    command.arg("--socket").arg(folder.join("api.sock")).stdin(Stdio::null());
    command
}

fn busybox() -> Image {
    let binary = fs::read("/bin/busybox").expect("scripts/install-deps.sh installs busybox-static");
    let items = [
        Item::dir("bin"),
        Item::file("bin/busybox", binary).mode(0o755),
        Item::symlink("bin/sh", "busybox"),
        Item::symlink("bin/sleep", "busybox"),
    ];
    Image::with_config(vec![Layer::gzip(&tar(&items))], json!({}))
}

fn vm(name: &str) -> Value {
    let script = format!("echo {UP} > /dev/console; exec /bin/sleep 1000000");
    let spec = json!({
        "image": {"name": "busybox"}, "memory": "128Mi", "terminationGracePeriodSeconds": 0,
        "command": ["/bin/sh", "-c", script],
    });
    object("VM", name, spec)
}

fn object(kind: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "vmlet.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
