//! What was ever done to the world, and how much of it at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{State, World};

#[derive(Default)]
pub(in crate::testing) struct Tally {
    /// Pulls that were begun, by source.
    pub(in crate::testing) pulls: BTreeMap<String, u32>,
    pulling: usize,
    /// Pulls that ran at once, at most.
    pub(in crate::testing) most_pulling: usize,
    /// Base disks that were removed.
    pub(in crate::testing) removals: u32,
    /// Processes that may be in their boot.
    booting: Vec<u32>,
    /// VMs that were in their boot at once, at most.
    pub(in crate::testing) most_booting: usize,
}

impl State {
    /// A process has passed its gate.
    pub(super) fn count_boot(&mut self, pid: u32) {
        let now = self.now();
        let State { tally, processes, .. } = self;
        tally.booting.retain(|pid| processes.get(*pid).is_some_and(|process| process.boots(now)));
        tally.booting.push(pid);
        tally.most_booting = tally.most_booting.max(tally.booting.len());
    }
}

/// A pull, counted for as long as it runs, cancelled or not.
pub(super) struct Pulling(Arc<World>);

impl Pulling {
    pub(super) fn begin(world: &Arc<World>, source: String) -> Self {
        let tally = &mut world.lock().tally;
        *tally.pulls.entry(source).or_default() += 1;
        tally.pulling += 1;
        tally.most_pulling = tally.most_pulling.max(tally.pulling);
        Pulling(world.clone())
    }
}

impl Drop for Pulling {
    fn drop(&mut self) {
        self.0.lock().tally.pulling -= 1;
    }
}
