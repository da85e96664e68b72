//! Scenarios: a folder of manifests, a bad day, and what is expected of it.
//!
//! ```text
//!  DIR ──scan──▶ Snapshot ─┐
//!  FILE ─────────decode────┴─load─▶ Scenario ──run(seed)──▶ Outcome     judge: is all as expected?
//! ```
//!
//! In: files, read once, strictly: unknown fields, names that no manifest declares and scripts that
//! nothing would meet are errors with their places. Out: what happened and what is not as expected.
//! Guaranteed: equal files and seeds give equal outcomes.

mod file;
mod folder;
mod judge;
mod load;
mod steps;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use self::file::{Expectation, File, Room};
use super::life::calendar;
use super::timeline::{Entry, Teller};
use super::trouble::{Action, Trouble, VmScript};
use super::{ImageScript, Options, Simulation};
use crate::manifest::{Snapshot, fields};
use crate::object::ObjectKey;
use crate::store::Record;

/// A folder of manifests and what befalls it.
///
/// ```no_run
/// # use std::path::Path;
/// use vmlet::testing::Scenario;
///
/// let scenario = Scenario::load(Path::new("manifests"), Some(Path::new("bad-day.yaml")));
/// let scenario = scenario.expect("both are valid");
/// for seed in 0..100 {
///     let outcome = scenario.run(seed);
///     assert!(outcome.violations.is_empty(), "seed {seed}: {:#?}", outcome.violations);
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The file, as it was named.
    path: PathBuf,
    manifests: Arc<Snapshot>,
    duration: Duration,
    trouble: Trouble,
    room: Option<Room>,
    images: Vec<(String, ImageScript)>,
    vms: Vec<(ObjectKey, VmScript)>,
    steps: Vec<(Duration, Action)>,
    /// With the lines that they are in.
    expectations: Vec<(u32, Expectation)>,
}

/// What came of a scenario.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The seed that it followed from.
    pub seed: u64,
    /// How long was simulated.
    pub duration: Duration,
    /// When the last status changed, if all is settled in the end.
    pub settled: Option<Duration>,
    /// The end, by the simulated calendar.
    pub ended: Timestamp,
    /// Everything that happened, in order.
    pub timeline: Vec<Entry>,
    /// Every object in the end, images first.
    pub objects: Vec<Record>,
    /// What is not as expected, and what must never be. Empty: a good end.
    pub violations: Vec<String>,
}

impl Scenario {
    /// Lives through it.
    pub fn run(&self, seed: u64) -> Outcome {
        let mut sim = self.simulation(seed);
        let mut violations = Vec::new();
        let mut due: Vec<_> = self.expectations.iter().collect();
        due.sort_by_key(|(_, expected)| expected.at);
        for (line, expected) in due {
            let Some(at) = expected.at else { continue };
            sim.run_for(at.get().saturating_sub(sim.now()));
            violations.extend(self.judge(*line, expected, &sim));
        }
        sim.run_for(self.duration.saturating_sub(sim.now()));
        violations.extend(self.judge_end(&sim));
        let timeline = sim.timeline();
        let last = timeline.iter().rev().find(|entry| entry.teller == Teller::Status);
        Outcome {
            seed,
            duration: self.duration,
            settled: last.map(|entry| entry.at).filter(|_| sim.unsettled().is_empty()),
            ended: calendar(self.duration),
            objects: sim.objects(),
            timeline,
            violations,
        }
    }

    fn simulation(&self, seed: u64) -> Simulation {
        let mut options = Options { trouble: self.trouble, ..Options::default() };
        if let Some(room) = self.room {
            let capacity = &mut options.settings.capacity;
            capacity.memory = room.memory.unwrap_or(capacity.memory);
            capacity.cpus = room.cpus.unwrap_or(capacity.cpus);
            capacity.disk = room.disk.unwrap_or(capacity.disk);
        }
        let mut sim = Simulation::new(seed, options);
        for (reference, script) in &self.images {
            sim.script_image(reference, script.clone());
        }
        for (key, script) in &self.vms {
            sim.script_vm(key.clone(), script.clone());
        }
        sim.replace(Snapshot::clone(&self.manifests));
        for (at, action) in &self.steps {
            sim.at(*at, action.clone());
        }
        sim
    }
}

/// The text of `docs/scenarios.md`.
pub fn reference() -> String {
    format!("{}{}", include_str!("reference.md"), fields::<File>())
}
