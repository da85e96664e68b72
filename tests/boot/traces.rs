//! What VMs leave on a host while they run, what of it must be there, and that nothing else is.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use vmlet::network::Link;
use vmlet::object::{Kind, Protocol};
use vmlet::store::{Record, Run, Store, StoreSettings, VmRecord};

use crate::host::Host;

/// How long what nothing announces may take: the removal of base disks after their last record.
const SOON: Duration = Duration::from_secs(30);

/// The traces of a host's VMs and images, each as a line.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Traces {
    /// `pid UID`: processes of the VMs' users, or at work in a VM's folder.
    pub(crate) processes: BTreeSet<String>,
    /// Network devices of the VMs' users.
    pub(crate) taps: BTreeSet<String>,
    /// Elements of the firewall's sets.
    pub(crate) firewall: BTreeSet<String>,
    /// VMs' folders, named by uid.
    pub(crate) folders: BTreeSet<String>,
    /// Base disks.
    pub(crate) disks: BTreeSet<String>,
    /// Whatever else is in the folders of VMs and images.
    pub(crate) foreign: BTreeSet<String>,
}

impl Traces {
    /// These but for those, by kind.
    fn without(&self, other: &Traces) -> Traces {
        let without = |ours: &BTreeSet<String>, theirs: &BTreeSet<String>| ours - theirs;
        Traces {
            processes: without(&self.processes, &other.processes),
            taps: without(&self.taps, &other.taps),
            firewall: without(&self.firewall, &other.firewall),
            folders: without(&self.folders, &other.folders),
            disks: without(&self.disks, &other.disks),
            foreign: without(&self.foreign, &other.foreign),
        }
    }
}

impl Host {
    /// What there is of this host's VMs and images.
    pub(crate) fn traces(&self) -> Traces {
        let is_uid = |name: &String| name.len() == 36;
        let is_digest = |name: &String| name.starts_with("sha256-");
        let (folders, strange_folders) = names(&self.path("state/vms")).into_iter().partition(is_uid);
        let (disks, strange_disks) = names(&self.path("state/images")).into_iter().partition(is_digest);
        let staged = names(&self.path("state/staging"));
        Traces {
            processes: self.processes().iter().map(|(pid, uid)| format!("{pid} {uid}")).collect(),
            taps: self.taps().into_iter().collect(),
            firewall: firewall(&self.bridge()),
            folders,
            disks,
            foreign: [strange_folders, strange_disks, staged].into_iter().flatten().collect(),
        }
    }

    /// Processes of this host's VMs: those of their users, and those at work in their folders (a
    /// gate is still root's, and writes into one).
    fn processes(&self) -> Vec<(u32, String)> {
        let (users, vms) = (self.users(), self.path("state/vms"));
        let uid_in = |place: &str, process: &Path| {
            let place = fs::read_link(process.join(place)).ok()?;
            Some(place.strip_prefix(&vms).ok()?.iter().next()?.to_str()?.to_owned())
        };
        let of = |process: PathBuf| {
            let pid = process.file_name()?.to_str()?.parse().ok()?;
            let uid = uid_in("cwd", &process).or_else(|| uid_in("fd/1", &process));
            let ours = fs::metadata(&process).is_ok_and(|it| users.contains(&it.uid()));
            match uid {
                Some(uid) => Some((pid, uid)),
                // The folder's name is not told by what was left of it, or by a zombie.
                None => ours.then(|| (pid, "?".to_owned())),
            }
        };
        entries(Path::new("/proc")).into_iter().filter_map(of).filter(|(pid, _)| alive(*pid)).collect()
    }

    /// The taps that this host's VMMs may open, on a bridge or not.
    pub(crate) fn taps(&self) -> Vec<String> {
        let owner = |device: &PathBuf| -> Option<u32> {
            fs::read_to_string(device.join("owner")).ok()?.trim().parse().ok()
        };
        let mut devices = entries(Path::new("/sys/class/net"));
        devices.retain(|device| owner(device).is_some_and(|owner| self.users().contains(&owner)));
        devices.iter().map(|device| device.file_name().unwrap().to_str().unwrap().to_owned()).collect()
    }

    /// What must be here as the records of a daemon that has ended say, at a time when nothing was
    /// under way; and what may be here besides, since a reservation covers it.
    fn recorded(&self) -> (Traces, Traces) {
        let store = Store::open(&self.path("state/store"), StoreSettings::default()).unwrap();
        let (mut must, mut may) = (Traces::default(), Traces::default());
        let mut claims = Claims::default();
        for record in store.list(Kind::Vm, None).0 {
            let Record::Vm(vm) = record else { unreachable!("VMs were asked for") };
            claims.add(&vm);
            if vm.reservation.is_some() {
                note(&vm, &mut may);
            }
            if let Run::Up { process, .. } = &vm.run {
                note(&vm, &mut must);
                must.processes.insert(format!("{} {}", process.pid, uid(&vm)));
            }
        }
        let records = Kind::ALL.iter().flat_map(|kind| store.list(*kind, None).0);
        let kept = records.flat_map(|record| {
            let reserved = record.reservation().map(|held| held.image.clone());
            [record.pinned().map(|pin| pin.digest.clone()), reserved].into_iter().flatten()
        });
        let kept: BTreeSet<_> = kept.collect();
        for disk in store.disks() {
            assert!(disk.is_ready() && kept.contains(&disk.digest), "nobody refers to {disk:?}");
            must.disks.insert(disk.digest.to_string().replace(':', "-"));
        }
        may.disks = must.disks.clone();
        may.processes = must.processes.clone();
        (must, may)
    }

    /// Compares the host with the records. The daemon must have been killed at a time when nothing was
    /// under way.
    pub(crate) fn assert_accounted(&self) {
        let found = self.traces();
        let (must, may) = self.recorded();
        assert_eq!(found.without(&may), Traces::default(), "no record accounts for these; it has {may:#?}");
        assert_eq!(must.without(&found), Traces::default(), "these are missing; there are {found:#?}");
    }

    /// Removes all manifests, sees everything go, stops the daemon, and looks for what it left.
    pub(crate) async fn assert_host_is_clean(&mut self) {
        for file in entries(&self.path("manifests")) {
            fs::remove_file(file).unwrap();
        }
        self.empty().await;
        self.vanished().await;
        self.stop_daemon().await;
        assert_eq!(self.traces(), Traces::default());
        let bridge = Path::new("/sys/class/net").join(self.bridge());
        assert!(!bridge.exists(), "the bridge was left");
        for family in ["ip", "bridge"] {
            assert!(
                !nft(&["list", "table", family, &self.bridge()]).0,
                "a table of family {family} was left"
            );
        }
        assert!(!self.path("api.sock").exists(), "the socket was left");
        let files = names(&self.path("state")).into_iter().collect::<Vec<_>>();
        assert_eq!(files, ["blobs", "boot", "images", "staging", "store", "vms"]);
    }

    /// Waits until no trace is left: base disks go right after their last record, and nothing announces it.
    pub(crate) async fn vanished(&self) {
        let deadline = Instant::now() + SOON;
        while self.traces() != Traces::default() {
            assert!(Instant::now() < deadline, "left behind: {:#?}\n{}", self.traces(), self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Removes what a failed test left.
    pub(crate) fn remove_traces(&self) {
        for (pid, _) in self.processes() {
            let _ = kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL);
        }
        for device in self.taps().into_iter().chain([self.bridge()]) {
            let _ = Command::new("ip").args(["link", "delete", &device]).stderr(Stdio::null()).status();
        }
        for family in ["ip", "bridge"] {
            nft(&["delete", "table", family, &self.bridge()]);
        }
    }
}

/// What a VM holds for itself alone.
#[derive(Default)]
struct Claims(BTreeSet<String>);

impl Claims {
    fn add(&mut self, vm: &VmRecord) {
        let Some(held) = &vm.reservation else { return };
        self.claim("user", &held.vmm_user.unwrap());
        let Some(nic) = &held.nic else { return };
        self.claim("mac", &nic.mac);
        for port in &nic.ports {
            self.claim("port", &port.host);
        }
        if let Link::Bridge { tap, address, .. } = &nic.link {
            self.claim("tap", tap);
            self.claim("address", address);
            assert_eq!(vm.object.status.addresses, [address.to_string()], "{:?}", vm.object.metadata.name);
        }
    }

    fn claim(&mut self, kind: &str, what: &dyn Display) {
        assert!(self.0.insert(format!("{kind} {what}")), "{kind} {what} is held twice");
    }
}

/// What a VM's reservation covers.
fn note(vm: &VmRecord, traces: &mut Traces) {
    traces.folders.insert(uid(vm));
    let Some(nic) = vm.reservation.as_ref().and_then(|held| held.nic.as_ref()) else { return };
    let Link::Bridge { tap, address, .. } = &nic.link else { return };
    traces.taps.insert(tap.clone());
    traces.firewall.insert(tap.clone());
    traces.firewall.insert(format!("{tap} {} {address}", nic.mac));
    for port in &nic.ports {
        assert_eq!(port.protocol, Protocol::Tcp, "the tests forward no other");
        traces.firewall.insert(format!("{} {address} {}", port.host, port.guest));
    }
}

fn uid(vm: &VmRecord) -> String {
    vm.object.metadata.uid.unwrap().to_string()
}

/// The elements of all sets of a bridge's tables, each as words.
fn firewall(bridge: &str) -> BTreeSet<String> {
    let mut elements = BTreeSet::new();
    for family in ["ip", "bridge"] {
        let (listed, text) = nft(&["-j", "list", "table", family, bridge]);
        if !listed {
            continue;
        }
        let document: Value = serde_json::from_slice(&text).unwrap();
        for object in document["nftables"].as_array().unwrap() {
            for set in object.as_object().unwrap().values() {
                elements.extend(set["elem"].as_array().into_iter().flatten().map(words));
            }
        }
    }
    elements
}

/// `[8080, {"concat": ["10.0.0.2", 80]}]`: `8080 10.0.0.2 80`
fn words(element: &Value) -> String {
    match element {
        Value::Array(parts) => parts.iter().map(words).collect::<Vec<_>>().join(" "),
        Value::Object(parts) => parts.values().map(words).collect::<Vec<_>>().join(" "),
        Value::String(word) => word.clone(),
        other => other.to_string(),
    }
}

/// Whether it succeeded, and what it said.
fn nft(arguments: &[&str]) -> (bool, Vec<u8>) {
    let output = Command::new("nft").args(arguments).output().unwrap();
    (output.status.success(), output.stdout)
}

fn names(folder: &Path) -> BTreeSet<String> {
    entries(folder).iter().map(|entry| entry.file_name().unwrap().to_str().unwrap().to_owned()).collect()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

/// Whether a process exists, zombies aside.
pub(crate) fn alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}
