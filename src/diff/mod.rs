//! What manifests would change against what runs, before it happens. Pure.
//!
//! ```text
//!  looks at manifests ──┐ manifest::changes        (what the daemon would declare and delete)
//!  what the daemon runs ┴▶ object_changes, rules ─▶ Difference ─▶ the command line renders it
//! ```
//!
//! Guaranteed: it decides nothing itself. What is declared, deleted or held back is what
//! [`changes`] says, the effects are those that the fields declare, and what becomes
//! of a process is what the reconcile's own rules say.

mod consequence;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

use crate::manifest::{
    About, CONFLICT, Change, FileState, Held, MASS_DELETE, MassDeleteGuard, MassDeleteSettings, Snapshot,
    changes,
};
use crate::object::{AnyObject, FieldChange, Kind, ObjectKey, Shared, VmSpec, object_changes};
use crate::store::Origin;

/// One object as the daemon holds it.
#[derive(Clone, Debug, PartialEq)]
pub struct Running {
    /// Its declaration in force.
    pub held: Held,
    /// The source that owns it: `directory:/etc/vmlet/manifests`.
    pub source: String,
    /// A VM's process; none of an image.
    pub process: Process,
}

/// A VM's process.
#[derive(Clone, Debug, PartialEq)]
pub enum Process {
    /// There is none (yet).
    Idle,
    /// It runs.
    Up {
        /// The spec that it was started with.
        started: Shared<VmSpec>,
    },
    /// It has ended, and is not started again as things are.
    Ended {
        /// The spec that ran.
        started: Shared<VmSpec>,
        /// The workload's exit code.
        code: Option<i32>,
    },
}

/// Manifests to compare with what runs.
#[derive(Clone, Debug)]
pub struct Look {
    /// What they declare.
    pub snapshot: Snapshot,
    /// What they stand for.
    pub scope: Scope,
}

/// What manifests stand for.
#[derive(Clone, Debug, PartialEq)]
pub enum Scope {
    /// All that a source declares: what it does not declare is deleted.
    Source(String),
    /// The same look, but only the objects that these files declare count.
    Files {
        /// The source.
        source: String,
        /// Paths below its folder.
        files: BTreeSet<PathBuf>,
    },
    /// Copies, or manifests that are not in place yet: compared with the objects of their names, wherever
    /// those are declared.
    Elsewhere,
}

/// What would change.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// The objects: those that go last, VMs before images, by namespace and name.
    pub changes: Vec<ObjectDifference>,
    /// Declarations that the daemon would not use: of an object that another file declares, or that would wait
    /// for itself.
    pub refused: Vec<String>,
    /// What else there is to know.
    pub notes: Vec<String>,
}

/// What would change of one object.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectDifference {
    /// The object.
    pub object: ObjectKey,
    /// What happens to its declaration.
    pub action: Action,
    /// The file that declares it, or did.
    pub path: PathBuf,
    /// Where in it, from 1.
    pub line: u32,
    /// The fields that differ; none of an object that appears or goes.
    pub fields: Vec<FieldChange>,
    /// What becomes of it.
    pub outcome: Outcome,
    /// VMs that follow: those that run on a changed image, or hold one that is to be deleted.
    pub vms: Vec<ObjectKey>,
    /// The `Image` object that the VM would wait for, because it does not exist.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<ObjectKey>,
}

/// What happens to a declaration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// It is new.
    Create,
    /// It is new, but the former object of its name is still being deleted.
    Recreate,
    /// It says something else.
    Update,
    /// It is gone; the file may be, too.
    Delete {
        /// Whether its file is there.
        #[serde(rename = "fileExists")]
        file_exists: bool,
        /// Too much would be deleted at once: it stays for now.
        #[serde(rename = "heldBack")]
        held_back: bool,
    },
}

/// What becomes of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// Nothing that one could see from outside; a VM that does not run applies it at its next start.
    None,
    /// The VM starts.
    Start,
    /// The VM shuts down.
    Stop,
    /// The VM shuts down and starts again on its disk.
    Restart,
    /// The VM shuts down, and starts again on a new root disk.
    Recreate,
    /// The image is pulled, unless its disk is there.
    Pull,
    /// The image's kernel is made ready.
    Kernel,
    /// The image stays until no VM names it.
    Held,
    /// The object goes, and what it had.
    Remove,
}

impl Difference {
    /// Whether nothing would change.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// The VMs that shut down and start again.
    pub fn restarts(&self) -> BTreeSet<&ObjectKey> {
        let own = |change: &ObjectDifference| matches!(change.outcome, Outcome::Restart | Outcome::Recreate);
        let follow =
            self.changes.iter().filter(|change| matches!(change.outcome, Outcome::Pull | Outcome::Kernel));
        let own = self.changes.iter().filter(|change| own(change)).map(|change| &change.object);
        own.chain(follow.flat_map(|change| &change.vms)).collect()
    }
}

/// Compares. `running` is everything that the daemon holds; `settings` are the daemon's.
pub fn difference(running: &[Running], looks: &[Look], settings: MassDeleteSettings) -> Difference {
    let mut folds = Vec::new();
    for look in looks {
        let mut fold = Fold { running, look, difference: Difference::default(), wanted: BTreeMap::new() };
        fold.run(settings);
        folds.push((fold.difference, fold.wanted));
    }
    let mut difference = Difference::default();
    let mut wanted = BTreeMap::new();
    for (part, objects) in folds {
        difference.changes.extend(part.changes);
        difference.refused.extend(part.refused);
        difference.notes.extend(part.notes);
        wanted.extend(objects);
    }
    difference.changes.sort_by(|a, b| order(a).cmp(&order(b)));
    difference.changes.dedup_by(|a, b| a.object == b.object);
    consequence::foresee(running, &wanted, &mut difference);
    difference
}

/// As people read it: what goes comes last, and VMs before images.
fn order(change: &ObjectDifference) -> (bool, Reverse<Kind>, &ObjectKey) {
    (matches!(change.action, Action::Delete { .. }), Reverse(change.object.kind), &change.object)
}

/// One look, folded.
struct Fold<'a> {
    running: &'a [Running],
    look: &'a Look,
    difference: Difference,
    /// The new state of each object that changes; none of one that goes.
    wanted: BTreeMap<ObjectKey, Option<AnyObject>>,
}

impl Fold<'_> {
    fn run(&mut self, settings: MassDeleteSettings) {
        let declared = declared(&self.look.snapshot);
        let counts: Box<dyn Fn(&ObjectKey) -> bool> = match &self.look.scope {
            Scope::Files { files, .. } => {
                let chosen: BTreeSet<ObjectKey> = declared
                    .iter()
                    .filter(|(_, paths)| paths.iter().any(|path| files.contains(*path)))
                    .map(|(key, _)| key.clone())
                    .collect();
                Box::new(move |key| chosen.contains(key))
            }
            Scope::Source(_) | Scope::Elsewhere => Box::new(|_| true),
        };
        let held = self.held(&declared);
        let mut guard = MassDeleteGuard::new(settings);
        for change in changes(&held, &self.look.snapshot, &mut guard, Instant::now()) {
            match change {
                Change::Declare { object, path, line, .. } if counts(&object.key()) => {
                    self.declare(*object, path, line);
                }
                Change::Undeclare(key) if counts(&key) => self.delete(&key, false),
                Change::Problem { key, problem: Some(problem) } if counts(&key) => {
                    match problem.reason.as_str() {
                        MASS_DELETE => self.delete(&key, true),
                        // The warning says it.
                        CONFLICT => {}
                        _ => self.difference.notes.push(format!("{key}: {}", problem.message)),
                    }
                }
                Change::Warning { about: About::Object(key), message, .. } if counts(&key) => {
                    self.difference.refused.push(message);
                }
                Change::Warning { about: About::Folder, reason: MASS_DELETE, message }
                    if matches!(self.look.scope, Scope::Source(_)) =>
                {
                    self.difference.notes.push(message);
                }
                _ => {}
            }
        }
        for (key, paths) in declared.iter().filter(|(key, _)| counts(key)) {
            if held.iter().any(|held| held.terminating && held.object.key() == *key) {
                self.again(key, paths);
            }
        }
    }

    /// What the look is compared with. Notes of earlier problems are left out, so that all are told anew.
    fn held(&self, declared: &BTreeMap<ObjectKey, Vec<&Path>>) -> Vec<Held> {
        let own = |running: &&Running| match &self.look.scope {
            Scope::Source(source) | Scope::Files { source, .. } => running.source == *source,
            Scope::Elsewhere => declared.contains_key(&running.held.object.key()),
        };
        let held = self.running.iter().filter(own).map(|running| {
            let mut held = Held { problem: None, ..running.held.clone() };
            if self.look.scope == Scope::Elsewhere
                && let Some(path) = declared.get(&held.object.key()).and_then(|paths| paths.first())
            {
                held.path = path.to_path_buf();
            }
            held
        });
        held.collect()
    }

    fn find(&self, key: &ObjectKey) -> Option<&Running> {
        self.running.iter().find(|running| running.held.object.key() == *key)
    }

    fn declare(&mut self, object: AnyObject, path: PathBuf, line: u32) {
        let key = object.key();
        let old = self.find(&key);
        if let (Some(old), Scope::Source(source) | Scope::Files { source, .. }) = (old, &self.look.scope)
            && old.source != *source
        {
            let held = &old.held;
            let place = Origin { source: old.source.clone(), path: held.path.clone(), line: held.line };
            let message = format!("{}:{line} declares {key}, which {place} declares already", path.display());
            self.difference.refused.push(message);
            return;
        }
        let (action, fields) = match old {
            None => (Action::Create, Vec::new()),
            Some(old) => (Action::Update, object_changes(&old.held.object, &object)),
        };
        if action == Action::Create || !fields.is_empty() {
            self.push(key.clone(), action, path, line, fields);
            self.wanted.insert(key, Some(object));
        }
    }

    fn delete(&mut self, key: &ObjectKey, held_back: bool) {
        let Some(old) = self.find(key) else { return };
        let (path, line) = (old.held.path.clone(), old.held.line);
        let file_exists = self.look.snapshot.files.contains_key(&path);
        self.push(key.clone(), Action::Delete { file_exists, held_back }, path, line, Vec::new());
        if !held_back {
            self.wanted.insert(key.clone(), None);
        }
    }

    /// An object that is being deleted is declared: it comes back as another.
    fn again(&mut self, key: &ObjectKey, paths: &[&Path]) {
        let Some(path) = paths.first() else { return };
        let Some(FileState::Good(objects)) = self.look.snapshot.files.get(*path) else { return };
        let Some(located) = objects.iter().find(|located| located.object.key() == *key) else { return };
        self.push(key.clone(), Action::Recreate, path.to_path_buf(), located.line, Vec::new());
        self.wanted.insert(key.clone(), Some(located.object.clone()));
    }

    fn push(
        &mut self,
        object: ObjectKey,
        action: Action,
        path: PathBuf,
        line: u32,
        fields: Vec<FieldChange>,
    ) {
        let (outcome, vms, waits_for) = (Outcome::None, Vec::new(), None);
        let change = ObjectDifference { object, action, path, line, fields, outcome, vms, waits_for };
        self.difference.changes.push(change);
    }
}

/// The files that declare each object, in their order.
fn declared(snapshot: &Snapshot) -> BTreeMap<ObjectKey, Vec<&Path>> {
    let mut declared: BTreeMap<ObjectKey, Vec<&Path>> = BTreeMap::new();
    for (path, state) in &snapshot.files {
        let FileState::Good(objects) = state else { continue };
        for located in objects.iter() {
            declared.entry(located.object.key()).or_default().push(path);
        }
    }
    declared
}
