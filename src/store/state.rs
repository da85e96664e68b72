//! The state in memory. Pure: no I/O, no locks, and the time is told by whoever runs a transaction. The rules of the transactions are beside
//! it, one file a subject (`declare`, `reserve`, `publish`, `disks`, `uses`, `events`).
//!
//! Flow: a transaction checks everything first and then calls [`State::put`] or its siblings, the
//! only places where anything changes. They keep the derived indices right, give the change its
//! version, and note the rows for the next flush ([`State::take_pending`]).

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::Arc;

use jiff::Timestamp;

use super::events::EventLog;
use super::history::History;
use super::leases::Leases;
use super::line::Line;
use super::record::{DiskRecord, ImageRecord, Record, VmRecord};
use super::request::{Change, ChangeKind, Minter, StoreSettings};
use super::row::{Batch, Row, RowKey};
use super::uses::{Turn, Uses};
use crate::image::Digest;
use crate::object::{Kind, ObjectKey, Uid};

/// How far versions jump at each start. A version may have been shown before it was durable; after a
/// crash it must not come to mean another change. So many cannot be in flight.
const VERSION_JUMP: u64 = 1 << 20;

pub(super) struct State {
    pub(super) objects: BTreeMap<ObjectKey, Record>,
    pub(super) disks: BTreeMap<Digest, Arc<DiskRecord>>,
    pub(super) events: EventLog,
    pub(super) leases: Leases,
    pub(super) uses: Uses,
    pub(super) line: Line,
    pub(super) history: History,
    pub(super) minter: Minter,
    /// The sources that are at work in this daemon's life.
    pub(super) sources: BTreeSet<String>,
    /// The present transaction's time.
    pub(super) now: Timestamp,
    version: u64,
    writes: u64,
    pending: Batch,
}

impl State {
    /// The state that the rows describe. The version's jump is pending and is to be flushed before
    /// anything is shown.
    pub(super) fn new(rows: Vec<Row>, settings: &StoreSettings) -> State {
        let mut state = State {
            objects: BTreeMap::new(),
            disks: BTreeMap::new(),
            events: EventLog::new(settings),
            leases: Leases::default(),
            uses: Uses::default(),
            line: Line::default(),
            history: History::new(settings.history),
            minter: settings.minter.clone(),
            sources: BTreeSet::new(),
            now: (settings.now)(),
            version: 0,
            writes: 0,
            pending: Batch::new(),
        };
        for row in rows {
            match row {
                Row::Object(record) => _ = state.index(record),
                Row::Disk(disk) => _ = state.disks.insert(disk.digest.clone(), disk),
                Row::Event(id, event) => state.events.load(id, event),
                Row::Version(version) => state.version = version,
            }
        }
        state.note_all();
        state.version += VERSION_JUMP;
        state.history.start(state.version);
        state.pending.insert(RowKey::Version, Some(Row::Version(state.version)));
        state
    }

    /// The version of the last change.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn vm(&self, key: &ObjectKey) -> Option<&Arc<VmRecord>> {
        match self.objects.get(key)? {
            Record::Vm(vm) => Some(vm),
            Record::Image(_) => None,
        }
    }

    pub(super) fn image(&self, key: &ObjectKey) -> Option<&Arc<ImageRecord>> {
        match self.objects.get(key)? {
            Record::Image(image) => Some(image),
            Record::Vm(_) => None,
        }
    }

    /// The VM of that name, if it is still the same one.
    pub(super) fn vm_of(&self, key: &ObjectKey, uid: Uid) -> Option<&Arc<VmRecord>> {
        self.vm(key).filter(|vm| vm.object.metadata.uid == Some(uid))
    }

    /// The image of that name, if it is still the same one.
    pub(super) fn image_of(&self, key: &ObjectKey, uid: Uid) -> Option<&Arc<ImageRecord>> {
        self.image(key).filter(|image| image.object.metadata.uid == Some(uid))
    }

    /// The objects of a kind, in the order of their keys.
    pub(super) fn of_kind<'a>(
        &'a self,
        kind: Kind,
        namespace: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a ObjectKey, &'a Record)> {
        let first = ObjectKey::new(kind, namespace.unwrap_or_default(), "");
        self.objects.range(first..).take_while(move |(key, _)| {
            key.kind == kind && namespace.is_none_or(|namespace| key.namespace == namespace)
        })
    }

    /// Writes a new or changed object as one change that watchers see.
    pub(super) fn put(&mut self, mut record: Record) {
        self.version += 1;
        record.set_version(self.version);
        let kind =
            if self.objects.contains_key(&record.key()) { ChangeKind::Modified } else { ChangeKind::Added };
        self.history.push(Change { version: self.version, kind, record: record.clone() });
        self.put_unseen(record);
    }

    /// Writes an object whose change concerns nobody: its version stays.
    pub(super) fn put_unseen(&mut self, record: Record) {
        self.put_row(RowKey::Object(record.key()), Some(Row::Object(record.clone())));
        let turns = self.index(record);
        self.note(turns);
    }

    /// Removes an object as one change that watchers see. Absent is fine.
    pub(super) fn remove(&mut self, key: &ObjectKey) {
        let Some(mut record) = self.objects.remove(key) else { return };
        if let Some(held) = record.reservation() {
            self.leases.remove(held);
        }
        let turns = self.uses.replace(Some(&record), None);
        self.note(turns);
        self.version += 1;
        record.set_version(self.version);
        self.put_row(RowKey::Object(key.clone()), None);
        self.history.push(Change { version: self.version, kind: ChangeKind::Deleted, record });
    }

    /// Writes a disk's record.
    pub(super) fn put_disk(&mut self, disk: DiskRecord) {
        let disk = Arc::new(disk);
        self.put_row(RowKey::Disk(disk.digest.clone()), Some(Row::Disk(disk.clone())));
        self.disks.insert(disk.digest.clone(), disk);
    }

    /// Removes a disk's record.
    pub(super) fn remove_disk(&mut self, digest: &Digest) {
        self.disks.remove(digest);
        self.put_row(RowKey::Disk(digest.clone()), None);
    }

    /// Notes a row for the next flush; none removes it.
    pub(super) fn put_row(&mut self, key: RowKey, row: Option<Row>) {
        self.writes += 1;
        self.pending.insert(key, row);
    }

    /// How many rows were written in this state's life: equal counts, equal states.
    pub(super) fn writes(&self) -> u64 {
        self.writes
    }

    /// Whether there is anything to flush.
    pub(super) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Everything written since the last call, and the version that it leads to.
    pub(super) fn take_pending(&mut self) -> (Batch, u64) {
        let mut batch = mem::take(&mut self.pending);
        if batch.keys().any(|key| matches!(key, RowKey::Object(_))) {
            batch.insert(RowKey::Version, Some(Row::Version(self.version)));
        }
        (batch, self.version)
    }

    /// Every row, for an export. Cheap: the records are shared.
    pub(super) fn rows(&self) -> Vec<Row> {
        let objects = self.objects.values().cloned().map(Row::Object);
        let disks = self.disks.values().cloned().map(Row::Disk);
        let events = self.events.rows().map(|(id, event)| Row::Event(id, event.clone()));
        objects.chain(disks).chain(events).chain([Row::Version(self.version)]).collect()
    }

    fn index(&mut self, record: Record) -> Vec<(Digest, Turn)> {
        let key = record.key();
        if let Some(held) = self.objects.get(&key).and_then(Record::reservation) {
            self.leases.remove(held);
        }
        if let Some(held) = record.reservation() {
            self.leases.add(&key, held);
        }
        let turns = self.uses.replace(self.objects.get(&key), Some(&record));
        self.objects.insert(key, record);
        turns
    }
}
