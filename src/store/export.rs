//! `export.json`: a readable copy of the store, to restore from when the log is damaged.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::engine::Engine;
use super::row::Row;
use super::sled_backend::sync_dir;

const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document<Rows> {
    format: u32,
    taken_at: Timestamp,
    rows: Rows,
}

/// What an export holds.
pub(super) struct Export {
    pub(super) taken_at: Timestamp,
    pub(super) rows: Vec<Row>,
}

/// Reads an export; none if there is no such file.
///
/// # Errors
/// What is wrong with it.
pub(super) fn read(path: &Path) -> Result<Option<Export>, String> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(|error| error.to_string())?,
    };
    let document: Document<BTreeMap<String, Value>> =
        serde_json::from_reader(BufReader::new(file)).map_err(|error| error.to_string())?;
    if document.format != FORMAT {
        return Err(format!("it is of format {}, and this vmlet reads format {FORMAT}", document.format));
    }
    let rows =
        document.rows.iter().map(|(key, value)| Row::decode(key.as_bytes(), value.to_string().as_bytes()));
    Ok(Some(Export { taken_at: document.taken_at, rows: rows.collect::<Result<_, _>>()? }))
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
        match write(&self.path, &rows) {
            Ok(()) => self.exported = Some(writes),
            Err(error) => tracing::warn!(path = %self.path.display(), %error, "cannot export the store"),
        }
    }
}

fn write(path: &Path, rows: &[Row]) -> io::Result<()> {
    let staged = path.with_extension("json.tmp");
    let rows = rows.iter().map(|row| (row.key().text(), row)).collect::<BTreeMap<_, _>>();
    let document = Document { format: FORMAT, taken_at: Timestamp::now(), rows };
    // Only the owner may read it: environment variables of VMs hold secrets.
    let mut out =
        BufWriter::new(File::options().write(true).create(true).truncate(true).mode(0o600).open(&staged)?);
    serde_json::to_writer(&mut out, &document)?;
    out.flush()?;
    out.into_inner()?.sync_all()?;
    fs::rename(&staged, path)?;
    path.parent().map_or(Ok(()), sync_dir)
}
