//! What is held on the host: nothing twice, and nothing that no object accounts for.

use std::collections::BTreeSet;
use std::fmt::Debug;

use super::super::life::calendar;
use super::{Sight, vm_of};
use crate::image::Digest;
use crate::store::{DiskState, PinnedImage, Record, Reservation, Run, VmRecord};

impl Sight<'_> {
    /// Traces on the host that no object accounts for.
    pub(super) fn left_over(&self) -> Vec<String> {
        let mut left = Vec::new();
        let vms = || self.records.values().filter_map(vm_of);
        for process in self.world.processes.all().filter(|process| process.runs(self.now)) {
            let known =
                vms().any(|vm| matches!(&vm.run, Run::Up { process: own, .. } if *own == process.identity));
            if !known {
                left.push(format!("process {} of {} runs", process.identity.pid, process.launch.key));
            }
        }
        for folder in self.world.folders.values() {
            let uid = Some(folder.uid);
            if !vms().any(|vm| vm.object.metadata.uid == uid && vm.reservation.is_some()) {
                left.push(format!("the folder of {} is there", folder.key));
            }
        }
        for nic in self.world.attached.values() {
            let held =
                |vm: &VmRecord| vm.reservation.as_ref().is_some_and(|held| held.nic.as_ref() == Some(nic));
            if !vms().any(held) {
                left.push(format!("the tap of {} is there", nic.mac));
            }
        }
        if !self.world.staged.is_empty() {
            left.push(format!("{} staging places are there", self.world.staged.len()));
        }
        left.extend(self.disks_left());
        left
    }

    /// The digests that something refers to.
    fn kept(&self) -> BTreeSet<&Digest> {
        let pins = self.records.values().filter_map(|record| record.pinned()).flat_map(PinnedImage::disks);
        let held = self.records.values().filter_map(|record| record.reservation().map(|held| &held.image));
        pins.chain(held).collect()
    }

    fn disks_left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for disk in self.store.disks() {
            if !matches!(disk.state, DiskState::Ready { .. }) {
                left.push(format!("the record of {} says {:?}", disk.digest, disk.state));
            } else if let Some(unused) = &disk.unused {
                if self.retention.until(unused.since) <= calendar(self.now) {
                    left.push(format!("nobody refers to {} since {}", disk.digest, unused.since));
                } else if self.world.space().is_below(self.retention.low) {
                    left.push(format!("nobody refers to {}, and its room is wanted", disk.digest));
                }
            }
        }
        let recorded: BTreeSet<Digest> = self.store.disks().into_iter().map(|disk| disk.digest).collect();
        if recorded != self.world.disks {
            left.push(format!("recorded are {recorded:?}, installed are {:?}", self.world.disks));
        }
        left
    }

    /// A disk's record says that it is unused if, and only if, nothing refers to it.
    pub(super) fn misjudged(&self) -> Vec<String> {
        let kept = self.kept();
        let disks = self.store.disks().into_iter().filter(|disk| disk.is_ready());
        let wrong = disks.filter(|disk| disk.unused.is_some() == kept.contains(&disk.digest));
        wrong.map(|disk| format!("{} is recorded as {:?}", disk.digest, disk.unused)).collect()
    }

    /// Nothing is held twice, and nothing by what is gone.
    pub(super) fn leases(&self) -> Vec<String> {
        let held: Vec<&Reservation> = self.records.values().filter_map(Record::reservation).collect();
        let nics: Vec<_> = held.iter().filter_map(|held| held.nic.as_ref()).collect();
        let mut wrong = Vec::new();
        twice(&mut wrong, "address", held.iter().filter_map(|held| held.address()));
        twice(&mut wrong, "user", held.iter().filter_map(|held| held.vmm_user));
        twice(&mut wrong, "MAC", nics.iter().map(|nic| &nic.mac));
        twice(&mut wrong, "tap", nics.iter().filter_map(|nic| nic.link.tap()));
        let ports = nics.iter().flat_map(|nic| nic.ports.iter().map(|port| (port.host, port.protocol)));
        twice(&mut wrong, "host port", ports);
        wrong
    }

    /// One VM, one process.
    pub(super) fn twins(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let running = self.world.processes.all().filter(|process| process.runs(self.now));
        twice(&mut wrong, "a process of VM", running.map(|process| process.launch.uid));
        wrong
    }
}

fn twice<T: Ord + Debug + Clone>(wrong: &mut Vec<String>, what: &str, items: impl Iterator<Item = T>) {
    let mut seen = BTreeSet::new();
    for item in items {
        if !seen.insert(item.clone()) {
            wrong.push(format!("{what} {item:?} is held twice"));
        }
    }
}
