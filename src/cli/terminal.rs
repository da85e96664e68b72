//! The terminal that the user sits at.

use std::io::{self, Stdin};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::api::channel::TerminalSize;

/// A terminal in raw mode: each key goes to the guest at once, and nothing is echoed here. Dropping
/// it restores the terminal.
#[must_use = "dropping it ends raw mode"]
pub(super) struct RawMode {
    stdin: Stdin,
    before: Termios,
}

impl RawMode {
    /// Makes stdin raw.
    ///
    /// # Errors
    /// When stdin is not a terminal.
    pub(super) fn enter() -> io::Result<Self> {
        let stdin = io::stdin();
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Flush, &raw)?;
        Ok(RawMode { stdin, before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _ = tcsetattr(&self.stdin, OptionalActions::Flush, &self.before);
    }
}

/// The size of the terminal, if stdin is one.
pub(super) fn size() -> Option<TerminalSize> {
    let size = tcgetwinsize(io::stdin()).ok()?;
    Some(TerminalSize { width: size.ws_col, height: size.ws_row })
}
