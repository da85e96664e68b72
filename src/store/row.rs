//! Rows: how records are written down. A key is readable text, a value is JSON.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Serialize, Serializer};

use super::events::Event;
use super::record::{DiskRecord, Record};
use crate::image::Digest;
use crate::object::{Kind, ObjectKey};

/// The format of all rows. A store of another one is not opened.
///
/// 2: pins hold a source; before, a registry's reference.
pub(super) const FORMAT: u32 = 2;

/// Which row.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum RowKey {
    Object(ObjectKey),
    Disk(Digest),
    Event(u64),
    /// The version of the last change.
    Version,
}

/// What is in a row. Cloning is cheap: rows are collected under the guard and encoded outside.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Row {
    Object(Record),
    Disk(Arc<DiskRecord>),
    Event(u64, Arc<Event>),
    Version(u64),
}

/// What some transactions wrote, to become durable together or not at all. None removes a row.
pub(super) type Batch = BTreeMap<RowKey, Option<Row>>;

impl RowKey {
    /// `vm/default/web`, `disk/sha256:…`, `event/000000000000002a`. Names are DNS labels, so that the
    /// parts cannot run into each other.
    pub(super) fn text(&self) -> String {
        match self {
            RowKey::Object(key) => format!("{}/{}/{}", key.kind.singular(), key.namespace, key.name),
            RowKey::Disk(digest) => format!("disk/{digest}"),
            RowKey::Event(id) => format!("event/{id:016x}"),
            RowKey::Version => "version".to_owned(),
        }
    }
}

impl Row {
    pub(super) fn key(&self) -> RowKey {
        match self {
            Row::Object(record) => RowKey::Object(record.key()),
            Row::Disk(disk) => RowKey::Disk(disk.digest.clone()),
            Row::Event(id, _) => RowKey::Event(*id),
            Row::Version(_) => RowKey::Version,
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("records are plain data with string keys")
    }

    /// # Errors
    /// What is wrong with the row, for people.
    pub(super) fn decode(key: &[u8], value: &[u8]) -> Result<Row, String> {
        let name = String::from_utf8_lossy(key);
        let (table, rest) = name.split_once('/').unwrap_or((&name, ""));
        let row = match table {
            _ if table == Kind::Vm.singular() => Row::Object(Record::Vm(parse(&name, value)?)),
            _ if table == Kind::Image.singular() => Row::Object(Record::Image(parse(&name, value)?)),
            "disk" => Row::Disk(parse(&name, value)?),
            "event" => {
                let id = u64::from_str_radix(rest, 16).map_err(|_| format!("row {name:?} has no number"))?;
                Row::Event(id, parse(&name, value)?)
            }
            "version" => Row::Version(*parse(&name, value)?),
            _ => return Err(format!("row {name:?} is of no table that this version of vmlet knows")),
        };
        if row.key().text().as_bytes() == key {
            Ok(row)
        } else {
            Err(format!("row {name:?} holds another row's value"))
        }
    }
}

impl Serialize for Row {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Row::Object(Record::Vm(vm)) => (**vm).serialize(serializer),
            Row::Object(Record::Image(image)) => (**image).serialize(serializer),
            Row::Disk(disk) => (**disk).serialize(serializer),
            Row::Event(_, event) => (**event).serialize(serializer),
            Row::Version(version) => version.serialize(serializer),
        }
    }
}

fn parse<T: DeserializeOwned>(name: &str, value: &[u8]) -> Result<Arc<T>, String> {
    serde_json::from_slice(value)
        .map(Arc::new)
        .map_err(|error| format!("row {name:?} is not what this version of vmlet writes: {error}"))
}
