//! When a file's content may be believed. Pure: looks and times in, verdicts out.
//!
//! Writers are not asked to be careful: an editor truncates and then writes, a copy takes a while. So a changed
//! file is used once it has stopped changing.

use std::time::{Duration, Instant};

use super::root::Stamp;

/// How long is still.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Two looks at least this far apart that see the same settle a file.
    pub settle: Duration,
    /// A file that was modified longer ago is settled at the first look.
    pub old: Duration,
    /// The same two for a file without content, which is most often one about to be written.
    pub empty: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience {
            settle: Duration::from_millis(100),
            old: Duration::from_secs(1),
            empty: Duration::from_secs(2),
        }
    }
}

/// What a look saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Look {
    pub stamp: Stamp,
    pub digest: [u8; 32],
    /// No content but white space.
    pub blank: bool,
}

/// What becomes of a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is what was settled before.
    Same,
    /// It is settled now.
    New,
    /// Look again.
    Wait,
}

/// One file's history.
#[derive(Clone, Debug, Default)]
pub(super) struct Settling {
    settled: Option<Look>,
    /// What else was seen last, and when it was first seen.
    pending: Option<(Look, Instant)>,
}

impl Settling {
    /// The stamp of the settled content, if nothing else was seen since.
    pub(super) fn stamp(&self) -> Option<&Stamp> {
        if self.pending.is_some() { None } else { self.settled.as_ref().map(|look| &look.stamp) }
    }

    /// Takes a look. `age` is the time since the file was modified.
    pub(super) fn look(&mut self, look: Look, age: Duration, now: Instant, patience: &Patience) -> Verdict {
        if self.settled.is_some_and(|settled| settled.digest == look.digest) {
            self.settled = Some(look);
            self.pending = None;
            return Verdict::Same;
        }
        let since = match self.pending {
            Some((pending, since)) if same(&pending, &look) => since,
            _ => now,
        };
        let unchanged = now.saturating_duration_since(since);
        let settled = if look.blank {
            unchanged.max(age) >= patience.empty
        } else {
            unchanged >= patience.settle || age >= patience.old
        };
        if settled {
            self.settled = Some(look);
            self.pending = None;
            Verdict::New
        } else {
            self.pending = Some((look, since));
            Verdict::Wait
        }
    }
}

/// Attribute changes (`chmod`) do not count.
fn same(a: &Look, b: &Look) -> bool {
    let of = |look: &Look| (look.stamp.size, look.stamp.modified, look.stamp.inode, look.digest);
    of(a) == of(b)
}
