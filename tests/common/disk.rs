//! Small file systems, to be filled.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

/// A tmpfs of its own, gone with the value.
pub(crate) struct SmallDisk(TempDir);

impl SmallDisk {
    pub(crate) fn new(bytes: u64) -> SmallDisk {
        SmallDisk::of("tmpfs", &format!("size={bytes}"))
    }

    /// Of another kind that needs no device.
    pub(crate) fn of(kind: &str, options: &str) -> SmallDisk {
        let dir = TempDir::new().unwrap();
        mount(Some(kind), dir.path(), Some(kind), MsFlags::empty(), Some(options))
            .expect("this test mounts a file system: run it as root");
        SmallDisk(dir)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Leaves so many bytes free.
    pub(crate) fn fill(&self, but: u64) {
        let _ = std::fs::remove_file(self.path().join("ballast"));
        let ballast = File::create(self.path().join("ballast")).unwrap();
        let mut length = 0;
        while self.free() > but {
            let piece = (self.free() - but).min(1 << 20) as usize;
            ballast.write_all_at(&vec![1; piece], length).unwrap();
            length += piece as u64;
        }
    }

    pub(crate) fn free(&self) -> u64 {
        let seen = rustix::fs::statvfs(self.path()).unwrap();
        seen.f_bavail * seen.f_frsize
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(self.path(), MntFlags::MNT_DETACH);
    }
}
