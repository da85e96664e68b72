//! The QEMU driver.
//!
//! In: a [`Launch`]. Out: one QEMU process per VM, which keeps running when the
//! daemon ends, and streams to its guest. Guaranteed: no QEMU runs whose identity was not
//! returned first ([`gate`]); QEMU runs as the VM's own user, in the VM's own folder (`folder`), with
//! no way to gain privileges; a host whose KVM does not work runs VMs all the same (`accel`).

mod accel;
mod args;
mod exit;
mod folder;
pub(crate) mod kvm_probe;
mod qmp;

#[cfg(test)]
mod tests;

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use tokio::net::UnixStream;
use tokio::time::{Instant, MissedTickBehavior};

use super::gate::{self, Gate};
use super::{Driver, DriverError, Gated, GuestStream, Launch, ProcessIdentity, VmmExit, process};
use crate::boot::KernelForm;

pub use accel::{Accelerator, AcceleratorSetting, choose as choose_accelerator};
pub use args::Machine;

/// The setting `machine`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MachineSetting {
    /// `microvm` if this QEMU has it, else `q35`.
    #[default]
    Auto,
    /// Few devices, quick to boot.
    Microvm,
    /// A whole PC.
    Q35,
}

/// The driver's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QemuSettings {
    /// The program: a path, or a name to look for in `PATH`.
    pub binary: PathBuf,
    /// The machine model.
    pub machine: MachineSetting,
    /// What executes guest code.
    pub accelerator: AcceleratorSetting,
    /// The binary that knows the hidden subcommands ([`super::run_if_helper`]).
    pub helper: PathBuf,
}

impl Default for QemuSettings {
    fn default() -> Self {
        QemuSettings {
            binary: "qemu-system-x86_64".into(),
            machine: MachineSetting::Auto,
            accelerator: AcceleratorSetting::Auto,
            // Not the file's path: an upgrade replaces the file, and gate and daemon must agree.
            helper: "/proc/self/exe".into(),
        }
    }
}

/// Runs VMs with QEMU.
#[derive(Debug)]
pub struct QemuDriver {
    binary: PathBuf,
    helper: PathBuf,
    host: args::Host,
    /// The group that may open `/dev/kvm`, if it is used.
    kvm_group: Option<u32>,
}

/// The most descriptors of a QEMU: disks, sockets, event descriptors of queues; some 100 in practice.
const OPEN_FILES: u64 = 4096;
/// How often the logs of a running VM are bounded.
const LOG_CHECK: Duration = Duration::from_secs(30);
/// How long QEMU may take to list its machines.
const LIST_LIMIT: Duration = Duration::from_secs(10);

impl QemuDriver {
    /// Looks for QEMU, asks what it can do, and tests KVM: takes up to some seconds.
    ///
    /// # Errors
    ///
    /// If there is no QEMU, or it does not run.
    pub async fn new(settings: QemuSettings) -> Result<Self, DriverError> {
        let binary = find_program(&settings.binary)?;
        let machine = match settings.machine {
            MachineSetting::Microvm => Machine::Microvm,
            MachineSetting::Q35 => Machine::Q35,
            MachineSetting::Auto if has_microvm(&binary).await? => Machine::Microvm,
            MachineSetting::Auto => Machine::Q35,
        };
        let accelerator = accel::choose(settings.accelerator, &settings.helper).await;
        let kvm_group = match accelerator {
            Accelerator::Kvm => std::fs::metadata("/dev/kvm").ok().map(|device| device.gid()),
            Accelerator::Tcg { .. } => None,
        };
        let tsc_khz = blocking(|| Ok(accel::tsc_khz())).await?;
        tracing::info!(qemu = %binary.display(), ?machine, %accelerator, "driver ready");
        let host = args::Host { machine, accelerator, tsc_khz };
        Ok(QemuDriver { binary, helper: settings.helper, host, kvm_group })
    }

    /// What runs guest code on this host.
    pub fn accelerator(&self) -> &Accelerator {
        &self.host.accelerator
    }

    /// The form of kernel that VMs boot fastest from. Under TCG unpacking the kernel in the guest costs more
    /// than reading an unpacked one; the code that unpacks it is also what places it at random, which
    /// matters where guests are real.
    pub fn kernel_form(&self) -> KernelForm {
        match self.host.accelerator {
            Accelerator::Kvm => KernelForm::Installed,
            Accelerator::Tcg { .. } => KernelForm::Elf,
        }
    }

    /// The machine model of all VMs.
    pub fn machine(&self) -> Machine {
        self.host.machine
    }

    fn command(&self, launch: &Launch) -> gate::Command {
        let user = |uid| gate::User { uid, gid: uid, groups: self.kvm_group.into_iter().collect() };
        gate::Command {
            program: self.binary.clone(),
            args: args::arguments(launch, &self.host),
            dir: launch.dir.clone(),
            files: args::files(launch),
            user: launch.vmm_user.map(user),
            open_files: OPEN_FILES,
        }
    }
}

#[async_trait]
impl Driver for QemuDriver {
    fn name(&self) -> &'static str {
        "qemu"
    }

    fn title(&self) -> String {
        format!("{}, {}", self.name(), self.host.accelerator.name())
    }

    async fn prepare(&self, launch: &Launch) -> Result<(), DriverError> {
        let launch = launch.clone();
        blocking(move || folder::prepare(&launch)).await
    }

    async fn spawn(&self, launch: &Launch) -> Result<Box<dyn Gated>, DriverError> {
        let command = self.command(launch);
        let (launch, helper) = (launch.clone(), self.helper.clone());
        let gate = blocking(move || {
            let log = folder::begin_logs(&launch)?;
            let gate = Gate::spawn(&helper, log).map_err(DriverError::at("SpawnFailed", &helper))?;
            folder::record_process(&launch.dir, gate.process())?;
            Ok(gate)
        })
        .await?;
        Ok(Box::new(GatedQemu { gate, command }))
    }

    async fn connect(&self, dir: &Path) -> Result<GuestStream, DriverError> {
        Ok(Box::new(connect(dir, args::LINK_SOCKET).await?))
    }

    async fn console(&self, dir: &Path) -> Result<GuestStream, DriverError> {
        Ok(Box::new(connect(dir, args::CONSOLE_SOCKET).await?))
    }

    async fn exited(&self, dir: &Path, process: &ProcessIdentity) -> VmmExit {
        let ended = wait(process);
        tokio::pin!(ended);
        let mut log_check = tokio::time::interval_at(Instant::now() + LOG_CHECK, LOG_CHECK);
        log_check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let status = loop {
            tokio::select! {
                status = &mut ended => break status,
                _ = log_check.tick() => bound_logs(dir).await,
            }
        };
        let dir = dir.to_owned();
        let exit = blocking(move || {
            let vmm_log = folder::log_tail(&dir, folder::VMM_LOG, exit::LOG_TAIL);
            let console = folder::log_tail(&dir, folder::CONSOLE_LOG, exit::CONSOLE_TAIL);
            Ok(exit::compose(status, &vmm_log, &console))
        });
        exit.await.unwrap_or_else(|error| exit::compose(status, error.message.as_bytes(), &[]))
    }

    fn of_this_boot(&self, process: &ProcessIdentity) -> bool {
        process::of_this_boot(process)
    }

    fn alive(&self, process: &ProcessIdentity) -> bool {
        process::alive(process)
    }

    async fn power_button(&self, dir: &Path) -> Result<(), DriverError> {
        let stream = connect(dir, args::QMP_SOCKET).await?;
        qmp::execute(stream, "system_powerdown").await.map(drop).map_err(|error| DriverError {
            reason: "PowerButtonFailed",
            message: error.to_string(),
            transient: true,
        })
    }

    async fn kill(&self, process: &ProcessIdentity) -> Result<(), DriverError> {
        process::kill(process).await.map_err(|error| DriverError {
            reason: "KillFailed",
            message: format!("cannot kill process {}: {error}", process.pid),
            transient: true,
        })
    }

    async fn evict(&self, dir: &Path) -> Result<(), DriverError> {
        let owned = dir.to_owned();
        match blocking(move || Ok(folder::recorded_process(&owned))).await? {
            Some(process) => self.kill(&process).await,
            None => Ok(()),
        }
    }

    async fn remove_disk(&self, dir: &Path) -> Result<(), DriverError> {
        let dir = dir.to_owned();
        blocking(move || folder::remove_disk(&dir)).await
    }

    async fn folders(&self, root: &Path) -> Result<Vec<PathBuf>, DriverError> {
        let root = root.to_owned();
        blocking(move || folder::list(&root)).await
    }

    async fn cleanup(&self, dir: &Path) -> Result<(), DriverError> {
        let dir = dir.to_owned();
        blocking(move || folder::remove(&dir)).await
    }
}

struct GatedQemu {
    gate: Gate,
    command: gate::Command,
}

#[async_trait]
impl Gated for GatedQemu {
    fn process(&self) -> &ProcessIdentity {
        self.gate.process()
    }

    async fn release(self: Box<Self>) -> Result<(), DriverError> {
        self.gate.release(&self.command).await.map_err(|error| DriverError {
            reason: "SpawnFailed",
            message: format!("cannot start QEMU: {error}"),
            transient: true,
        })
    }
}

/// [`process::wait`], which only fails when the daemon runs out of something: tries on until it can.
async fn wait(process: &ProcessIdentity) -> process::ExitStatus {
    const PAUSE: Duration = Duration::from_secs(1);
    loop {
        match process::wait(process).await {
            Ok(status) => return status,
            Err(error) => tracing::warn!(pid = process.pid, %error, "cannot watch a process; trying again"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn bound_logs(dir: &Path) {
    let owned = dir.to_owned();
    let bound = move || folder::bound_logs(&owned).map_err(DriverError::at("LogsFailed", &owned));
    if let Err(error) = blocking(bound).await {
        tracing::warn!(%error, "cannot bound the logs of a VM");
    }
}

async fn connect(dir: &Path, socket: &'static str) -> Result<UnixStream, DriverError> {
    let owned = dir.to_owned();
    blocking(move || {
        folder::connect(&owned, socket)
            .and_then(UnixStream::from_std)
            .map_err(DriverError::at("NotConnected", &owned.join(folder::RUN_DIR).join(socket)))
    })
    .await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DriverError> + Send + 'static,
) -> Result<T, DriverError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(DriverError { reason: "Internal", message: format!("a worker failed: {error}"), transient: true })
    })
}

/// The gate has no environment, so it needs the whole path.
fn find_program(binary: &Path) -> Result<PathBuf, DriverError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let candidates = std::env::split_paths(&path).map(|dir| dir.join(binary));
    let found = candidates.chain([binary.to_owned()]).find(|file| file.is_absolute() && file.is_file());
    found.ok_or_else(|| DriverError {
        reason: "NoQemu",
        message: format!(
            "{} was not found; install QEMU (Debian: apt install qemu-system-x86) or set its path",
            binary.display()
        ),
        transient: false,
    })
}

async fn has_microvm(binary: &Path) -> Result<bool, DriverError> {
    let failed = |problem: String| DriverError {
        reason: "NoQemu",
        message: format!("{} -machine help: {problem}", binary.display()),
        transient: true,
    };
    let list = tokio::process::Command::new(binary)
        .args(["-machine", "help"])
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output();
    match tokio::time::timeout(LIST_LIMIT, list).await {
        Err(_) => Err(failed(format!("no answer within {} s", LIST_LIMIT.as_secs()))),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Ok(Ok(output)) if !output.status.success() => {
            Err(failed(format!("{}: {}", output.status, exit::printable(&output.stderr))))
        }
        Ok(Ok(output)) => {
            let machines = String::from_utf8_lossy(&output.stdout);
            Ok(machines.lines().any(|line| line.split_ascii_whitespace().next() == Some("microvm")))
        }
    }
}

impl DriverError {
    /// For failures of the file system, which may pass.
    fn at(reason: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DriverError + use<> {
        let path = path.to_owned();
        move |error| {
            let (reason, hint) = match error.kind() {
                io::ErrorKind::StorageFull => ("NoSpace", "; free some space"),
                io::ErrorKind::PermissionDenied => {
                    (reason, "; the daemon must be root to run VMs as other users")
                }
                _ => (reason, ""),
            };
            DriverError { reason, message: format!("{}: {error}{hint}", path.display()), transient: true }
        }
    }
}
