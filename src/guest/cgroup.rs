//! The cgroups of what runs beside an init system (cgroups(7), version 2).
//!
//! An init system takes the root group for its own, and cannot see or move the guest there. A
//! cgroup namespace would hide the guest altogether, but systemd takes that for a sign of a
//! container, where it leaves out half of its services.

use std::fs;
use std::io;
use std::path::Path;

const GUEST: &str = "/sys/fs/cgroup/vmlet";
const EXECS: &str = "/sys/fs/cgroup/vmlet.exec";

/// Moves this process, the guest, out of the root group.
pub(crate) fn leave_root() -> io::Result<()> {
    enter(Path::new(GUEST))
}

/// Moves this process, an exec, to its like: apart from the guest, which their tools cannot see.
pub(crate) fn enter_execs() -> io::Result<()> {
    enter(Path::new(EXECS))
}

fn enter(group: &Path) -> io::Result<()> {
    fs::create_dir_all(group)?;
    fs::write(group.join("cgroup.procs"), "0")
}
