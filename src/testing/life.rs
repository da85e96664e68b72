//! One life of a daemon: engine, manifests and store on a runtime and a paused clock of their own.
//!
//! A crash drops the runtime, and with it every task at whatever await it is; the world and what of
//! the store was durable stay.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::options::Options;
use super::timeline::Teller;
use super::world::World;
use crate::manifest::{MassDeleteSettings, Readiness, Snapshot, keep};
use crate::object::{Condition, ObjectKey};
use crate::reconcile::{Clock, Engine, Entropy, RecoveryError};
use crate::store::{ChangeKind, EventWatch, MemoryBackend, Moment, Record, Severity, Store, Verdict, Watch};

/// When a simulation starts: all its times count from here.
const START: i64 = 1_800_000_000;
/// After a change, so long is waited for others before it is looked at.
const GATHER: Duration = Duration::from_millis(5);
/// More changes at one instant are a loop that never rests.
const RESTLESS: u32 = 20_000;
/// How long a flush takes at most that takes its time.
const FLUSH: Duration = Duration::from_millis(400);

/// What outlives a daemon of the store.
pub(super) type Remains = (Store, Arc<MemoryBackend>);

pub(super) struct Life {
    world: Arc<World>,
    pub(super) store: Store,
    backend: Arc<MemoryBackend>,
    /// What the sources see, by folder.
    shown: BTreeMap<PathBuf, watch::Sender<Arc<Snapshot>>>,
    mass_delete: MassDeleteSettings,
    clock: Clock,
    changes: Watch,
    events: EventWatch,
    /// When it began, and on its own clock.
    began: (Duration, Instant),
    engine: JoinHandle<Result<(), RecoveryError>>,
    /// Last, so that all that runs on it goes first.
    runtime: Runtime,
}

/// Why a run of a life paused.
#[derive(Debug)]
pub(super) enum Paused {
    /// The time has come.
    Time,
    /// An object changed.
    Change,
    /// The daemon died.
    Died,
    /// The daemon cannot go on: it is to be started again.
    Failed(String),
    /// Objects change without end while time stands still.
    Restless,
}

/// The calendar's time in a simulation.
pub(super) fn calendar(at: Duration) -> Timestamp {
    let start = Timestamp::from_second(START).expect("a time in range");
    let passed = SignedDuration::try_from(at).unwrap_or(SignedDuration::MAX);
    start.saturating_add(passed).unwrap_or(Timestamp::MAX)
}

impl Life {
    pub(super) fn start(
        world: &Arc<World>,
        (store, backend): Remains,
        options: &Options,
        entropy: &Entropy,
    ) -> Life {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.expect("a runtime of one thread needs nothing of the host");
        let (changes, events) = (store.watch(None), store.watch_events());
        let inside = runtime.enter();
        let now = world.lock().now();
        let began = (now, Instant::now());
        world.begin(Some(backend.durable()), options.settings.retention);
        judge(world, &backend);
        let told = world.clone();
        let clock = Clock::Told(Arc::new(move || told.lock().wall()));
        let engine =
            Engine::new(store.clone(), world.parts(clock.clone(), entropy), options.settings.clone());
        let engine = runtime.spawn(async move { engine.run(CancellationToken::new()).await });
        drop(inside);
        Life {
            world: world.clone(),
            store,
            backend,
            shown: BTreeMap::new(),
            mass_delete: options.mass_delete,
            clock,
            changes: changes.expect("a watch from now on has missed nothing"),
            events,
            began,
            engine,
            runtime,
        }
    }

    /// A folder of manifests holds this now. One that is new is a source from now on.
    pub(super) fn show(&mut self, folder: &Path, snapshot: Arc<Snapshot>) {
        let Life { store, shown, mass_delete, clock, runtime, .. } = self;
        let source = shown.entry(folder.to_owned()).or_insert_with(|| {
            // The first value is not a look at the folder.
            let (sender, receiver) = watch::channel(Arc::new(Snapshot::default()));
            let (readiness, _) = watch::channel(Readiness::default());
            let until = CancellationToken::new();
            runtime.spawn(keep(
                store.clone(),
                folder,
                receiver,
                *mass_delete,
                readiness,
                clock.clone(),
                until,
            ));
            sender
        });
        source.send_replace(snapshot);
    }

    /// Does something on this life's clock.
    pub(super) fn inside<T>(&self, act: impl FnOnce() -> T) -> T {
        let _inside = self.runtime.enter();
        act()
    }

    /// The time since the simulation's start.
    pub(super) fn now(&self) -> Duration {
        self.inside(|| self.began.0 + self.began.1.elapsed())
    }

    /// Runs until a time or until something is to be looked at.
    pub(super) fn run(&mut self, until: Duration) -> Paused {
        let Life { world, store, changes, events, began, engine, runtime, .. } = self;
        let end = began.1 + until.saturating_sub(began.0);
        let mut end = (end, false);
        let mut at_once = (Instant::now(), 0);
        runtime.block_on(async {
            loop {
                tokio::select! {
                    biased;
                    () = world.died() => return Paused::Died,
                    ended = &mut *engine => {
                        let why = match ended {
                            Ok(Ok(())) => "the engine ended".to_owned(),
                            Ok(Err(error)) => error.to_string(),
                            Err(error) => format!("the engine panicked: {error}"),
                        };
                        return Paused::Failed(why);
                    }
                    change = changes.next() => {
                        match change {
                            Ok(change) => told(world, change.kind, &change.record),
                            Err(_) => *changes = store.watch(None).expect("a watch from now on"),
                        }
                        let now = Instant::now();
                        at_once = if at_once.0 == now { (now, at_once.1 + 1) } else { (now, 1) };
                        if at_once.1 > RESTLESS {
                            return Paused::Restless;
                        }
                        let soon = now + GATHER;
                        if soon < end.0 {
                            end = (soon, true);
                        }
                    }
                    event = events.next() => if let Ok(event) = event {
                        let mark = if event.severity == Severity::Warning { "Warning " } else { "" };
                        let text = format!("{mark}{}: {}", event.reason, event.message);
                        world.lock().tell(event.subject.object().cloned(), Teller::Event, text);
                    },
                    () = sleep_until(end.0) => return match store.failed() {
                        Some(why) => Paused::Failed(why),
                        None if end.1 => Paused::Change,
                        None => Paused::Time,
                    },
                }
            }
        })
    }

    /// Kills the daemon. Of what it wrote but did not flush, `kept` batches happened to reach the disk.
    pub(super) fn kill(self, kept: impl FnOnce(usize) -> usize) -> Remains {
        self.inside(|| self.world.end());
        let Life { backend, runtime, store, changes, .. } = self;
        drop((changes, store));
        drop(runtime);
        let (store, backend) = backend.crash(kept(backend.unflushed()));
        (store, Arc::new(backend))
    }
}

/// A status in a few words: phase, readiness, reason and message.
pub(super) fn summary(record: &Record) -> String {
    let object = record.object();
    let ready = object.conditions().iter().find(|condition| condition.kind == "Ready");
    let phase = match record {
        Record::Vm(vm) => vm.object.status.phase.as_str(),
        Record::Image(image) => image.object.status.phase.as_str(),
    };
    match ready {
        None => "not looked at yet".to_owned(),
        Some(Condition { reason, message, .. }) => {
            let phase = if phase == reason { String::new() } else { format!("{phase}, ") };
            format!("{phase}{reason}: {message}")
        }
    }
}

fn told(world: &World, kind: ChangeKind, record: &Record) {
    let key: ObjectKey = record.key();
    let mut state = world.lock();
    let text = match kind {
        ChangeKind::Deleted => "gone".to_owned(),
        _ => {
            let metadata = record.metadata();
            let deleted = if metadata.deletion_timestamp.is_some() { ", to be deleted" } else { "" };
            format!("generation {}{deleted}: {}", metadata.generation, summary(record))
        }
    };
    let mut earlier = state.timeline.iter().rev();
    let last = earlier.find(|entry| entry.teller == Teller::Status && entry.object.as_ref() == Some(&key));
    if last.is_none_or(|last| last.text != text) {
        state.tell(Some(key), Teller::Status, text);
    }
}

/// Lets chance decide on each write and flush of the store.
fn judge(world: &Arc<World>, backend: &Arc<MemoryBackend>) {
    let held: Mutex<Option<Duration>> = Mutex::default();
    let (world, log): (_, Weak<MemoryBackend>) = (world.clone(), Arc::downgrade(backend));
    backend.judge(Arc::new(move |moment| {
        let name = if moment == Moment::Apply { "before a write" } else { "before a flush" };
        if world.moment(|| name.to_owned()) {
            return Verdict::Dead;
        }
        let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = world.lock();
        let now = state.now();
        let (faults, slow) = (state.trouble.store_faults, state.trouble.slow_flushes);
        match moment {
            Moment::Apply if state.store_full_until > now => Verdict::Fail,
            Moment::Apply if std::mem::take(&mut state.fail_store) || state.chance(faults) => Verdict::Fail,
            Moment::Apply => Verdict::Go,
            Moment::Flush if held.is_some_and(|until| until > now) => Verdict::Later,
            Moment::Flush if held.take().is_none() && state.chance(slow) => {
                let takes = state.while_(FLUSH);
                *held = Some(now + takes);
                let log = log.clone();
                tokio::spawn(async move {
                    sleep(takes).await;
                    if let Some(log) = log.upgrade() {
                        log.release();
                    }
                });
                Verdict::Later
            }
            Moment::Flush => Verdict::Go,
        }
    }));
}
