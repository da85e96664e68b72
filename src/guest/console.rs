//! The serial console: short lines for people, and the exit line for the host.

use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::AsRawFd;

/// Makes the console the standard streams, if the kernel could not (it opens `/dev/console` before
/// devtmpfs is there). Called again when a device is there.
pub(crate) fn attach() {
    if let Ok(console) = OpenOptions::new().read(true).write(true).open("/dev/console") {
        for target in 0..3 {
            // SAFETY: dup2 takes any numbers; the standard streams are nobody's OwnedFd.
            unsafe { nix::libc::dup2(console.as_raw_fd(), target) };
        }
    }
}

/// A line for people.
pub(crate) fn say(message: impl Display) {
    write(format!("vmlet-guest: {message}\n").as_bytes());
}

/// Raw bytes. A console that does not take them is no reason to stop.
pub(crate) fn write(bytes: &[u8]) {
    let mut stderr = io::stderr();
    let _ = stderr.write_all(bytes).and_then(|()| stderr.flush());
}

/// The line by which the host learns the workload's end without the link.
pub(crate) fn report_exit(code: i32) {
    write(format!("\n{}{code}\n", vmlet_wire::EXIT_LINE).as_bytes());
}
