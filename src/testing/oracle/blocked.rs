//! What may keep a VM from running: only what another object or an edit mends.

use super::{Sight, is_ready, stalled, vm_of};
use crate::object::{Kind, ObjectKey, Uid, VmSpec};
use crate::store::{Reservation, VmRecord};

impl Sight<'_> {
    /// Whether something that only an edit or another object mends is in a VM's way.
    pub(super) fn blocked(&self, vm: &VmRecord) -> bool {
        let refused = |uid: Uid| self.world.doomed.contains(&uid.to_string());
        self.wanted_digests(vm).is_none()
            || vm.object.metadata.uid.is_some_and(refused) && stalled(&vm.object.status.conditions)
            || self.others(vm).any(|other| clash(&vm.object.spec, other)) && !holds_all(vm)
            || ["Waiting", "Failed"].contains(&vm.object.status.phase.as_str()) && self.waits_rightly(vm)
    }

    fn waits_rightly(&self, vm: &VmRecord) -> bool {
        self.crowded(vm) || self.behind(vm) || self.dependent(vm)
    }

    /// Whether the others leave too little memory, disk or processors for a VM.
    fn crowded(&self, vm: &VmRecord) -> bool {
        let (spec, capacity) = (&vm.object.spec, self.capacity);
        let sum = |of: fn(&Reservation) -> u64| self.others(vm).map(of).sum::<u64>();
        sum(|held| held.memory.as_bytes()) + spec.memory.as_bytes() > capacity.memory.as_bytes()
            || sum(|held| held.disk.as_bytes()) + spec.root_disk.size.as_bytes() > capacity.disk.as_bytes()
            || sum(|held| u64::from(held.cpus)) + u64::from(spec.cpus) > u64::from(capacity.cpus)
    }

    /// Whether another VM waits for room, which this one may not pass.
    fn behind(&self, vm: &VmRecord) -> bool {
        let key = vm.object.key();
        let others = self.records.values().filter_map(vm_of).filter(|other| other.object.key() != key);
        others.into_iter().any(|other| other.object.status.phase == "Waiting" && self.crowded(other))
    }

    /// Whether a VM waits for one that is not ready.
    fn dependent(&self, vm: &VmRecord) -> bool {
        let namespace = &vm.object.metadata.namespace;
        vm.object.spec.depends_on.iter().any(|name| {
            let record = self.records.get(&ObjectKey::new(Kind::Vm, namespace, name));
            record.and_then(vm_of).is_none_or(|other| is_ready(&other.object.status.conditions).is_err())
        })
    }

    fn others(&self, vm: &VmRecord) -> impl Iterator<Item = &Reservation> {
        let key = vm.object.key();
        let others = self.records.iter().filter(move |(other, _)| **other != key);
        others.filter_map(|(_, record)| record.reservation())
    }
}

/// Whether a VM holds what its spec asks for of the network.
fn holds_all(vm: &VmRecord) -> bool {
    let wanted = &vm.object.spec.network;
    vm.reservation.as_ref().is_some_and(|held| {
        let ports = held.nic.as_ref().map(|nic| nic.ports.as_slice()).unwrap_or_default();
        ports == wanted.ports && (wanted.address.is_none() || wanted.address == held.address())
    })
}

/// Whether a VM wants what another holds.
fn clash(spec: &VmSpec, held: &Reservation) -> bool {
    let ports = held.nic.iter().flat_map(|nic| &nic.ports);
    let wanted = &spec.network;
    let port = ports
        .into_iter()
        .any(|held| wanted.ports.iter().any(|port| (port.host, port.protocol) == (held.host, held.protocol)));
    port || wanted.address.is_some() && wanted.address == held.address()
}
