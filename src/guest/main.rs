//! PID 1 of a vmlet VM: a static binary that is `/init` of every initramfs.
//!
//! In flow: kernel modules and the base, private and config disks. Out flow: a root file system
//! with a workload on it, and the host's link served until the machine powers off.
//!
//! ```text
//! main ─▶ boot: mounts, modules, disks, root ─▶ identity, network ─▶ workload ─▶ supervisor ─▶ power off
//!                                                                               │ one thread, one poll:
//!                                                     signals, link, workload output, execs, timers
//! ```
//!
//! A guest that is to export its disks writes them as a tar instead (`export`), and goes off.
//!
//! Guaranteed: whatever fails or ends, the host is told (over the link, or on the console if nobody
//! listens), file systems are left clean and the machine goes off. A panic kills PID 1, and with it
//! the kernel (`panic=-1` ends the VM). No buffer grows with what a workload does.

mod boot;
mod cgroup;
mod console;
mod exec;
mod export;
mod failure;
mod identity;
mod init_system;
mod link;
mod log_ring;
mod network;
mod power;
mod power_button;
mod process;
mod signals;
mod stats;
mod supervisor;
mod users;
mod workload;

use failure::Failure;
use supervisor::Supervisor;
use vmlet_wire::GuestConfig;
use workload::Workload;

fn main() {
    console::attach();
    let config = wake_up();
    if let Ok(GuestConfig { export: Some(wanted), .. }) = &config {
        console::report_exit(export::run(wanted));
        power::off(None);
    }
    let mut private = None;
    let started = config.and_then(|config| start(config, &mut private));
    if let Err(failure) = &started {
        console::say(failure);
    }
    let code = Supervisor::new(started).run();
    console::report_exit(code);
    power::off(private.as_ref());
}

/// Everything up to knowing what to do.
fn wake_up() -> Result<GuestConfig, Failure> {
    signals::block()?;
    boot::mount_kernel_file_systems()?;
    // Children start without this exemption.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    boot::load_modules();
    boot::read_config()
}

/// Everything up to the running workload. `private` is set as soon as the private disk is mounted.
fn start(
    config: GuestConfig,
    private: &mut Option<boot::PrivateDisk>,
) -> Result<(GuestConfig, Workload), Failure> {
    *private = Some(boot::switch_root()?);
    boot::mount_kernel_file_systems()?;
    boot::mount_workload_file_systems();
    identity::apply(&config);
    network::apply(config.network.as_ref())?;
    let workload = Workload::start(&config.workload)?;
    Ok((config, workload))
}
