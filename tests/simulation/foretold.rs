//! What `vmlet diff` foretells is what the engine does: random edits, foretold and then applied.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use vmlet::diff::{Difference, Look, Outcome, Process, Running, Scope, difference};
use vmlet::manifest::{FileState, Held, MassDeleteSettings, Snapshot};
use vmlet::object::{Kind, ObjectKey, Uid};
use vmlet::store::{Record, Run};
use vmlet::testing::{Options, Simulation, Trouble};

use crate::schedule::{image, vm};
use crate::threads;

const PATIENCE: Duration = Duration::from_secs(3600);
const SOURCE: &str = "directory:/simulated/manifests";
const VMS: [&str; 4] = ["a", "b", "c", "d"];

/// A VM's spec, field by field.
type Spec = BTreeMap<&'static str, &'static str>;

/// All values of each field. No two images are one digest: whether they are, nobody can foretell.
const FIELDS: [(&str, &[&str]); 9] = [
    ("image", &["{name: i0}", "{name: i1}", "{oci: 'o/a:1'}", "{oci: 'o/b:1'}"]),
    ("memory", &["128Mi", "256Mi"]),
    ("cpus", &["1", "2"]),
    ("rootDisk", &["{size: 1Gi}", "{size: 2Gi}"]),
    ("env", &["[]", "[{name: A, value: b}]"]),
    ("network", &["{}", "{mode: user}", "{mode: none}"]),
    ("runPolicy", &["Always", "Always", "RerunOnFailure", "Halted"]),
    ("terminationGracePeriodSeconds", &["1", "10"]),
    ("priority", &["0", "7"]),
];

#[derive(Clone, Default)]
struct Folder {
    images: [usize; 2],
    vms: BTreeMap<&'static str, (&'static str, Spec)>,
}

impl Folder {
    fn edit(&mut self, dice: &mut StdRng) {
        for number in &mut self.images {
            *number += usize::from(dice.random_bool(0.2));
        }
        for name in VMS {
            let Some((label, spec)) = self.vms.get_mut(name) else {
                if dice.random_bool(0.6) {
                    let spec = FIELDS.iter().map(|(field, values)| (*field, *values.choose(dice).unwrap()));
                    self.vms.insert(name, ("x", spec.collect()));
                }
                continue;
            };
            match dice.random_range(0..10) {
                0 => drop(self.vms.remove(name)),
                1 => *label = if *label == "x" { "y" } else { "x" },
                2..6 => {
                    for _ in 0..dice.random_range(1..3) {
                        let (field, values) = FIELDS.choose(dice).unwrap();
                        spec.insert(field, values.choose(dice).unwrap());
                    }
                }
                _ => {}
            }
        }
    }

    fn snapshot(&self) -> Snapshot {
        let mut files = BTreeMap::new();
        let mut add = |name: String, text: String| {
            let path = PathBuf::from(format!("{name}.yaml"));
            files.insert(path.clone(), FileState::of(&path, text.as_bytes()));
        };
        for (index, number) in self.images.iter().enumerate() {
            add(format!("i{index}"), image(&format!("i{index}"), &format!("i{index}/a:{number}")));
        }
        for (name, (label, spec)) in &self.vms {
            let fields: Vec<String> = spec.iter().map(|(field, value)| format!("{field}: {value}")).collect();
            add((*name).to_owned(), vm(name, label, &format!("{{{}}}", fields.join(", "))));
        }
        Snapshot { complete: true, files, trouble: Vec::new() }
    }
}

fn running(sim: &Simulation) -> Vec<Running> {
    let of = |record: &Record| {
        let process = match record {
            Record::Vm(vm) => match vm.run.clone() {
                Run::Idle => Process::Idle,
                Run::Up { spec: started, .. } => Process::Up { started },
                Run::Ended { spec: started } => {
                    Process::Ended { started, code: vm.last_exit.as_ref().and_then(|exit| exit.code) }
                }
            },
            Record::Image(_) => Process::Idle,
        };
        Running { held: Held::from(record), source: record.origin().source.clone(), process }
    };
    sim.objects().iter().map(of).collect()
}

/// Of each VM: who it is, how often it was started, whether it runs.
fn vms(sim: &Simulation) -> BTreeMap<ObjectKey, (Uid, u32, bool)> {
    let of = |record: Record| match record {
        Record::Vm(vm) => {
            let up = matches!(vm.run, Run::Up { .. });
            Some((vm.object.key(), (vm.object.metadata.uid.unwrap(), vm.starts, up)))
        }
        Record::Image(_) => None,
    };
    sim.objects().into_iter().filter_map(of).collect()
}

fn settle(sim: &mut Simulation) -> Result<(), String> {
    sim.run_until_converged(PATIENCE).map(drop).map_err(|open| open.join("\n"))
}

/// What does not come as it was foretold of a VM.
fn untrue(
    foretold: &Difference,
    key: &ObjectKey,
    before: Option<&(Uid, u32, bool)>,
    after: Option<&(Uid, u32, bool)>,
) -> Option<String> {
    let own = foretold.changes.iter().find(|change| change.object == *key).map(|change| change.outcome);
    let own = own.unwrap_or(Outcome::None);
    let follows =
        foretold.changes.iter().any(|change| change.outcome == Outcome::Pull && change.vms.contains(key));
    let restarts = u32::from(matches!(own, Outcome::Restart | Outcome::Recreate)) + u32::from(follows);
    let right = match (before, after) {
        (None, Some((_, starts, up))) => {
            !follows && (*starts, *up) == if own == Outcome::Start { (1, true) } else { (0, false) }
        }
        (Some((.., up)), None) => own == if *up { Outcome::Stop } else { Outcome::Remove },
        (Some((old, started, was_up)), Some((new, starts, up))) => {
            let again = starts - started;
            let fits = match own {
                Outcome::Stop => again == 0 && !up && !follows,
                Outcome::Start => again == 1 && *up,
                _ if restarts > 0 => (1..=restarts).contains(&again) && *up,
                Outcome::None => again == 0 && up == was_up,
                _ => false,
            };
            fits && old == new
        }
        (None, None) => own == Outcome::None,
    };
    let foretold = format!("{own:?}{}", if follows { " and a new image" } else { "" });
    (!right).then(|| format!("{key}: foretold was {foretold}, from {before:?} it came to {after:?}"))
}

fn check(seed: u64) -> Result<(), String> {
    let mut dice = StdRng::seed_from_u64(seed);
    let mut sim = Simulation::new(seed, Options { trouble: Trouble::SHUFFLED, ..Options::default() });
    let mut folder = Folder::default();
    for round in 0..8 {
        folder.edit(&mut dice);
        let snapshot = folder.snapshot();
        let look = Look { snapshot: snapshot.clone(), scope: Scope::Source(SOURCE.to_owned()) };
        let foretold = difference(&running(&sim), &[look], MassDeleteSettings::default());
        let before = vms(&sim);
        sim.replace(snapshot);
        settle(&mut sim)?;
        let after = vms(&sim);
        for name in VMS {
            let key = ObjectKey::new(Kind::Vm, "default", name);
            if let Some(why) = untrue(&foretold, &key, before.get(&key), after.get(&key)) {
                let timeline: Vec<String> = sim.timeline().iter().map(ToString::to_string).collect();
                return Err(format!(
                    "round {round}: {why}\n{:#?}\n{}",
                    foretold.changes,
                    timeline.join("\n")
                ));
            }
        }
    }
    Ok(())
}

#[test]
fn the_engine_does_what_diff_foretells() {
    let failed = threads::each(0..150, check);
    assert!(failed.is_empty(), "{} seeds, the first: seed {}: {}", failed.len(), failed[0].0, failed[0].1);
}
