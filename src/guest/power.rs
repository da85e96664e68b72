//! The machine's end.

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, sync};

use crate::boot::PrivateDisk;
use crate::console;

/// How long killed processes may take to go; one that is stuck in the kernel may never do.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);

/// Kills every process, leaves the disks clean and turns the machine off.
pub(crate) fn off(private: Option<&PrivateDisk>) -> ! {
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    let deadline = Instant::now() + KILL_TIMEOUT;
    while waitpid(None, Some(WaitPidFlag::WNOHANG)).is_ok() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    sync();
    if let Some(PrivateDisk(private)) = private {
        // The overlay first: it writes to the private disk, which has no other path any more.
        let path = format!("/proc/self/fd/{}", private.as_raw_fd());
        for target in ["/", &path] {
            let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            if let Err(error) = mount(None::<&str>, target, None::<&str>, flags, None::<&str>) {
                console::say(format!("cannot make {target} read-only: {error}"));
            }
        }
    }
    for mode in [RebootMode::RB_POWER_OFF, RebootMode::RB_AUTOBOOT] {
        let Err(error) = reboot(mode);
        console::say(format!("cannot turn the machine off: {error}"));
    }
    // The end of PID 1 is a kernel panic, which ends the machine in its way.
    std::process::exit(1)
}
