//! What must change in the store so that it holds what a folder declares. Pure.
//!
//! Guarantees: nothing is deleted that the folder may still declare, whether or not that can be read right
//! now; an object that moves between files is updated, never deleted and created; of two declarations of
//! one object the one in force stays in force.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::change::{About, CONFLICT, Change, Held, INVALID, MASS_DELETE, UNAVAILABLE};
use super::decode::Located;
use super::mass_delete::MassDeleteGuard;
use super::source::{Broken, FileState, Snapshot};
use crate::object::{AnyObject, ObjectKey};
use crate::store::Problem;

/// Compares what is held with what a snapshot declares.
///
/// To be called for each new snapshot, when a deleted object is gone (its name may be declared again), and at
/// [`MassDeleteGuard::due`].
pub fn changes(held: &[Held], snapshot: &Snapshot, guard: &mut MassDeleteGuard, now: Instant) -> Vec<Change> {
    let mut fold = Fold {
        snapshot,
        declared: declared(snapshot),
        held: held.iter().map(|held| (held.object.key(), held)).collect(),
        changes: Vec::new(),
    };
    fold.warn_of_files();
    let keys: BTreeSet<ObjectKey> = fold.declared.keys().chain(fold.held.keys()).cloned().collect();
    let mut deletions = BTreeSet::new();
    for key in keys {
        match fold.held.get(&key).copied() {
            None => fold.create(&key),
            Some(held) if held.terminating => fold.redeclared(&key, held),
            Some(held) if fold.keep_or_delete(&key, held) => {}
            Some(_) => {
                deletions.insert(key);
            }
        }
    }
    fold.delete(deletions, guard, now);
    fold.changes
}

/// What is left to compare of `now` when all was well with `before` and its objects were declared: the files
/// whose objects changed. None if more than that is different, so that everything must be compared.
pub(super) fn edited(before: &Snapshot, now: &Snapshot) -> Option<Snapshot> {
    if !before.complete || !now.complete || before.files.len() != now.files.len() {
        return None;
    }
    let mut files = BTreeMap::new();
    for ((path, old), (same, new)) in before.files.iter().zip(&now.files) {
        match (old, new) {
            (FileState::Good(old), FileState::Good(new)) if path == same => {
                if !Arc::ptr_eq(old, new) {
                    let keys =
                        |objects: &[Located]| objects.iter().map(|at| at.object.key()).collect::<Vec<_>>();
                    if keys(old) != keys(new) {
                        return None;
                    }
                    files.insert(path.clone(), FileState::Good(new.clone()));
                }
            }
            // Its objects stay as they are until it is settled.
            (FileState::Good(_), FileState::Unsettled) if path == same => {}
            _ => return None,
        }
    }
    Some(Snapshot { complete: true, files, trouble: Vec::new() })
}

/// A declaration: the file and the object.
type Declaration<'a> = (&'a Path, &'a Located);

fn declared(snapshot: &Snapshot) -> BTreeMap<ObjectKey, Vec<Declaration<'_>>> {
    let mut declared: BTreeMap<ObjectKey, Vec<Declaration<'_>>> = BTreeMap::new();
    for (path, state) in &snapshot.files {
        let FileState::Good(objects) = state else { continue };
        for located in objects.iter() {
            declared.entry(located.object.key()).or_default().push((path, located));
        }
    }
    declared
}

struct Fold<'a> {
    snapshot: &'a Snapshot,
    declared: BTreeMap<ObjectKey, Vec<Declaration<'a>>>,
    held: HashMap<ObjectKey, &'a Held>,
    changes: Vec<Change>,
}

/// What a file that does not declare an object (any more) says about it.
enum Silence<'a> {
    /// It is honest: the file, or its object, is gone.
    Gone,
    /// The file has errors.
    Broken(&'a Broken),
    /// Not now: something is being written or read in vain.
    Unknown,
}

impl<'a> Fold<'a> {
    fn warn(&mut self, about: About, reason: &'static str, message: String) {
        self.changes.push(Change::Warning { about, reason, message });
    }

    fn warn_of_files(&mut self) {
        for trouble in &self.snapshot.trouble {
            self.warn(About::Folder, UNAVAILABLE, format!("{trouble}; nothing is deleted meanwhile"));
        }
        for (path, state) in &self.snapshot.files {
            if let FileState::Broken(broken) = state {
                self.warn(About::File(path.clone()), INVALID, summary(broken));
            }
        }
    }

    fn create(&mut self, key: &ObjectKey) {
        let Some([first, others @ ..]) = self.declared.get(key).map(Vec::as_slice) else { return };
        let (first, others) = (*first, others.to_vec());
        self.declare(first, false);
        let problem = self.conflicts(key, first.0, first.1.line, &others);
        self.note_anew(key, problem);
    }

    fn declare(&mut self, (path, located): Declaration<'_>, take_over: bool) {
        let (object, path, line) = (Box::new(located.object.clone()), path.to_owned(), located.line);
        self.changes.push(Change::Declare { object, path, line, take_over });
    }

    /// Warns of declarations that are not in force, and says what is wrong with the object that is.
    fn conflicts(
        &mut self,
        key: &ObjectKey,
        path: &Path,
        line: u32,
        others: &[Declaration<'_>],
    ) -> Option<Problem> {
        for (other, located) in others {
            let message = format!(
                "{}:{} declares {key} too; {}:{line} stays in force: rename or remove one of the two",
                other.display(),
                located.line,
                path.display()
            );
            self.warn(About::Object(key.clone()), CONFLICT, message);
        }
        let (other, located) = others.first()?;
        let message = format!(
            "declared at {}:{line}, which is in force, and at {}:{}, which is not: rename or remove one of the two",
            path.display(),
            other.display(),
            located.line
        );
        Some(Problem { reason: CONFLICT.to_owned(), message })
    }

    /// False if the object is to be deleted.
    fn keep_or_delete(&mut self, key: &ObjectKey, held: &Held) -> bool {
        let declarations = self.declared.get(key).cloned().unwrap_or_default();
        let own = declarations.iter().position(|(path, _)| *path == held.path);
        if let Some(own) = own {
            self.update(key, held, declarations, own);
            return true;
        }
        match self.silence(&held.path) {
            Silence::Unknown => {
                if !self.snapshot.complete {
                    let message = format!("{}; the last spec stays", self.snapshot.trouble.join("; "));
                    self.problem(key, held, Some(Problem { reason: UNAVAILABLE.to_owned(), message }));
                }
                true
            }
            Silence::Broken(broken) => {
                let message = format!("{}; the last spec stays", summary(broken));
                self.problem(key, held, Some(Problem { reason: INVALID.to_owned(), message }));
                self.conflicts(key, &held.path, held.line, &declarations);
                true
            }
            Silence::Gone if declarations.is_empty() => self.moved_to_broken(key, held),
            Silence::Gone => {
                self.update(key, held, declarations, 0);
                true
            }
        }
    }

    /// The declaration at `index` is in force.
    fn update(&mut self, key: &ObjectKey, held: &Held, mut declarations: Vec<Declaration<'_>>, index: usize) {
        let (path, located) = declarations.remove(index);
        let changed = path != held.path || located.line != held.line || differ(&held.object, &located.object);
        if changed {
            self.declare((path, located), path != held.path);
        }
        let problem = self.conflicts(key, path, located.line, &declarations);
        match changed && problem.is_some() {
            true => self.note_anew(key, problem),
            false => self.problem(key, held, problem),
        }
    }

    /// A declaration ends what was noted before it: what is still wrong is said again.
    fn note_anew(&mut self, key: &ObjectKey, problem: Option<Problem>) {
        if problem.is_some() {
            self.changes.push(Change::Problem { key: key.clone(), problem });
        }
    }

    /// An object that is being deleted says whether another of its name comes after it.
    fn redeclared(&mut self, key: &ObjectKey, held: &Held) {
        let declaration = self.declared.get(key).and_then(|declarations| declarations.first());
        let problem = declaration
            .map(|(path, located)| Problem::redeclared(&format!("{}:{}", path.display(), located.line)));
        let waits = held.problem.as_ref().is_some_and(Problem::is_redeclared);
        if problem.is_some() || waits {
            self.problem(key, held, problem);
        }
    }

    fn problem(&mut self, key: &ObjectKey, held: &Held, problem: Option<Problem>) {
        if held.problem != problem {
            self.changes.push(Change::Problem { key: key.clone(), problem });
        }
    }

    /// What it means that a path declares nothing good. A link that is refused speaks for all below it.
    fn silence(&self, path: &Path) -> Silence<'a> {
        if !self.snapshot.complete && !self.snapshot.files.contains_key(path) {
            return Silence::Unknown;
        }
        for path in path.ancestors() {
            match self.snapshot.files.get(path) {
                Some(FileState::Broken(broken)) => return Silence::Broken(broken),
                Some(FileState::Unsettled) => return Silence::Unknown,
                Some(FileState::Good(_)) | None => {}
            }
        }
        Silence::Gone
    }

    /// True if the object may have moved to a file that has errors: then it stays.
    fn moved_to_broken(&mut self, key: &ObjectKey, held: &Held) -> bool {
        let mentions = |broken: &&Broken| broken.mentions(&key.name);
        let broken = self.snapshot.files.values().find_map(|state| match state {
            FileState::Broken(broken) => Some(&**broken).filter(mentions),
            _ => None,
        });
        if let Some(broken) = broken {
            let message = format!("{}; the file names {}, which stays", summary(broken), key.name);
            self.problem(key, held, Some(Problem { reason: INVALID.to_owned(), message }));
        }
        broken.is_some()
    }

    fn delete(&mut self, deletions: BTreeSet<ObjectKey>, guard: &mut MassDeleteGuard, now: Instant) {
        // While a file is being written, what seems gone may be on its way into it.
        let unsettled = self.snapshot.files.values().any(|state| *state == FileState::Unsettled);
        if !self.snapshot.complete || unsettled {
            guard.forget();
            return;
        }
        let alive = self.held.values().filter(|held| !held.terminating).count();
        match guard.refusal(&deletions, alive, now) {
            Some(warning) => {
                self.warn(About::Folder, MASS_DELETE, warning);
                for key in deletions {
                    let held = self.held[&key];
                    let message = format!(
                        "{} does not declare it any more; it stays for now because many objects are gone at once",
                        held.path.display()
                    );
                    self.problem(&key, held, Some(Problem { reason: MASS_DELETE.to_owned(), message }));
                }
            }
            None => self.changes.extend(deletions.into_iter().map(Change::Undeclare)),
        }
    }
}

/// `manifests/ci.yaml:9:3: spec.memroy is not a field of VM, did you mean …? (and 2 more errors)`
fn summary(broken: &Broken) -> String {
    let Some(first) = broken.diagnostics.first() else { return "the file has errors".to_owned() };
    let mut text = format!("{}:{}:{}: {}", first.path.display(), first.line, first.column, first.message);
    if let Some(hint) = &first.hint {
        text.push_str(&format!(" ({hint})"));
    }
    match broken.diagnostics.len() {
        1 => {}
        2 => text.push_str(" and 1 more error"),
        more => text.push_str(&format!(" and {} more errors", more - 1)),
    }
    text
}

/// Whether a declaration says something else than what is in force: spec, labels, annotations.
fn differ(held: &AnyObject, declared: &AnyObject) -> bool {
    let spec = match (held, declared) {
        (AnyObject::Vm(held), AnyObject::Vm(declared)) => held.spec != declared.spec,
        (AnyObject::Image(held), AnyObject::Image(declared)) => held.spec != declared.spec,
        _ => true,
    };
    let (held, declared) = (held.metadata(), declared.metadata());
    spec || held.labels != declared.labels || held.annotations != declared.annotations
}
