//! The scripted driver: processes and folders that are entries in the world, and an audit of what no
//! caller may do with them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::process::{Process, signalled};
use super::{Effect, Refusal, State, World, guest};
use crate::hypervisor::{Driver, DriverError, Gated, GuestStream, Launch, ProcessIdentity, VmmExit};
use crate::object::{ObjectKey, Quantity, Uid};
use crate::store::{Record, Reservation, Run, VmRecord};
use crate::testing::timeline::Teller;

/// SIGKILL.
const KILL: i32 = 9;
/// How late the end of a process may be noticed.
const NOTICE: Duration = Duration::from_secs(3);
/// How long a process takes at most to die that takes its time.
const DYING: Duration = Duration::from_secs(20);

/// A VM's folder.
pub(in crate::testing) struct Folder {
    pub(in crate::testing) uid: Uid,
    pub(in crate::testing) key: ObjectKey,
    /// The private disk: the base that it belongs to, and its size.
    disk: Option<(PathBuf, Quantity)>,
}

/// The driver of one daemon.
pub(in crate::testing) struct ScriptedDriver(pub(in crate::testing) Arc<World>);

impl From<Refusal> for DriverError {
    fn from(refusal: Refusal) -> Self {
        let Refusal { reason, message, transient } = refusal;
        DriverError { reason, message, transient }
    }
}

impl ScriptedDriver {
    fn effect(&self, name: &'static str, dir: &Path) -> Effect {
        let object = self.0.lock().folders.get(dir).map(|folder| folder.key.clone());
        Effect { name, object, fate: None }
    }
}

fn absent(dir: &Path) -> Refusal {
    Refusal {
        reason: "NotConnected",
        message: format!("{}: no VM runs there", dir.display()),
        transient: true,
    }
}

impl State {
    pub(super) fn pid_in(&self, dir: &Path) -> Option<u32> {
        self.processes.running_in(dir, self.now()).map(|process| process.identity.pid)
    }

    /// The process that is exactly this one.
    fn exactly(&mut self, identity: &ProcessIdentity) -> Option<&mut Process> {
        self.processes.get_mut(identity.pid).filter(|process| process.identity == *identity)
    }

    fn audit_idle(&mut self, what: &str, dir: &Path) {
        if let Some(pid) = self.pid_in(dir) {
            self.violation(format!("{what} while process {pid} runs in {}", dir.display()));
        }
    }

    fn durable_vm(&self, key: &ObjectKey, uid: Uid) -> Option<Arc<VmRecord>> {
        match self.durable()?.record(key)? {
            Record::Vm(vm) => Some(vm).filter(|vm| vm.object.metadata.uid == Some(uid)),
            Record::Image(_) => None,
        }
    }

    /// Every effect is preceded by a durable record that says it may exist.
    fn audit_reserved(&mut self, what: &str, launch: &Launch) {
        if self.durable().is_none() {
            return;
        }
        if launch.export.is_some() {
            return self.audit_claimed(what, launch);
        }
        let reserved = self.durable_vm(&launch.key, launch.uid).and_then(|vm| vm.reservation.clone());
        let fits = |held: &Reservation| {
            held.nic == launch.nic && held.memory == launch.memory && held.disk == launch.root_size
        };
        if !reserved.as_ref().is_some_and(fits) {
            self.violation(format!("{what} of {} without a durable reservation for it", launch.key));
        }
    }

    /// A promotion is preceded by a durable claim on a VM that does not run.
    fn audit_claimed(&mut self, what: &str, launch: &Launch) {
        let record = self.durable().and_then(|store| store.record(&launch.key));
        let user = |vm: &VmRecord| vm.reservation.as_ref().and_then(|held| held.vmm_user);
        let claimed = matches!(&record, Some(Record::Vm(vm)) if vm.promotion == Some(launch.uid)
            && user(vm) == launch.vmm_user && !matches!(vm.run, Run::Up { .. }));
        if !claimed {
            self.violation(format!("{what} of {} without a durable claim on its disk", launch.key));
        }
    }

    /// A folder goes when its VM is gone or being deleted, for certain.
    fn audit_cleanup(&mut self, dir: &Path) {
        let Some(folder) = self.folders.get(dir) else { return };
        let vm = self.durable_vm(&folder.key, folder.uid);
        if vm.is_some_and(|vm| vm.object.metadata.deletion_timestamp.is_none()) {
            self.violation(format!("the folder of {} goes, though it may be needed", folder.key));
        }
    }

    fn audit_release(&mut self, pid: u32) {
        let now = self.now();
        let Some(process) = self.processes.get(pid) else { return };
        let (launch, identity) = (process.launch.clone(), process.identity.clone());
        if let Some(export) = &launch.export {
            self.audit_idle("a promotion reads", &export.of);
            return self.audit_claimed("a process", &launch);
        }
        let key = launch.key.clone();
        let mut found = Vec::new();
        let reads = |process: &&Process| {
            process.launch.export.as_ref().is_some_and(|export| export.of == launch.dir) && process.runs(now)
        };
        if self.processes.all().any(|process| reads(&process)) {
            found.push(format!("{key} boots while a promotion reads its disk"));
        }
        let rivals = self.processes.running_as(launch.uid, now);
        found.extend(rivals.map(|rival| format!("{key} runs twice: {} and {pid}", rival.identity.pid)));
        let record = self.durable_vm(&key, launch.uid);
        let recorded = |vm: Arc<VmRecord>| matches!(&vm.run, Run::Up { process, .. } if *process == identity);
        if self.durable().is_some() && !record.is_some_and(recorded) {
            found.push(format!("process {pid} of {key} is released without a durable record of it"));
        }
        let wanted = Some((launch.base_disk.clone(), launch.root_size));
        if self.folders.get(&launch.dir).is_none_or(|folder| folder.disk != wanted) {
            found.push(format!("{key} boots from a private disk that is not for this base and size"));
        }
        if !self.disks.iter().any(|digest| super::images::path(digest) == launch.base_disk) {
            found.push(format!("{key} boots from a base disk that is not there"));
        }
        if !self.has_kernel(&launch.boot) {
            found.push(format!("{key} boots a kernel that is not there"));
        }
        if let Some(nic) = &launch.nic
            && self.attached.get(&nic.mac) != Some(nic)
        {
            found.push(format!("{key} boots without its tap"));
        }
        found.into_iter().for_each(|violation| self.violation(violation));
    }

    fn boot_id(&self) -> String {
        format!("boot-{}", self.boot)
    }

    fn new_process(&mut self, launch: &Launch) -> ProcessIdentity {
        let pid = self.processes.free_pid(self.now());
        self.starts += 1;
        let identity = ProcessIdentity { pid, start_time: self.starts, boot_id: self.boot_id() };
        self.processes.insert(Process::new(identity.clone(), launch.clone()));
        identity
    }
}

#[async_trait]
impl Driver for ScriptedDriver {
    fn name(&self) -> &'static str {
        "scripted"
    }

    async fn prepare(&self, launch: &Launch) -> Result<(), DriverError> {
        let fate = Some(launch.uid.to_string());
        let effect = Effect { name: "prepare", object: Some(launch.key.clone()), fate };
        let act = |state: &mut State| {
            state.audit_idle("prepare", &launch.dir);
            state.audit_reserved("a folder", launch);
            let (uid, key) = (launch.uid, launch.key.clone());
            let folder = state.folders.entry(launch.dir.clone()).or_insert(Folder { uid, key, disk: None });
            folder.disk.get_or_insert((launch.base_disk.clone(), launch.root_size));
            Ok(())
        };
        Ok(self.0.effect(&effect, act).await?)
    }

    async fn spawn(&self, launch: &Launch) -> Result<Box<dyn Gated>, DriverError> {
        let fate = Some(launch.uid.to_string());
        let effect = Effect { name: "spawn", object: Some(launch.key.clone()), fate };
        let world = self.0.clone();
        let act = |state: &mut State| {
            state.audit_idle("spawn", &launch.dir);
            let identity = state.new_process(launch);
            Ok(ScriptedGate { world, uid: launch.uid, key: launch.key.clone(), identity, released: false })
        };
        Ok(Box::new(self.0.effect(&effect, act).await?))
    }

    async fn connect(&self, dir: &Path) -> Result<GuestStream, DriverError> {
        self.0.effect(&self.effect("connect", dir), |_| Ok(())).await?;
        let Some((pid, mut changed)) = ({
            let state = self.0.lock();
            let process = state.processes.running_in(dir, state.now());
            process.map(|process| (process.identity.pid, process.changed.subscribe()))
        }) else {
            return Err(absent(dir).into());
        };
        loop {
            let next = {
                let state = self.0.lock();
                let now = state.now();
                let process = state.processes.get(pid).filter(|process| process.runs(now));
                let process = process.ok_or_else(|| absent(dir))?;
                if process.guest(now).is_some() {
                    break;
                }
                process.next_change(now).map(|at| Instant::now() + (at - now))
            };
            tokio::select! {
                biased;
                _ = changed.changed() => {}
                () = guest::at(next) => {}
            }
        }
        Ok(guest::link(&self.0, pid).ok_or_else(|| absent(dir))?)
    }

    async fn exited(&self, _: &Path, identity: &ProcessIdentity) -> VmmExit {
        let panics = self.0.lock().scripted_panic("watch");
        assert!(!panics, "watch panics, as scripted");
        let unknown = VmmExit { code: None, signal: None, workload: None, message: String::new() };
        let notice = {
            let mut state = self.0.lock();
            let late = state.trouble.late;
            if state.chance(late) { state.while_(NOTICE) } else { Duration::ZERO }
        };
        let Some(mut changed) = self.0.lock().exactly(identity).map(|process| process.changed.subscribe())
        else {
            return unknown;
        };
        loop {
            let ends = {
                let mut state = self.0.lock();
                let now = state.now();
                let Some(process) = state.exactly(identity) else { return unknown };
                process.end().map(|(at, exit)| (Instant::now() + at.saturating_sub(now) + notice, exit))
            };
            let instant = ends.as_ref().map(|(at, _)| *at);
            tokio::select! {
                biased;
                _ = changed.changed() => {}
                () = guest::at(instant) => return ends.map_or(unknown, |(_, exit)| exit),
            }
        }
    }

    fn of_this_boot(&self, process: &ProcessIdentity) -> bool {
        process.boot_id == self.0.lock().boot_id()
    }

    fn alive(&self, process: &ProcessIdentity) -> bool {
        let mut state = self.0.lock();
        let now = state.now();
        state.exactly(process).is_some_and(|process| process.end().is_none_or(|(at, _)| at > now))
    }

    async fn power_button(&self, dir: &Path) -> Result<(), DriverError> {
        let act = |state: &mut State| {
            let (pid, now) = (state.pid_in(dir).ok_or_else(|| absent(dir))?, state.now());
            if let Some(process) = state.processes.get_mut(pid) {
                process.button.get_or_insert(now);
                process.changed.send_replace(());
            }
            Ok(())
        };
        Ok(self.0.effect(&self.effect("power button", dir), act).await?)
    }

    async fn kill(&self, identity: &ProcessIdentity) -> Result<(), DriverError> {
        let object = self.0.lock().exactly(identity).map(|process| process.launch.key.clone());
        let act = |state: &mut State| {
            let (now, undying) = (state.now(), state.trouble.undying);
            let takes = if state.chance(undying) { state.while_(DYING) } else { Duration::ZERO };
            let Some(process) = state.exactly(identity) else { return Ok(None) };
            process.killed.get_or_insert((now + takes, signalled(KILL)));
            process.changed.send_replace(());
            Ok(process.end().and_then(|(at, _)| at.checked_sub(now)))
        };
        let dies = self.0.effect(&Effect { name: "kill", object, fate: None }, act).await?;
        // As the real one does: gone when this returns.
        if let Some(left) = dies {
            tokio::time::sleep(left).await;
        }
        Ok(())
    }

    async fn evict(&self, dir: &Path) -> Result<(), DriverError> {
        let process = {
            let state = self.0.lock();
            state.processes.running_in(dir, state.now()).map(|process| process.identity.clone())
        };
        match process {
            Some(process) => self.kill(&process).await,
            None => Ok(()),
        }
    }

    async fn remove_disk(&self, dir: &Path) -> Result<(), DriverError> {
        let act = |state: &mut State| {
            state.audit_idle("remove_disk", dir);
            if let Some(folder) = state.folders.get_mut(dir) {
                folder.disk = None;
            }
            Ok(())
        };
        Ok(self.0.effect(&self.effect("remove disk", dir), act).await?)
    }

    async fn folders(&self, root: &Path) -> Result<Vec<PathBuf>, DriverError> {
        let act = |state: &mut State| {
            Ok(state.folders.keys().filter(|dir| dir.parent() == Some(root)).cloned().collect())
        };
        Ok(self.0.effect(&Effect { name: "list folders", object: None, fate: None }, act).await?)
    }

    async fn cleanup(&self, dir: &Path) -> Result<(), DriverError> {
        let act = |state: &mut State| {
            state.audit_idle("cleanup", dir);
            state.audit_cleanup(dir);
            state.folders.remove(dir);
            Ok(())
        };
        Ok(self.0.effect(&self.effect("cleanup", dir), act).await?)
    }
}

/// A process at its gate.
struct ScriptedGate {
    world: Arc<World>,
    uid: Uid,
    key: ObjectKey,
    identity: ProcessIdentity,
    released: bool,
}

#[async_trait]
impl Gated for ScriptedGate {
    fn process(&self) -> &ProcessIdentity {
        &self.identity
    }

    async fn release(mut self: Box<Self>) -> Result<(), DriverError> {
        let (world, identity, key) = (self.world.clone(), self.identity.clone(), self.key.clone());
        let released = &mut self.released;
        let act = |state: &mut State| {
            state.audit_release(identity.pid);
            let (now, pid) = (state.now(), identity.pid);
            let Some(launch) = state.processes.get(pid).map(|process| process.launch.clone()) else {
                return Err(absent(Path::new("the gate")));
            };
            let course = state.course(&launch);
            if let Some(process) = state.processes.get_mut(pid) {
                process.released = Some(now);
                process.course = course;
                process.changed.send_replace(());
            }
            state.count_boot(pid);
            *released = true;
            Ok(())
        };
        Ok(world.effect(&Effect { name: "release", object: Some(key), fate: None }, act).await?)
    }
}

impl Drop for ScriptedGate {
    /// The pipe closes, whoever closes it: the process ends.
    fn drop(&mut self) {
        if !self.released {
            let mut state = self.world.lock();
            state.blame(self.uid);
            let gone = state.processes.remove(self.identity.pid);
            if state.tells && gone.is_some() {
                state.tell(Some(self.key.clone()), Teller::World, "ends at its gate".to_owned());
            }
            drop(state);
            drop(gone);
        }
    }
}
