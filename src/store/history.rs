//! The last changes, in order, for watchers: a bounded ring. A watcher that falls out of it is told
//! so; no watcher can hold a writer up.

use std::collections::VecDeque;

use super::error::Expired;
use super::request::Change;

pub(super) struct History {
    changes: VecDeque<Change>,
    capacity: usize,
    /// Every change after this version is in the ring.
    floor: u64,
}

impl History {
    pub(super) fn new(capacity: usize) -> History {
        History { changes: VecDeque::new(), capacity: capacity.max(1), floor: 0 }
    }

    /// The version at which the ring starts, empty.
    pub(super) fn start(&mut self, version: u64) {
        self.floor = version;
    }

    pub(super) fn push(&mut self, change: Change) {
        if self.changes.len() == self.capacity
            && let Some(dropped) = self.changes.pop_front()
        {
            self.floor = dropped.version;
        }
        self.changes.push_back(change);
    }

    /// Whether every change after `version` is still there.
    pub(super) fn check(&self, version: u64) -> Result<(), Expired> {
        if version < self.floor { Err(Expired) } else { Ok(()) }
    }

    /// At most `limit` changes after `after` and up to `until`, in order.
    pub(super) fn between(&self, after: u64, until: u64, limit: usize) -> Result<Vec<Change>, Expired> {
        self.check(after)?;
        let first = self.changes.partition_point(|change| change.version <= after);
        let wanted = self.changes.range(first..).take_while(|change| change.version <= until);
        Ok(wanted.take(limit).cloned().collect())
    }
}
