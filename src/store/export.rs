//! `export.json`: a readable copy of the store, to restore from when the log is damaged.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::engine::Engine;
use super::record::Record;
use super::row::{FORMAT, Row};
use super::sled_backend::sync_dir;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document<Rows> {
    format: u32,
    taken_at: Timestamp,
    rows: Rows,
}

/// A readable copy of a whole store, as of one moment.
#[derive(Clone, Debug)]
pub struct Export {
    taken_at: Timestamp,
    pub(super) rows: Vec<Row>,
}

/// What is in a copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// VMs.
    pub vms: usize,
    /// Images.
    pub images: usize,
    /// Base disks.
    pub disks: usize,
    /// Events.
    pub events: usize,
}

impl Export {
    pub(super) fn new(rows: Vec<Row>) -> Export {
        Export { taken_at: Timestamp::now(), rows }
    }

    /// When it was taken.
    pub fn taken_at(&self) -> Timestamp {
        self.taken_at
    }

    /// What is in it.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for row in &self.rows {
            match row {
                Row::Object(Record::Vm(_)) => counts.vms += 1,
                Row::Object(Record::Image(_)) => counts.images += 1,
                Row::Disk(_) => counts.disks += 1,
                Row::Event(..) => counts.events += 1,
                Row::Version(_) => {}
            }
        }
        counts
    }

    /// Reads what [`Export::write`] wrote.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(from: impl Read) -> Result<Export, String> {
        let document: Document<BTreeMap<String, Value>> =
            serde_json::from_reader(BufReader::new(from)).map_err(|error| error.to_string())?;
        if document.format != FORMAT {
            return Err(format!("it is of format {}, and this vmlet reads format {FORMAT}", document.format));
        }
        let decode =
            |(key, value): (&String, &Value)| Row::decode(key.as_bytes(), value.to_string().as_bytes());
        let rows = document.rows.iter().map(decode).collect::<Result<_, _>>()?;
        Ok(Export { taken_at: document.taken_at, rows })
    }

    /// Writes it as JSON.
    ///
    /// # Errors
    /// When the writer takes no more.
    pub fn write(&self, to: impl Write) -> io::Result<()> {
        let rows = self.rows.iter().map(|row| (row.key().text(), row)).collect::<BTreeMap<_, _>>();
        let document = Document { format: FORMAT, taken_at: self.taken_at, rows };
        let mut out = BufWriter::new(to);
        serde_json::to_writer(&mut out, &document)?;
        out.flush()
    }

    /// Puts it into a file, which is a whole one at every moment. Only its owner may read it: environment
    /// variables of VMs hold secrets.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let mut staged = path.as_os_str().to_owned();
        staged.push(".tmp");
        let staged = PathBuf::from(staged);
        // One that is left of a crash may have been made with other rights.
        match fs::remove_file(&staged) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = File::options().write(true).create_new(true).mode(0o600).open(&staged)?;
        self.write(&file)?;
        file.sync_all()?;
        fs::rename(&staged, path)?;
        match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => sync_dir(folder),
            _ => sync_dir(Path::new(".")),
        }
    }
}

/// Reads an export; none if there is no such file.
///
/// # Errors
/// What is wrong with it.
pub(super) fn read(path: &Path) -> Result<Option<Export>, String> {
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        file => Export::read(file.map_err(|error| error.to_string())?).map(Some),
    }
}

/// Writes exports: the file is always a whole one.
pub(super) struct Exporter {
    path: PathBuf,
    engine: Arc<Engine>,
    /// The state's count of writes at the last export.
    exported: Option<u64>,
}

impl Exporter {
    pub(super) fn new(path: PathBuf, engine: Arc<Engine>) -> Exporter {
        Exporter { path, engine, exported: None }
    }

    /// Exports every `interval`, and a last time when the sender of `stop` is dropped.
    pub(super) fn run(mut self, interval: Duration, stop: &Receiver<()>) {
        loop {
            let stopping = stop.recv_timeout(interval) != Err(RecvTimeoutError::Timeout);
            self.export();
            if stopping {
                return;
            }
        }
    }

    /// Exports, unless nothing changed. The log is what counts: a failure is only logged.
    pub(super) fn export(&mut self) {
        let exported = self.exported;
        let changed = self
            .engine
            .read_sound(|state| (exported != Some(state.writes())).then(|| (state.writes(), state.rows())));
        let Some((writes, rows)) = changed.flatten() else { return };
        match Export::new(rows).save(&self.path) {
            Ok(()) => self.exported = Some(writes),
            Err(error) => tracing::warn!(path = %self.path.display(), %error, "cannot export the store"),
        }
    }
}

#[cfg(test)]
#[test]
fn a_copy_that_does_not_fit_is_none() {
    let mut room = [0; 8];
    assert!(Export::new(Vec::new()).write(&mut room[..]).is_err(), "the writer took a part of it");
}
