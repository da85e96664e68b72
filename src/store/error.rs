//! Why the store refuses.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use tokio::sync::watch;

use super::admission::{Resource, Standing};
use super::declaration::Origin;
use crate::image::Digest;
use crate::object::{DependencyError, ObjectKey, Protocol};

/// The store itself cannot go on. Nothing that the failed call wanted may be acted upon.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// A write did not reach the disk. The store refuses every later change, because what it shows
    /// and what a restart would find may differ.
    #[error(
        "the store takes no more changes since a write failed: {why}. Running VMs are not touched. Free \
         space or mend the disk that holds the state folder, then restart vmlet"
    )]
    Failed {
        /// The first failure.
        why: String,
    },
    /// [`close`](super::Store::close) was called.
    #[error("the store is closed; vmlet is shutting down")]
    Closed,
}

/// Why [`declare`](super::Store::declare) refuses.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DeclareError {
    /// Another file or source declares this identity.
    #[error(
        "the same object is declared at {incumbent}, which stays in force; rename or remove one of the two"
    )]
    Conflict {
        /// Who owns the object.
        incumbent: Origin,
    },
    /// The object of this name is being deleted; declare again when it is gone.
    #[error("an object of this name is still being deleted; it is created anew when that is done")]
    Terminating,
    /// The VM would wait for itself, or for too many.
    #[error(transparent)]
    Dependency(#[from] DependencyError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why [`reserve_vm`](super::Store::reserve_vm) refuses. Nothing is claimed then, and what the VM
/// held before it still holds.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReserveError {
    /// The VM is gone, being deleted, or its spec moved on: decide anew.
    #[error("the VM changed meanwhile")]
    Stale,
    /// The VM's process is up with another reservation; stop it first.
    #[error("the VM is running with what it holds now; it is stopped first")]
    Running,
    /// The base disk is not there, or is being removed.
    #[error("the base disk of {digest} is not ready")]
    ImageNotReady {
        /// The image.
        digest: Digest,
    },
    /// The fixed address is held by another VM.
    #[error("address {address} is held by {by}; choose another spec.network.address, or remove the field")]
    AddressTaken {
        /// The address.
        address: Ipv4Addr,
        /// Its holder.
        by: ObjectKey,
    },
    /// The fixed address cannot be a VM's.
    #[error(
        "address {address} cannot be a VM's in {subnet}: choose one inside it that is not the network's, \
         the gateway's ({gateway}) or the broadcast address"
    )]
    AddressOutside {
        /// The address.
        address: Ipv4Addr,
        /// The daemon's subnet.
        subnet: Ipv4Net,
        /// The bridge's own address.
        gateway: Ipv4Addr,
    },
    /// Every address is leased.
    #[error("no address of {subnet} is free; remove VMs or start vmlet with a larger --subnet")]
    NoFreeAddress {
        /// The daemon's subnet.
        subnet: Ipv4Net,
    },
    /// Another VM forwards this host port.
    #[error("host port {port}/{} is held by {by}; choose another in spec.network.ports", protocol_name(*.protocol))]
    PortTaken {
        /// The host port.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
        /// Its holder.
        by: ObjectKey,
    },
    /// Too little is free: the VM stands in line from now on, and what it holds of memory and
    /// processors is given back. No failure: claim again when `line` closes, which is when the VM's turn
    /// has come or its claim is void.
    #[error("too little is free; the VM waits in line")]
    Waiting {
        /// Where the VM stands.
        line: watch::Receiver<Option<Standing>>,
    },
    /// More is claimed than all VMs together may have.
    #[error(
        "needs {}, and all VMs together may have {}; shrink the VM or start vmlet with a larger {}",
        .what.amount(*.needs), .what.amount(*.capacity), .what.flag()
    )]
    ExceedsCapacity {
        /// Of what.
        what: Resource,
        /// What the claim wants: bytes, or a number.
        needs: u64,
        /// What there is.
        capacity: u64,
    },
    /// Every user number for VMMs is in use.
    #[error("no user number for the VMM is free; start vmlet with a larger --vmm-users range")]
    NoFreeUser,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ReserveError {
    /// Whether trying again without any change of this VM's spec can help.
    pub fn transient(&self) -> bool {
        !matches!(self, ReserveError::AddressOutside { .. } | ReserveError::ExceedsCapacity { .. })
    }

    /// One CamelCase word for a condition.
    pub fn reason(&self) -> &'static str {
        match self {
            ReserveError::Stale => "Stale",
            ReserveError::Running => "Running",
            ReserveError::ImageNotReady { .. } => "ImageNotReady",
            ReserveError::AddressTaken { .. } => "AddressTaken",
            ReserveError::AddressOutside { .. } => "AddressOutsideSubnet",
            ReserveError::NoFreeAddress { .. } => "NoFreeAddress",
            ReserveError::PortTaken { .. } => "PortTaken",
            ReserveError::Waiting { .. } => "Waiting",
            ReserveError::ExceedsCapacity { .. } => "ExceedsCapacity",
            ReserveError::NoFreeUser => "NoFreeUser",
            ReserveError::Store(_) => "StoreFailed",
        }
    }
}

fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
    }
}

/// Why [`release_vm`](super::Store::release_vm) refuses.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReleaseError {
    /// The record says that a process is up: what it uses cannot be given to another.
    #[error("the VM's process is recorded as running; record its end first")]
    Running,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a publish is refused. Nothing is written then.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PublishError {
    /// The object is gone, is another one by now, its spec moved on, or it lacks the reservation or
    /// claim that the update speaks of.
    #[error("the object changed meanwhile")]
    Stale,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why [`claim_promotion`](super::Store::claim_promotion) refuses.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PromoteError {
    /// There is no such VM, or it is being deleted.
    #[error("the VM does not exist any more")]
    Gone,
    /// Its process is up.
    #[error("the VM is running; stop it with runPolicy: Halted")]
    Running,
    /// Another image is being made of it.
    #[error("another image is being made of the VM; it is tried again")]
    Taken,
    /// It has no disk.
    #[error("the VM has never run: it has no disk of its own yet")]
    NeverRan,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why [`remove_vm`](super::Store::remove_vm) refuses.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RemoveError {
    /// There is no such object of this uid.
    #[error("the VM is gone already")]
    Stale,
    /// Nobody asked for the deletion.
    #[error("the VM is still declared")]
    NotDeleted,
    /// The VM still has a reservation or a process.
    #[error("the VM still holds {what}")]
    Held {
        /// `a reservation`, `a process`.
        what: &'static str,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why [`remove_image`](super::Store::remove_image) refuses.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RemoveImageError {
    /// There is no such object of this uid.
    #[error("the image is gone already")]
    Stale,
    /// Nobody asked for the deletion.
    #[error("the image is still declared")]
    NotDeleted,
    /// VMs name it.
    #[error("in use by {}", list(.by))]
    InUse {
        /// The VMs, in order.
        by: Vec<ObjectKey>,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why [`condemn_disk`](super::Store::condemn_disk) refuses.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RemoveDiskError {
    /// There is no such disk.
    #[error("there is no such base disk")]
    Unknown,
    /// It is on its way into its place.
    #[error("the base disk is being installed right now")]
    Installing,
    /// Objects keep it.
    #[error("in use by {}", list(.by))]
    InUse {
        /// The objects, in order.
        by: Vec<ObjectKey>,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The first few names, and how many more.
fn list(keys: &[ObjectKey]) -> String {
    const SHOWN: usize = 5;
    let mut text = keys.iter().take(SHOWN).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if keys.len() > SHOWN {
        text.push_str(&format!(" and {} more", keys.len() - SHOWN));
    }
    text
}

/// The watch cannot go on from where it is: changes were dropped. List again, then watch from the
/// list's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the changes since then are no longer kept; list again")]
pub struct Expired;

/// Why the store cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct OpenError {
    /// What is wrong, where, and what to do.
    pub message: String,
}
