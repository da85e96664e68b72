//! The `VM` kind.

mod check;
mod status;

pub use self::status::{LastExit, PortStatus, Timings, VmImageStatus, VmStatus};

use std::net::Ipv4Addr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::source::PullPolicy;
use super::{Effect, Object, Quantity};
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
    /// When the registry is asked for `oci`; an `Image` object has a policy of its own.
    #[serde(default, skip_serializing_if = "PullPolicy::is_default")]
    #[schemars(extend("x-edit" = Effect::Live))]
    pub pull_policy: PullPolicy,
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
