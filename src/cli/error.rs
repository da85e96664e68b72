//! Errors at the edge: what went wrong, what to do about it, and the exit code.

use std::io;

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct CliError {
    /// One sentence; empty for a failure that was reported already.
    pub(super) message: String,
    /// What to do about it.
    pub(super) hint: Option<String>,
    /// The exit code: 1 for a failure, 2 for wrong use, or that of a command in a VM.
    pub(super) code: u8,
}

/// What every verb gives.
pub(super) type Outcome = Result<(), CliError>;

impl CliError {
    /// A failure.
    pub(super) fn new(message: impl Into<String>) -> Self {
        CliError { message: message.into(), hint: None, code: 1 }
    }

    /// Wrong use of the command line.
    pub(super) fn usage(message: impl Into<String>) -> Self {
        CliError { code: 2, ..Self::new(message) }
    }

    /// An exit code for which everything has been said.
    pub(super) fn silent(code: u8) -> Self {
        CliError { code, ..Self::new("") }
    }

    /// Adds what to do about it.
    #[must_use]
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Prints the error on stderr.
    pub(super) fn print(&self) {
        if !self.message.is_empty() {
            eprintln!("error: {}", self.message);
        }
        if let Some(hint) = &self.hint {
            eprintln!("hint: {hint}");
        }
    }
}

impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // The reader has seen enough (`vmlet get vms | head -1`): no failure.
            io::ErrorKind::BrokenPipe => CliError::silent(0),
            _ => CliError::new(error.to_string()),
        }
    }
}
