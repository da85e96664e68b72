//! Runs transactions: the one guard, the flusher behind it, and who waits for what.
//!
//! A transaction locks the state, changes it in memory, and unlocks. Its rows join the batch that is
//! filling. The flusher takes the batch, writes it and makes it durable with one flush for all who
//! wait; meanwhile the next batch fills. Then [`Engine::commit`] returns and watchers see the changes.
//! Rows are encoded and written outside the guard.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::Thread;
use std::time::Instant;

use tokio::sync::broadcast;

use super::backend::Backend;
use super::error::StoreError;
use super::events::Event;
use super::request::Now;
use super::state::State;
use crate::latest;
use crate::metrics::{Guarded, Histogram};

/// Events that a watcher of events may lag behind.
const EVENT_BACKLOG: usize = 1024;

pub(super) struct Engine {
    /// The one guard of the store.
    inner: Guarded<Inner>,
    progress: latest::Sender<Progress>,
    events: broadcast::Sender<Arc<Event>>,
    now: Now,
    flush: OnceLock<FlushBy>,
    stopping: AtomicBool,
    pub(super) flush_times: Histogram,
}

struct Inner {
    state: State,
    /// The number of the batch that is filling.
    filling: u64,
    /// Why no change is taken any more.
    refusal: Option<StoreError>,
}

/// What is durable.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    /// The number of the last durable batch.
    batch: u64,
    /// The version of the last durable change.
    pub(super) version: u64,
    /// Why no batch will follow.
    failed: Option<String>,
}

/// Who flushes.
pub(super) enum FlushBy {
    /// A thread of its own, because a flush takes its time.
    Thread(Thread),
    /// Whoever changes something, at once: memory is quick, and a simulation's clock must not run on
    /// while a thread is awaited.
    Caller(Mutex<Flusher>),
}

impl Engine {
    pub(super) fn new(state: State, now: Now) -> Engine {
        Engine {
            inner: Guarded::new(Inner { state, filling: 1, refusal: None }),
            progress: latest::Sender::new(Progress::default()),
            events: broadcast::Sender::new(EVENT_BACKLOG),
            now,
            flush: OnceLock::new(),
            stopping: AtomicBool::new(false),
            flush_times: Histogram::default(),
        }
    }

    /// Says who flushes from now on.
    pub(super) fn flush_by(&self, who: FlushBy) {
        let first = self.flush.set(who).is_ok();
        debug_assert!(first, "the flusher is chosen once");
        self.wake_flusher();
    }

    /// Looks at the state. `look` is short and pure.
    pub(super) fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        self.locked(|inner| look(&inner.state))
    }

    /// Looks at the state to write it down elsewhere; not once the store failed, because then nobody
    /// knows what of it is true.
    pub(super) fn read_sound<T>(&self, look: impl FnOnce(&State) -> T) -> Option<T> {
        self.locked(|inner| match inner.refusal {
            Some(StoreError::Failed { .. }) => None,
            _ => Some(look(&inner.state)),
        })
    }

    /// Runs a transaction. Returns its value and the batch that makes it durable, and with it
    /// everything that it saw.
    pub(super) fn transact<T>(&self, run: impl FnOnce(&mut State) -> T) -> Result<(T, u64), StoreError> {
        let now = (self.now)();
        let (value, batch, pending) = self.locked(|inner| {
            if let Some(refusal) = &inner.refusal {
                return Err(refusal.clone());
            }
            inner.state.now = now;
            let value = run(&mut inner.state);
            let pending = inner.state.has_pending();
            let batch = if pending { inner.filling } else { inner.filling - 1 };
            Ok((value, batch, pending))
        })?;
        if pending {
            self.wake_flusher();
        }
        Ok((value, batch))
    }

    /// Runs a transaction and waits until it is durable. If the future is dropped meanwhile, the
    /// transaction has taken place nevertheless.
    pub(super) async fn commit<T, E: From<StoreError>>(
        &self,
        run: impl FnOnce(&mut State) -> Result<T, E>,
    ) -> Result<T, E> {
        let (result, batch) = self.transact(run)?;
        let value = result?;
        self.durable(batch).await?;
        Ok(value)
    }

    async fn durable(&self, batch: u64) -> Result<(), StoreError> {
        let mut progress = self.progress.subscribe();
        let reached = progress.wait_for(|now| now.batch >= batch || now.failed.is_some()).await;
        let now = reached.expect("the sender is in self");
        match &now.failed {
            Some(why) if now.batch < batch => Err(StoreError::Failed { why: why.clone() }),
            _ => Ok(()),
        }
    }

    pub(super) fn progress(&self) -> latest::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Why the store failed, if it has.
    pub(super) fn failed(&self) -> Option<String> {
        self.progress.borrow().failed.clone()
    }

    /// Resolves when the store has failed, with the reason.
    pub(super) async fn failure(&self) -> String {
        let failed = self.progress().wait_for(|now| now.failed.is_some()).await;
        failed.ok().and_then(|now| now.failed).expect("the sender is here")
    }

    pub(super) fn announce(&self, event: Arc<Event>) {
        // Nobody listening is fine.
        let _ = self.events.send(event);
    }

    pub(super) fn listen(&self) -> broadcast::Receiver<Arc<Event>> {
        self.events.subscribe()
    }

    /// Takes no more changes and lets the flusher finish.
    pub(super) fn stop(&self) {
        self.locked(|inner| {
            inner.refusal.get_or_insert(StoreError::Closed);
        });
        self.stopping.store(true, Ordering::Release);
        self.wake_flusher();
    }

    pub(super) fn wake_flusher(&self) {
        match self.flush.get() {
            Some(FlushBy::Thread(thread)) => thread.unpark(),
            Some(FlushBy::Caller(flusher)) => {
                flusher.lock().expect("a flush in memory does not panic").flush(self);
            }
            None => {}
        }
    }

    /// Takes no more changes, and tells everybody who waits.
    pub(super) fn fail(&self, why: &str) {
        tracing::error!(why, "the store cannot write and takes no more changes");
        self.locked(|inner| inner.refusal = Some(StoreError::Failed { why: why.to_owned() }));
        self.progress.send_modify(|now| now.failed = Some(why.to_owned()));
    }

    /// Batches that were made durable.
    pub(super) fn batches(&self) -> u64 {
        self.progress.borrow().batch
    }

    /// How long the guard was held, each time.
    pub(super) fn guard_times(&self) -> &Histogram {
        self.inner.held()
    }

    /// Does something brief under the guard.
    fn locked<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        self.inner.with(|inner| {
            if self.inner.poisoned() {
                // The state may be half changed: nothing more is built on it or written of it.
                let why = "a transaction panicked".to_owned();
                inner.refusal.get_or_insert(StoreError::Failed { why });
            }
            work(inner)
        })
    }
}

/// Makes batches durable, in order.
pub(super) struct Flusher {
    backend: Box<dyn Backend>,
    applied: Progress,
}

impl Flusher {
    pub(super) fn new(backend: impl Backend) -> Flusher {
        Flusher { backend: Box::new(backend), applied: Progress::default() }
    }

    /// Works until the engine stops and all is durable, or until something fails.
    pub(super) fn run(mut self, engine: &Engine) {
        loop {
            let stopping = engine.stopping.load(Ordering::Acquire);
            self.flush(engine);
            if self.applied.failed.is_some() {
                // Closing sled writes what could not be written. Where that was a file of its own, for a
                // large value, it waits for ever: nobody waits for it (tests/boot/full_disk.rs).
                std::thread::spawn(move || drop(self.backend));
                return;
            }
            if stopping {
                return;
            }
            std::thread::park();
        }
    }

    /// Makes everything that is written so far durable.
    pub(super) fn flush(&mut self, engine: &Engine) {
        while self.applied.failed.is_none() {
            match self.round(engine) {
                Ok(true) => {}
                Ok(false) => return,
                Err(why) => {
                    engine.fail(&why);
                    self.applied.failed = Some(why);
                }
            }
        }
    }

    /// One batch. False if there is nothing to do.
    fn round(&mut self, engine: &Engine) -> Result<bool, String> {
        let taken = engine.locked(|inner| {
            if let Some(StoreError::Failed { why }) = &inner.refusal {
                return Err(why.clone());
            }
            Ok(inner.state.has_pending().then(|| {
                inner.filling += 1;
                (inner.state.take_pending(), inner.filling - 1)
            }))
        })?;
        let started = Instant::now();
        if let Some(((batch, version), number)) = taken {
            let encoded =
                batch.into_iter().map(|(key, row)| (key.text().into_bytes(), row.map(|row| row.encode())));
            self.backend.apply(encoded.collect()).map_err(|error| error.to_string())?;
            self.applied = Progress { batch: number, version, failed: None };
        }
        if self.applied.batch == engine.progress.borrow().batch {
            return Ok(false);
        }
        if !self.backend.flush().map_err(|error| error.to_string())? {
            return Ok(false);
        }
        engine.flush_times.record(started.elapsed());
        engine.progress.send_replace(self.applied.clone());
        Ok(true)
    }
}
