//! Admission: who gets memory, processors and disk space when there is not enough for all.
//!
//! In: what is free, and the line of those who wait. Out: who is let in, and what the others are told.
//! In memory only: after a restart the VMs' tasks stand in line anew.
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

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::fmt;

use jiff::Timestamp;
use tokio::sync::watch;

use super::record::{Record, Reservation, VmRecord};
use super::request::{Capacity, VmClaim};
use super::state::State;
use crate::object::{ObjectKey, Quantity};

/// The places in line that are told exactly: a change at the front wakes so many tasks at most.
const TOLD: usize = 8;

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
    /// The place, from 1.
    place: usize,
    /// What is lacking.
    pub lacks: Resource,
    needs: u64,
    /// How much of it is free; unknown far behind in the line.
    free: Option<u64>,
    /// The VM that what is free is kept for.
    kept_for: Option<ObjectKey>,
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

/// The order of the line.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    priority: Reverse<i32>,
    created: Option<Timestamp>,
    key: ObjectKey,
}

impl Rank {
    fn of(vm: &VmRecord) -> Self {
        let (priority, created) = (Reverse(vm.object.spec.priority), vm.object.metadata.creation_timestamp);
        Rank { priority, created, key: vm.object.key() }
    }
}

/// Who waits, from the front.
#[derive(Default)]
pub(super) struct Line {
    waiting: BTreeMap<Rank, InLine>,
    ranks: HashMap<ObjectKey, Rank>,
}

struct InLine {
    claim: VmClaim,
    /// Dropped when the VM leaves the line, which is how its task hears of that.
    standing: watch::Sender<Option<Standing>>,
}

impl Line {
    fn enter(&mut self, vm: &VmRecord, claim: &VmClaim) -> watch::Receiver<Option<Standing>> {
        let (standing, receiver) = watch::channel(None);
        let rank = Rank::of(vm);
        self.ranks.insert(claim.key.clone(), rank.clone());
        self.waiting.insert(rank, InLine { claim: claim.clone(), standing });
        receiver
    }

    /// Whether it stood there.
    pub(super) fn leave(&mut self, key: &ObjectKey) -> bool {
        let rank = self.ranks.remove(key);
        rank.is_some_and(|rank| self.waiting.remove(&rank).is_some())
    }

    pub(super) fn contains(&self, key: &ObjectKey) -> bool {
        self.ranks.contains_key(key)
    }
}

impl State {
    /// Puts a VM in line and goes through it. Who must wait gives up what it holds of memory and
    /// processors, and of the disk space if it is to have another disk: then it is told where it stands.
    pub(super) fn stand_in_line(
        &mut self,
        vm: &VmRecord,
        claim: &VmClaim,
    ) -> Option<watch::Receiver<Option<Standing>>> {
        let receiver = self.line.enter(vm, claim);
        self.settle_line();
        if !self.line.contains(&claim.key) {
            return None;
        }
        let other_disk = |held: &Reservation| held.disk != claim.disk || held.image != claim.image;
        self.give_back(&claim.key, other_disk);
        self.settle_line();
        self.line.contains(&claim.key).then_some(receiver)
    }

    /// Takes a VM from the line, because it is edited, deleted or not to run.
    pub(super) fn leave_line(&mut self, key: &ObjectKey) {
        if self.line.leave(key) {
            self.settle_line();
        }
    }

    /// Gives back a VM's memory and processors, and its disk space if that is to go.
    pub(super) fn give_back(&mut self, key: &ObjectKey, disk_goes: impl Fn(&Reservation) -> bool) {
        let Some(mut vm) = self.vm(key).cloned() else { return };
        let Some(held) = &vm.reservation else { return };
        let disk = if disk_goes(held) { Quantity::bytes(0) } else { held.disk };
        let less = Reservation { memory: Quantity::bytes(0), cpus: 0, disk, ..held.clone() };
        if *held != less {
            std::sync::Arc::make_mut(&mut vm).reservation = Some(less);
            self.put(Record::Vm(vm));
        }
    }

    /// Lets in whom the rule lets in, and tells the others where they stand.
    pub(super) fn settle_line(&mut self) {
        while !self.line.waiting.is_empty() {
            let waiters: Vec<Waiter> =
                self.line.waiting.values().map(|in_line| self.waiter(&in_line.claim)).collect();
            let verdicts = verdicts(&waiters);
            let line = self.line.waiting.values().zip(&verdicts);
            let admitted = line.filter(|(_, verdict)| **verdict == Verdict::Admitted);
            let claims: Vec<VmClaim> = admitted.map(|(in_line, _)| in_line.claim.clone()).collect();
            if claims.is_empty() {
                return self.tell(&waiters, &verdicts);
            }
            for claim in claims {
                // A claim that is void by now is made anew by the VM's task, which hears of this.
                self.line.leave(&claim.key);
                if let Ok(reservation) = self.fitting_reservation(&claim) {
                    self.hold(&claim.key, reservation);
                }
            }
        }
    }

    fn waiter(&self, claim: &VmClaim) -> Waiter {
        let held = Budget::of_reservation(self.vm(&claim.key).and_then(|vm| vm.reservation.as_ref()));
        Waiter {
            needs: Budget::of_claim(claim).minus(held),
            free: self.leases.free(&claim.capacity),
            impatient: claim.impatient,
        }
    }

    fn tell(&self, waiters: &[Waiter], verdicts: &[Verdict]) {
        let keys: Vec<&ObjectKey> = self.line.waiting.keys().map(|rank| &rank.key).take(TOLD).collect();
        for (index, in_line) in self.line.waiting.values().enumerate() {
            let Verdict::Waits { lacks, kept_for } = verdicts[index] else { continue };
            let near = index < TOLD;
            let standing = Some(Standing {
                place: (index + 1).min(TOLD + 1),
                lacks,
                needs: waiters[index].needs.get(lacks),
                free: near.then(|| waiters[index].free.get(lacks)),
                kept_for: kept_for.filter(|_| near).map(|place| keys[place].clone()),
            });
            in_line.standing.send_if_modified(|told| {
                let news = *told != standing;
                if news {
                    *told = standing;
                }
                news
            });
        }
    }
}
