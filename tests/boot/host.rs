//! A host for one test: a registry, and a daemon with folders, names and users of its own.

use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::registry::DockerRegistry;
use crate::images::busybox;
use crate::terminal::Terminal;

/// Generous: an emulated VM on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

static NEXT: AtomicU8 = AtomicU8::new(0);

/// How the test's VMs are connected.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Net {
    Bridge,
    User,
}

/// A registry and a daemon. Dropping it removes what a failed test left.
pub(crate) struct Host {
    pub(crate) registry: DockerRegistry,
    dir: TempDir,
    net: Net,
    /// What the next daemon's VMs are executed by. Where nothing depends on it, naming it saves a daemon
    /// its self-test.
    pub(crate) accelerator: &'static str,
    /// Tells bridges, subnets and users of tests apart that run at once.
    number: u8,
    daemon: Option<Child>,
    client: reqwest::Client,
}

impl Host {
    /// A host whose daemon runs.
    pub(crate) async fn start(net: Net) -> Self {
        let mut host = Host::prepare(net).await;
        host.start_daemon().await;
        host
    }

    /// A host with a busybox image, `busybox:1`, in its registry, and without a daemon.
    pub(crate) async fn prepare(net: Net) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "these tests make bridges and mounts: run them as root");
        let dir = tempfile::Builder::new().prefix("vmlet").tempdir().unwrap();
        // VMMs run as users of their own and pass through this folder.
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
        std::fs::create_dir(dir.path().join("manifests")).unwrap();
        let registry = DockerRegistry::start().await;
        registry.push(&busybox(), "busybox", "1").await;
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().unix_socket(dir.path().join("api.sock")).build().unwrap();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let accelerator = "auto";
        Host { registry, dir, net, accelerator, number, daemon: None, client }
    }

    /// Starts the daemon and waits until it answers.
    pub(crate) async fn start_daemon(&mut self) {
        self.launch_daemon();
        let ready = async {
            while self.client.get("http://vmlet/readyz").send().await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, ready).await.is_err() {
            panic!("the daemon does not answer:\n{}", self.log());
        }
    }

    /// Starts the daemon.
    pub(crate) fn launch_daemon(&mut self) {
        let users = self.users();
        let log =
            std::fs::OpenOptions::new().create(true).append(true).open(self.path("daemon.log")).unwrap();
        let daemon = Command::new(env!("CARGO_BIN_EXE_vmlet"))
            .args(["--socket", &self.text("api.sock"), "-v", "daemon"])
            .args(["--manifests", &self.text("manifests"), "--state", &self.text("state")])
            .args(["--network", if self.net == Net::Bridge { "bridge" } else { "user" }])
            .args(["--accelerator", self.accelerator])
            // What is left of a VM is counted.
            .args(["--image-grace", "0"])
            .args(["--bridge", &self.bridge(), "--subnet", &self.subnet()])
            .args(["--vmm-users", &format!("{}-{}", users.start, users.end)])
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        self.daemon = Some(daemon);
    }

    pub(crate) fn kill_daemon(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    pub(crate) fn daemon_pid(&self) -> Pid {
        Pid::from_raw(self.daemon.as_ref().unwrap().id().try_into().unwrap())
    }

    /// Ends the daemon as a service manager does.
    pub(crate) async fn stop_daemon(&mut self) {
        kill(self.daemon_pid(), Signal::SIGTERM).unwrap();
        let status = self.daemon_end().await;
        assert!(status.success(), "{status}:\n{}", self.log());
    }

    /// Waits until the daemon ends.
    pub(crate) async fn daemon_end(&mut self) -> ExitStatus {
        let pid = self.daemon_pid();
        let mut daemon = self.daemon.take().unwrap();
        let ended = tokio::task::spawn_blocking(move || daemon.wait().unwrap());
        match tokio::time::timeout(PATIENCE, ended).await {
            Ok(status) => status.unwrap(),
            Err(_) => {
                let _ = kill(pid, Signal::SIGKILL);
                panic!("the daemon does not end:\n{}", self.log());
            }
        }
    }

    pub(crate) fn bridge(&self) -> String {
        format!("vt{}n{}", std::process::id(), self.number)
    }

    /// The first three numbers of the VMs' addresses. One process runs all tests of this file; its
    /// number tells runs apart.
    pub(crate) fn network(&self) -> String {
        format!("10.{}.{}.", 180 + std::process::id() % 60, self.number)
    }

    pub(crate) fn subnet(&self) -> String {
        self.network() + "0/24"
    }

    /// The users of this host's VMMs, and of nobody else's.
    pub(crate) fn users(&self) -> Range<u32> {
        let start = 4_000_000 + std::process::id() % 10_000 * 100_000 + u32::from(self.number) * 200;
        start..start + 200
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.path("daemon.log")).unwrap_or_default()
    }

    /// The reference of an image in this host's registry.
    pub(crate) fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.registry.address)
    }

    /// Writes a manifest as editors do: beside, then over.
    pub(crate) fn write(&self, name: &str, objects: &[Value]) {
        let text: Vec<String> =
            objects.iter().map(|object| serde_json::to_string_pretty(object).unwrap()).collect();
        self.write_text(name, &text.join("\n---\n"));
    }

    pub(crate) fn write_text(&self, name: &str, text: &str) {
        let beside = self.path("manifests").join(format!(".{name}.new"));
        std::fs::write(&beside, text).unwrap();
        std::fs::rename(beside, self.path("manifests").join(name)).unwrap();
    }

    pub(crate) fn remove(&self, name: &str) {
        std::fs::remove_file(self.path("manifests").join(name)).unwrap();
    }

    /// Runs the command line against this daemon.
    pub(crate) fn vmlet(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_vmlet"))
            .args(["--socket", &self.text("api.sock")])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Runs the command line against this daemon on a terminal of this many rows and columns.
    pub(crate) fn terminal(&self, arguments: &[&str], size: (u16, u16)) -> Terminal {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmlet"));
        command.args(["--socket", &self.text("api.sock")]).args(arguments);
        Terminal::start(&mut command, size)
    }

    /// The standard output of a command in a VM, which must succeed.
    pub(crate) fn exec(&self, vm: &str, command: &[&str]) -> String {
        let output = self.vmlet(&[&["exec", vm, "--"], command].concat());
        assert!(output.status.success(), "{command:?} in {vm}: {output:?}\n{}", self.log());
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Waits until this daemon has a link to a VM: the status may still be the last daemon's.
    pub(crate) async fn linked(&self, vm: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.vmlet(&["exec", vm, "--", "echo"]).status.success() {
            assert!(Instant::now() < deadline, "no link to {vm}:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(crate) async fn list(&self, plural: &str) -> Vec<Value> {
        let url = format!("http://vmlet/apis/vmlet.dev/v1alpha1/{plural}");
        let list: Value = self.client.get(url).send().await.unwrap().json().await.unwrap();
        list["items"].as_array().unwrap().clone()
    }

    pub(crate) async fn get(&self, plural: &str, name: &str) -> Value {
        self.list(plural)
            .await
            .into_iter()
            .find(|item| item["metadata"]["name"] == name)
            .unwrap_or(Value::Null)
    }

    /// Waits, by watching, until an object is as wanted, and returns it. Null stands for its absence.
    pub(crate) async fn until(&self, plural: &str, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        match tokio::time::timeout(PATIENCE, self.watch(plural, name, &wanted)).await {
            Ok(object) => object,
            Err(_) => {
                let object = serde_json::to_string_pretty(&self.get(plural, name).await).unwrap();
                panic!("{plural}/{name} is not as wanted:\n{object}\n{}", self.log());
            }
        }
    }

    async fn watch(&self, plural: &str, name: &str, wanted: &impl Fn(&Value) -> bool) -> Value {
        loop {
            let url = format!("http://vmlet/apis/vmlet.dev/v1alpha1/{plural}");
            let list: Value = self.client.get(&url).send().await.unwrap().json().await.unwrap();
            let find = |item: &&Value| item["metadata"]["name"] == name;
            let now = list["items"].as_array().unwrap().iter().find(find).cloned().unwrap_or(Value::Null);
            if wanted(&now) {
                return now;
            }
            let version = list["metadata"]["resourceVersion"].as_str().unwrap();
            let url = format!("{url}?watch=true&resourceVersion={version}");
            let mut changes = self.client.get(url).send().await.unwrap();
            let mut text = Vec::new();
            while let Ok(Some(chunk)) = changes.chunk().await {
                text.extend_from_slice(&chunk);
                while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = text.drain(..=end).collect();
                    let change: Value = serde_json::from_slice(&line).unwrap();
                    let object =
                        if change["type"] == "DELETED" { Value::Null } else { change["object"].clone() };
                    if change["object"]["metadata"]["name"] == name && wanted(&object) {
                        return object;
                    }
                }
            }
        }
    }

    /// Waits until a VM is Ready as of its newest generation.
    pub(crate) async fn ready(&self, name: &str) -> Value {
        self.until("vms", name, is_ready).await
    }

    /// The reasons and messages of an object's events.
    pub(crate) async fn events(&self, name: &str) -> Vec<(String, String)> {
        let url = format!("http://vmlet/api/v1/events?fieldSelector=involvedObject.name%3D{name}");
        let list: Value = self.client.get(url).send().await.unwrap().json().await.unwrap();
        let text = |event: &Value, field: &str| event[field].as_str().unwrap_or_default().to_owned();
        list["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|event| (text(event, "reason"), text(event, "message")))
            .collect()
    }

    /// Waits until no object is left.
    pub(crate) async fn empty(&self) {
        for plural in ["vms", "images"] {
            while let Some(object) = self.list(plural).await.pop() {
                let name = object["metadata"]["name"].as_str().unwrap().to_owned();
                self.until(plural, &name, Value::is_null).await;
            }
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        if std::thread::panicking() {
            eprintln!("the daemon's log:\n{}", self.log());
        }
        self.remove_traces();
    }
}

/// The user that a process runs as.
pub(crate) fn user_of(pid: u32) -> u32 {
    std::fs::metadata(format!("/proc/{pid}")).unwrap().uid()
}

pub(crate) fn condition<'a>(object: &'a Value, kind: &str) -> &'a Value {
    let list = object["status"]["conditions"].as_array();
    list.and_then(|list| list.iter().find(|condition| condition["type"] == kind)).unwrap_or(&Value::Null)
}

pub(crate) fn is_ready(object: &Value) -> bool {
    let ready = condition(object, "Ready");
    ready["status"] == "True" && ready["observedGeneration"] == object["metadata"]["generation"]
}

/// A VM manifest with this spec.
pub(crate) fn vm(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "vmlet.dev/v1alpha1", "kind": "VM", "metadata": {"name": name}, "spec": spec})
}

/// An Image manifest.
pub(crate) fn image(name: &str, reference: &str) -> Value {
    json!({"apiVersion": "vmlet.dev/v1alpha1", "kind": "Image", "metadata": {"name": name},
           "spec": {"source": {"oci": {"reference": reference}}}})
}
