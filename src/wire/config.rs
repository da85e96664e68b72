//! What a guest is told at boot: JSON on its third block device, padded with zeros.

use serde::{Deserialize, Serialize};

/// The start of the console line by which the guest reports its workload's end when nobody
/// listens on the stream: this, the exit code in decimal, and a line feed.
pub const EXIT_LINE: &str = "vmlet-guest: workload exited: ";

/// What a guest is told at boot.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GuestConfig {
    /// The guest's host name.
    pub hostname: String,
    /// The network device's settings; none leaves it down.
    #[serde(default)]
    pub network: Option<GuestNetwork>,
    /// What to run.
    pub workload: Workload,
    /// Instead of running anything: write the joined disks as a tar onto the fourth block device.
    #[serde(default)]
    pub export: Option<Export>,
}

/// What an export has that the disks have not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Export {
    /// Who may log in as root, in place of those who may now; none leaves that as it is.
    pub authorized_keys: Vec<String>,
}

/// A static address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GuestNetwork {
    /// The device's hardware address.
    pub mac: String,
    /// An IPv4 address.
    pub address: String,
    /// The subnet's prefix length.
    pub prefix: u8,
    /// The default gateway.
    #[serde(default)]
    pub gateway: Option<String>,
    /// Resolvers for `/etc/resolv.conf`.
    #[serde(default)]
    pub resolvers: Vec<String>,
}

/// What the guest runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Workload {
    /// Start the image's init system, if it has one, instead of `argv`.
    pub prefer_init: bool,
    /// The command and its arguments.
    pub argv: Vec<String>,
    /// `NAME=value`.
    #[serde(default)]
    pub env: Vec<String>,
    /// An absolute path; `/` when absent. Made if it is missing.
    #[serde(default)]
    pub working_dir: Option<String>,
    /// `user`, `user:group`, or numbers; root when absent.
    #[serde(default)]
    pub user: Option<String>,
    /// The signal that asks the workload to end, for example `SIGQUIT`; SIGTERM when absent.
    #[serde(default)]
    pub stop_signal: Option<String>,
    /// How long a shutdown waits for the workload before it is killed, in seconds.
    pub grace_seconds: u32,
}
