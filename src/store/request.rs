//! What the transactions take and give.

use std::fmt;
use std::net::Ipv4Addr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use jiff::Timestamp;

use super::record::{PinnedImage, Record, Run};
use crate::image::Digest;
use crate::object::{FieldChange, ImageStatus, LastExit, ObjectKey, Port, Quantity, Uid, VmStatus};

/// Makes uids: random ones, or a simulation's own.
pub type Minter = Arc<dyn Fn() -> Uid + Send + Sync>;

/// Tells the time: the host's clock, or a simulation's own.
pub type Now = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The store's limits, and what it is given of the world.
#[derive(Clone)]
pub struct StoreSettings {
    /// Changes kept for watchers; one that lags further behind is told [`Expired`](super::Expired).
    pub history: usize,
    /// Events kept of each object.
    pub events_per_object: usize,
    /// Events kept in all.
    pub events: usize,
    /// Memory that sled may use as a cache, in bytes.
    pub cache_bytes: u64,
    /// How often changes are exported to `export.json`.
    pub export_interval: Duration,
    /// Makes uids.
    pub minter: Minter,
    /// Tells the time of transactions.
    pub now: Now,
}

impl Default for StoreSettings {
    fn default() -> Self {
        StoreSettings {
            history: 8192,
            events_per_object: 64,
            events: 4096,
            cache_bytes: 32 << 20,
            export_interval: Duration::from_secs(300),
            minter: Arc::new(Uid::new_v4),
            now: Arc::new(Timestamp::now),
        }
    }
}

impl fmt::Debug for StoreSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreSettings")
            .field("history", &self.history)
            .field("events_per_object", &self.events_per_object)
            .field("events", &self.events)
            .field("cache_bytes", &self.cache_bytes)
            .field("export_interval", &self.export_interval)
            .finish_non_exhaustive()
    }
}

/// What [`declare`](super::Store::declare) did.
#[derive(Clone, Debug, PartialEq)]
pub enum Declared {
    /// The name is new.
    Created {
        /// The identity minted for it.
        uid: Uid,
    },
    /// The spec changed.
    Updated {
        /// The new generation.
        generation: i64,
        /// The fields that differ.
        changes: Vec<FieldChange>,
    },
    /// Only labels, annotations, the place of declaration or a problem with it changed.
    MetadataUpdated,
    /// Nothing changed and nothing was written.
    Unchanged,
}

/// What a VM wants of the host.
#[derive(Clone, Debug)]
pub struct VmClaim {
    /// The VM.
    pub key: ObjectKey,
    /// Its uid; another one by now is [`Stale`](super::ReserveError::Stale).
    pub uid: Uid,
    /// The generation that the claim was made from.
    pub generation: i64,
    /// The base disk.
    pub image: Digest,
    /// The network device.
    pub network: NetworkClaim,
    /// User numbers for VMMs; none when the daemon cannot change users.
    pub vmm_users: Option<Range<u32>>,
    /// The VM's memory.
    pub memory: Quantity,
    /// Its virtual processors.
    pub cpus: u32,
    /// The private disk's full length.
    pub disk: Quantity,
    /// What the host has for all VMs together.
    pub capacity: Capacity,
    /// The VM has waited so long that none of lower rank may pass it any more.
    pub impatient: bool,
}

/// What the host has for all VMs together.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Memory.
    pub memory: Quantity,
    /// Virtual processors.
    pub cpus: u32,
    /// The sum of the private disks' full lengths.
    pub disk: Quantity,
}

/// The network device that a VM wants.
#[derive(Clone, Debug)]
pub enum NetworkClaim {
    /// A tap on the bridge.
    Bridge {
        /// The daemon's subnet; its first host is the bridge's own address.
        subnet: Ipv4Net,
        /// Exactly this address; otherwise the lowest free one.
        fixed: Option<Ipv4Addr>,
        /// Host ports.
        ports: Vec<Port>,
    },
    /// The VMM's user-space network.
    User {
        /// Host ports.
        ports: Vec<Port>,
    },
    /// No device.
    None,
}

/// What a VM's reconcile task observed; only the fields that are given are written.
#[derive(Clone, Debug, Default)]
pub struct VmUpdate {
    /// Refuse if the spec's generation is not this one.
    pub generation: Option<i64>,
    /// The whole status.
    pub status: Option<VmStatus>,
    /// The pinned image, or its end.
    pub image: Option<Option<PinnedImage>>,
    /// The process.
    pub run: Option<Run>,
    /// How often a process was started.
    pub starts: Option<u32>,
    /// How the last run ended, or that this is forgotten.
    pub last_exit: Option<Option<LastExit>>,
}

/// What an image's reconcile task observed; only the fields that are given are written.
#[derive(Clone, Debug, Default)]
pub struct ImageUpdate {
    /// Refuse if the spec's generation is not this one.
    pub generation: Option<i64>,
    /// The whole status.
    pub status: Option<ImageStatus>,
    /// The pinned image, or its end.
    pub image: Option<Option<PinnedImage>>,
}

/// What [`claim_disk`](super::Store::claim_disk) found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskClaim {
    /// The place is the caller's: install, then publish or abandon.
    Granted,
    /// The disk is installed.
    Ready,
    /// Another is installing it right now.
    Taken,
    /// Its files are being removed; claim again when that is done.
    Removing,
}

/// A change of an object, as watchers see it.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The change's place in the order of all changes; the record's new `resourceVersion`.
    pub version: u64,
    /// What happened.
    pub kind: ChangeKind,
    /// The record after the change; the last one of a deleted object.
    pub record: Record,
}

/// The three things that happen to objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// The object is new.
    Added,
    /// The object changed.
    Modified,
    /// The object is gone.
    Deleted,
}
