//! Room in the state directory, promised to the pulls that run.
//!
//! A pull says what it will take before it takes anything. If that is not free, or is promised to others, layers that
//! are kept for later pulls go, as many as need be; if they do not suffice, it fails at once. A promise shrinks as it is used, since then the file system knows. How far layers
//! inflate is not known before, so a disk can still be full in the middle.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::ImageError;
use super::blob::Blobs;
use crate::metrics::Guarded;

/// The room for all pulls.
pub(crate) struct Space {
    folder: PathBuf,
    /// Layers that go when there is too little.
    kept: Arc<Blobs>,
    /// Bytes that are promised and not used yet. The guard covers adding and subtracting.
    promised: Guarded<u64>,
}

impl Space {
    pub(crate) fn new(folder: PathBuf, kept: Arc<Blobs>) -> Arc<Self> {
        Arc::new(Space { folder, kept, promised: Guarded::default() })
    }

    /// Promises room for so many bytes. Reads folders: not for an async thread.
    ///
    /// # Errors
    ///
    /// `NoSpace` if there is too little, `HostError` if the file system does not say.
    pub(crate) fn promise(self: &Arc<Self>, wanted: u64) -> Result<Promise, ImageError> {
        match self.grant(self.free()?, wanted) {
            Ok(promise) => Ok(promise),
            Err(short) => {
                self.kept.make_room(short.missing);
                self.grant(self.free()?, wanted).map_err(|short| short.error)
            }
        }
    }

    fn free(&self) -> Result<u64, ImageError> {
        let failed = |error: rustix::io::Errno| ImageError::host(self.folder.display(), &error.into());
        let system = rustix::fs::statvfs(&self.folder).map_err(failed)?;
        Ok(system.f_bavail.saturating_mul(system.f_frsize))
    }

    fn grant(self: &Arc<Self>, free: u64, wanted: u64) -> Result<Promise, Short> {
        let others = self.promised.with(|promised| {
            let others = *promised;
            let fits = others.checked_add(wanted).filter(|all| *all <= free);
            *promised = fits.unwrap_or(others);
            fits.is_none().then_some(others)
        });
        match others {
            None => Ok(Promise { space: self.clone(), left: AtomicU64::new(wanted) }),
            Some(others) => Err(Short {
                missing: others.saturating_add(wanted) - free,
                error: ImageError::no_space(format!(
                    "{} has {} MiB free, {} MiB of that promised to other pulls, and the image will take about {} MiB",
                    self.folder.display(),
                    free >> 20,
                    others >> 20,
                    wanted >> 20,
                )),
            }),
        }
    }
}

/// There is too little room.
#[derive(Debug)]
struct Short {
    /// In bytes.
    missing: u64,
    error: ImageError,
}

/// Room for one pull. What is left of it is given back when this is dropped.
pub(crate) struct Promise {
    space: Arc<Space>,
    left: AtomicU64,
}

impl Promise {
    /// So many bytes are on the disk.
    pub(crate) fn used(&self, bytes: u64) {
        let take = |left: u64| Some(left.saturating_sub(bytes));
        // Always some.
        let before = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).unwrap_or_default();
        self.space.promised.with(|promised| *promised -= before.min(bytes));
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.used(u64::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_promised_to_one_is_not_promised_to_another() {
        let space = Space::new("/".into(), Blobs::new("/nowhere".into(), 0));
        let first = space.grant(100, 60).unwrap();
        let Short { missing, error } = space.grant(100, 41).map(drop).unwrap_err();
        assert_eq!(missing, 1);
        assert_eq!(error.reason, "NoSpace");
        assert!(error.transient, "others end");
        let second = space.grant(100, 40).unwrap();
        // 30 bytes are taken from both, the promise and the free space.
        first.used(20);
        first.used(10);
        assert_eq!(space.promised.with(|promised| *promised), 70);
        assert!(space.grant(70, 1).is_err());
        drop(second);
        drop(space.grant(70, 40).unwrap());
        first.used(u64::MAX);
        assert_eq!(space.promised.with(|promised| *promised), 0, "never more than was promised");
        drop(first);
        assert_eq!(space.promised.with(|promised| *promised), 0);
    }
}
