//! Reservations: one transaction claims all that a VM needs of the host, or nothing.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnet::Ipv4Net;

use super::Store;
use super::admission::Budget;
use super::error::{ReleaseError, ReserveError};
use super::record::{DiskState, Record, Reservation, Run};
use super::request::{NetworkClaim, VmClaim};
use super::state::State;
use crate::network::{Link, Nic, macs_for, taps_for};
use crate::object::{ObjectKey, Port, Uid};

impl Store {
    /// Claims what a VM needs, in place of what it held. It keeps its address, MAC, tap and user as
    /// long as they fit the claim. Once this returns, the claim is durable and the VM's alone.
    ///
    /// # Errors
    /// Why not, see [`ReserveError`]. Nothing is claimed then.
    pub async fn reserve_vm(&self, claim: VmClaim) -> Result<Reservation, ReserveError> {
        self.engine().commit(|state| state.reserve_vm(&claim)).await
    }

    /// Gives back the memory and the processors of a VM that is not to run for now, and its place in line.
    /// Address, ports and disk stay its own.
    ///
    /// # Errors
    /// [`ReleaseError::Running`] while the record says that a process is up.
    pub async fn relinquish_vm(&self, key: &ObjectKey, uid: Uid) -> Result<(), ReleaseError> {
        self.engine().commit(|state| state.relinquish_vm(key, uid)).await
    }

    /// Gives up what a VM holds. To be called when all that was made of it (folder, disk, tap) is
    /// gone. A VM that is gone or holds nothing is fine.
    ///
    /// # Errors
    /// [`ReleaseError::Running`] while the record says that a process is up.
    pub async fn release_vm(&self, key: &ObjectKey, uid: Uid) -> Result<(), ReleaseError> {
        self.engine().commit(|state| state.release_vm(key, uid)).await
    }
}

impl State {
    pub(super) fn reserve_vm(&mut self, claim: &VmClaim) -> Result<Reservation, ReserveError> {
        let reserved = self.admit(claim);
        if !matches!(reserved, Err(ReserveError::Waiting { .. })) {
            // It may stand there with an earlier claim.
            self.leave_line(&claim.key);
        }
        reserved
    }

    fn admit(&mut self, claim: &VmClaim) -> Result<Reservation, ReserveError> {
        let reservation = self.fitting_reservation(claim)?;
        let vm = Arc::clone(self.vm_of(&claim.key, claim.uid).ok_or(ReserveError::Stale)?);
        if vm.reservation.as_ref() == Some(&reservation) {
            return Ok(reservation);
        }
        if matches!(vm.run, Run::Up { .. }) {
            return Err(ReserveError::Running);
        }
        match self.stand_in_line(&vm, claim) {
            Some(line) => Err(ReserveError::Waiting { line }),
            // Let in at once, or void by now for a reason that is found again.
            None => {
                let fitting = self.fitting_reservation(claim)?;
                let held = self.vm_of(&claim.key, claim.uid).and_then(|vm| vm.reservation.as_ref());
                debug_assert_eq!(held, Some(&fitting), "what fits is held");
                Ok(fitting)
            }
        }
    }

    /// What a claim comes to if there is room for it, with address, ports, MAC, tap and user chosen.
    pub(super) fn fitting_reservation(&self, claim: &VmClaim) -> Result<Reservation, ReserveError> {
        let vm = self.vm_of(&claim.key, claim.uid).ok_or(ReserveError::Stale)?;
        let metadata = &vm.object.metadata;
        if metadata.generation != claim.generation || metadata.deletion_timestamp.is_some() {
            return Err(ReserveError::Stale);
        }
        if !self.disks.get(&claim.image).is_some_and(|disk| matches!(disk.state, DiskState::Ready { .. })) {
            return Err(ReserveError::ImageNotReady { digest: claim.image.clone() });
        }
        let (needs, capacity) = (Budget::of_claim(claim), Budget::of_capacity(&claim.capacity));
        if let Some(what) = needs.lacks(capacity) {
            let (needs, capacity) = (needs.get(what), capacity.get(what));
            return Err(ReserveError::ExceedsCapacity { what, needs, capacity });
        }
        let held = vm.reservation.as_ref();
        let vmm_user = self.choose_user(claim, held)?;
        let nic = self.choose_nic(claim, held, vmm_user)?;
        let VmClaim { memory, cpus, disk, .. } = *claim;
        Ok(Reservation { image: claim.image.clone(), nic, vmm_user, memory, cpus, disk })
    }

    /// Records what a VM holds from now on.
    pub(super) fn hold(&mut self, key: &ObjectKey, reservation: Reservation) {
        if let Some(mut vm) = self.vm(key).cloned() {
            Arc::make_mut(&mut vm).reservation = Some(reservation);
            self.put(Record::Vm(vm));
        }
    }

    pub(super) fn relinquish_vm(&mut self, key: &ObjectKey, uid: Uid) -> Result<(), ReleaseError> {
        let Some(vm) = self.vm_of(key, uid) else { return Ok(()) };
        if matches!(vm.run, Run::Up { .. }) {
            return Err(ReleaseError::Running);
        }
        self.line.leave(key);
        self.give_back(key, |_| false);
        self.settle_line();
        Ok(())
    }

    pub(super) fn release_vm(&mut self, key: &ObjectKey, uid: Uid) -> Result<(), ReleaseError> {
        let Some(vm) = self.vm_of(key, uid) else { return Ok(()) };
        if matches!(vm.run, Run::Up { .. }) {
            return Err(ReleaseError::Running);
        }
        if vm.reservation.is_some() {
            let mut vm = Arc::clone(vm);
            Arc::make_mut(&mut vm).reservation = None;
            self.put(Record::Vm(vm));
            self.settle_line();
        }
        Ok(())
    }

    fn choose_nic(
        &self,
        claim: &VmClaim,
        held: Option<&Reservation>,
        vmm_user: Option<u32>,
    ) -> Result<Option<Nic>, ReserveError> {
        let (link, ports) = match &claim.network {
            NetworkClaim::None => return Ok(None),
            NetworkClaim::User { ports } => (Link::User, ports),
            NetworkClaim::Bridge { subnet, fixed, ports } => {
                let link = Link::Bridge {
                    tap: first_free(taps_for(claim.uid), &self.leases.taps, &claim.key),
                    tap_owner: vmm_user,
                    address: self.choose_address(claim, *subnet, *fixed, held)?,
                    prefix: subnet.prefix_len(),
                    gateway: gateway(*subnet),
                };
                (link, ports)
            }
        };
        self.check_ports(claim, ports)?;
        Ok(Some(Nic {
            mac: first_free(macs_for(claim.uid), &self.leases.macs, &claim.key),
            link,
            ports: ports.clone(),
        }))
    }

    fn choose_address(
        &self,
        claim: &VmClaim,
        subnet: Ipv4Net,
        fixed: Option<Ipv4Addr>,
        held: Option<&Reservation>,
    ) -> Result<Ipv4Addr, ReserveError> {
        let usable = guests(subnet);
        let inside = |address: Ipv4Addr| usable.contains(&address.to_bits());
        if let Some(address) = fixed {
            if !inside(address) {
                return Err(ReserveError::AddressOutside { address, subnet, gateway: gateway(subnet) });
            }
            return match holder(&self.leases.addresses, &address, &claim.key) {
                Some(by) => Err(ReserveError::AddressTaken { address, by: by.clone() }),
                None => Ok(address),
            };
        }
        if let Some(address) = held.and_then(Reservation::address).filter(|address| inside(*address)) {
            return Ok(address);
        }
        let lowest = self.leases.taken_addresses.lowest_free(usable);
        lowest.map(Ipv4Addr::from_bits).ok_or(ReserveError::NoFreeAddress { subnet })
    }

    fn check_ports(&self, claim: &VmClaim, ports: &[Port]) -> Result<(), ReserveError> {
        for port in ports {
            if let Some(by) = holder(&self.leases.ports, &(port.host, port.protocol), &claim.key) {
                let (port, protocol) = (port.host, port.protocol);
                return Err(ReserveError::PortTaken { port, protocol, by: by.clone() });
            }
        }
        Ok(())
    }

    fn choose_user(&self, claim: &VmClaim, held: Option<&Reservation>) -> Result<Option<u32>, ReserveError> {
        let Some(range) = &claim.vmm_users else { return Ok(None) };
        if let Some(user) = held.and_then(|held| held.vmm_user).filter(|user| range.contains(user)) {
            return Ok(Some(user));
        }
        if range.is_empty() {
            return Err(ReserveError::NoFreeUser);
        }
        let lowest = self.leases.taken_users.lowest_free(range.start..=range.end - 1);
        lowest.map(Some).ok_or(ReserveError::NoFreeUser)
    }
}

/// Who else holds it.
fn holder<'a, T: Ord>(
    leases: &'a BTreeMap<T, ObjectKey>,
    wanted: &T,
    own: &ObjectKey,
) -> Option<&'a ObjectKey> {
    leases.get(wanted).filter(|by| *by != own)
}

/// The first name that nobody else holds.
fn first_free(
    mut names: impl Iterator<Item = String>,
    leases: &BTreeMap<String, ObjectKey>,
    own: &ObjectKey,
) -> String {
    names.find(|name| holder(leases, name, own).is_none()).expect("there are more names than VMs")
}

/// The bridge's own address: the subnet's first host.
fn gateway(subnet: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from_bits(subnet.network().to_bits().saturating_add(1))
}

/// The addresses that VMs may have: all but the network's, the gateway's and the broadcast address.
fn guests(subnet: Ipv4Net) -> RangeInclusive<u32> {
    let (network, broadcast) = (subnet.network().to_bits(), subnet.broadcast().to_bits());
    network.saturating_add(2)..=broadcast.saturating_sub(1)
}
