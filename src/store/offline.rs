//! A store without a daemon: checked, copied, made from a copy.
//!
//! Nothing is read in place, because sled writes where it reads: the log is copied to a private
//! folder first. The store's lock is held meanwhile.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use tempfile::TempDir;

use super::export::{self, Export};
use super::open::{Layout, LockError, build, encode, lock};
use super::request::StoreSettings;
use super::row::Row;
use super::sled_backend::{SledBackend, SledTrouble};

/// A store that no daemon has open, and none can open while this lives.
pub struct ClosedStore {
    layout: Layout,
    _lock: File,
}

/// Why a closed store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ClosedStoreError {
    /// There is none.
    #[error("there is no store in {}", .0.display())]
    Missing(PathBuf),
    /// A daemon has it open.
    #[error("the store in {} is in use by process {holder}", .dir.display())]
    InUse {
        /// The store's folder.
        dir: PathBuf,
        /// The daemon's process id, as it wrote it down.
        holder: String,
    },
    /// There is one where none may be.
    #[error("there is a store in {} already", .0.display())]
    Exists(PathBuf),
    /// It is damaged: how, and what to do.
    #[error("{0}")]
    Damaged(String),
    /// The disk refuses.
    #[error("{0}")]
    Io(String),
}

impl ClosedStore {
    /// Takes the store in a folder.
    ///
    /// # Errors
    /// There is none, or a daemon has it open.
    pub fn take(dir: &Path) -> Result<ClosedStore, ClosedStoreError> {
        if !dir.is_dir() {
            return Err(ClosedStoreError::Missing(dir.to_owned()));
        }
        let lock = lock(dir).map_err(|error| match error {
            LockError::InUse { dir, holder } => ClosedStoreError::InUse { dir, holder },
            other @ LockError::Io { .. } => ClosedStoreError::Io(other.to_string()),
        })?;
        Ok(ClosedStore { layout: Layout::new(dir), _lock: lock })
    }

    /// Reads everything, every checksum included, as a start of the daemon does.
    ///
    /// # Errors
    /// There is no log, or it is damaged.
    pub fn read(&self) -> Result<Export, ClosedStoreError> {
        if !self.layout.db.exists() {
            return Err(ClosedStoreError::Missing(self.layout.db.clone()));
        }
        let failed = |error: io::Error| ClosedStoreError::Io(format!("cannot copy the store: {error}"));
        let copy = TempDir::with_prefix("vmlet-store-").map_err(failed)?;
        copy_files(&self.layout.db, copy.path()).map_err(failed)?;
        let opened = SledBackend::open(copy.path(), StoreSettings::default().cache_bytes);
        let rows = opened.and_then(|(_, rows)| {
            let rows = rows.iter().map(|(key, value)| Row::decode(key, value));
            rows.collect::<Result<Vec<_>, _>>().map_err(SledTrouble::Damaged)
        });
        match rows {
            Ok(rows) => Ok(Export::new(rows)),
            Err(SledTrouble::Unavailable(why)) => Err(ClosedStoreError::Io(why)),
            Err(damaged) => Err(ClosedStoreError::Damaged(self.layout.explain(damaged).message)),
        }
    }

    /// When the copy in `export.json` was taken, if there is one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn exported_at(&self) -> Result<Option<Timestamp>, String> {
        export::read(&self.layout.export).map(|export| export.map(|export| export.taken_at()))
    }
}

/// Makes a store of a copy, in a folder that may not exist yet. With `replace` a store that is there is
/// kept aside; its new place is returned. At every moment there is a whole store.
///
/// # Errors
/// A daemon has the folder's store open; there is one and it is not to be replaced; the disk refuses.
pub fn import(dir: &Path, export: &Export, replace: bool) -> Result<Option<PathBuf>, ClosedStoreError> {
    let failed = |what: &'static str| {
        let dir = dir.display().to_string();
        move |error: io::Error| ClosedStoreError::Io(format!("cannot {what} {dir}: {error}"))
    };
    super::open::make_folder(dir).map_err(failed("make the folder"))?;
    let closed = ClosedStore::take(dir)?;
    let layout = &closed.layout;
    let old = layout.db.exists();
    if (old || layout.export.exists()) && !replace {
        return Err(ClosedStoreError::Exists(dir.to_owned()));
    }
    let when = Timestamp::now().strftime("%Y%m%dT%H%M%S%3fZ").to_string();
    if layout.export.exists() {
        let kept = dir.join(format!("export.replaced-{when}.json"));
        fs::hard_link(&layout.export, kept).map_err(failed("keep the old export.json of"))?;
    }
    let aside = dir.join(format!("db.replaced-{when}"));
    build(&aside, encode(&export.rows), StoreSettings::default().cache_bytes)
        .map_err(ClosedStoreError::Io)?;
    // The new log takes the old one's place in one step, so that no start finds neither.
    let flags = if old { RenameFlags::EXCHANGE } else { RenameFlags::NOREPLACE };
    let exchanged = renameat_with(CWD, &aside, CWD, &layout.db, flags).map_err(io::Error::from);
    exchanged.map_err(failed("put the new log into"))?;
    // Of the old store nothing else is left to restore from by mistake. This makes both names durable.
    export.save(&layout.export).map_err(failed("write export.json of"))?;
    Ok(old.then_some(aside))
}

fn copy_files(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            fs::create_dir(&target)?;
            copy_files(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
