//! A backend in memory that can crash and fail: for simulations and tests.

use std::collections::BTreeMap;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard};

use super::Store;
use super::backend::{Backend, BackendError, EncodedRow};
use super::engine::{Engine, FlushBy, Flusher};
use super::request::StoreSettings;
use super::row::Row;
use super::state::State;

/// The far end of [`Store::in_memory`]: what survives a crash of the daemon, and trouble to order.
pub struct MemoryBackend {
    store: Store,
    settings: StoreSettings,
    disk: Arc<Mutex<Disk>>,
}

/// Trouble to order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The next batch is not written.
    Apply,
    /// The next batch is written, but not known to be durable: a crash may keep or lose it.
    Flush,
}

#[derive(Default)]
struct Disk {
    durable: BTreeMap<Vec<u8>, Vec<u8>>,
    unflushed: Vec<Vec<EncodedRow>>,
    held: bool,
    fault: Option<Fault>,
    crashed: bool,
}

impl MemoryBackend {
    /// Delays flushes until [`release`](MemoryBackend::release): what waits for one waits on.
    pub fn hold(&self) {
        self.disk().held = true;
    }

    /// Ends [`hold`](MemoryBackend::hold).
    pub fn release(&self) {
        self.disk().held = false;
        self.store.engine().wake_flusher();
    }

    /// Makes the next write fail.
    pub fn fail_next(&self, fault: Fault) {
        self.disk().fault = Some(fault);
    }

    /// The daemon dies at this instant and starts again. What was flushed is there; of the batches
    /// that were written but not flushed, the first `kept` happened to reach the disk. The store
    /// before the crash takes no changes any more.
    pub fn crash(&self, kept: usize) -> (Store, MemoryBackend) {
        let durable = {
            let mut disk = self.disk();
            disk.crashed = true;
            let mut survivor = Disk { durable: disk.durable.clone(), ..Disk::default() };
            for batch in mem::take(&mut disk.unflushed).into_iter().take(kept) {
                survivor.write(batch);
            }
            survivor.durable
        };
        start(durable, self.settings.clone())
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        lock(&self.disk)
    }
}

/// A store over these rows.
pub(super) fn start(durable: BTreeMap<Vec<u8>, Vec<u8>>, settings: StoreSettings) -> (Store, MemoryBackend) {
    let rows = durable.iter().map(|(key, value)| Row::decode(key, value));
    let rows = rows.collect::<Result<Vec<Row>, String>>().expect("rows are read as they were written");
    let disk = Arc::new(Mutex::new(Disk { durable, ..Disk::default() }));
    let backend = MemoryDisk(Arc::clone(&disk));
    let engine = Engine::new(State::new(rows, &settings));
    engine.flush_by(FlushBy::Caller(Mutex::new(Flusher::new(backend))));
    let store = Store::over(engine);
    (store.clone(), MemoryBackend { store, settings, disk })
}

impl Disk {
    fn write(&mut self, batch: Vec<EncodedRow>) {
        for (key, value) in batch {
            match value {
                Some(value) => self.durable.insert(key, value),
                None => self.durable.remove(&key),
            };
        }
    }

    fn check(&mut self, fault: Fault) -> Result<(), BackendError> {
        if self.crashed {
            return Err(BackendError("this store crashed".to_owned()));
        }
        if self.fault == Some(fault) {
            self.fault = None;
            return Err(BackendError("a fault was ordered".to_owned()));
        }
        Ok(())
    }
}

struct MemoryDisk(Arc<Mutex<Disk>>);

impl Backend for MemoryDisk {
    fn apply(&mut self, batch: Vec<EncodedRow>) -> Result<(), BackendError> {
        let mut disk = lock(&self.0);
        disk.check(Fault::Apply)?;
        disk.unflushed.push(batch);
        Ok(())
    }

    fn flush(&mut self) -> Result<bool, BackendError> {
        let mut disk = lock(&self.0);
        disk.check(Fault::Flush)?;
        if disk.held {
            return Ok(false);
        }
        for batch in mem::take(&mut disk.unflushed) {
            disk.write(batch);
        }
        Ok(true)
    }
}

fn lock(disk: &Mutex<Disk>) -> MutexGuard<'_, Disk> {
    disk.lock().expect("nothing panics while it writes to memory")
}
