//! The line of VMs that wait for memory, processors or disk space: [`admission`](super::admission)'s rule
//! applied.
//!
//! In: claims that do not fit, and whatever frees something or changes the line. Out: reservations, and
//! for those who wait their standing. In memory only: after a restart the VMs' tasks stand in line anew.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::watch;

use super::admission::{Budget, Standing, TOLD, Verdict, Waiter, verdicts};
use super::record::{Record, Reservation, VmRecord};
use super::request::VmClaim;
use super::state::State;
use crate::object::{ObjectKey, Quantity};

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
    /// What it claims beyond what it holds.
    needs: Budget,
    /// Dropped when the VM leaves the line, which is how its task hears of that.
    standing: watch::Sender<Option<Standing>>,
}

impl Line {
    fn enter(&mut self, vm: &VmRecord, claim: &VmClaim) -> watch::Receiver<Option<Standing>> {
        let (standing, receiver) = watch::channel(None);
        let (rank, needs) = (Rank::of(vm), needs(claim, vm.reservation.as_ref()));
        self.ranks.insert(claim.key.clone(), rank.clone());
        self.waiting.insert(rank, InLine { claim: claim.clone(), needs, standing });
        receiver
    }

    /// Takes in that one in line holds something else by now.
    fn holds(&mut self, key: &ObjectKey, held: Option<&Reservation>) {
        if let Some(in_line) = self.ranks.get(key).and_then(|rank| self.waiting.get_mut(rank)) {
            in_line.needs = needs(&in_line.claim, held);
        }
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

fn needs(claim: &VmClaim, held: Option<&Reservation>) -> Budget {
    Budget::of_claim(claim).minus(Budget::of_reservation(held))
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
            Arc::make_mut(&mut vm).reservation = Some(less);
            self.line.holds(key, vm.reservation.as_ref());
            self.put(Record::Vm(vm));
        }
    }

    /// Lets in whom the rule lets in, and tells the others where they stand.
    pub(super) fn settle_line(&mut self) {
        while !self.line.waiting.is_empty() {
            let waiters: Vec<Waiter> = self.line.waiting.values().map(|it| self.waiter(it)).collect();
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

    fn waiter(&self, in_line: &InLine) -> Waiter {
        let free = self.leases.free(&in_line.claim.capacity);
        Waiter { needs: in_line.needs, free, impatient: in_line.claim.impatient }
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
