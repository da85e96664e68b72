//! Why the guest or something in it could not start.

use std::fmt;

/// A sentence for people, and the exit code that stands for it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Failure {
    /// What happened, and to what.
    pub(crate) message: String,
    /// As shells report it: 127 not found, 126 not executable, 125 anything before that.
    pub(crate) code: i32,
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Failure { message: message.into(), code: 125 }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Says what was being done when an error came up.
pub(crate) trait During<T> {
    /// `doing` reads as "mount /proc": the message becomes "cannot mount /proc: …".
    fn during(self, doing: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T, E: fmt::Display> During<T> for Result<T, E> {
    fn during(self, doing: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(format!("cannot {}: {error}", doing())))
    }
}
