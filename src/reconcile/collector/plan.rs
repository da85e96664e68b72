//! Which base disks go next, and why: a pure function of what is there, the time and the room.
//!
//! # The rule
//! - What nothing has referred to for longer than the grace goes.
//! - When less than `low` percent of the file system is free, room is made until `high` percent are: by layers that
//!   are kept for later pulls, then by the disks in their grace, the one that has been unused for longest first.
//!   A layer costs a download when it is wanted again, a disk the whole pull.
//! - A pull that found no room takes the longest unused disk, whatever is free by now. The layers have gone then.
//!
//! One at a time when room is wanted: what its removal gave is looked at before the next one goes.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::image::Digest;
use crate::reconcile::room::Space;

/// How long base disks are kept that nothing refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// So long, unless room is wanted. None are kept at zero.
    pub grace: Duration,
    /// Below this share of free space, in percent, room is wanted; never at 0.
    pub low: u8,
    /// Up to this share, in percent.
    pub high: u8,
}

impl Retention {
    /// When a disk's grace ends.
    pub fn until(&self, since: Timestamp) -> Timestamp {
        let grace = SignedDuration::try_from(self.grace).unwrap_or(SignedDuration::MAX);
        since.saturating_add(grace).unwrap_or(Timestamp::MAX)
    }
}

/// What is there.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// The disks that nothing refers to, and since when.
    pub unused: Vec<(Digest, Timestamp)>,
    /// Bytes of layers that are kept for later pulls and can go.
    pub layers: u64,
    pub now: Timestamp,
    /// None if it cannot be told: then no room is wanted.
    pub space: Option<Space>,
    /// Whether room was wanted at the last look.
    pub pressed: bool,
    /// Whether a pull found no room.
    pub starved: bool,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plan {
    pub remove: Vec<(Digest, Timestamp, Reason)>,
    /// How many bytes of layers are to be left, if fewer than there are.
    pub layers: Option<u64>,
    /// Whether room is wanted.
    pub pressed: bool,
    /// When the next grace ends.
    pub next: Option<Timestamp>,
    /// Whether the room is worth a look now and then: something could make some.
    pub watch: bool,
}

/// Why a disk goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// Its grace is over.
    Unused,
    /// Too little of the file system is free.
    DiskPressure,
    /// A pull found no room.
    NoSpace,
    /// Somebody asked for it.
    Requested,
    /// An earlier removal, or installation, was not finished.
    Unfinished,
}

impl Reason {
    /// The word in metrics and log.
    pub(super) fn word(self) -> &'static str {
        match self {
            Reason::Unused => "unused",
            Reason::DiskPressure => "disk_pressure",
            Reason::NoSpace => "no_space",
            Reason::Requested => "requested",
            Reason::Unfinished => "unfinished",
        }
    }
}

pub(super) fn plan(retention: &Retention, seen: &Seen) -> Plan {
    let mut unused = seen.unused.clone();
    unused.sort_by(|a, b| (a.1, &a.0).cmp(&(b.1, &b.0)));
    let due = |since: Timestamp| retention.until(since) <= seen.now;
    let (over, mut kept): (Vec<_>, Vec<_>) = unused.into_iter().partition(|(_, since)| due(*since));
    let mut remove: Vec<_> =
        over.into_iter().map(|(digest, since)| (digest, since, Reason::Unused)).collect();
    let low = retention.low.min(retention.high);
    let threshold = if seen.pressed && low > 0 { retention.high } else { low };
    let pressed = seen.space.is_some_and(|space| space.is_below(threshold));
    let reason = if seen.starved { Some(Reason::NoSpace) } else { pressed.then_some(Reason::DiskPressure) };
    // What goes anyway may give room enough.
    let reason = reason.filter(|_| remove.is_empty());
    let layers = seen.space.filter(|_| reason == Some(Reason::DiskPressure) && seen.layers > 0);
    let layers = layers.map(|space| seen.layers.saturating_sub(space.missing(retention.high)));
    if let Some(reason) = reason.filter(|_| layers.is_none() && !kept.is_empty()) {
        let (digest, since) = kept.remove(0);
        remove.push((digest, since, reason));
    }
    Plan {
        remove,
        layers,
        pressed,
        next: kept.first().map(|(_, since)| retention.until(*since)),
        watch: (!kept.is_empty() || seen.layers > 0) && low > 0,
    }
}
