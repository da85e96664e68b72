//! Compressed layers on the host: shared while they arrive, kept for a while, resumed after a break.
//!
//! ```text
//! <state>/blobs/sha256-…                   complete; verified again each time it is used
//! <state>/blobs/sha256-….REGISTRY.partial  arriving, or interrupted: the next pull goes on from here
//! ```
//!
//! Pulls that need the same blob of the same registry share one [`Blob`]: one of them downloads it and
//! all follow, each reader at its own position in the growing file. If the one that downloads is
//! dropped or refused, another goes on where it stopped. Blobs of different registries are not shared
//! before they are complete, so that no registry can slow or spoil what comes from another.
//!
//! A reader meets the end of a blob only after its digest was found right; it fails as soon as the
//! blob does. What is kept is bounded, and the least recently used goes first. The content is verified
//! at each use, so nothing here is flushed to disk, and files may vanish at any time.

mod pace;
mod shared;
mod sink;
#[cfg(test)]
mod tests;

pub(crate) use shared::{Arrival, BlobReader, Turn};
pub(crate) use sink::BlobSink;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use sha2::{Digest as _, Sha256};

use super::manifest::Descriptor;
use super::{Digest, ImageError};
use crate::metrics::Guarded;
use pace::Pace;
use shared::Blob;

/// Interrupted downloads that nobody went on with for so long are removed.
const STALE: Duration = Duration::from_secs(24 * 60 * 60);
const PARTIAL: &str = ".partial";

/// A compressed layer that is kept on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct CachedBlob {
    /// Of the compressed layer.
    pub digest: Digest,
    /// Its length on the host, in bytes.
    pub size: u64,
    /// When it was last used, or last grew.
    pub last_used: SystemTime,
    /// Whether it is not complete.
    pub partial: bool,
}

/// All blobs of the state directory.
pub(crate) struct Blobs {
    folder: PathBuf,
    /// Bytes that are kept beyond the running pulls; 0 keeps nothing.
    capacity: u64,
    /// What running pulls use. The guard covers finding and inserting, never I/O.
    running: Guarded<HashMap<Key, Weak<Blob>>>,
    pace: Pace,
}

/// What makes two downloads the same. A manifest that lies about a size shares with nobody.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    registry: String,
    digest: Digest,
    size: u64,
}

/// A file of the folder.
struct Kept {
    path: PathBuf,
    blob: CachedBlob,
}

impl Blobs {
    /// The blobs in a folder that exists.
    pub(crate) fn new(folder: PathBuf, capacity: u64) -> Arc<Self> {
        Arc::new(Blobs { folder, capacity, running: Guarded::default(), pace: Pace::default() })
    }

    /// Joins in a blob of a registry: the end that makes it arrive, and the end that is read.
    pub(crate) fn open(self: &Arc<Self>, registry: &str, blob: &Descriptor) -> (Arrival, BlobReader) {
        let key = Key { registry: registry.to_owned(), digest: blob.digest.clone(), size: blob.size };
        let blob = self.running.with(|running| {
            running.get(&key).and_then(Weak::upgrade).unwrap_or_else(|| {
                let blob = Arc::new(Blob::new(self.clone(), key.clone()));
                running.insert(key, Arc::downgrade(&blob));
                blob
            })
        });
        shared::ends(blob)
    }

    /// What is kept, in no order.
    pub(crate) fn list(&self) -> io::Result<Vec<CachedBlob>> {
        Ok(self.kept()?.into_iter().map(|kept| kept.blob).collect())
    }

    /// Removes stale partial blobs, then the least recently used ones until no more than this many
    /// bytes are left. What running pulls use stays. Returns the bytes removed.
    pub(crate) fn prune(&self, down_to: u64) -> io::Result<u64> {
        let mut kept = self.kept()?;
        kept.sort_by_key(|kept| kept.blob.last_used);
        let used: HashSet<Digest> =
            self.running.with(|running| running.keys().map(|key| key.digest.clone()).collect());
        let mut left: u64 = kept.iter().map(|kept| kept.blob.size).sum();
        let mut removed = 0;
        let stale = |blob: &CachedBlob| {
            blob.partial && blob.last_used.elapsed().is_ok_and(|age| age > STALE) || blob.size == 0
        };
        for Kept { path, blob } in kept.iter().filter(|kept| !used.contains(&kept.blob.digest)) {
            if left > down_to || stale(blob) {
                remove(path)?;
                left -= blob.size;
                removed += blob.size;
                tracing::debug!(path = %path.display(), bytes = blob.size, "removed a layer that was kept");
            }
        }
        Ok(removed)
    }

    /// Removes the least recently used blobs until so many bytes more are free, as far as that goes.
    pub(crate) fn make_room(&self, bytes: u64) {
        let kept = self.list().map(|kept| kept.iter().map(|blob| blob.size).sum::<u64>());
        if let Err(error) = kept.and_then(|kept| self.prune(kept.saturating_sub(bytes))) {
            tracing::warn!(%error, path = %self.folder.display(), "no layers were removed to make room");
        }
    }

    /// Keeps what was just used and removes what is too much; or everything, when the disk is full.
    pub(crate) fn tidy(&self, full: bool) {
        if let Err(error) = self.prune(if full { 0 } else { self.capacity }) {
            tracing::warn!(%error, path = %self.folder.display(), "layers that are too many were not removed");
        }
    }

    fn kept(&self) -> io::Result<Vec<Kept>> {
        let mut kept = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let Some((digest, partial)) = entry.file_name().to_str().and_then(parse_name) else { continue };
            // It may have gone meanwhile.
            let Ok(data) = entry.metadata() else { continue };
            if data.is_file() {
                let last_used = data.modified()?;
                let blob = CachedBlob { digest, size: data.len(), last_used, partial };
                kept.push(Kept { path: entry.path(), blob });
            }
        }
        Ok(kept)
    }

    fn complete(&self, key: &Key) -> PathBuf {
        self.folder.join(key.digest.folder())
    }

    fn partial(&self, key: &Key) -> PathBuf {
        let registry = hex::encode(&Sha256::digest(&key.registry)[..8]);
        self.folder.join(format!("{}.{registry}{PARTIAL}", key.digest.folder()))
    }

    /// Makes later pulls start anew.
    fn forget(&self, blob: &Blob) {
        self.running.with(|running| {
            if running.get(&blob.key).is_some_and(|known| std::ptr::eq(known.as_ptr(), blob)) {
                running.remove(&blob.key);
            }
        });
    }
}

/// The digest in a file's name, and whether the file is partial.
fn parse_name(name: &str) -> Option<(Digest, bool)> {
    let (digest, partial) = match name.strip_suffix(PARTIAL) {
        Some(rest) => (rest.split_once('.')?.0, true),
        None => (name, false),
    };
    Some((digest.replacen('-', ":", 1).parse().ok()?, partial))
}

/// Absent is fine.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn on_disk(error: &io::Error) -> ImageError {
    ImageError::host("a layer on disk", error)
}
