//! The scripted world: what persists while daemons come and go.
//!
//! Passive: nothing here runs by itself. When a process ends or a guest speaks is computed from what
//! was done to it and the time, so the world goes on while no daemon runs, and nothing of it dies with
//! a daemon. Everything that a daemon does to it is an [`effect`](World::effect): it takes its time,
//! may fail, and is a moment at which the daemon may die. A dead daemon changes nothing any more.
//!
//! The one guard covers a look-up or a change in memory. It may be held while the log's is taken
//! ([`DurableView`]), never the other way round.
//!
//! What a daemon may not do is audited. Where its log cannot be looked into, as in a bench with a real
//! store, whatever would need a durable record passes.

mod driver;
mod effect;
mod guest;
mod images;
mod kernels;
mod network;
mod process;
mod processes;
mod room;
mod tally;
#[cfg(test)]
mod tests;

pub(super) use self::process::Process;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::Notify;
use tokio::time::Instant;

use self::driver::{Folder, ScriptedDriver};
use self::effect::{Effect, Refusal};
use self::images::ScriptedImages;
use self::kernels::ScriptedKernels;
use self::network::ScriptedNetwork;
use self::processes::Processes;
use self::room::ScriptedRoom;
use self::tally::Tally;
use super::images::ImageScript;
use super::life::calendar;
use super::timeline::{Entry, Teller};
use super::trouble::{EffectScript, Trouble, VmScript};
use crate::boot::KernelId;
use crate::image::Digest;
use crate::network::Nic;
use crate::object::{ObjectKey, Uid};
use crate::reconcile::{Clock, Entropy, Parts, Retention};
use crate::store::DurableView;

pub(super) struct World {
    state: Mutex<State>,
    /// Told when the daemon is to die.
    died: Notify,
}

/// Everything there is.
pub(super) struct State {
    pub(super) dice: StdRng,
    pub(super) trouble: Trouble,
    /// The time when the present daemon was started, and on its clock.
    base: Duration,
    since: Option<Instant>,
    /// How far the host's wall clock was set, forwards or back, so far.
    wall: SignedDuration,
    dead: bool,
    moments: u64,
    stop_at: Option<u64>,
    durable: Option<DurableView>,
    /// Whether the store's next write fails.
    pub(super) fail_store: bool,
    /// Until when all of them fail.
    pub(super) store_full_until: Duration,
    /// Whether effects are told.
    pub(super) tells: bool,
    pub(super) timeline: Vec<Entry>,
    /// What nobody may do, done.
    pub(super) violations: Vec<String>,
    /// What was refused for good: uids, sources, and nothing else may stay unready for it.
    pub(super) doomed: BTreeSet<String>,
    /// Restarts of each VM that the world is to blame for.
    pub(super) blame: BTreeMap<Uid, u32>,

    pub(super) boot: u32,
    pub(super) starts: u64,
    pub(super) processes: Processes,
    pub(super) folders: BTreeMap<PathBuf, Folder>,
    /// How VMs behave that have no script of their own.
    pub(super) usual_vm: VmScript,
    pub(super) vm_scripts: BTreeMap<ObjectKey, VmScript>,
    /// By the effect's name, or by its name and object.
    pub(super) effect_scripts: BTreeMap<String, EffectScript>,
    pub(super) image_scripts: BTreeMap<String, ImageScript>,
    /// What each source with a script ever stood for.
    pub(super) meanings: BTreeMap<String, BTreeSet<Digest>>,
    pub(super) staged: BTreeMap<u64, Digest>,
    pub(super) disks: BTreeSet<Digest>,
    /// The file system's size, and what others take of it.
    pub(super) room: (u64, u64),
    /// Whether too little was free at the last look: then disks go before their grace is over.
    pub(super) room_wanted: bool,
    /// Bytes of layers that are kept for later pulls.
    pub(super) layers: u64,
    /// Pulls that found no room: each may cost a disk in its grace.
    pub(super) starved: u32,
    /// The present daemon's.
    pub(super) retention: Option<Retention>,
    pub(super) kernels: BTreeSet<KernelId>,
    pub(super) attached: BTreeMap<String, Nic>,
    pub(super) tally: Tally,
}

impl World {
    pub(super) fn new(seed: u64, trouble: Trouble) -> Self {
        let state = State {
            dice: StdRng::seed_from_u64(seed),
            trouble,
            base: Duration::ZERO,
            since: None,
            wall: SignedDuration::ZERO,
            dead: true,
            moments: 0,
            stop_at: None,
            durable: None,
            fail_store: false,
            store_full_until: Duration::ZERO,
            tells: false,
            timeline: Vec::new(),
            violations: Vec::new(),
            doomed: BTreeSet::new(),
            blame: BTreeMap::new(),
            boot: 0,
            starts: 0,
            processes: Processes::default(),
            folders: BTreeMap::new(),
            usual_vm: VmScript::default(),
            vm_scripts: BTreeMap::new(),
            effect_scripts: BTreeMap::new(),
            image_scripts: BTreeMap::new(),
            meanings: BTreeMap::new(),
            staged: BTreeMap::new(),
            disks: BTreeSet::new(),
            room: (1 << 50, 0),
            room_wanted: false,
            layers: 0,
            starved: 0,
            retention: None,
            kernels: BTreeSet::new(),
            attached: BTreeMap::new(),
            tally: Tally::default(),
        };
        World { state: Mutex::new(state), died: Notify::new() }
    }

    /// The world as a daemon gets it, on the clock of the runtime that this is called in.
    pub(super) fn parts(self: &Arc<Self>, clock: Clock, entropy: &Entropy) -> Parts {
        Parts {
            images: Arc::new(ScriptedImages(self.clone())),
            kernels: Arc::new(ScriptedKernels(self.clone())),
            driver: Arc::new(ScriptedDriver(self.clone())),
            network: Arc::new(ScriptedNetwork(self.clone())),
            clock,
            entropy: entropy.clone(),
            room: Arc::new(ScriptedRoom(self.clone())),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A daemon begins, on the clock of the runtime that this is called in. What an earlier pull
    /// staged is swept, as the real image store does when it is opened.
    pub(super) fn begin(&self, durable: Option<DurableView>, retention: Retention) {
        let mut state = self.lock();
        state.since = Some(Instant::now());
        state.dead = false;
        state.durable = durable;
        state.retention = Some(retention);
        state.staged.clear();
    }

    /// The daemon is dead from now on.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        state.base = state.now();
        state.since = None;
        state.dead = true;
        state.durable = None;
    }

    /// Time passes while no daemon runs.
    pub(super) fn pass(&self, until: Duration) {
        let mut state = self.lock();
        debug_assert!(state.since.is_none(), "a daemon's own clock runs");
        state.base = state.base.max(until);
    }

    /// Resolves when chance or order has the daemon die.
    pub(super) async fn died(&self) {
        self.died.notified().await;
    }

    /// Lets the daemon die at its n-th moment from now on, counted from 1; none at none.
    pub(super) fn stop_at(&self, moment: Option<u64>) {
        let mut state = self.lock();
        state.moments = 0;
        state.stop_at = moment;
    }

    /// The moments since the last [`stop_at`](World::stop_at).
    pub(super) fn moments(&self) -> u64 {
        self.lock().moments
    }

    /// A moment at which the daemon may die. True if it is dead.
    pub(super) fn moment(&self, what: impl FnOnce() -> String) -> bool {
        let mut state = self.lock();
        if state.dead {
            return true;
        }
        state.moments += 1;
        let crashes = state.trouble.crashes;
        let dies = state.stop_at == Some(state.moments) || crashes > 0.0 && state.dice.random_bool(crashes);
        if dies {
            state.dead = true;
            let text = format!("the daemon dies {}", what());
            state.tell(None, Teller::Script, text);
            self.died.notify_one();
        }
        dies
    }
}

impl State {
    /// Since the simulation's start.
    pub(super) fn now(&self) -> Duration {
        self.base + self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// The host's wall clock.
    pub(super) fn wall(&self) -> Timestamp {
        calendar(self.now()).saturating_add(self.wall).unwrap_or(Timestamp::MAX)
    }

    /// Sets the host's wall clock.
    pub(super) fn set_wall(&mut self, by: SignedDuration) {
        self.wall = self.wall.saturating_add(by);
    }

    pub(super) fn dead(&self) -> bool {
        self.dead
    }

    pub(super) fn durable(&self) -> Option<&DurableView> {
        self.durable.as_ref()
    }

    pub(super) fn chance(&mut self, share: f64) -> bool {
        share > 0.0 && self.dice.random_bool(share)
    }

    /// A time from 1 ms up to the longest, short ones being likelier.
    pub(super) fn while_(&mut self, longest: Duration) -> Duration {
        let share: f64 = self.dice.random();
        longest.mul_f64(share * share * share).max(Duration::from_millis(1))
    }

    pub(super) fn tell(&mut self, object: Option<ObjectKey>, teller: Teller, text: String) {
        let at = self.now();
        self.timeline.push(Entry { at, object, teller, text });
    }

    /// Notes what nobody may do.
    pub(super) fn violation(&mut self, text: String) {
        self.tell(None, Teller::World, format!("VIOLATION: {text}"));
        self.violations.push(text);
    }

    pub(super) fn blame(&mut self, uid: Uid) {
        *self.blame.entry(uid).or_default() += 1;
    }
}
