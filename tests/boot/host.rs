//! A host for one test: a registry, a daemon with folders and names of its own, and eyes on it.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::oci::{Image, Item, Layer, tar};
use crate::common::registry::DockerRegistry;

/// Generous: an emulated VM on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

static NEXT: AtomicU8 = AtomicU8::new(0);

/// How the test's VMs are connected.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Net {
    Bridge,
    User,
}

/// A registry and a daemon. Dropping it removes what the test left.
pub(crate) struct Host {
    pub(crate) registry: DockerRegistry,
    dir: TempDir,
    net: Net,
    /// Tells bridges and subnets of tests apart that run at once.
    number: u8,
    daemon: Option<Child>,
    client: reqwest::Client,
}

impl Host {
    /// A host whose daemon runs, with a busybox image `busybox:1` in its registry.
    pub(crate) async fn start(net: Net) -> Self {
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
        let mut host = Host { registry, dir, net, number, daemon: None, client };
        host.start_daemon().await;
        host
    }

    pub(crate) async fn start_daemon(&mut self) {
        // One process runs all tests of this file; the process number tells runs apart.
        let (run, number) = (std::process::id() % 60, self.number);
        let log =
            std::fs::OpenOptions::new().create(true).append(true).open(self.path("daemon.log")).unwrap();
        let daemon = Command::new(env!("CARGO_BIN_EXE_vmlet"))
            .args(["--socket", &self.text("api.sock"), "-v", "daemon"])
            .args(["--manifests", &self.text("manifests"), "--state", &self.text("state")])
            .args(["--network", if self.net == Net::Bridge { "bridge" } else { "user" }])
            .args(["--bridge", &self.bridge(), "--subnet", &format!("10.{}.{number}.0/24", 180 + run)])
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        self.daemon = Some(daemon);
        let ready = async {
            while self.client.get("http://vmlet/readyz").send().await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, ready).await.is_err() {
            panic!("the daemon does not answer:\n{}", self.log());
        }
    }

    pub(crate) fn kill_daemon(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    pub(crate) fn bridge(&self) -> String {
        format!("vt{}n{}", std::process::id(), self.number)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
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

    /// The standard output of a command in a VM, which must succeed.
    pub(crate) fn exec(&self, vm: &str, command: &[&str]) -> String {
        let output = self.vmlet(&[&["exec", vm, "--"], command].concat());
        assert!(output.status.success(), "{command:?} in {vm}: {output:?}\n{}", self.log());
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
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

    /// Everything of this host's that a VM or an image leaves on disk, bar the daemon's own files.
    pub(crate) fn artefacts(&self) -> Vec<PathBuf> {
        let folders = ["state/vms", "state/images", "state/staging"].map(|name| self.path(name));
        folders.iter().flat_map(|folder| entries(folder)).collect()
    }

    /// The network devices on this host's bridge.
    pub(crate) fn taps(&self) -> Vec<PathBuf> {
        entries(&Path::new("/sys/class/net").join(self.bridge()).join("brif"))
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
        // What a failed test leaves running works in this folder.
        let state = self.path("state");
        for process in entries(Path::new("/proc")) {
            let works_here = std::fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd.starts_with(&state));
            if let Some(pid) = works_here.then(|| process.file_name()?.to_str()?.parse().ok()).flatten() {
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid),
                    nix::sys::signal::Signal::SIGKILL,
                );
            }
        }
        for tap in self.taps() {
            let _ = Command::new("ip").arg("link").arg("delete").arg(tap.file_name().unwrap()).status();
        }
        let _ = Command::new("ip").args(["link", "delete", &self.bridge()]).stderr(Stdio::null()).status();
        for family in ["ip", "bridge"] {
            let _ = Command::new("nft")
                .args(["delete", "table", family, &self.bridge()])
                .stderr(Stdio::null())
                .status();
        }
    }
}

pub(crate) fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

/// Whether a process exists, zombies aside.
pub(crate) fn alive(pid: u64) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

/// The user that a process runs as.
pub(crate) fn user_of(pid: u64) -> u32 {
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

/// Two layers: Debian's static busybox with its links, and a page to serve.
pub(crate) fn busybox() -> Image {
    let binary = std::fs::read("/bin/busybox").expect("apt-get install busybox-static");
    let mut items = vec![
        Item::dir("bin"),
        Item::dir("etc"),
        Item::dir("tmp").mode(0o1777),
        Item::file("bin/busybox", binary).mode(0o755),
        Item::file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
        Item::file("etc/group", "root:x:0:\n"),
        Item::file("etc/unwanted", "hidden by the upper layer\n"),
    ];
    let applets = [
        "sh", "cat", "echo", "sleep", "httpd", "touch", "ls", "grep", "id", "ps", "test", "wget", "sync",
        "stty",
    ];
    items.extend(applets.map(|applet| Item::symlink(format!("bin/{applet}"), "busybox")));
    let page = [
        Item::dir("www"),
        Item::file("www/index.html", "hello from a VM\n"),
        Item::file("etc/.wh.unwanted", ""),
    ];
    let config = json!({"Cmd": ["/bin/httpd", "-f", "-v", "-p", "80", "-h", "/www"], "Env": ["PATH=/bin", "FROM=image"]});
    Image::with_config(vec![Layer::gzip(&tar(&items)), Layer::zstd(&tar(&page))], config)
}
