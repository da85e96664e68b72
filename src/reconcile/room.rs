//! The room on the file system that the state folder is on: the host's, or scripted.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// How much of a file system is free, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// What the daemon may still write.
    pub free: u64,
    /// All of it.
    pub total: u64,
}

impl Space {
    /// Whether less than this share is free, in percent.
    pub fn is_below(self, percent: u8) -> bool {
        u128::from(self.free) * 100 < u128::from(self.total) * u128::from(percent)
    }

    /// Bytes that must be freed until this share is free, in percent.
    pub fn missing(self, percent: u8) -> u64 {
        let wanted = (u128::from(self.total) * u128::from(percent)).div_ceil(100);
        u64::try_from(wanted.saturating_sub(u128::from(self.free))).unwrap_or(u64::MAX)
    }
}

/// Tells what takes room in the state folder.
pub trait Room: Send + Sync + 'static {
    /// What is free; none if it cannot be told. One quick system call.
    fn space(&self) -> Option<Space>;

    /// Bytes that a file or a folder takes, as allocated; nothing for what is outside of the state folder:
    /// that is not the daemon's to remove. Walks folders: not for an async thread, unless it is a file.
    fn taken(&self, path: &Path) -> u64;

    /// Bytes that the layers take which are kept for later pulls. Lists a folder.
    fn blobs(&self) -> u64;

    /// How many pulls' staging folders there are, and the bytes that they take. Walks them.
    fn staging(&self) -> (usize, u64);
}

/// The host's file system.
#[derive(Clone, Debug)]
pub struct HostRoom {
    /// The state folder.
    pub state: PathBuf,
}

impl Room for HostRoom {
    fn space(&self) -> Option<Space> {
        let seen = rustix::fs::statvfs(&self.state).ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(seen.f_frsize);
        Some(Space { free: bytes(seen.f_bavail), total: bytes(seen.f_blocks) })
    }

    fn taken(&self, path: &Path) -> u64 {
        if path.starts_with(&self.state) { allocated(path) } else { 0 }
    }

    fn blobs(&self) -> u64 {
        children(&self.state.join("blobs"))
    }

    fn staging(&self) -> (usize, u64) {
        let folder = self.state.join("staging");
        let count = std::fs::read_dir(&folder).map_or(0, Iterator::count);
        (count, children(&folder))
    }
}

/// Follows no link. What cannot be looked at counts as nothing: it may be gone by now.
fn allocated(path: &Path) -> u64 {
    /// `st_blocks` counts in these, whatever the file system's block is (stat(2)).
    const UNIT: u64 = 512;
    let Ok(seen) = path.symlink_metadata() else { return 0 };
    let own = seen.blocks().saturating_mul(UNIT);
    if seen.is_dir() { own.saturating_add(children(path)) } else { own }
}

fn children(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries.flatten().fold(0, |sum, entry| sum.saturating_add(allocated(&entry.path())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_exact() {
        let space = |free| Space { free, total: 1000 };
        assert!(space(99).is_below(10) && !space(100).is_below(10));
        assert!(!Space { free: 0, total: 1000 }.is_below(0), "0 asks for nothing");
        assert_eq!((space(99).missing(10), space(100).missing(10)), (1, 0));
        assert_eq!(Space { free: 0, total: 1001 }.missing(10), 101, "then it is not below");
        assert!(!Space { free: u64::MAX, total: u64::MAX }.is_below(100));
    }

    #[test]
    fn only_what_is_below_the_state_folder_is_counted_as_allocated() {
        let (state, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let room = HostRoom { state: state.path().to_owned() };
        let file = state.path().join("staging/pull/disk");
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::File::create(&file).unwrap().set_len(1 << 30).unwrap();
        std::fs::write(elsewhere.path().join("big"), vec![1; 1 << 20]).unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), state.path().join("staging/pull/link")).unwrap();
        let (count, sparse) = room.staging();
        assert!(count == 1 && sparse < 1 << 20, "{sparse}");
        std::fs::write(&file, vec![1; 1 << 20]).unwrap();
        assert!(room.staging().1 >= 1 << 20);
        assert_eq!(room.taken(&elsewhere.path().join("big")), 0);
        assert!(room.space().unwrap().total > 0);
    }
}
