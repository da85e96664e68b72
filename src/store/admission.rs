//! Admission: who gets memory, processors and disk space when there is not enough for all.
//!
//! In: what is free, and the line of those who wait. Out: who is let in, and what the others are told.
//! Pure; `line` applies it.
//!
//! # The rule
//! The line is ordered by rank: `spec.priority`, the higher first, then age (creation time, then name).
//! It is gone through from its front:
//! - Who fits into what is left is let in, and takes it.
//! - Who does not fit is passed: smaller ones behind it may have what is too little for it.
//! - Who does not fit and has waited longer than the patience is not passed any more: what it needs is
//!   set aside, and those behind it share what is left besides. Of what it lacks, that is nothing.
//!
//! So a big VM waits for the patience and then until enough is given back, and no stream of smaller
//! ones of its rank or below can starve it.
//!
//! # When
//! In every transaction that gives something back, that adds to the line or takes from it. Who is let in
//! has its reservation when that transaction ends: nobody can come in between, and the order in which
//! tasks run does not matter. A VM in line holds neither memory nor processors, so that those in line
//! never wait for each other.

use std::fmt;

use super::record::Reservation;
use super::request::{Capacity, VmClaim};
use crate::object::{ObjectKey, Quantity};

/// The places in line that are told exactly: a change at the front wakes so many tasks at most.
pub(super) const TOLD: usize = 8;

/// What VMs share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Memory.
    Memory,
    /// Virtual processors.
    Cpus,
    /// Full lengths of private disks.
    Disk,
}

impl Resource {
    const ALL: [Resource; 3] = [Resource::Memory, Resource::Cpus, Resource::Disk];

    /// One CamelCase word for the condition of a VM that lacks it.
    pub fn reason(self) -> &'static str {
        match self {
            Resource::Memory => "InsufficientMemory",
            Resource::Cpus => "InsufficientCpu",
            Resource::Disk => "InsufficientDisk",
        }
    }

    /// The daemon's setting.
    pub(super) fn flag(self) -> &'static str {
        match self {
            Resource::Memory => "--memory-capacity",
            Resource::Cpus => "--cpu-capacity",
            Resource::Disk => "--disk-capacity",
        }
    }

    /// `4Gi of memory`
    pub(super) fn amount(self, amount: u64) -> String {
        match self {
            Resource::Memory => format!("{} of memory", Quantity::bytes(amount)),
            Resource::Cpus => format!("{amount} virtual processor{}", if amount == 1 { "" } else { "s" }),
            Resource::Disk => format!("{} of disk space", Quantity::bytes(amount)),
        }
    }

    /// `2Gi`, `3`
    fn number(self, amount: u64) -> String {
        match self {
            Resource::Cpus => amount.to_string(),
            Resource::Memory | Resource::Disk => Quantity::bytes(amount).to_string(),
        }
    }
}

/// An amount of each resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Budget {
    pub(super) memory: u64,
    pub(super) cpus: u64,
    pub(super) disk: u64,
}

impl Budget {
    pub(super) fn of_claim(claim: &VmClaim) -> Self {
        let (memory, disk) = (claim.memory.as_bytes(), claim.disk.as_bytes());
        Budget { memory, cpus: claim.cpus.into(), disk }
    }

    pub(super) fn of_reservation(held: Option<&Reservation>) -> Self {
        held.map_or(Budget::default(), |held| {
            let (memory, disk) = (held.memory.as_bytes(), held.disk.as_bytes());
            Budget { memory, cpus: held.cpus.into(), disk }
        })
    }

    pub(super) fn of_capacity(capacity: &Capacity) -> Self {
        let (memory, disk) = (capacity.memory.as_bytes(), capacity.disk.as_bytes());
        Budget { memory, cpus: capacity.cpus.into(), disk }
    }

    pub(super) fn get(self, resource: Resource) -> u64 {
        match resource {
            Resource::Memory => self.memory,
            Resource::Cpus => self.cpus,
            Resource::Disk => self.disk,
        }
    }

    /// The first resource of which this is more than there is.
    pub(super) fn lacks(self, there: Budget) -> Option<Resource> {
        Resource::ALL.into_iter().find(|resource| self.get(*resource) > there.get(*resource))
    }

    /// What is left of this, at least nothing.
    pub(super) fn minus(self, other: Budget) -> Budget {
        Budget {
            memory: self.memory.saturating_sub(other.memory),
            cpus: self.cpus.saturating_sub(other.cpus),
            disk: self.disk.saturating_sub(other.disk),
        }
    }

    fn plus(self, other: Budget) -> Budget {
        Budget {
            memory: self.memory.saturating_add(other.memory),
            cpus: self.cpus.saturating_add(other.cpus),
            disk: self.disk.saturating_add(other.disk),
        }
    }
}

/// One in line, as far as the rule asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiter {
    /// What it wants beyond what it holds.
    pub(super) needs: Budget,
    /// What nobody holds.
    pub(super) free: Budget,
    /// It has waited longer than the patience.
    pub(super) impatient: bool,
}

/// What the rule says of one in line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Admitted,
    Waits {
        lacks: Resource,
        /// The place of the one for whom that is kept; none if there is just too little.
        kept_for: Option<usize>,
    },
}

/// The rule, over the line from its front.
pub(super) fn verdicts(line: &[Waiter]) -> Vec<Verdict> {
    let (mut taken, mut kept_for) = (Budget::default(), None);
    let verdict = |(place, waiter): (usize, &Waiter)| {
        let verdict = match waiter.needs.lacks(waiter.free.minus(taken)) {
            None => Verdict::Admitted,
            Some(lacks) => {
                let kept = waiter.needs.lacks(waiter.free).is_none();
                Verdict::Waits { lacks, kept_for: kept_for.filter(|_| kept) }
            }
        };
        if verdict == Verdict::Admitted || waiter.impatient {
            taken = taken.plus(waiter.needs);
        }
        if verdict != Verdict::Admitted && waiter.impatient {
            kept_for.get_or_insert(place);
        }
        verdict
    };
    line.iter().enumerate().map(verdict).collect()
}

/// What one in line is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The place, from 1; all that are far behind have the same.
    pub(super) place: usize,
    /// What is lacking.
    pub lacks: Resource,
    pub(super) needs: u64,
    /// How much of it is free; not told far behind.
    pub(super) free: Option<u64>,
    /// The VM that what is free is kept for.
    pub(super) kept_for: Option<ObjectKey>,
}

/// `needs 4Gi of memory, 2Gi is free; 2nd in line`
impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "needs {}", self.lacks.amount(self.needs))?;
        if let Some(free) = self.free {
            let (free, are) = (self.lacks.number(free), if self.is_plural(free) { "are" } else { "is" });
            match &self.kept_for {
                None => write!(f, ", {free} {are} free")?,
                Some(key) => write!(f, ", and the {free} free {are} kept for {key}, which has waited long")?,
            }
        }
        match self.place {
            1 => f.write_str("; 1st in line"),
            2 => f.write_str("; 2nd in line"),
            3 => f.write_str("; 3rd in line"),
            place if place <= TOLD => write!(f, "; {place}th in line"),
            _ => write!(f, "; {TOLD} or more are ahead in line"),
        }
    }
}

impl Standing {
    fn is_plural(&self, free: u64) -> bool {
        self.lacks == Resource::Cpus && free != 1
    }
}
