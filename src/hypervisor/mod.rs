//! What runs a VM.
//!
//! A driver makes the effects that a VM needs on the host and reports what it sees. It holds no
//! policy: when to start, stop or restart is the reconcile task's business.

pub mod gate;
pub mod process;
pub mod qemu;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::boot::BootFiles;
use crate::network::Nic;
use crate::object::{ObjectKey, Quantity, Uid};

/// Runs VMs: QEMU, or the scripted fake.
#[async_trait]
pub trait Driver: Send + Sync + 'static {
    /// `qemu`.
    fn name(&self) -> &'static str;

    /// The same for people, and how it runs them: `qemu, tcg`.
    fn title(&self) -> String {
        self.name().to_owned()
    }

    /// Makes the VM's folder ([`Launch::dir`]), its private disk unless it exists, and the files
    /// that this start needs. Idempotent.
    async fn prepare(&self, launch: &Launch) -> Result<(), DriverError>;

    /// Makes the VMM's process, which waits at its gate: it runs nothing until released, and ends
    /// by itself if this daemon dies first. So its identity can be recorded before it has effects.
    async fn spawn(&self, launch: &Launch) -> Result<Box<dyn Gated>, DriverError>;

    /// Connects to the guest's end of the VM's byte stream (bytes are the guest's own: hostile).
    async fn connect(&self, dir: &std::path::Path) -> Result<GuestStream, DriverError>;

    /// Connects to the VM's serial console. One connection at a time is served, and what the guest wrote
    /// before is not repeated. Drivers without consoles refuse.
    async fn console(&self, _dir: &std::path::Path) -> Result<GuestStream, DriverError> {
        Err(DriverError {
            reason: "NoConsole",
            message: format!("{} gives VMs no console", self.name()),
            transient: false,
        })
    }

    /// Waits until the process is gone, at once if it is. Cancel-safe. Works for processes that an
    /// earlier daemon started.
    async fn exited(&self, dir: &std::path::Path, process: &ProcessIdentity) -> VmmExit;

    /// Whether the process was started since the host's last start. If not it is gone.
    fn of_this_boot(&self, process: &ProcessIdentity) -> bool;

    /// Whether exactly this process is alive.
    fn alive(&self, process: &ProcessIdentity) -> bool;

    /// Presses the VM's power button, for guests whose agent does not answer.
    async fn power_button(&self, dir: &std::path::Path) -> Result<(), DriverError>;

    /// Kills the process and waits until it is gone. Gone already is fine.
    async fn kill(&self, process: &ProcessIdentity) -> Result<(), DriverError>;

    /// Kills the VMM that runs in a folder which no record claims, and waits until it is gone. None is
    /// fine. The folder says which process that is: [`Driver::spawn`] wrote it down.
    async fn evict(&self, dir: &std::path::Path) -> Result<(), DriverError>;

    /// Removes the private disk, so that the next [`Driver::prepare`] makes a new one.
    async fn remove_disk(&self, dir: &std::path::Path) -> Result<(), DriverError>;

    /// The VMs' folders below `root`, whosever they are. No such root is none.
    async fn folders(&self, root: &std::path::Path) -> Result<Vec<PathBuf>, DriverError>;

    /// Removes the VM's folder with all that is in it. Absent is fine.
    async fn cleanup(&self, dir: &std::path::Path) -> Result<(), DriverError>;
}

/// A VMM process before it runs. Dropping it ends the process.
#[async_trait]
#[must_use = "release it, or drop it to end it"]
pub trait Gated: Send {
    /// The process, which keeps this identity when released.
    fn process(&self) -> &ProcessIdentity;

    /// Lets the VMM run.
    async fn release(self: Box<Self>) -> Result<(), DriverError>;
}

/// The byte stream to a guest.
pub type GuestStream = Box<dyn GuestIo>;

/// What a [`GuestStream`] does.
pub trait GuestIo: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> GuestIo for T {}

/// Everything a driver needs to start a VM.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The VM's uid.
    pub uid: Uid,
    /// The VM's name, for titles and logs.
    pub key: ObjectKey,
    /// The VM's own folder.
    pub dir: PathBuf,
    /// Virtual processors.
    pub cpus: u32,
    /// Memory.
    pub memory: Quantity,
    /// The kernel and the initramfs.
    pub boot: BootFiles,
    /// Appended to the kernel's command line.
    pub command_line: Option<String>,
    /// The shared read-only base disk: the guest's first block device.
    pub base_disk: PathBuf,
    /// Length of the private disk: the guest's second block device, `root.ext4` in the folder.
    pub root_size: Quantity,
    /// The network device, if any.
    pub nic: Option<Nic>,
    /// What the guest is told: the guest's third block device, read-only, JSON padded with zeros.
    pub guest: vmlet_wire::GuestConfig,
    /// Nothing runs: the guest writes the disks of a stopped VM as a tar ([`vmlet_wire::Export`]).
    pub export: Option<ExportDisks>,
    /// The user that the VMM runs as; none leaves it as the daemon's.
    pub vmm_user: Option<u32>,
}

/// The disks of an export.
#[derive(Clone, Debug)]
pub struct ExportDisks {
    /// The stopped VM's folder: its private disk is this guest's too.
    pub of: PathBuf,
    /// The most that the tar may take: the guest's fourth block device, [`EXPORT_FILE`] in the
    /// guest's folder.
    pub room: Quantity,
}

/// The tar that an export leaves in its folder.
pub const EXPORT_FILE: &str = "export.tar";

/// Which process, beyond the reuse of numbers: pids wrap, start times and boots do not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessIdentity {
    /// The process id.
    pub pid: u32,
    /// In clock ticks after boot (proc(5), `/proc/pid/stat`, field 22).
    pub start_time: u64,
    /// The boot that `start_time` counts from (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
}

/// How a VMM process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmmExit {
    /// Its exit code; none if a signal ended it, or if it was not this daemon's child.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// What the guest's last console line said about its workload's end, if it did
    /// ([`vmlet_wire::EXIT_LINE`]).
    pub workload: Option<i32>,
    /// The VMM's last words, or the guest's panic; bounded.
    pub message: String,
}

/// Why a driver's step failed.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct DriverError {
    /// One CamelCase word for the condition.
    pub reason: &'static str,
    /// What happened and what to do about it.
    pub message: String,
    /// Whether trying again without any change can help.
    pub transient: bool,
}

/// Turns this process into the helper that its first argument asks for, if it does; otherwise returns.
///
/// The daemon starts its own binary again for work that needs a process of its own. So this is the first
/// thing that `main` does: before threads, descriptors and argument parsing.
pub fn run_if_helper() {
    match std::env::args_os().nth(1) {
        Some(argument) if gate::is_asked_for(&argument) => gate::main(),
        Some(argument) if qemu::kvm_probe::is_asked_for(&argument) => qemu::kvm_probe::main(),
        _ => {}
    }
}
