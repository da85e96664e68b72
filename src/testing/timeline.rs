//! What happened, in order: the output of a simulation that people read.

use std::fmt;
use std::time::Duration;

use crate::object::ObjectKey;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// When, since the simulation's start.
    pub at: Duration,
    /// To which object, if to one.
    pub object: Option<ObjectKey>,
    /// Whose word it is.
    pub teller: Teller,
    /// What.
    pub text: String,
}

impl Entry {
    /// What happened, without what goes on changing in a status: how far a pull is, who is waited for.
    pub fn headline(&self) -> &str {
        let details = || self.text.match_indices(": ").nth(1).map(|(at, _)| at);
        let end = if self.teller == Teller::Status { details() } else { None };
        &self.text[..end.unwrap_or(self.text.len())]
    }
}

/// Whose word an [`Entry`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Teller {
    /// The object's status, when it changed.
    Status,
    /// An event that the daemon recorded.
    Event,
    /// The scripted world: effects on the host, processes that end.
    World,
    /// The simulation itself: edits, crashes, starts of the daemon.
    Script,
}

/// `    12.350s vm/web           Pulling: r/a:1 is about to be pulled`
impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let object = self.object.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
        let mark = match self.teller {
            Teller::Status => "",
            Teller::Event => "event: ",
            Teller::World => "world: ",
            Teller::Script => "script: ",
        };
        write!(f, "{:>10.3}s {object:<16} {mark}{}", self.at.as_secs_f64(), self.text)
    }
}
