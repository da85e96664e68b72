//! A VMM process and its guest as a course of time: what it is at any instant is computed from its
//! script and what was done to it. Pure.

use std::path::PathBuf;
use std::time::Duration;

use vmlet_wire::GuestState;

use super::{State, World};
use crate::hypervisor::{Launch, ProcessIdentity, VmmExit};
use crate::latest;
use crate::object::ObjectKey;
use crate::testing::VmScript;
use crate::testing::trouble::WorkloadExit;

/// From the end of a workload until its VM is off.
const POWER_OFF: Duration = Duration::from_millis(100);
/// From the request for a shutdown until the workload has ended.
const SHUTDOWN: Duration = Duration::from_millis(50);
/// From the power button until the VM is off.
const BUTTON: Duration = Duration::from_millis(500);
/// From the start of a boot until its kernel panics.
const PANIC: Duration = Duration::from_millis(700);
/// How long a promotion's guest reads.
const EXPORT: Duration = Duration::from_secs(2);
/// SIGSEGV.
const SEGV: i32 = 11;
/// How long a workload runs at most that chance has end by itself.
const RUN: Duration = Duration::from_secs(30);

/// A process, gated or running or ended.
pub(in crate::testing) struct Process {
    pub(in crate::testing) identity: ProcessIdentity,
    pub(in crate::testing) launch: Launch,
    /// When it passed its gate.
    pub(super) released: Option<Duration>,
    pub(super) course: Course,
    /// When the guest was asked to shut down.
    pub(super) shutdown: Option<Duration>,
    /// When the power button was pressed.
    pub(super) button: Option<Duration>,
    /// When the workload was ended from outside, and its code.
    pub(super) ended: Option<(Duration, i32)>,
    /// When it was killed.
    pub(super) killed: Option<(Duration, VmmExit)>,
    /// Told whenever one of these is set.
    pub(super) changed: latest::Sender<()>,
}

/// How a run goes if nobody interferes. Times count from the release.
#[derive(Clone, Debug, Default)]
pub(super) struct Course {
    /// The guest's first word; none never comes.
    word: Option<Duration>,
    /// The workload is ready.
    ready: Duration,
    panic: bool,
    exit: Option<(Duration, i32)>,
    deaf: bool,
    /// The VM does not power off when its workload has ended.
    lingers: bool,
}

impl Process {
    pub(super) fn new(identity: ProcessIdentity, launch: Launch) -> Self {
        Process {
            identity,
            launch,
            released: None,
            course: Course::default(),
            shutdown: None,
            button: None,
            ended: None,
            killed: None,
            changed: latest::Sender::new(()),
        }
    }

    /// Whether it has passed its gate and not ended.
    pub(in crate::testing) fn runs(&self, now: Duration) -> bool {
        self.released.is_some() && self.end().is_none_or(|(at, _)| at > now)
    }

    /// Whether it has passed its gate and is over.
    pub(super) fn has_ended(&self, now: Duration) -> bool {
        self.released.is_some() && !self.runs(now)
    }

    /// Whether it runs and its guest has not been heard of.
    pub(super) fn boots(&self, now: Duration) -> bool {
        self.runs(now) && self.word().is_none_or(|word| word > now)
    }

    /// Where its base disk is.
    pub(in crate::testing) fn base(&self) -> &PathBuf {
        &self.launch.base_disk
    }

    /// When and how it ends, as far as that is certain now.
    pub(super) fn end(&self) -> Option<(Duration, VmmExit)> {
        let released = self.released;
        let panic = released.filter(|_| self.course.panic).map(|at| {
            let message = "Kernel panic - not syncing: as scripted".to_owned();
            (at + PANIC, VmmExit { code: Some(0), signal: None, workload: None, message })
        });
        let workload = self.workload_end().filter(|_| !self.course.lingers);
        let workload = workload.map(|(at, code)| (at + POWER_OFF, powered_off(Some(code))));
        let button = self.button.filter(|_| !self.course.deaf);
        let button = button.map(|at| (at + BUTTON, powered_off(None)));
        let ends = [self.killed.clone(), panic, workload, button];
        ends.into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    fn workload_end(&self) -> Option<(Duration, i32)> {
        let word = self.released? + self.course.word?;
        let own = self.course.exit.map(|(after, code)| (word + self.course.ready + after, code));
        let asked = self.shutdown.filter(|_| !self.course.deaf).map(|at| (at + SHUTDOWN, 0));
        [own, asked, self.ended].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// What the guest says now; none before its first word.
    pub(in crate::testing) fn guest(&self, now: Duration) -> Option<GuestState> {
        let word = self.word()?;
        if now < word {
            return None;
        }
        Some(match self.workload_end() {
            Some((at, code)) if now >= at => GuestState::Exited { code },
            _ if now >= word + self.course.ready => GuestState::Ready,
            _ => GuestState::Starting,
        })
    }

    /// When the guest says its first word.
    pub(super) fn word(&self) -> Option<Duration> {
        Some(self.released? + self.course.word?)
    }

    /// The next instant at which any of this changes by itself.
    pub(super) fn next_change(&self, now: Duration) -> Option<Duration> {
        let word = self.word();
        let ready = word.map(|word| word + self.course.ready);
        let workload = self.workload_end().map(|(at, _)| at);
        let end = self.end().map(|(at, _)| at);
        [word, ready, workload, end].into_iter().flatten().filter(|at| *at > now).min()
    }
}

fn powered_off(workload: Option<i32>) -> VmmExit {
    VmmExit { code: Some(0), signal: None, workload, message: String::new() }
}

/// The end that a signal makes.
pub(super) fn signalled(signal: i32) -> VmmExit {
    VmmExit { code: None, signal: Some(signal), workload: None, message: String::new() }
}

impl State {
    /// How a VM behaves: by its own script, which is that of all others if it had none.
    pub(super) fn script(&mut self, key: &ObjectKey) -> &mut VmScript {
        self.vm_scripts.entry(key.clone()).or_insert_with(|| self.usual_vm.clone())
    }

    /// How a run of this VM will go, and whose fault it is if it does not go well.
    pub(super) fn course(&mut self, launch: &Launch) -> Course {
        let script = self.script(&launch.key);
        let (hangs, panics) = (script.hangs > 0, script.hangs == 0 && script.panics > 0);
        script.hangs = script.hangs.saturating_sub(1);
        script.panics = script.panics.saturating_sub(u32::from(panics));
        let exit = script.exit.as_mut().and_then(scripted_exit);
        let VmScript { boot, workload, deaf, .. } = script.clone();
        let trouble = self.trouble;
        let exit = if launch.export.is_some() { Some((EXPORT, 0)) } else { exit };
        let course = Course {
            word: (!hangs && !self.chance(trouble.hangs)).then_some(boot),
            ready: workload,
            panic: panics || self.chance(trouble.panics),
            exit: exit.or_else(|| {
                let ends = self.chance(trouble.exits);
                ends.then(|| (self.while_(RUN), i32::from(self.chance(0.5))))
            }),
            deaf: deaf || self.chance(trouble.deaf),
            lingers: launch.export.is_none() && self.chance(trouble.lingering),
        };
        if course.word.is_none() || course.panic || course.exit.is_some() {
            self.blame(launch.uid);
        }
        course
    }
}

impl World {
    /// The host loses its power.
    pub(in crate::testing) fn reboot(&self) {
        let mut state = self.lock();
        state.boot += 1;
        let lost = std::mem::take(&mut state.processes);
        for process in lost.all() {
            state.blame(process.launch.uid);
        }
        state.attached.clear();
    }

    /// The VMM of a VM dies of a signal, if it runs. Whether it did.
    pub(in crate::testing) fn kill_vmm(&self, key: &ObjectKey) -> bool {
        self.disturb(key, |process, now| process.killed = Some((now, signalled(SEGV))))
    }

    /// The workload of a VM ends, if its guest is up. Whether the VM ran.
    pub(in crate::testing) fn end_workload(&self, key: &ObjectKey, code: i32) -> bool {
        self.disturb(key, |process, now| {
            if process.guest(now).is_some() {
                process.ended.get_or_insert((now, code));
            }
        })
    }

    fn disturb(&self, key: &ObjectKey, how: impl Fn(&mut Process, Duration)) -> bool {
        let mut state = self.lock();
        let now = state.now();
        let of_key = |process: &&mut Process| process.launch.key == *key && process.runs(now);
        let disturbed = state.processes.all_mut().find(of_key).map(|process| {
            how(process, now);
            process.changed.send_replace(());
            process.launch.uid
        });
        if let Some(uid) = disturbed {
            state.blame(uid);
        }
        disturbed.is_some()
    }
}

/// The end of the next run, if it has one.
fn scripted_exit(exit: &mut WorkloadExit) -> Option<(Duration, i32)> {
    match &mut exit.times {
        Some(0) => None,
        Some(times) => {
            *times -= 1;
            Some((exit.after, exit.code))
        }
        None => Some((exit.after, exit.code)),
    }
}
