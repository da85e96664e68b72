//! The processes of the host: by number, as a kernel finds them, and by folder and VM.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Process;
use crate::object::Uid;

/// With fewer processes, each new one takes the lowest number that is free. With more, the numbers of those
/// that have ended are given back in one go, once their count has doubled.
const FEW: usize = 64;

#[derive(Default)]
pub(in crate::testing) struct Processes {
    by_pid: BTreeMap<u32, Process>,
    by_dir: BTreeMap<PathBuf, BTreeSet<u32>>,
    by_uid: BTreeMap<Uid, BTreeSet<u32>>,
    /// No number up to this one is free.
    taken: u32,
    /// How many there were when those that had ended were forgotten last.
    left: usize,
}

impl Processes {
    pub(super) fn get(&self, pid: u32) -> Option<&Process> {
        self.by_pid.get(&pid)
    }

    pub(super) fn get_mut(&mut self, pid: u32) -> Option<&mut Process> {
        self.by_pid.get_mut(&pid)
    }

    pub(in crate::testing) fn all(&self) -> impl Iterator<Item = &Process> {
        self.by_pid.values()
    }

    pub(super) fn all_mut(&mut self) -> impl Iterator<Item = &mut Process> {
        self.by_pid.values_mut()
    }

    /// The process that runs in a folder.
    pub(super) fn running_in(&self, dir: &Path, now: Duration) -> Option<&Process> {
        self.running(self.by_dir.get(dir), now).next()
    }

    /// The processes that run as a VM: one, if callers do right.
    pub(super) fn running_as(&self, uid: Uid, now: Duration) -> impl Iterator<Item = &Process> {
        self.running(self.by_uid.get(&uid), now)
    }

    fn running<'a>(
        &'a self,
        pids: Option<&'a BTreeSet<u32>>,
        now: Duration,
    ) -> impl Iterator<Item = &'a Process> {
        let known = pids.into_iter().flatten().filter_map(|pid| self.by_pid.get(pid));
        known.filter(move |process| process.runs(now))
    }

    /// The lowest free number. Numbers are reused, identities are not.
    pub(super) fn free_pid(&mut self, now: Duration) -> u32 {
        if self.by_pid.len() < FEW || self.by_pid.len() >= 2 * self.left {
            self.forget_ended(now);
        }
        let free = |pid: &u32| !self.by_pid.contains_key(pid);
        let pid = (self.taken + 1..).find(free).expect("not all are in use");
        self.taken = pid - 1;
        pid
    }

    pub(super) fn insert(&mut self, process: Process) {
        let (pid, launch) = (process.identity.pid, &process.launch);
        self.by_dir.entry(launch.dir.clone()).or_default().insert(pid);
        self.by_uid.entry(launch.uid).or_default().insert(pid);
        self.by_pid.insert(pid, process);
    }

    pub(super) fn remove(&mut self, pid: u32) -> Option<Process> {
        let process = self.by_pid.remove(&pid)?;
        take_out(&mut self.by_dir, &process.launch.dir, pid);
        take_out(&mut self.by_uid, &process.launch.uid, pid);
        self.taken = self.taken.min(pid - 1);
        Some(process)
    }

    /// Forgets those that have passed their gate and ended, and whose end nobody may still ask about.
    fn forget_ended(&mut self, now: Duration) {
        let over = |process: &&Process| process.has_ended(now) && process.changed.receiver_count() == 0;
        let ended: Vec<u32> = self.all().filter(over).map(|process| process.identity.pid).collect();
        for pid in ended {
            self.remove(pid);
        }
        self.left = self.by_pid.len();
    }
}

fn take_out<K: Ord + Clone>(index: &mut BTreeMap<K, BTreeSet<u32>>, key: &K, pid: u32) {
    let Some(pids) = index.get_mut(key) else { return };
    pids.remove(&pid);
    if pids.is_empty() {
        index.remove(key);
    }
}
