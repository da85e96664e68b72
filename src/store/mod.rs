//! The store: every record, every lease, every transaction. sled lives here and nowhere else.

mod error;
mod record;
mod request;

pub use error::{
    DeclareError, Expired, OpenError, PublishError, ReleaseError, RemoveError, RemoveImageError,
    ReserveError, StoreError,
};
pub use record::{
    DiskRecord, DiskState, Event, ImageRecord, Origin, PinnedImage, Problem, Record, Reservation, Run,
    Severity, Stopping, VmRecord,
};
pub use request::{
    Capacity, Change, ChangeKind, Declared, DiskClaim, ImageUpdate, Minter, NetworkClaim, StoreSettings,
    VmClaim, VmUpdate,
};

use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use uuid::Uuid;

use crate::image::{Digest, ImageConfig};
use crate::object::{AnyObject, Kind, ObjectKey, Quantity, Uid};

const LATER: &str = "not in this commit";

/// A handle on the store: cheap to clone.
#[derive(Clone)]
pub struct Store {}

/// The backend of [`Store::in_memory`].
pub struct MemoryBackend {}

/// Changes in order.
pub struct Watch {}

impl Watch {
    /// The next durable change. Cancel-safe.
    pub async fn next(&mut self) -> Result<Change, Expired> {
        panic!("{LATER}")
    }
}

/// New and updated events in order.
pub struct EventWatch {}

impl EventWatch {
    /// The next new or updated event. Cancel-safe.
    pub async fn next(&mut self) -> Result<Event, Expired> {
        panic!("{LATER}")
    }
}

/// Durations in powers of two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistogramSnapshot {
    /// Observations in all.
    pub count: u64,
    /// Half of them took at most this long, in microseconds.
    pub p50_us: u64,
    /// 99 % of them took at most this long, in microseconds.
    pub p99_us: u64,
    /// The longest, in microseconds.
    pub max_us: u64,
}

#[allow(unused_variables, clippy::unused_async)]
impl Store {
    pub fn open(dir: &Path, settings: StoreSettings) -> Result<Store, OpenError> {
        panic!("{LATER}")
    }
    pub fn in_memory() -> (Store, MemoryBackend) {
        panic!("{LATER}")
    }
    pub fn in_memory_with(settings: StoreSettings) -> (Store, MemoryBackend) {
        panic!("{LATER}")
    }
    pub fn vm(&self, key: &ObjectKey) -> Option<Arc<VmRecord>> {
        panic!("{LATER}")
    }
    pub fn image(&self, key: &ObjectKey) -> Option<Arc<ImageRecord>> {
        panic!("{LATER}")
    }
    pub fn record(&self, key: &ObjectKey) -> Option<Record> {
        panic!("{LATER}")
    }
    pub fn list(&self, kind: Kind, namespace: Option<&str>) -> (Vec<Record>, u64) {
        panic!("{LATER}")
    }
    pub fn disk(&self, digest: &Digest) -> Option<DiskRecord> {
        panic!("{LATER}")
    }
    pub fn disks(&self) -> Vec<DiskRecord> {
        panic!("{LATER}")
    }
    /// Oldest first.
    pub fn events(&self, object: Option<&ObjectKey>) -> Vec<Event> {
        panic!("{LATER}")
    }
    pub fn watch(&self, from: Option<u64>) -> Result<Watch, Expired> {
        panic!("{LATER}")
    }
    pub fn watch_events(&self) -> EventWatch {
        panic!("{LATER}")
    }
    pub async fn declare(
        &self,
        object: AnyObject,
        origin: Origin,
        take_over: bool,
        now: Timestamp,
    ) -> Result<Declared, DeclareError> {
        panic!("{LATER}")
    }
    pub async fn undeclare(&self, key: &ObjectKey, source: &str, now: Timestamp) -> Result<bool, StoreError> {
        panic!("{LATER}")
    }
    pub async fn set_problem(&self, key: &ObjectKey, problem: Option<Problem>) -> Result<bool, StoreError> {
        panic!("{LATER}")
    }
    pub async fn reserve_vm(&self, claim: VmClaim) -> Result<Reservation, ReserveError> {
        panic!("{LATER}")
    }
    pub async fn release_vm(&self, key: &ObjectKey, uid: Uid) -> Result<(), ReleaseError> {
        panic!("{LATER}")
    }
    pub async fn remove_vm(&self, key: &ObjectKey, uid: Uid) -> Result<(), RemoveError> {
        panic!("{LATER}")
    }
    pub async fn publish_vm(&self, key: &ObjectKey, uid: Uid, update: VmUpdate) -> Result<(), PublishError> {
        panic!("{LATER}")
    }
    pub async fn publish_image(
        &self,
        key: &ObjectKey,
        uid: Uid,
        update: ImageUpdate,
    ) -> Result<(), PublishError> {
        panic!("{LATER}")
    }
    pub async fn remove_image(&self, key: &ObjectKey, uid: Uid) -> Result<(), RemoveImageError> {
        panic!("{LATER}")
    }
    pub async fn claim_disk(&self, digest: &Digest, claim: Uuid) -> Result<DiskClaim, StoreError> {
        panic!("{LATER}")
    }
    pub async fn publish_disk(
        &self,
        digest: &Digest,
        claim: Uuid,
        path: PathBuf,
        size: Quantity,
        config: ImageConfig,
    ) -> Result<(), PublishError> {
        panic!("{LATER}")
    }
    pub async fn abandon_disk(&self, digest: &Digest, claim: Uuid) -> Result<(), StoreError> {
        panic!("{LATER}")
    }
    pub async fn condemn_disks(&self) -> Result<Vec<Digest>, StoreError> {
        panic!("{LATER}")
    }
    pub async fn forget_disk(&self, digest: &Digest) -> Result<(), StoreError> {
        panic!("{LATER}")
    }
    pub fn record_event(
        &self,
        key: &ObjectKey,
        uid: Option<Uid>,
        severity: Severity,
        reason: &str,
        message: &str,
        now: Timestamp,
    ) {
        panic!("{LATER}")
    }
    /// How long the store's one guard was held.
    pub fn guard_histogram(&self) -> HistogramSnapshot {
        panic!("{LATER}")
    }
    /// How long flushes took.
    pub fn flush_histogram(&self) -> HistogramSnapshot {
        panic!("{LATER}")
    }
    pub fn failed(&self) -> Option<String> {
        panic!("{LATER}")
    }
    pub async fn close(self) {
        panic!("{LATER}")
    }
}
