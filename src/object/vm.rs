//! The `VM` kind.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::image::never_observed;
use super::source::check_reference;
use super::{Condition, Effect, Object, Quantity, Violation, validate_name};
use crate::image::Source;

/// A virtual machine.
pub type Vm = Object<VmSpec, VmStatus>;

/// What VM is wanted.
// Each field declares what an edit of it does (`x-edit`, see `effect.rs`); a nested field that declares
// nothing does what the field around it does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VmSpec {
    /// The image whose root the VM runs on.
    #[schemars(extend("x-edit" = Effect::Recreate))]
    pub image: ImageRef,
    /// Virtual processors, 1 to 64.
    #[serde(default = "default_cpus")]
    #[schemars(extend("x-edit" = Effect::Restart))]
    pub cpus: u32,
    /// Memory, at least 64Mi.
    #[serde(default = "default_memory")]
    #[schemars(extend("x-edit" = Effect::Restart))]
    pub memory: Quantity,
    /// The VM's private writable disk. It holds what the VM changes of its image.
    #[serde(default)]
    #[schemars(extend("x-edit" = Effect::Recreate))]
    pub root_disk: RootDisk,
    /// Replaces the image's entrypoint.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-edit" = Effect::Restart))]
    pub command: Vec<String>,
    /// Replaces the image's default arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-edit" = Effect::Restart))]
    pub args: Vec<String>,
    /// Environment variables, added to the image's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-edit" = Effect::Restart))]
    pub env: Vec<EnvVar>,
    /// Where the command starts; the image's working directory when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-edit" = Effect::Restart))]
    pub working_dir: Option<String>,
    /// `user`, `user:group`, or numbers; the image's user when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-edit" = Effect::Restart))]
    pub user: Option<String>,
    /// How the VM is connected.
    #[serde(default)]
    #[schemars(extend("x-edit" = Effect::Restart))]
    pub network: Network,
    /// What happens when the VM's workload ends.
    #[serde(default)]
    #[schemars(extend("x-edit" = Effect::Live))]
    pub run_policy: RunPolicy,
    /// How long a shutdown may take before the VM is killed, in seconds, at most 3600.
    #[serde(default = "default_grace")]
    #[schemars(extend("x-edit" = Effect::Live))]
    pub termination_grace_period_seconds: u32,
    /// Who is started first when memory, processors or disk space are short: the higher number, then
    /// the older VM. A running VM is never stopped for another.
    #[serde(default)]
    #[schemars(extend("x-edit" = Effect::Live))]
    pub priority: i32,
    /// VMs of the same namespace that must be Ready before this one is started, at most 64. One that
    /// becomes unready later does not stop this VM.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-edit" = Effect::Live))]
    pub depends_on: Vec<String>,
}

/// The longest `dependsOn`.
const MAX_DEPENDENCIES: usize = 64;

fn default_cpus() -> u32 {
    1
}

fn default_memory() -> Quantity {
    Quantity::mebibytes(256)
}

fn default_grace() -> u32 {
    30
}

/// The image of a VM: exactly one of the fields.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImageRef {
    /// An `Image` object of the VM's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// An OCI reference, pulled for this VM and shared with all others that name the same digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oci: Option<String>,
}

impl ImageRef {
    /// The source that the VM names itself; none if it names an `Image` object.
    pub fn direct(&self) -> Option<Source> {
        self.oci.clone().map(Source::Oci)
    }
}

/// The private disk of a VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RootDisk {
    /// How much the VM may change and add, at least 64Mi. The disk is sparse: space is taken as it is used.
    #[serde(default = "default_root_size")]
    #[schemars(extend("x-edit" = Effect::Recreate))]
    pub size: Quantity,
}

fn default_root_size() -> Quantity {
    Quantity::mebibytes(10 << 10)
}

impl Default for RootDisk {
    fn default() -> Self {
        RootDisk { size: default_root_size() }
    }
}

/// An environment variable.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EnvVar {
    /// The variable's name.
    pub name: String,
    /// Its value.
    #[serde(default)]
    pub value: String,
}

/// How a VM is connected.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Network {
    /// The kind of network; by default `bridge` where the daemon can make one, else `user`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<NetworkMode>,
    /// A fixed address of the daemon's subnet; by default the next free one. Only with a bridge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "ipv4"))]
    pub address: Option<Ipv4Addr>,
    /// Ports of the VM that are reachable on the host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
}

/// The kinds of network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum NetworkMode {
    /// A bridge on the host: VMs reach each other, the host reaches them, NAT outwards. Needs root.
    Bridge,
    /// The VMM's own user-space network: NAT outwards, only forwarded ports inwards. Needs no rights.
    User,
    /// No network device.
    None,
}

/// A forwarded port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Port {
    /// The port on the host.
    pub host: u16,
    /// The port in the VM.
    pub guest: u16,
    /// TCP unless said otherwise.
    #[serde(default)]
    pub protocol: Protocol,
}

/// Transport protocols.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub enum Protocol {
    /// TCP.
    #[default]
    #[serde(rename = "TCP")]
    Tcp,
    /// UDP.
    #[serde(rename = "UDP")]
    Udp,
}

/// What happens when a VM's workload ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RunPolicy {
    /// It is started again, with backoff.
    #[default]
    Always,
    /// It is started again unless it ended with exit code 0.
    RerunOnFailure,
    /// It stays ended.
    Once,
    /// It is not run; a running VM is shut down.
    Halted,
}

impl VmSpec {
    /// Whether the VM of this name keeps to the rules.
    pub(super) fn check(&self, own_name: &str, found: &mut Vec<Violation>) {
        self.check_dependencies(own_name, found);
        let mut rule = |holds: bool, path: &str, message: &str| {
            if !holds {
                found.push(Violation::new(path, message));
            }
        };
        let mib = |quantity: Quantity| quantity.as_bytes() >> 20;
        rule(
            self.image.name.is_some() != self.image.oci.is_some(),
            "spec.image",
            "set exactly one of `name` (an Image object) and `oci` (an OCI reference)",
        );
        rule((1..=64).contains(&self.cpus), "spec.cpus", "use 1 to 64");
        rule((64..=1 << 24).contains(&mib(self.memory)), "spec.memory", "use 64Mi to 16Ti");
        rule(
            self.memory.as_bytes().is_multiple_of(1 << 20),
            "spec.memory",
            "use whole mebibytes, for example 256Mi",
        );
        rule((64..=1 << 24).contains(&mib(self.root_disk.size)), "spec.rootDisk.size", "use 64Mi to 16Ti");
        rule(
            self.root_disk.size.as_bytes().is_multiple_of(1 << 20),
            "spec.rootDisk.size",
            "use whole mebibytes, for example 10Gi",
        );
        rule(
            self.termination_grace_period_seconds <= 3600,
            "spec.terminationGracePeriodSeconds",
            "use 0 to 3600",
        );
        rule(
            self.working_dir.as_ref().is_none_or(|dir| dir.starts_with('/')),
            "spec.workingDir",
            "use an absolute path",
        );
        let words = self.command.iter().chain(&self.args);
        rule(words.clone().all(|word| !word.contains('\0')), "spec.command", "words cannot hold NUL bytes");
        rule(
            words.map(String::len).sum::<usize>() <= 64 << 10,
            "spec.command",
            "command and args are at most 64 KiB together",
        );
        rule(
            self.env.iter().map(|var| var.name.len() + var.value.len()).sum::<usize>() <= 64 << 10,
            "spec.env",
            "names and values are at most 64 KiB together",
        );
        for (index, var) in self.env.iter().enumerate() {
            rule(
                !var.name.is_empty() && !var.name.contains(['=', '\0']) && !var.value.contains('\0'),
                &format!("spec.env[{index}]"),
                "a name is not empty and has no '='; neither name nor value holds NUL bytes",
            );
        }
        let bridged = self.network.mode.is_none_or(|mode| mode == NetworkMode::Bridge);
        rule(
            self.network.address.is_none() || bridged,
            "spec.network.address",
            "an address can be chosen only with mode: bridge",
        );
        rule(
            self.network.ports.is_empty() || self.network.mode != Some(NetworkMode::None),
            "spec.network.ports",
            "ports need a network: mode is none",
        );
        rule(self.network.ports.len() <= 64, "spec.network.ports", "at most 64 ports");
        let mut hosts = BTreeSet::new();
        for (index, port) in self.network.ports.iter().enumerate() {
            let path = format!("spec.network.ports[{index}]");
            rule(port.host != 0 && port.guest != 0, &path, "ports are 1 to 65535");
            rule(hosts.insert((port.host, port.protocol)), &path, "this host port is listed twice");
        }
        if let Some(name) = &self.image.name
            && let Err(message) = validate_name(name)
        {
            found.push(Violation::new("spec.image.name", message));
        }
        if let Some(reference) = &self.image.oci {
            check_reference("spec.image.oci", reference, found);
        }
    }
}

impl VmSpec {
    fn check_dependencies(&self, own_name: &str, found: &mut Vec<Violation>) {
        if self.depends_on.len() > MAX_DEPENDENCIES {
            let message = format!("at most {MAX_DEPENDENCIES} VMs");
            return found.push(Violation::new("spec.dependsOn", message));
        }
        let mut names = BTreeSet::new();
        for (index, name) in self.depends_on.iter().enumerate() {
            let path = format!("spec.dependsOn[{index}]");
            if name == own_name {
                found.push(Violation::new(path, "a VM cannot wait for itself"));
            } else if let Err(message) = validate_name(name) {
                found.push(Violation::new(path, message));
            } else if !names.insert(name) {
                found.push(Violation::new(path, format!("{name} is listed twice")));
            }
        }
    }
}

/// What is there of a VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VmStatus {
    /// One word for people: Pending, Waiting, Pulling, Starting, Running, Stopping, Stopped, Backoff, Failed, Terminating.
    #[serde(default)]
    pub phase: String,
    /// `Ready` always; `ImageReady`, `Reserved`, `Booted`, `AgentConnected`; `Reconciling` and `Stalled`
    /// only when true.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// The generation that this status speaks of; -1 before the first look.
    #[serde(default = "never_observed")]
    pub observed_generation: i64,
    /// The VM's addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// Forwarded ports that are in force.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortStatus>,
    /// What runs the VM: `qemu`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// The VMM's process on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// The image that runs, or is being fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<VmImageStatus>,
    /// How often the VM was started again after its first start.
    #[serde(default)]
    pub restarts: u32,
    /// How the last run ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<LastExit>,
    /// When a failed step is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub next_retry_time: Option<Timestamp>,
    /// When the current VMM process was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub started_at: Option<Timestamp>,
    /// How long the steps of the last start took.
    #[serde(default)]
    pub timings: Timings,
}

impl Default for VmStatus {
    fn default() -> Self {
        VmStatus {
            phase: String::new(),
            conditions: Vec::new(),
            observed_generation: never_observed(),
            addresses: Vec::new(),
            ports: Vec::new(),
            driver: None,
            pid: None,
            image: None,
            restarts: 0,
            last_exit: None,
            next_retry_time: None,
            started_at: None,
            timings: Timings::default(),
        }
    }
}

/// A forwarded port in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortStatus {
    /// The port on the host.
    pub host: u16,
    /// The port in the VM.
    pub guest: u16,
    /// The transport protocol.
    pub protocol: Protocol,
}

/// The image of a VM, as resolved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VmImageStatus {
    /// Where the image comes from: an OCI reference, a path or a URL.
    pub reference: String,
    /// The digest that it stands for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// How a run of a VM ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LastExit {
    /// The workload's exit code (128 + signal when a signal ended it); absent when the VMM died first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// One CamelCase word: Completed, Error, Killed, Shutdown, GuestPanic, VmmFailed, HostReboot.
    pub reason: String,
    /// A sentence for people.
    #[serde(default)]
    pub message: String,
    /// When it was noticed.
    #[schemars(with = "String")]
    pub finished_at: Timestamp,
}

/// How long the steps of the last start took, in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Timings {
    /// Waiting for the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_ms: Option<u64>,
    /// Claiming address, disk and memory, the flush included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reserve_ms: Option<u64>,
    /// Making the disks and the network device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prepare_ms: Option<u64>,
    /// From the VMM's start to the guest's first word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_ms: Option<u64>,
    /// From the guest's first word to the workload's start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload_ms: Option<u64>,
}
