//! The scripted driver, for simulations: no I/O, no processes, only the tokio clock, which may be paused.
//!
//! In: what a [`Behaviour`] says of each VM, and commands such as [`FakeDriver::end`]. Out: what a driver
//! reports, and an audit of what no caller may do ([`FakeDriver::violations`]). The world survives the
//! caller: a clone given to a "restarted daemon" still has the VMs of the one before, as a host would.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Driver, DriverError, Gated, GuestStream, Launch, ProcessIdentity, VmmExit};
use crate::object::Uid;

/// The steps of a driver that can be told to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// [`Driver::prepare`].
    Prepare,
    /// [`Driver::spawn`].
    Spawn,
    /// [`Gated::release`].
    Release,
    /// [`Driver::connect`].
    Connect,
    /// [`Driver::power_button`].
    PowerButton,
    /// [`Driver::kill`].
    Kill,
    /// [`Driver::remove_disk`].
    RemoveDisk,
    /// [`Driver::cleanup`].
    Cleanup,
    /// [`Driver::exited`], which cannot fail, but panic.
    Exited,
}

/// How a step fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    Error { transient: bool },
    Panic,
}

/// How VMs behave that are prepared from now on.
#[derive(Clone, Debug)]
pub struct Behaviour {
    /// How long [`Driver::prepare`] takes.
    pub prepare: Duration,
    /// From release until the guest answers on its stream; none never does.
    pub boot: Option<Duration>,
    /// From release until the VM ends by itself, and how; none runs on.
    pub ends: Option<(Duration, VmmExit)>,
    /// From the power button until the VM ends; none ignores it.
    pub power_off: Option<Duration>,
}

impl Default for Behaviour {
    /// Boots in a second, runs on, and ends half a second after its power button is pressed.
    fn default() -> Self {
        Behaviour {
            prepare: Duration::ZERO,
            boot: Some(Duration::from_secs(1)),
            ends: None,
            power_off: Some(Duration::from_millis(500)),
        }
    }
}

/// Makes the guest's end of a stream for the VM in this folder, and returns the host's end.
pub type GuestHook = Box<dyn Fn(&Path) -> GuestStream + Send + Sync>;

/// A driver without VMs. Clones share one world.
#[derive(Clone)]
pub struct FakeDriver {
    world: Arc<World>,
}

struct World {
    guest: GuestHook,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    behaviour: Behaviour,
    folders: BTreeMap<PathBuf, Folder>,
    processes: BTreeMap<u32, Process>,
    /// The processes of each VM: one, if callers do right.
    pids: HashMap<Uid, Vec<u32>>,
    /// Processes that may be in their boot: looked through at each release.
    booting: Vec<u32>,
    last_pid: u32,
    /// How often the host was restarted.
    boots: u32,
    failures: HashMap<(Step, Option<Uid>), (usize, Trouble)>,
    max_booting: usize,
    violations: Vec<String>,
}

struct Folder {
    uid: Uid,
    behaviour: Behaviour,
    has_disk: bool,
}

struct Process {
    identity: ProcessIdentity,
    uid: Uid,
    dir: PathBuf,
    /// Whether it has passed its gate.
    released: bool,
    /// When the guest answers; none never.
    booted: Option<Instant>,
    end: watch::Sender<Option<VmmExit>>,
}

impl Process {
    fn runs(&self) -> bool {
        self.released && self.end.borrow().is_none()
    }

    fn boots(&self, now: Instant) -> bool {
        self.runs() && self.booted.is_none_or(|booted| booted > now)
    }
}

impl FakeDriver {
    /// A driver whose guests are what `guest` makes.
    pub fn new(guest: impl Fn(&Path) -> GuestStream + Send + Sync + 'static) -> Self {
        FakeDriver { world: Arc::new(World { guest: Box::new(guest), state: Mutex::default() }) }
    }

    /// Sets how VMs behave that are prepared from now on.
    pub fn set_behaviour(&self, behaviour: Behaviour) {
        self.state().behaviour = behaviour;
    }

    /// Lets the next `count` tries of a step fail, for one VM or for any.
    pub fn fail_next(&self, step: Step, uid: Option<Uid>, count: usize, transient: bool) {
        self.state().failures.insert((step, uid), (count, Trouble::Error { transient }));
    }

    /// Lets the next `count` tries of a step panic, for one VM or for any.
    pub fn panic_next(&self, step: Step, uid: Option<Uid>, count: usize) {
        self.state().failures.insert((step, uid), (count, Trouble::Panic));
    }

    /// Ends the VM in this folder, as a crash or its guest would. Returns whether it ran.
    pub fn end(&self, dir: &Path, exit: VmmExit) -> bool {
        let state = self.state();
        let running = state.process_in(dir);
        running.is_some_and(|process| process.end.send_replace(Some(exit)).is_none())
    }

    /// The host goes down with all that runs, and is started again.
    pub fn reboot(&self) {
        let mut state = self.state();
        state.boots += 1;
        state.processes.clear();
        state.pids.clear();
        state.booting.clear();
    }

    /// The uids of the VMs that run.
    pub fn running(&self) -> Vec<Uid> {
        self.state().processes.values().filter(|process| process.runs()).map(|process| process.uid).collect()
    }

    /// The most VMs that were in their boot at one time.
    pub fn max_booting(&self) -> usize {
        self.state().max_booting
    }

    /// The folders that exist.
    pub fn folders(&self) -> Vec<PathBuf> {
        self.state().folders.keys().cloned().collect()
    }

    /// What callers did that no caller may do: two VMs of one uid, a folder taken from a running VM.
    pub fn violations(&self) -> Vec<String> {
        self.state().violations.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Its holders panic only as scripted, before they change anything.
        self.world.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end_later(&self, pid: u32, after: Duration, exit: VmmExit) {
        let driver = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            if let Some(process) = driver.state().processes.get(&pid) {
                end_unless_ended(process, exit);
            }
        });
    }
}

fn end_unless_ended(process: &Process, exit: VmmExit) {
    process.end.send_if_modified(|end| {
        let first = end.is_none();
        if first {
            *end = Some(exit);
        }
        first
    });
}

fn signalled(signal: i32) -> VmmExit {
    VmmExit { code: None, signal: Some(signal), workload: None, message: String::new() }
}

fn powered_off() -> VmmExit {
    VmmExit { code: Some(0), signal: None, workload: None, message: String::new() }
}

impl State {
    fn check(&mut self, step: Step, uid: Option<Uid>) -> Result<(), DriverError> {
        for key in [(step, uid), (step, None)] {
            if let Some((count, trouble)) = self.failures.get_mut(&key)
                && *count > 0
            {
                *count -= 1;
                let Trouble::Error { transient } = *trouble else { panic!("{step:?} panics as scripted") };
                return Err(DriverError {
                    reason: "Scripted",
                    message: format!("{step:?} fails as scripted"),
                    transient,
                });
            }
        }
        Ok(())
    }

    fn boot_id(&self) -> String {
        format!("fake-{}", self.boots)
    }

    fn check_dir(&mut self, step: Step, dir: &Path) -> Result<(), DriverError> {
        let uid = self.folders.get(dir).map(|folder| folder.uid);
        self.check(step, uid)
    }

    fn process_in(&self, dir: &Path) -> Option<&Process> {
        self.running(self.folders.get(dir)?.uid)
    }

    fn running(&self, uid: Uid) -> Option<&Process> {
        let pids = self.pids.get(&uid)?;
        pids.iter().filter_map(|pid| self.processes.get(pid)).find(|process| process.runs())
    }

    /// Forgets the processes of a VM that have ended, as a kernel does once they were waited for.
    fn forget_ended(&mut self, uid: Uid) {
        let pids = self.pids.remove(&uid).unwrap_or_default();
        let (kept, ended): (Vec<u32>, Vec<u32>) =
            pids.into_iter().partition(|pid| self.processes[pid].end.borrow().is_none());
        for pid in ended {
            self.processes.remove(&pid);
        }
        if !kept.is_empty() {
            self.pids.insert(uid, kept);
        }
    }

    /// Forgets a process that never passed its gate.
    fn forget(&mut self, pid: u32) {
        if let Some(process) = self.processes.remove(&pid) {
            self.pids.entry(process.uid).or_default().retain(|other| *other != pid);
        }
    }

    fn audit_idle(&mut self, what: &str, dir: &Path) {
        if let Some(process) = self.process_in(dir) {
            let violation = format!("{what} while process {} of {} runs", process.identity.pid, process.uid);
            self.violations.push(violation);
        }
    }

    fn new_process(&mut self, launch: &Launch) -> ProcessIdentity {
        self.last_pid += 1;
        let identity = ProcessIdentity {
            pid: self.last_pid,
            start_time: u64::from(self.last_pid),
            boot_id: self.boot_id(),
        };
        self.forget_ended(launch.uid);
        let process = Process {
            identity: identity.clone(),
            uid: launch.uid,
            dir: launch.dir.clone(),
            released: false,
            booted: None,
            end: watch::Sender::new(None),
        };
        self.processes.insert(identity.pid, process);
        self.pids.entry(launch.uid).or_default().push(identity.pid);
        identity
    }

    /// Lets a process run; returns how its VM behaves.
    fn release(&mut self, pid: u32) -> Result<Behaviour, DriverError> {
        let now = Instant::now();
        let process = self.processes.get(&pid).expect("a gate keeps its process");
        let (uid, dir) = (process.uid, process.dir.clone());
        self.check(Step::Release, Some(uid))?;
        if let Some(other) = self.running(uid) {
            let violation = format!("{uid} has two processes: {} and {pid}", other.identity.pid);
            self.violations.push(violation);
        }
        let Some(folder) = self.folders.get(&dir).filter(|folder| folder.has_disk) else {
            self.violations.push(format!("{uid} was released without being prepared"));
            return Err(absent(&dir));
        };
        let behaviour = folder.behaviour.clone();
        let process = self.processes.get_mut(&pid).expect("looked at above");
        process.released = true;
        process.booted = behaviour.boot.map(|boot| now + boot);
        let processes = &self.processes;
        self.booting.retain(|pid| processes.get(pid).is_some_and(|process| process.boots(now)));
        self.booting.push(pid);
        self.max_booting = self.max_booting.max(self.booting.len());
        Ok(behaviour)
    }
}

fn absent(dir: &Path) -> DriverError {
    DriverError {
        reason: "NotConnected",
        message: format!("{}: no VM runs there", dir.display()),
        transient: true,
    }
}

#[async_trait]
impl Driver for FakeDriver {
    fn name(&self) -> &'static str {
        "fake"
    }

    async fn prepare(&self, launch: &Launch) -> Result<(), DriverError> {
        let behaviour = self.state().behaviour.clone();
        tokio::time::sleep(behaviour.prepare).await;
        let mut state = self.state();
        state.check(Step::Prepare, Some(launch.uid))?;
        state.audit_idle("prepare", &launch.dir);
        state.folders.insert(launch.dir.clone(), Folder { uid: launch.uid, behaviour, has_disk: true });
        Ok(())
    }

    async fn spawn(&self, launch: &Launch) -> Result<Box<dyn Gated>, DriverError> {
        let mut state = self.state();
        state.check(Step::Spawn, Some(launch.uid))?;
        let identity = state.new_process(launch);
        Ok(Box::new(FakeGate { driver: self.clone(), identity, released: false }))
    }

    async fn connect(&self, dir: &Path) -> Result<GuestStream, DriverError> {
        let (booted, mut end) = {
            let mut state = self.state();
            state.check_dir(Step::Connect, dir)?;
            let process = state.process_in(dir).ok_or_else(|| absent(dir))?;
            (process.booted, process.end.subscribe())
        };
        let answers = async {
            match booted {
                Some(booted) => tokio::time::sleep_until(booted).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            _ = end.wait_for(Option::is_some) => Err(absent(dir)),
            () = answers => Ok((self.world.guest)(dir)),
        }
    }

    async fn exited(&self, dir: &Path, process: &ProcessIdentity) -> VmmExit {
        let _ = self.state().check_dir(Step::Exited, dir);
        let end = self.state().processes.get(&process.pid).map(|process| process.end.subscribe());
        let unknown = VmmExit { code: None, signal: None, workload: None, message: String::new() };
        let Some(mut end) = end else { return unknown };
        end.wait_for(Option::is_some).await.ok().and_then(|end| end.clone()).unwrap_or(unknown)
    }

    fn of_this_boot(&self, process: &ProcessIdentity) -> bool {
        process.boot_id == self.state().boot_id()
    }

    fn alive(&self, process: &ProcessIdentity) -> bool {
        let state = self.state();
        let known = state.processes.get(&process.pid);
        known.is_some_and(|known| known.identity == *process && known.end.borrow().is_none())
    }

    async fn power_button(&self, dir: &Path) -> Result<(), DriverError> {
        let (pid, power_off) = {
            let mut state = self.state();
            state.check_dir(Step::PowerButton, dir)?;
            let pid = state.process_in(dir).ok_or_else(|| absent(dir))?.identity.pid;
            (pid, state.folders.get(dir).and_then(|folder| folder.behaviour.power_off))
        };
        if let Some(after) = power_off {
            self.end_later(pid, after, powered_off());
        }
        Ok(())
    }

    async fn kill(&self, process: &ProcessIdentity) -> Result<(), DriverError> {
        let mut state = self.state();
        let Some(uid) = state.processes.get(&process.pid).map(|known| known.uid) else { return Ok(()) };
        state.check(Step::Kill, Some(uid))?;
        if let Some(known) = state.processes.get(&process.pid).filter(|known| known.identity == *process) {
            end_unless_ended(known, signalled(nix::libc::SIGKILL));
        }
        Ok(())
    }

    async fn evict(&self, dir: &Path) -> Result<(), DriverError> {
        let state = self.state();
        if let Some(process) = state.process_in(dir) {
            end_unless_ended(process, signalled(nix::libc::SIGKILL));
        }
        Ok(())
    }

    async fn remove_disk(&self, dir: &Path) -> Result<(), DriverError> {
        let mut state = self.state();
        state.check_dir(Step::RemoveDisk, dir)?;
        state.audit_idle("remove_disk", dir);
        if let Some(folder) = state.folders.get_mut(dir) {
            folder.has_disk = false;
        }
        Ok(())
    }

    async fn folders(&self, root: &Path) -> Result<Vec<PathBuf>, DriverError> {
        Ok(self.folders().into_iter().filter(|dir| dir.parent() == Some(root)).collect())
    }

    async fn cleanup(&self, dir: &Path) -> Result<(), DriverError> {
        let mut state = self.state();
        state.check_dir(Step::Cleanup, dir)?;
        state.audit_idle("cleanup", dir);
        if let Some(folder) = state.folders.remove(dir) {
            state.forget_ended(folder.uid);
        }
        Ok(())
    }
}

struct FakeGate {
    driver: FakeDriver,
    identity: ProcessIdentity,
    released: bool,
}

#[async_trait]
impl Gated for FakeGate {
    fn process(&self) -> &ProcessIdentity {
        &self.identity
    }

    async fn release(mut self: Box<Self>) -> Result<(), DriverError> {
        let behaviour = self.driver.state().release(self.identity.pid)?;
        self.released = true;
        if let Some((after, exit)) = behaviour.ends {
            self.driver.end_later(self.identity.pid, after, exit);
        }
        Ok(())
    }
}

impl Drop for FakeGate {
    fn drop(&mut self) {
        let mut state = self.driver.state();
        if !self.released {
            state.forget(self.identity.pid);
        }
    }
}
