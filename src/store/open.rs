//! Opening and closing a store on disk.
//!
//! ```text
//! DIR/lock         held for life; the holder's pid, for people
//! DIR/db/          the log (sled), made complete under another name and then renamed
//! DIR/export.json  a readable copy, at most some minutes old; read only if there is no db
//! ```

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::backend::EncodedRow;
use super::engine::{Engine, FlushBy, Flusher};
use super::error::OpenError;
use super::export::{self, Exporter};
use super::request::StoreSettings;
use super::row::Row;
use super::sled_backend::{SledBackend, SledTrouble, sync_dir};
use super::state::State;

/// How long a lock may be in other hands before it counts as held: a child that was just forked holds its
/// parent's until it executes its program.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
/// How often that is looked at.
const LOCK_POLL: Duration = Duration::from_millis(20);

/// What keeps an open store going.
pub(super) struct Keeper {
    engine: Arc<Engine>,
    flusher: JoinHandle<()>,
    exporter: JoinHandle<()>,
    stop_exporter: mpsc::Sender<()>,
    /// Released last.
    _lock: File,
}

impl Keeper {
    /// Flushes, exports a last time and frees the folder.
    pub(super) fn stop(self) {
        self.engine.stop();
        drop(self.stop_exporter);
        for thread in [self.flusher, self.exporter] {
            if thread.join().is_err() {
                tracing::error!("a thread of the store panicked");
            }
        }
    }
}

/// Opens the store in `dir`, made if it is missing. Everything that was acknowledged is there, or
/// this is an error.
pub(super) fn open(dir: &Path, settings: &StoreSettings) -> Result<(Arc<Engine>, Keeper), OpenError> {
    let failed = |what: &str, error: &dyn std::fmt::Display| OpenError {
        message: format!("cannot {what} of the store in {}: {error}", dir.display()),
    };
    make_folder(dir).map_err(|error| failed("make the folder", &error))?;
    let lock = lock(dir).map_err(|why| OpenError { message: why.to_string() })?;
    let layout = Layout::new(dir);
    if !layout.db.exists() {
        layout.create(settings)?;
    }
    let (backend, rows) =
        SledBackend::open(&layout.db, settings.cache_bytes).map_err(|trouble| layout.explain(trouble))?;
    let rows = rows.iter().map(|(key, value)| Row::decode(key, value)).collect::<Result<Vec<_>, _>>();
    let rows = rows.map_err(|why| layout.explain(SledTrouble::Damaged(why)))?;

    let engine = Arc::new(Engine::new(State::new(rows, settings), settings.now.clone()));
    let mut flusher = Flusher::new(backend);
    flusher.flush(&engine);
    if let Some(why) = engine.failed() {
        return Err(failed("write to the log", &why));
    }
    let mut exporter = Exporter::new(layout.export, Arc::clone(&engine));
    exporter.export();
    let keeper = Keeper::start(&engine, flusher, exporter, settings, lock);
    Ok((engine, keeper.map_err(|error| failed("start a thread", &error))?))
}

impl Keeper {
    fn start(
        engine: &Arc<Engine>,
        flusher: Flusher,
        exporter: Exporter,
        settings: &StoreSettings,
        lock: File,
    ) -> io::Result<Keeper> {
        let (stop_exporter, stopped) = mpsc::channel();
        let interval = settings.export_interval;
        let exporter = thread::Builder::new()
            .name("store-export".to_owned())
            .spawn(move || exporter.run(interval, &stopped))?;
        let flushed = Arc::clone(engine);
        let flusher = thread::Builder::new().name("store-flush".to_owned()).spawn(move || {
            let run = AssertUnwindSafe(|| flusher.run(&flushed));
            if catch_unwind(run).is_err() {
                flushed.fail("the thread that writes panicked");
            }
        })?;
        engine.flush_by(FlushBy::Thread(flusher.thread().clone()));
        Ok(Keeper { engine: Arc::clone(engine), flusher, exporter, stop_exporter, _lock: lock })
    }
}

/// Where things are.
pub(super) struct Layout {
    pub(super) dir: PathBuf,
    pub(super) db: PathBuf,
    pub(super) export: PathBuf,
}

impl Layout {
    pub(super) fn new(dir: &Path) -> Layout {
        Layout { dir: dir.to_owned(), db: dir.join("db"), export: dir.join("export.json") }
    }

    /// Makes the log, from the export if there is one. A crash on the way leaves no `db`.
    fn create(&self, settings: &StoreSettings) -> Result<(), OpenError> {
        let export = export::read(&self.export).map_err(|why| OpenError {
            message: format!(
                "{} has no log, and {} cannot be read: {why}. Mend it, or move it away to start with an \
                 empty store; running VMs are not touched meanwhile",
                self.dir.display(),
                self.export.display()
            ),
        })?;
        let mut rows = Vec::new();
        if let Some(export) = export {
            tracing::warn!(
                export = %self.export.display(), taken_at = %export.taken_at(), rows = export.rows.len(),
                "restoring the store; what changed since then is lost"
            );
            rows = encode(&export.rows);
        }
        let staged = self.dir.join("db.new");
        let made = build(&staged, rows, settings.cache_bytes);
        let renamed = made.and_then(|()| {
            let renamed = fs::rename(&staged, &self.db).and_then(|()| sync_dir(&self.dir));
            renamed.map_err(|error| error.to_string())
        });
        renamed.map_err(|why| OpenError {
            message: format!("cannot make the store's log in {}: {why}", self.db.display()),
        })
    }

    /// Says what to do about a log that does not open.
    pub(super) fn explain(&self, trouble: SledTrouble) -> OpenError {
        let db = self.db.display();
        let message = match trouble {
            SledTrouble::Unavailable(why) => format!("cannot open the store's log in {db}: {why}"),
            SledTrouble::Damaged(why) => {
                let copy = match export::read(&self.export) {
                    Ok(Some(export)) => format!(
                        "and start vmlet again: it restores the copy of {} from {}",
                        export.taken_at(),
                        self.export.display()
                    ),
                    Ok(None) => {
                        "and start vmlet again, with an empty store: there is no export.json".to_owned()
                    }
                    Err(why) => format!("and mend {}, which is damaged too: {why}", self.export.display()),
                };
                format!(
                    "the store's log in {db} is damaged: {why}. Running VMs are not touched \
                     meanwhile. Run `mv {db} {db}.corrupt` {copy}"
                )
            }
        };
        OpenError { message }
    }
}

/// Makes a folder that outlives a power loss: its name is as durable as what is in it.
pub(super) fn make_folder(dir: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = dir.ancestors().take_while(|folder| !folder.exists()).collect();
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    missing.iter().filter_map(|folder| folder.parent()).try_for_each(sync_dir)
}

/// Rows as the log takes them.
pub(super) fn encode(rows: &[Row]) -> Vec<EncodedRow> {
    rows.iter().map(|row| (row.key().text().into_bytes(), Some(row.encode()))).collect()
}

/// Makes a log of these rows, whatever was in its place before.
pub(super) fn build(staged: &Path, rows: Vec<EncodedRow>, cache: u64) -> Result<(), String> {
    match fs::remove_dir_all(staged) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.to_string()),
        _ => SledBackend::create(staged, cache, rows).map_err(|trouble| trouble.to_string()),
    }
}

/// Why a store's folder cannot be had alone.
#[derive(Debug, thiserror::Error)]
pub(super) enum LockError {
    #[error(
        "the store in {} is in use by process {holder}: only one vmlet can run on a state folder",
        .dir.display()
    )]
    InUse { dir: PathBuf, holder: String },
    #[error("cannot lock {}: {why}", .path.display())]
    Io { path: PathBuf, why: String },
}

/// Makes sure that no other process has the store open.
pub(super) fn lock(dir: &Path) -> Result<File, LockError> {
    let path = dir.join("lock");
    let refuse = |why: io::Error| LockError::Io { path: path.clone(), why: why.to_string() };
    let options = File::options().read(true).write(true).create(true).truncate(false).clone();
    let mut file = options.open(&path).map_err(refuse)?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    let locked = loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => thread::sleep(LOCK_POLL),
            locked => break locked,
        }
    };
    match locked {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let holder = fs::read_to_string(&path).unwrap_or_default().trim().to_owned();
            return Err(LockError::InUse { dir: dir.to_owned(), holder });
        }
        Err(error) => return Err(refuse(error.into())),
    }
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(refuse)?;
    Ok(file)
}
