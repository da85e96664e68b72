//! Who holds what, derived from the reservations: a lease lives in its VM's record and nowhere else,
//! so that it can neither leak nor outlive the VM. These indices only answer quickly.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::record::Reservation;
use crate::network::Link;
use crate::object::{ObjectKey, Protocol, Quantity};

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Leases {
    pub(super) addresses: BTreeMap<Ipv4Addr, ObjectKey>,
    pub(super) ports: BTreeMap<(u16, Protocol), ObjectKey>,
    pub(super) macs: BTreeMap<String, ObjectKey>,
    pub(super) taps: BTreeMap<String, ObjectKey>,
    pub(super) users: BTreeMap<u32, ObjectKey>,
    memory: u128,
    disk: u128,
}

impl Leases {
    pub(super) fn add(&mut self, key: &ObjectKey, held: &Reservation) {
        self.memory += u128::from(held.memory.as_bytes());
        self.disk += u128::from(held.disk.as_bytes());
        if let Some(user) = held.vmm_user {
            self.users.insert(user, key.clone());
        }
        let Some(nic) = &held.nic else { return };
        self.macs.insert(nic.mac.clone(), key.clone());
        self.ports.extend(nic.ports.iter().map(|port| ((port.host, port.protocol), key.clone())));
        if let Link::Bridge { tap, address, .. } = &nic.link {
            self.taps.insert(tap.clone(), key.clone());
            self.addresses.insert(*address, key.clone());
        }
    }

    pub(super) fn remove(&mut self, held: &Reservation) {
        self.memory -= u128::from(held.memory.as_bytes());
        self.disk -= u128::from(held.disk.as_bytes());
        if let Some(user) = held.vmm_user {
            self.users.remove(&user);
        }
        let Some(nic) = &held.nic else { return };
        self.macs.remove(&nic.mac);
        for port in &nic.ports {
            self.ports.remove(&(port.host, port.protocol));
        }
        if let Link::Bridge { tap, address, .. } = &nic.link {
            self.taps.remove(tap);
            self.addresses.remove(address);
        }
    }

    /// The memory that all VMs hold, but for what `own` holds.
    pub(super) fn memory_of_others(&self, own: Option<&Reservation>) -> u128 {
        self.memory - own.map_or(0, |own| u128::from(own.memory.as_bytes()))
    }

    /// The disk space that all VMs hold, but for what `own` holds.
    pub(super) fn disk_of_others(&self, own: Option<&Reservation>) -> u128 {
        self.disk - own.map_or(0, |own| u128::from(own.disk.as_bytes()))
    }
}

/// What of `capacity` is left besides `taken`.
pub(super) fn free(capacity: Quantity, taken: u128) -> Quantity {
    let free = u128::from(capacity.as_bytes()).saturating_sub(taken);
    Quantity::bytes(u64::try_from(free).expect("not more than the capacity, which is a u64"))
}
