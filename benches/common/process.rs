//! What this process uses of the machine.

use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};

/// The processor time that this process has used so far, in the kernel and outside.
pub(crate) fn cpu_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("a process may ask for its own usage");
    let duration = |time: nix::sys::time::TimeVal| {
        Duration::new(time.tv_sec().unsigned_abs(), (time.tv_usec() * 1000) as u32)
    };
    duration(usage.user_time()) + duration(usage.system_time())
}

/// The memory of this process that is resident now, in bytes.
pub(crate) fn resident_bytes() -> u64 {
    status("VmRSS:")
}

/// The most memory of this process that ever was resident, in bytes.
pub(crate) fn peak_bytes() -> u64 {
    status("VmHWM:")
}

fn status(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc is mounted");
    let kilobytes = status.lines().find_map(|line| line.strip_prefix(field)?.trim().strip_suffix(" kB"));
    kilobytes.and_then(|number| number.parse::<u64>().ok()).expect("proc(5) gives kB") * 1024
}
