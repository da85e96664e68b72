//! Who holds what, derived from the reservations: a lease lives in its VM's record and nowhere else,
//! so that it can neither leak nor outlive the VM. These indices only answer quickly.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::admission::Budget;
use super::record::Reservation;
use super::request::Capacity;
use super::runs::Runs;
use crate::network::Link;
use crate::object::{ObjectKey, Protocol};

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Leases {
    pub(super) addresses: BTreeMap<Ipv4Addr, ObjectKey>,
    pub(super) ports: BTreeMap<(u16, Protocol), ObjectKey>,
    pub(super) macs: BTreeMap<String, ObjectKey>,
    pub(super) taps: BTreeMap<String, ObjectKey>,
    pub(super) taken_addresses: Runs,
    pub(super) taken_users: Runs,
    memory: u128,
    cpus: u64,
    disk: u128,
}

impl Leases {
    pub(super) fn add(&mut self, key: &ObjectKey, held: &Reservation) {
        self.memory += u128::from(held.memory.as_bytes());
        self.cpus += u64::from(held.cpus);
        self.disk += u128::from(held.disk.as_bytes());
        if let Some(user) = held.vmm_user {
            self.taken_users.take(user);
        }
        let Some(nic) = &held.nic else { return };
        self.macs.insert(nic.mac.clone(), key.clone());
        self.ports.extend(nic.ports.iter().map(|port| ((port.host, port.protocol), key.clone())));
        if let Link::Bridge { tap, address, .. } = &nic.link {
            self.taps.insert(tap.clone(), key.clone());
            self.addresses.insert(*address, key.clone());
            self.taken_addresses.take(address.to_bits());
        }
    }

    pub(super) fn remove(&mut self, held: &Reservation) {
        self.memory -= u128::from(held.memory.as_bytes());
        self.cpus -= u64::from(held.cpus);
        self.disk -= u128::from(held.disk.as_bytes());
        if let Some(user) = held.vmm_user {
            self.taken_users.give_back(user);
        }
        let Some(nic) = &held.nic else { return };
        self.macs.remove(&nic.mac);
        for port in &nic.ports {
            self.ports.remove(&(port.host, port.protocol));
        }
        if let Link::Bridge { tap, address, .. } = &nic.link {
            self.taps.remove(tap);
            self.addresses.remove(address);
            self.taken_addresses.give_back(address.to_bits());
        }
    }

    /// What of a capacity nobody holds.
    pub(super) fn free(&self, capacity: &Capacity) -> Budget {
        let bounded = |held: u128| u64::try_from(held).unwrap_or(u64::MAX);
        let held = Budget { memory: bounded(self.memory), cpus: self.cpus, disk: bounded(self.disk) };
        Budget::of_capacity(capacity).minus(held)
    }
}
