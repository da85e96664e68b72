//! Processes by identity, not by number.
//!
//! In: a [`ProcessIdentity`], perhaps recorded by an earlier daemon. Out: whether it is alive, its end,
//! its death. Guaranteed: no other process is ever signalled or waited for, even if the pid was
//! given away again. A zombie counts as gone: it runs nothing and holds nothing.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::ProcessIdentity;

/// How a process ended, as far as the kernel tells this daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExitStatus {
    /// Its exit code; none if a signal ended it, or if it was not this daemon's to reap.
    pub code: Option<i32>,
    /// The signal that ended it; none likewise.
    pub signal: Option<i32>,
}

impl ProcessIdentity {
    /// The identity of the process that has this pid now; none if there is no such process.
    pub fn of(pid: u32) -> io::Result<Option<Self>> {
        let Some(start_time) = start_time(pid)? else { return Ok(None) };
        Ok(Some(ProcessIdentity { pid, start_time, boot_id: boot_id()? }))
    }
}

/// Whether the process was started since the host's last start. Unknown counts as yes: its end is
/// looked for anyway.
pub fn of_this_boot(process: &ProcessIdentity) -> bool {
    boot_id().map_or(true, |boot_id| boot_id == process.boot_id)
}

/// Whether exactly this process runs: neither gone nor a zombie, with all its threads.
pub fn alive(process: &ProcessIdentity) -> bool {
    matches!(open(process), Ok(Some(pidfd)) if !has_ended(&pidfd))
}

/// Waits until the process is gone, at once if it is. A child of this daemon is reaped. Cancel-safe.
///
/// # Errors
///
/// Only if the kernel refuses a pidfd (out of descriptors, or Linux before 5.3).
pub async fn wait(process: &ProcessIdentity) -> io::Result<ExitStatus> {
    match open(process)? {
        Some(pidfd) => wait_pidfd(pidfd).await,
        None => Ok(ExitStatus::default()),
    }
}

/// Kills the process and waits until it is gone. Gone already is fine.
///
/// # Errors
///
/// As [`wait`], and if this user may not signal the process.
pub async fn kill(process: &ProcessIdentity) -> io::Result<()> {
    let Some(pidfd) = open(process)? else { return Ok(()) };
    send_kill(&pidfd)?;
    wait_pidfd(pidfd).await.map(drop)
}

/// [`kill`] for destructors: only for processes that cannot be busy in the kernel.
pub(super) fn kill_blocking(process: &ProcessIdentity) -> io::Result<()> {
    let Some(pidfd) = open(process)? else { return Ok(()) };
    send_kill(&pidfd)?;
    rustix::event::poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None)?;
    reap(&pidfd);
    Ok(())
}

/// A pidfd that is sure to mean this process; none if it is gone.
///
/// The identity was taken from a live process before this call. So if its pid still has that start
/// time after the pidfd was opened, it had it all the while, and the pidfd means it.
fn open(process: &ProcessIdentity) -> io::Result<Option<OwnedFd>> {
    let Some(pid) = i32::try_from(process.pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
    let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(rustix::io::Errno::SRCH) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let same = start_time(process.pid)? == Some(process.start_time) && boot_id()? == process.boot_id;
    Ok(same.then_some(pidfd))
}

/// A pidfd is readable once the whole thread group has ended (pidfd_open(2)).
async fn wait_pidfd(pidfd: OwnedFd) -> io::Result<ExitStatus> {
    // SAFETY: the AsyncFd owns the descriptor, and nothing closes or replaces it but its drop.
    let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?;
    let _ended = pidfd.readable().await?;
    Ok(reap(pidfd.get_ref()))
}

fn has_ended(pidfd: &OwnedFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(rustix::event::poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&now)), Ok(1))
}

fn send_kill(pidfd: &OwnedFd) -> io::Result<()> {
    match pidfd_send_signal(pidfd, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Takes the status of an ended process, if it is a child that was not reaped yet.
fn reap(pidfd: &OwnedFd) -> ExitStatus {
    match waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
        Ok(Some(status)) => ExitStatus { code: status.exit_status(), signal: status.terminating_signal() },
        _ => ExitStatus::default(),
    }
}

fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim_end().to_owned())
}

fn start_time(pid: u32) -> io::Result<Option<u64>> {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => parse_start_time(&stat).map(Some).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat has no start time"))
        }),
        // A process that ends between open and read gives ESRCH.
        Err(error)
            if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ESRCH) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Field 22 of `/proc/pid/stat` (proc(5)). Field 2, the name, is chosen by the process and may
/// hold anything, parentheses and spaces included; field 3 follows its last parenthesis.
pub(super) fn parse_start_time(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
}
