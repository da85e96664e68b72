//! What people are told of a folder's manifests: as events, and in the log.
//!
//! In: what a look at the folder found. Out: the store's events. Lasting trouble is told once, also across
//! restarts: which files had errors is read from the events that earlier daemons left.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::mem;
use std::path::{Path, PathBuf};

use super::change::{About, INVALID};
use crate::reconcile::Clock;
use crate::store::{Event, Severity, Store, Subject};

/// What had errors has none any more.
pub(super) const MENDED: &str = "ManifestGood";

pub(super) struct Recorder {
    store: Store,
    root: PathBuf,
    clock: Clock,
    /// Warnings of the last look and of this one.
    said: HashSet<String>,
    saying: HashSet<String>,
    /// Files whose latest event says that they have errors, and those that this look found errors in.
    broken: BTreeSet<PathBuf>,
    breaking: BTreeSet<PathBuf>,
}

impl Recorder {
    /// A recorder for the folder `root`.
    pub(super) fn new(store: Store, root: &Path, clock: Clock) -> Self {
        let broken = broken_files(&store.events(None)).into_keys().filter(|path| path.starts_with(root));
        Recorder {
            broken: broken.collect(),
            store,
            root: root.to_owned(),
            clock,
            said: HashSet::new(),
            saying: HashSet::new(),
            breaking: BTreeSet::new(),
        }
    }

    /// Warns of what is so at this look, unless the last one found it, too.
    pub(super) fn warn(&mut self, about: About, reason: &str, message: &str) {
        let subject = self.subject(about);
        if let (Subject::Manifest { path }, INVALID) = (&subject, reason) {
            self.breaking.insert(path.clone());
        }
        self.saying.insert(message.to_owned());
        if self.said.contains(message) {
            return;
        }
        tracing::warn!(reason, "{message}");
        self.record(subject, Severity::Warning, reason, message);
    }

    /// Tells of something that happened.
    pub(super) fn event(&self, subject: Subject, reason: &str, message: &str) {
        tracing::info!(subject = %subject, reason, "{message}");
        self.record(subject, Severity::Normal, reason, message);
    }

    /// Writes an event.
    pub(super) fn record(&self, subject: Subject, severity: Severity, reason: &str, message: &str) {
        let record = subject.object().and_then(|key| self.store.record(key));
        let uid = record.and_then(|record| record.metadata().uid);
        self.store.record_event(subject, uid, severity, reason, message, self.clock.now());
    }

    /// Ends a look, a `complete` one or not. Whether there was nothing to warn of.
    pub(super) fn end_look(&mut self, complete: bool) -> bool {
        self.said = mem::take(&mut self.saying);
        let breaking = mem::take(&mut self.breaking);
        // What could not be read now may be as broken as before.
        if complete {
            for path in self.broken.difference(&breaking).cloned() {
                self.event(Subject::Manifest { path }, MENDED, "it has no errors any more, or is gone");
            }
            self.broken = breaking;
        } else {
            self.broken.extend(breaking);
        }
        self.said.is_empty()
    }

    fn subject(&self, about: About) -> Subject {
        match about {
            About::Object(key) => Subject::Object(key),
            About::File(path) => Subject::Manifest { path: self.root.join(path) },
            About::Folder => Subject::Manifest { path: self.root.clone() },
        }
    }
}

/// The files that the events find errors in and not mended since, and the errors.
pub(crate) fn broken_files(events: &[Event]) -> BTreeMap<PathBuf, String> {
    let mut broken = BTreeMap::new();
    for event in events {
        let Subject::Manifest { path } = &event.subject else { continue };
        match event.reason.as_str() {
            INVALID => drop(broken.insert(path.clone(), event.message.clone())),
            MENDED => drop(broken.remove(path)),
            _ => {}
        }
    }
    broken
}
