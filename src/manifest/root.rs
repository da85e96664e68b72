//! A manifests folder, as the kernel shows it.
//!
//! Guarantees: nothing outside of it is opened, also while somebody rearranges links (the kernel resolves beneath
//! it); nothing but regular files is read, and of each no more than a manifest may have.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{self, AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::MAX_FILE_SIZE;

/// What `stat` says of a file: as long as it stays, the content most probably stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub device: u64,
    pub inode: u64,
    pub size: u64,
    /// Since the epoch.
    pub modified: Duration,
    /// Since the epoch. Programs cannot set it.
    pub changed: Duration,
}

impl Stamp {
    pub(super) fn new(stat: &Stat) -> Self {
        let time = |seconds: i64, nanoseconds: u64| {
            Duration::new(u64::try_from(seconds).unwrap_or(0), u32::try_from(nanoseconds).unwrap_or(0))
        };
        Stamp {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            modified: time(stat.st_mtime, stat.st_mtime_nsec),
            changed: time(stat.st_ctime, stat.st_ctime_nsec),
        }
    }

    /// How long ago the file was modified; nothing if that is in the future.
    pub(super) fn age(&self) -> Duration {
        now().saturating_sub(self.modified)
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// An open folder. Paths are below it, and have no links in them.
pub(super) struct Root {
    folder: OwnedFd,
    real: PathBuf,
}

impl Root {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let real = std::fs::canonicalize(path)?;
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(Root { folder: fs::open(&real, flags, Mode::empty())?, real })
    }

    /// Its own path, without links.
    pub(super) fn real(&self) -> &Path {
        &self.real
    }

    /// What is at a path, were it a link.
    pub(super) fn stat(&self, path: &Path) -> Result<Stat, Errno> {
        fs::statat(&self.folder, not_empty(path), AtFlags::SYMLINK_NOFOLLOW)
    }

    /// A folder's names but for hidden ones, in order, no more than one beyond `most`; and what it is.
    pub(super) fn names(&self, path: &Path, most: usize) -> io::Result<(Vec<PathBuf>, Stat)> {
        let directory = self.descend(path, OFlags::DIRECTORY)?;
        let stat = fs::fstat(&directory)?;
        let mut names = Vec::new();
        for entry in Dir::read_from(&directory)? {
            let name = PathBuf::from(OsStr::from_bytes(entry?.file_name().to_bytes()));
            if !is_hidden(&name) {
                names.push(name);
            }
            if names.len() > most {
                break;
            }
        }
        // One component each: their bytes order them as paths, and quicker.
        names.sort_unstable_by(|a, b| a.as_os_str().cmp(b.as_os_str()));
        Ok((names, stat))
    }

    /// A file's content, up to one byte more than a manifest may have, and its stamp after reading: a write in
    /// between makes it young. None if it is no regular file by now.
    pub(super) fn read(&self, path: &Path) -> Result<Option<(Stamp, Vec<u8>)>, Errno> {
        // What is a FIFO or a device by now must not block.
        let file = self.descend(path, OFlags::NONBLOCK | OFlags::NOCTTY)?;
        if FileType::from_raw_mode(fs::fstat(&file)?.st_mode) != FileType::RegularFile {
            return Ok(None);
        }
        let mut file = File::from(file);
        let mut bytes = Vec::new();
        let read = file.by_ref().take(MAX_FILE_SIZE + 1).read_to_end(&mut bytes);
        read.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        Ok(Some((Stamp::new(&fs::fstat(&file)?), bytes)))
    }

    /// Opens a path; one that got links meanwhile is refused by the kernel.
    fn descend(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC;
        fs::openat2(&self.folder, not_empty(path), flags, Mode::empty(), resolve)
    }
}

fn not_empty(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}

/// Dotfiles, `.git`, `..data` and its like, and emacs' `#file#`.
fn is_hidden(name: &Path) -> bool {
    matches!(name.as_os_str().as_bytes().first(), None | Some(b'.' | b'#'))
}
