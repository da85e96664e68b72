//! Events: what happened to objects and manifests, coalesced and bounded. Recording one never waits.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Store;
use super::request::StoreSettings;
use super::row::{Row, RowKey};
use super::state::State;
use crate::object::{ObjectKey, Uid};

/// The longest reason, in bytes.
const MAX_REASON: usize = 128;
/// The longest message, in bytes (as in Kubernetes: core/v1 Event, `message`).
const MAX_MESSAGE: usize = 1024;

/// What an event is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Subject {
    /// An object.
    Object(ObjectKey),
    /// A manifest, or a folder of them, which need not declare any object that exists.
    Manifest {
        /// The whole path.
        path: PathBuf,
    },
}

impl Subject {
    /// The object, if it is one.
    pub fn object(&self) -> Option<&ObjectKey> {
        match self {
            Subject::Object(key) => Some(key),
            Subject::Manifest { .. } => None,
        }
    }
}

impl From<&ObjectKey> for Subject {
    fn from(key: &ObjectKey) -> Self {
        Subject::Object(key.clone())
    }
}

/// `vm/web`, `/etc/vmlet/manifests/web.yaml`
impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Subject::Object(key) => key.fmt(f),
            Subject::Manifest { path } => path.display().fmt(f),
        }
    }
}

/// Something that happened to an object or a manifest (core/v1 Event).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// What it happened to.
    #[serde(rename = "object")]
    pub subject: Subject,
    /// The object's uid.
    pub uid: Option<Uuid>,
    /// Whether it is trouble.
    pub severity: Severity,
    /// One CamelCase word.
    pub reason: String,
    /// A sentence.
    pub message: String,
    /// When it first happened.
    pub first_seen: Timestamp,
    /// When it last happened.
    pub last_seen: Timestamp,
    /// How often.
    pub count: u32,
}

/// The two types of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Severity {
    /// All is well.
    Normal,
    /// Somebody should look.
    Warning,
}

/// The events, in the order in which they last happened.
pub(super) struct EventLog {
    events: BTreeMap<u64, Arc<Event>>,
    /// The numbers of each subject's events, rising.
    by_subject: HashMap<Subject, Vec<u64>>,
    next: u64,
    per_object: usize,
    in_all: usize,
}

impl EventLog {
    pub(super) fn new(settings: &StoreSettings) -> EventLog {
        EventLog {
            events: BTreeMap::new(),
            by_subject: HashMap::new(),
            next: 0,
            per_object: settings.events_per_object.max(1),
            in_all: settings.events.max(1),
        }
    }

    /// Takes in a row; rows come in order.
    pub(super) fn load(&mut self, id: u64, event: Arc<Event>) {
        self.by_subject.entry(event.subject.clone()).or_default().push(id);
        self.next = self.next.max(id + 1);
        self.events.insert(id, event);
    }

    pub(super) fn rows(&self) -> impl Iterator<Item = (u64, &Arc<Event>)> {
        self.events.iter().map(|(id, event)| (*id, event))
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.events.len()
    }

    /// The events of one subject, or all.
    pub(super) fn list(&self, subject: Option<&Subject>) -> Vec<Arc<Event>> {
        match subject {
            None => self.events.values().cloned().collect(),
            Some(subject) => {
                let ids = self.by_subject.get(subject).into_iter().flatten();
                ids.filter_map(|id| self.events.get(id)).cloned().collect()
            }
        }
    }

    /// The number of the event that `new` repeats.
    fn repeated(&self, new: &Event) -> Option<u64> {
        let same = |old: &Event| {
            old.uid == new.uid
                && old.severity == new.severity
                && old.reason == new.reason
                && old.message == new.message
        };
        let ids = self.by_subject.get(&new.subject)?;
        ids.iter().copied().find(|id| self.events.get(id).is_some_and(|old| same(old)))
    }

    /// The number of the event that has to go before `new` comes.
    fn surplus(&self, new: &Event) -> Option<u64> {
        let own = self.by_subject.get(&new.subject).map_or(&[][..], Vec::as_slice);
        if own.len() >= self.per_object {
            own.first().copied()
        } else if self.events.len() >= self.in_all {
            self.events.first_key_value().map(|(id, _)| *id)
        } else {
            None
        }
    }

    fn remove(&mut self, id: u64) -> Option<Arc<Event>> {
        let event = self.events.remove(&id)?;
        if let Some(ids) = self.by_subject.get_mut(&event.subject) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.by_subject.remove(&event.subject);
            }
        }
        Some(event)
    }
}

impl State {
    /// Adds an event, or counts it with an equal one; either way it becomes the latest.
    pub(super) fn record_event(&mut self, mut event: Event) -> Arc<Event> {
        let repeated = self.events.repeated(&event);
        if let Some(id) = repeated.or_else(|| self.events.surplus(&event)) {
            let old = self.events.remove(id);
            self.put_row(RowKey::Event(id), None);
            if let Some(old) = old.filter(|_| repeated.is_some()) {
                event.first_seen = old.first_seen;
                event.count = old.count.saturating_add(1);
            }
        }
        let (id, event) = (self.events.next, Arc::new(event));
        self.events.load(id, event.clone());
        self.put_row(RowKey::Event(id), Some(Row::Event(id, event.clone())));
        event
    }
}

impl Store {
    /// Notes that something happened to an object or a manifest. Equal events are counted together; old ones make
    /// room for new ones. Does not wait for the flush, and is dropped if the store has failed.
    pub fn record_event(
        &self,
        subject: impl Into<Subject>,
        uid: Option<Uid>,
        severity: Severity,
        reason: &str,
        message: &str,
        now: Timestamp,
    ) {
        let event = Event {
            subject: subject.into(),
            uid,
            severity,
            reason: bounded(reason, MAX_REASON),
            message: bounded(message, MAX_MESSAGE),
            first_seen: now,
            last_seen: now,
            count: 1,
        };
        let name = event.subject.to_string();
        let recorded = self.engine().transact(|state| self.engine().announce(state.record_event(event)));
        if let Err(error) = recorded {
            tracing::debug!(subject = name, reason, %error, "dropped an event");
        }
    }
}

/// The text, cut at a character's end so that it has at most `limit` bytes.
fn bounded(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    let end = (0..=limit - '…'.len_utf8()).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}…", &text[..end])
}
