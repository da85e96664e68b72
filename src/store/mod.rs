//! The store: every record, every lease, every transaction. sled lives here and nowhere else.
//!
//! Flow: sources [declare](Store::declare) objects, reconcile tasks [reserve](Store::reserve_vm) what
//! VMs need and [publish](Store::publish_vm) what they observe; everybody reads, lists and
//! [watches](Store::watch).
//!
//! ```text
//! transaction ─▶ state (memory, one guard) ─▶ batch ─▶ flusher ─▶ log (sled) ─▶ callers return
//!                  │ readers: snapshots                                        ─▶ watchers see it
//!                  └▶ export.json, now and then
//! ```
//!
//! Guarantees:
//! - A transaction rechecks its premises and does all or nothing. It is pure work in memory: the
//!   guard is held for microseconds ([`Store::guard_histogram`]) and never across I/O or an await.
//! - What a call returned survives a crash at any instant, but for a publish of nothing but a status.
//! - A crash leaves whole transactions, in order, up to some point.
//! - Readers never wait for the disk. Watchers see each change once, in order, when it is durable.
//! - Leases are fields of their VM's record: they cannot leak.
//! - After the first failed write nothing is changed any more ([`Store::failed`]).
//!
//! Start reading at `state.rs`; `engine.rs` runs it.

mod admission;
mod backend;
mod declaration;
mod declare;
mod disks;
mod engine;
mod error;
mod events;
mod export;
mod history;
mod leases;
mod line;
mod memory;
mod offline;
mod open;
mod promote;
mod publish;
mod record;
mod report;
mod request;
mod reserve;
mod row;
mod runs;
mod sled_backend;
mod state;
#[cfg(test)]
mod tests;
mod uses;
mod watch;

pub use crate::metrics::HistogramSnapshot;
pub use admission::{Resource, Standing};
pub use declaration::{Origin, Problem, Rivals};
pub use error::{
    DeclareError, Expired, OpenError, PromoteError, PublishError, ReleaseError, RemoveDiskError, RemoveError,
    RemoveImageError, ReserveError, StoreError,
};
pub use events::{Event, Severity, Subject};
pub use export::{Counts, Export};
pub use memory::{DurableView, Fault, Judge, MemoryBackend, Moment, Verdict};
pub use offline::{ClosedStore, ClosedStoreError, import};
pub use promote::Promotable;
pub use record::{
    DiskRecord, DiskState, ImageRecord, PinnedImage, PinnedKernel, Record, Reservation, Run, Stopping,
    Unused, VmRecord,
};
pub use request::{
    Capacity, Change, ChangeKind, Declared, DiskClaim, ImageUpdate, Minter, NetworkClaim, Now, StoreSettings,
    VmClaim, VmUpdate,
};
pub(crate) use sled_backend::sync_dir;
pub use watch::{EventWatch, Watch};

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use self::engine::Engine;
use self::open::Keeper;
use crate::image::Digest;
use crate::object::{Kind, ObjectKey};

/// A handle on the store: cheap to clone. The last one closes the store when dropped.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

struct Shared {
    engine: Arc<Engine>,
    /// None in memory, and once closed.
    keeper: Mutex<Option<Keeper>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn stop(&self) {
        self.engine.stop();
        let keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(keeper) = keeper {
            keeper.stop();
        }
    }
}

impl Store {
    /// Opens the store in a folder, which is made if it is missing. Reads and writes the disk: not
    /// for an async thread.
    ///
    /// # Errors
    /// The folder is in use by another process, cannot be written, or holds damaged data. The error
    /// says what to do.
    pub fn open(dir: &Path, settings: StoreSettings) -> Result<Store, OpenError> {
        let (engine, keeper) = open::open(dir, &settings)?;
        Ok(Store { shared: Arc::new(Shared { engine, keeper: Mutex::new(Some(keeper)) }) })
    }

    /// An empty store in memory, and its far end.
    pub fn in_memory() -> (Store, MemoryBackend) {
        Store::in_memory_with(StoreSettings::default())
    }

    /// An empty store in memory with other limits, or with uids of its own.
    pub fn in_memory_with(settings: StoreSettings) -> (Store, MemoryBackend) {
        memory::start(BTreeMap::new(), settings)
    }

    fn over(engine: Engine) -> Store {
        Store { shared: Arc::new(Shared { engine: Arc::new(engine), keeper: Mutex::new(None) }) }
    }

    fn engine(&self) -> &Arc<Engine> {
        &self.shared.engine
    }

    /// A VM's record.
    pub fn vm(&self, key: &ObjectKey) -> Option<Arc<VmRecord>> {
        self.engine().read(|state| state.vm(key).cloned())
    }

    /// An image's record.
    pub fn image(&self, key: &ObjectKey) -> Option<Arc<ImageRecord>> {
        self.engine().read(|state| state.image(key).cloned())
    }

    /// An object's record.
    pub fn record(&self, key: &ObjectKey) -> Option<Record> {
        self.engine().read(|state| state.objects.get(key).cloned())
    }

    /// The objects of a kind, in all namespaces or in one, ordered by namespace and name; and the
    /// version from which a [watch](Store::watch) goes on without a gap.
    pub fn list(&self, kind: Kind, namespace: Option<&str>) -> (Vec<Record>, u64) {
        self.engine().read(|state| {
            let records = state.of_kind(kind, namespace).map(|(_, record)| record.clone());
            (records.collect(), state.version())
        })
    }

    /// A base disk's record.
    pub fn disk(&self, digest: &Digest) -> Option<DiskRecord> {
        self.engine().read(|state| state.disks.get(digest).cloned()).map(Arc::unwrap_or_clone)
    }

    /// All base disks' records, ordered by digest.
    pub fn disks(&self) -> Vec<DiskRecord> {
        let disks: Vec<_> = self.engine().read(|state| state.disks.values().cloned().collect());
        disks.into_iter().map(Arc::unwrap_or_clone).collect()
    }

    /// The events of a subject, or all: those that last happened longest ago come first.
    pub fn events(&self, subject: Option<&Subject>) -> Vec<Event> {
        let events = self.engine().read(|state| state.events.list(subject));
        events.into_iter().map(Arc::unwrap_or_clone).collect()
    }

    /// Waits until everything that can be read now is durable: what is only in memory may be undone by a
    /// crash, and nothing outside is done because of it.
    ///
    /// # Errors
    /// The store failed: some of what it shows may never become durable.
    pub async fn settled(&self) -> Result<(), StoreError> {
        self.engine().commit(|_| Ok(())).await
    }

    /// How long the store's one guard was held, for reads and transactions.
    pub fn guard_histogram(&self) -> HistogramSnapshot {
        self.engine().guard_times().snapshot()
    }

    /// How long it took to encode a batch, to write it and to make it durable.
    pub fn flush_histogram(&self) -> HistogramSnapshot {
        self.engine().flush_times.snapshot()
    }

    /// A copy of everything, as of now.
    ///
    /// # Errors
    /// The store failed: nobody knows what of it is true.
    pub fn export(&self) -> Result<Export, StoreError> {
        let rows = self.engine().read_sound(|state| state.rows());
        let failed = || StoreError::Failed { why: self.failed().unwrap_or_default() };
        rows.map(Export::new).ok_or_else(failed)
    }

    /// Why the store takes no more changes, if a write failed.
    pub fn failed(&self) -> Option<String> {
        self.engine().failed()
    }

    /// Resolves when the store takes no more changes, with the reason. Cancel-safe.
    pub async fn failure(&self) -> StoreError {
        StoreError::Failed { why: self.engine().failure().await }
    }

    /// Takes no more changes, flushes what is written, exports it and frees the folder. Other handles
    /// still read.
    pub async fn close(self) {
        let stopped = tokio::task::spawn_blocking(move || self.shared.stop()).await;
        stopped.expect("stopping does not panic and is not cancelled");
    }
}
