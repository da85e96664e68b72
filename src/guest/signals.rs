//! Signals to PID 1, as a file descriptor; and signals by name.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::libc;
use nix::sys::reboot::set_cad_enabled;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::failure::{During, Failure};

fn handled() -> SigSet {
    // PWR: the power button as init systems know it. INT: ctrl-alt-del, see `block`.
    [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGPWR].into_iter().collect()
}

/// Blocks the handled signals, so that none is lost before [`Signals::open`], and turns ctrl-alt-del
/// from an immediate reset into SIGINT (reboot(2)).
pub(crate) fn block() -> Result<(), Failure> {
    handled().thread_block().during(|| "block signals".to_owned())?;
    // Fails only where there is no such key.
    let _ = set_cad_enabled(false);
    Ok(())
}

/// Undoes [`block`] in a child.
pub(crate) fn unblock() -> io::Result<()> {
    SigSet::all().thread_unblock()?;
    Ok(())
}

/// The handled signals as they come.
pub(crate) struct Signals(SignalFd);

/// What signals ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Pending {
    pub(crate) children: bool,
    pub(crate) shutdown: bool,
}

impl Signals {
    pub(crate) fn open() -> io::Result<Self> {
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        Ok(Signals(SignalFd::with_flags(&handled(), flags)?))
    }

    /// What came since the last call.
    pub(crate) fn take(&self) -> Pending {
        let mut pending = Pending::default();
        while let Ok(Some(info)) = self.0.read_signal() {
            if info.ssi_signo == Signal::SIGCHLD as u32 {
                pending.children = true;
            } else {
                pending.shutdown = true;
            }
        }
        pending
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The number of a signal as images name it: `SIGQUIT`, `QUIT`, `3`, `SIGRTMIN+3` (OCI image-spec,
/// `StopSignal`).
pub(crate) fn number(name: &str) -> Option<i32> {
    let name = name.trim().to_ascii_uppercase();
    let valid = |number: &i32| (1..=libc::SIGRTMAX()).contains(number);
    if let Ok(number) = name.parse::<i32>() {
        return Some(number).filter(valid);
    }
    let short = name.strip_prefix("SIG").unwrap_or(&name);
    let relative = |base: i32, rest: &str| -> Option<i32> {
        if rest.is_empty() { Some(base) } else { base.checked_add(rest.parse().ok()?) }
    };
    let real_time = if let Some(rest) = short.strip_prefix("RTMIN") {
        Some(relative(libc::SIGRTMIN(), rest))
    } else {
        short.strip_prefix("RTMAX").map(|rest| relative(libc::SIGRTMAX(), rest))
    };
    match real_time {
        Some(number) => number.filter(|number| (libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(number)),
        None => format!("SIG{short}").parse::<Signal>().ok().map(|signal| signal as i32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_by_name_and_number() {
        assert_eq!(number("SIGTERM"), Some(libc::SIGTERM));
        assert_eq!(number("quit"), Some(libc::SIGQUIT));
        assert_eq!(number("28"), Some(libc::SIGWINCH));
        assert_eq!(number("SIGRTMIN+3"), Some(libc::SIGRTMIN() + 3));
        assert_eq!(number("RTMAX-1"), Some(libc::SIGRTMAX() - 1));
        for wrong in ["", "SIG", "SIGNONE", "0", "-1", "65", "RTMIN+99", "RTMIN-1", "RTMAXX"] {
            assert_eq!(number(wrong), None, "{wrong}");
        }
    }
}
