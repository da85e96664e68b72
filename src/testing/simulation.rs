//! A daemon in a scripted world, from a seed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use rand::Rng;

use super::images::{ImageScript, canonical};
use super::life::{Life, Paused, Remains};
use super::options::{Options, Unflushed};
use super::oracle;
use super::timeline::{Entry, Teller};
use super::trouble::{Action, EffectScript, Trouble, VmScript};
use super::world::World;
use crate::manifest::{FileState, Snapshot};
use crate::object::{Kind, ObjectKey};
use crate::reconcile::Entropy;
use crate::store::{Record, Store, StoreSettings};

/// The longest time between two looks at whether all is as it should be.
const LOOK: Duration = Duration::from_secs(10);

/// A daemon, the real engine and store, in a scripted world. See the [module](super).
pub struct Simulation {
    pub(super) world: Arc<World>,
    pub(super) options: Options,
    entropy: Entropy,
    /// The folders of manifests.
    folders: BTreeMap<PathBuf, Arc<Snapshot>>,
    daemon: Daemon,
    agenda: BTreeMap<(Duration, u64), Action>,
    planned: u64,
    /// Edits of the folder so far.
    pub(super) edits: u32,
    /// Deaths of the daemon so far.
    pub(super) crashes: u32,
}

/// The daemon, or what a dead one left.
#[allow(clippy::large_enum_variant, reason = "there is one")]
enum Daemon {
    Runs(Life),
    Down {
        remains: Remains,
        until: Duration,
    },
    /// Between the two, for an instant.
    Moving,
}

fn empty() -> Snapshot {
    Snapshot { complete: true, ..Snapshot::default() }
}

/// The folder that a file is in, and its path below that.
fn located(path: &str) -> (PathBuf, PathBuf) {
    let path = Path::new(path);
    match (path.is_absolute(), path.parent(), path.file_name()) {
        (true, Some(folder), Some(name)) => (folder.to_owned(), name.into()),
        _ => (super::MANIFESTS.into(), path.to_owned()),
    }
}

impl Simulation {
    /// A simulation whose daemon starts with an empty folder of manifests. Equal seeds, options and
    /// calls give equal simulations, down to the last entry of the timeline.
    pub fn new(seed: u64, options: Options) -> Self {
        let world = Arc::new(World::new(seed, options.trouble));
        world.lock().tells = options.tell_effects;
        let entropy = Entropy::seeded(seed);
        let uids = entropy.clone();
        let timed = world.clone();
        let settings = StoreSettings {
            history: options.history,
            minter: Arc::new(move || uids.uuid()),
            now: Arc::new(move || timed.lock().wall()),
            ..StoreSettings::default()
        };
        let (store, backend) = Store::in_memory_with(settings);
        Simulation {
            world,
            options,
            entropy,
            folders: BTreeMap::from([(super::MANIFESTS.into(), Arc::new(empty()))]),
            daemon: Daemon::Down { remains: (store, Arc::new(backend)), until: Duration::ZERO },
            agenda: BTreeMap::new(),
            planned: 0,
            edits: 0,
            crashes: 0,
        }
    }

    /// The time since the start.
    pub fn now(&self) -> Duration {
        match &self.daemon {
            Daemon::Runs(life) => life.now(),
            _ => self.world.lock().now(),
        }
    }

    /// Sets how an image's source behaves from now on. Without a script it is there, with a digest of
    /// its own, and pulled in some seconds.
    pub fn script_image(&mut self, source: &str, script: ImageScript) {
        self.world.lock().script_image(canonical(source), script);
    }

    /// Sets how the starts of a VM go from now on.
    pub fn script_vm(&mut self, key: ObjectKey, script: VmScript) {
        self.world.lock().vm_scripts.insert(key, script);
    }

    /// Sets the host's wall clock, forwards or back. Nothing that is waited for may depend on that.
    pub fn set_clock(&mut self, by: SignedDuration) {
        self.world.lock().set_wall(by);
    }

    /// Sets the room on the state folder's file system from now on: its size, and what things other than
    /// base disks take of it, in bytes. There is plenty without.
    pub fn script_room(&mut self, total: u64, taken: u64) {
        self.world.lock().room = (total, taken);
    }

    /// Sets how many bytes of layers are kept for later pulls; they take of the same room.
    pub fn script_layers(&mut self, bytes: u64) {
        self.world.lock().layers = bytes;
    }

    /// Bytes of layers that are kept for later pulls.
    pub fn layers(&self) -> u64 {
        self.world.lock().layers
    }

    /// Sets how the effects of a name go from now on: `spawn`, or `spawn of vm/web` for one object's. The
    /// timeline names them, see [`Options::tell_effects`].
    pub fn script_effect(&mut self, name: &str, script: EffectScript) {
        self.world.lock().effect_scripts.insert(name.to_owned(), script);
    }

    /// Gives a file of the manifests folder this text. A whole path names a file of another folder, which is
    /// a source of its own.
    pub fn write(&mut self, path: &str, text: &str) {
        let (folder, path) = located(path);
        let state = FileState::of(&folder.join(&path), text.as_bytes());
        self.change_folder(folder, |files| _ = files.insert(path, state));
    }

    /// Removes a file of the manifests folder, or of another by its whole path.
    pub fn remove(&mut self, path: &str) {
        let (folder, path) = located(path);
        self.change_folder(folder, |files| _ = files.remove(&path));
    }

    /// Replaces the whole folder, for example by what
    /// [`DirectorySource::scan_once`](crate::manifest::DirectorySource::scan_once) saw of a real one.
    pub fn replace(&mut self, snapshot: Snapshot) {
        self.replace_folder(super::MANIFESTS.into(), snapshot);
    }

    fn replace_folder(&mut self, folder: PathBuf, snapshot: Snapshot) {
        self.edits += 1;
        let snapshot = Arc::new(snapshot);
        if let Daemon::Runs(life) = &mut self.daemon {
            life.show(&folder, snapshot.clone());
        }
        self.folders.insert(folder, snapshot);
    }

    fn change_folder(&mut self, folder: PathBuf, change: impl FnOnce(&mut BTreeMap<PathBuf, FileState>)) {
        let mut snapshot = self.folders.get(&folder).map_or_else(empty, |before| Snapshot::clone(before));
        change(&mut snapshot.files);
        self.replace_folder(folder, snapshot);
    }

    /// What is in the files of all folders.
    pub(super) fn files(&self) -> impl Iterator<Item = &FileState> {
        self.folders.values().flat_map(|folder| folder.files.values())
    }

    /// Has something done at a time, counted from the start; at once if that is over.
    pub fn at(&mut self, time: Duration, action: Action) {
        self.planned += 1;
        self.agenda.insert((time, self.planned), action);
    }

    /// Kills the daemon now; it is started again after `down`. Of what was written but not flushed, as
    /// much is kept as chance has it.
    pub fn crash(&mut self, down: Duration) {
        if let Daemon::Runs(_) = self.daemon {
            self.die("the daemon is killed".to_owned(), down);
        }
    }

    /// Lets the daemon die at the n-th moment from now on (from 1), a moment being right before or
    /// right after an effect on the world, right before a write of the store, or right before its
    /// flush. None: it does not die.
    pub fn crash_at_moment(&mut self, moment: Option<u64>) {
        self.world.stop_at(moment);
    }

    /// The moments since the last [`crash_at_moment`](Simulation::crash_at_moment).
    pub fn moments(&self) -> u64 {
        self.world.moments()
    }

    /// Deaths of the daemon so far.
    pub fn crashes(&self) -> u32 {
        self.crashes
    }

    /// Sets what may go wrong by chance from now on. A write that was to fail does not.
    pub fn set_trouble(&mut self, trouble: Trouble) {
        let mut world = self.world.lock();
        world.trouble = trouble;
        world.fail_store = false;
        world.store_full_until = Duration::ZERO;
    }

    /// Lets time pass.
    pub fn run_for(&mut self, time: Duration) {
        let end = self.now() + time;
        while self.now() < end {
            self.step(end);
        }
    }

    /// Lets time pass until nothing is planned any more and everything is as the manifests say: every
    /// object is ready, or stopped by its run policy, or held up by something that only an edit mends
    /// and that its status tells; and nothing else is left on the host. Returns the time.
    ///
    /// # Errors
    /// What is not as it should be when `limit` has passed.
    pub fn run_until_converged(&mut self, limit: Duration) -> Result<Duration, Vec<String>> {
        let end = self.now() + limit;
        let mut look = Duration::from_millis(100);
        loop {
            let open = self.unsettled();
            if open.is_empty() {
                return Ok(self.now());
            }
            if self.now() >= end {
                return Err(open);
            }
            let changed = self.step(end.min(self.now() + look));
            look = if changed { Duration::from_millis(100) } else { LOOK.min(look * 2) };
        }
    }

    /// What is not yet as the manifests say.
    pub fn unsettled(&self) -> Vec<String> {
        let Daemon::Runs(life) = &self.daemon else { return vec!["the daemon does not run".to_owned()] };
        if let Some(((at, _), _)) = self.agenda.first_key_value() {
            return vec![format!("something is planned for {at:?}")];
        }
        life.inside(|| oracle::unsettled(self, &life.store))
    }

    /// What happened that must never happen, and what is wrong now: two processes of one VM, an effect
    /// without a durable record, a lease held twice, too many restarts.
    pub fn violations(&self) -> Vec<String> {
        let mut violations = self.world.lock().violations.clone();
        if let Daemon::Runs(life) = &self.daemon {
            violations.extend(life.inside(|| oracle::wrong(self, &life.store)));
        }
        violations
    }

    /// Everything that happened so far, in order.
    pub fn timeline(&self) -> Vec<Entry> {
        self.world.lock().timeline.clone()
    }

    /// Every object's record, images first.
    pub fn objects(&self) -> Vec<Record> {
        let store = match &self.daemon {
            Daemon::Runs(life) => &life.store,
            Daemon::Down { remains: (store, _), .. } => store,
            Daemon::Moving => return Vec::new(),
        };
        Kind::ALL.into_iter().flat_map(|kind| store.list(kind, None).0).collect()
    }

    /// Goes on until something happens, at most until `until`. True if an object changed.
    fn step(&mut self, until: Duration) -> bool {
        while let Some((&(at, number), _)) = self.agenda.first_key_value() {
            if at > self.now() {
                break;
            }
            if let Some(action) = self.agenda.remove(&(at, number)) {
                self.act(action);
            }
        }
        let next = self.agenda.first_key_value().map_or(until, |((at, _), _)| until.min(*at));
        match &mut self.daemon {
            Daemon::Runs(life) => match life.run(next) {
                Paused::Time => return false,
                Paused::Change => {}
                Paused::Died => self.die(String::new(), self.options.down),
                Paused::Restless => {
                    self.world
                        .lock()
                        .violations
                        .push("objects change without end, at one instant".to_owned());
                    self.die("the daemon never rests".to_owned(), Duration::MAX / 2);
                }
                Paused::Failed(why) => self.die(format!("the daemon stops: {why}"), self.options.down),
            },
            Daemon::Down { until, .. } if *until > next => self.world.pass(next),
            Daemon::Down { until, .. } => {
                let until = *until;
                self.world.pass(until);
                self.start();
            }
            Daemon::Moving => {}
        }
        true
    }

    fn start(&mut self) {
        if let Daemon::Down { remains, .. } = std::mem::replace(&mut self.daemon, Daemon::Moving) {
            self.world.lock().tell(None, Teller::Script, "the daemon starts".to_owned());
            let mut life = Life::start(&self.world, remains, &self.options, &self.entropy);
            for (folder, snapshot) in &self.folders {
                life.show(folder, snapshot.clone());
            }
            self.daemon = Daemon::Runs(life);
        }
    }

    fn die(&mut self, why: String, down: Duration) {
        if let Daemon::Runs(life) = std::mem::replace(&mut self.daemon, Daemon::Moving) {
            self.crashes += 1;
            if !why.is_empty() {
                life.inside(|| self.world.lock().tell(None, Teller::Script, why));
            }
            let world = self.world.clone();
            let fate = self.options.unflushed;
            let remains = life.kill(|unflushed| match fate {
                Unflushed::Lost => 0,
                Unflushed::Kept => unflushed,
                Unflushed::Chance => world.lock().dice.random_range(0..=unflushed),
            });
            let until = self.world.lock().now() + down;
            self.daemon = Daemon::Down { remains, until };
        }
    }

    fn act(&mut self, action: Action) {
        let text = match &action {
            Action::Write { path, .. } => format!("{path} is written"),
            Action::Remove { path } => format!("{path} is removed"),
            Action::Apply(changed) => {
                let files: Vec<String> =
                    changed.files.keys().map(|path| path.display().to_string()).collect();
                format!("{} written", files.join(", ") + if files.len() == 1 { " is" } else { " are" })
            }
            Action::Replace(_) => "the folder is replaced".to_owned(),
            Action::Crash { .. } => String::new(),
            Action::Reboot { .. } => "the host reboots".to_owned(),
            Action::FailStore => "the store's next write fails".to_owned(),
            Action::FillStore { .. } => "the store's disk is full".to_owned(),
            Action::Room { total, taken } => format!("{taken} bytes of {total} are taken"),
            Action::KillVmm(key) => format!("the VMM of {key} is killed"),
            Action::EndWorkload(key, code) => format!("the workload of {key} ends with code {code}"),
            Action::ScriptImage(reference, _) => format!("{reference} behaves otherwise"),
            Action::Trouble(_) => "other trouble".to_owned(),
        };
        if !text.is_empty() {
            self.in_time(|world| world.lock().tell(None, Teller::Script, text));
        }
        let now = self.now();
        match action {
            Action::Write { path, text } => self.write(&path, &text),
            Action::Remove { path } => self.remove(&path),
            Action::Apply(changed) => {
                self.change_folder(super::MANIFESTS.into(), |files| {
                    files.extend(Arc::unwrap_or_clone(changed).files);
                });
            }
            Action::Replace(snapshot) => self.replace(Arc::unwrap_or_clone(snapshot)),
            Action::Crash { down } => self.crash(down),
            Action::Reboot { down } => {
                self.crash(down);
                self.world.reboot();
            }
            Action::FailStore => self.world.lock().fail_store = true,
            Action::FillStore { lasts } => {
                let mut world = self.world.lock();
                world.store_full_until = now + lasts;
            }
            Action::Room { total, taken } => self.script_room(total, taken),
            Action::KillVmm(key) => _ = self.in_time(|world| world.kill_vmm(&key)),
            Action::EndWorkload(key, code) => _ = self.in_time(|world| world.end_workload(&key, code)),
            Action::ScriptImage(reference, script) => self.script_image(&reference, script),
            Action::Trouble(trouble) => self.set_trouble(*trouble),
        }
    }

    /// Does something to the world on the daemon's clock, if one runs.
    fn in_time<T>(&self, act: impl FnOnce(&World) -> T) -> T {
        match &self.daemon {
            Daemon::Runs(life) => life.inside(|| act(&self.world)),
            _ => act(&self.world),
        }
    }
}
