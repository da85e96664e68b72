//! What is there of a VM.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Protocol;
use crate::object::image::never_observed;
use crate::object::{Condition, PullProgress};

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
    /// How far the pull of the image is that the VM waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull: Option<PullProgress>,
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
            pull: None,
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
