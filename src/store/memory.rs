//! A backend in memory that can crash and fail: for simulations and tests.

use std::collections::BTreeMap;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard};

use super::Store;
use super::backend::{Backend, BackendError, EncodedRow};
use super::engine::{Engine, FlushBy, Flusher};
use super::record::{DiskRecord, Record};
use super::request::StoreSettings;
use super::row::{Row, RowKey};
use super::state::State;
use crate::image::Digest;
use crate::network::Nic;
use crate::object::ObjectKey;

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

/// What the log is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Write a batch.
    Apply,
    /// Make what is written durable.
    Flush,
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is done.
    Go,
    /// It waits for [`MemoryBackend::release`]; a write does not wait.
    Later,
    /// It fails.
    Fail,
    /// The daemon is dead already: nothing reaches the log any more, and nobody is told.
    Dead,
}

/// Decides on each write and flush, without using the store.
pub type Judge = Arc<dyn Fn(Moment) -> Verdict + Send + Sync>;

/// What of a store is durable: what a crash at this moment leaves for certain.
#[derive(Clone)]
pub struct DurableView(Arc<Mutex<Disk>>);

impl DurableView {
    /// The durable record of an object.
    pub fn record(&self, key: &ObjectKey) -> Option<Record> {
        match self.row(&RowKey::Object(key.clone()))? {
            Row::Object(record) => Some(record),
            _ => None,
        }
    }

    /// The durable record of a base disk.
    pub fn disk(&self, digest: &Digest) -> Option<DiskRecord> {
        match self.row(&RowKey::Disk(digest.clone()))? {
            Row::Disk(disk) => Some(Arc::unwrap_or_clone(disk)),
            _ => None,
        }
    }

    /// The durable records of all objects.
    pub fn objects(&self) -> Vec<Record> {
        let disk = lock(&self.0);
        let rows = disk.durable.iter().map(|(key, value)| Row::decode(key, value));
        let rows = rows.map(|row| row.expect("rows are read as they were written"));
        rows.filter_map(|row| if let Row::Object(record) = row { Some(record) } else { None }).collect()
    }

    /// Whether a VM holds exactly this network device.
    pub fn reserves(&self, nic: &Nic) -> bool {
        let disk = lock(&self.0);
        let mentions = |value: &[u8]| value.windows(nic.mac.len()).any(|part| part == nic.mac.as_bytes());
        disk.durable.iter().filter(|(_, value)| mentions(value)).any(|(key, value)| {
            let row = Row::decode(key, value).expect("rows are read as they were written");
            let Row::Object(record) = row else { return false };
            record.reservation().is_some_and(|held| held.nic.as_ref() == Some(nic))
        })
    }

    fn row(&self, key: &RowKey) -> Option<Row> {
        let key = key.text().into_bytes();
        let disk = lock(&self.0);
        let value = disk.durable.get(&key)?;
        Some(Row::decode(&key, value).expect("rows are read as they were written"))
    }
}

#[derive(Default)]
struct Disk {
    durable: BTreeMap<Vec<u8>, Vec<u8>>,
    unflushed: Vec<Vec<EncodedRow>>,
    held: bool,
    fault: Option<Fault>,
    judge: Option<Judge>,
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

    /// Lets `judge` decide on each write and flush from now on.
    pub fn judge(&self, judge: Judge) {
        self.disk().judge = Some(judge);
    }

    /// A view of what is durable, for as long as this store is used.
    pub fn durable(&self) -> DurableView {
        DurableView(Arc::clone(&self.disk))
    }

    /// Batches that are written and not yet durable.
    pub fn unflushed(&self) -> usize {
        self.disk().unflushed.len()
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
    let engine = Engine::new(State::new(rows, &settings), settings.now.clone());
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
            return Err(ordered());
        }
        Ok(())
    }
}

struct MemoryDisk(Arc<Mutex<Disk>>);

impl MemoryDisk {
    /// Asks the judge, who must not be called with the disk locked.
    fn ask(&self, moment: Moment) -> Verdict {
        let judge = lock(&self.0).judge.clone();
        judge.map_or(Verdict::Go, |judge| judge(moment))
    }
}

fn ordered() -> BackendError {
    BackendError("a fault was ordered".to_owned())
}

impl Backend for MemoryDisk {
    fn apply(&mut self, batch: Vec<EncodedRow>) -> Result<(), BackendError> {
        match self.ask(Moment::Apply) {
            Verdict::Go | Verdict::Later => {}
            Verdict::Fail => return Err(ordered()),
            Verdict::Dead => return Ok(()),
        }
        let mut disk = lock(&self.0);
        disk.check(Fault::Apply)?;
        disk.unflushed.push(batch);
        Ok(())
    }

    fn flush(&mut self) -> Result<bool, BackendError> {
        match self.ask(Moment::Flush) {
            Verdict::Go => {}
            Verdict::Fail => return Err(ordered()),
            Verdict::Later | Verdict::Dead => return Ok(false),
        }
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
