//! Where kernels and modules are read from: the host's file system, or an ext4 disk that nobody mounts.
//!
//! What stands there may be an image's, so hostile: every read and every list is bounded, only regular files are
//! opened, and what a module folder names stays below it.

use std::error::Error;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use ext4_view::{Ext4, Ext4Error, Ext4Read};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use super::BootError;
use crate::image::ext4;

/// The most entries of one folder that are looked at; real ones have hundreds.
const MAX_ENTRIES: usize = 20_000;

/// A file system to read from.
pub(super) enum Files {
    /// The host's.
    Host,
    /// That of a base disk.
    Disk(Ext4),
}

/// An entry of a folder.
pub(super) struct Entry {
    pub(super) path: PathBuf,
    pub(super) kind: Kind,
}

/// What an entry is; links are not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Folder,
    File,
    Other,
}

impl Files {
    /// The file system of a raw ext4 disk.
    pub(super) fn of_disk(disk: &Path) -> Result<Files, BootError> {
        let disk_bytes = open_regular(disk).and_then(Disk::new).map_err(BootError::io(disk))?;
        let loaded = Ext4::load(Box::new(disk_bytes));
        loaded
            .map(Files::Disk)
            .map_err(|error| BootError::Disk { path: disk.to_owned(), why: error.to_string() })
    }

    /// A regular file's bytes, which may be reached by links.
    pub(super) fn read(&self, path: &Path, limit: u64) -> Result<Vec<u8>, BootError> {
        match self {
            Files::Host => bounded(open_regular(path).map_err(BootError::io(path))?, path, limit),
            Files::Disk(ext4) => {
                let file = ext4.open(path).map_err(|error| at(path, error))?;
                if !file.metadata().file_type().is_regular_file() {
                    return Err(BootError::Malformed {
                        path: path.to_owned(),
                        problem: "not a regular file",
                    });
                }
                bounded(file, path, limit)
            }
        }
    }

    /// At most the first `length` bytes of a regular file.
    pub(super) fn head(&self, path: &Path, length: u64) -> Result<Vec<u8>, BootError> {
        let mut bytes = Vec::new();
        let read = match self {
            Files::Host => open_regular(path).and_then(|file| file.take(length).read_to_end(&mut bytes)),
            Files::Disk(ext4) => match ext4.open(path) {
                Ok(file) => file.take(length).read_to_end(&mut bytes),
                Err(error) => Err(error.into()),
            },
        };
        read.map_err(BootError::io(path))?;
        Ok(bytes)
    }

    /// The bytes of a file below a folder. On the host no link leads out of the folder; a disk has no outside.
    pub(super) fn read_below(&self, dir: &Path, file: &Path, limit: u64) -> Result<Vec<u8>, BootError> {
        let path = dir.join(file);
        if !file.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(BootError::Malformed { path, problem: "not below its folder" });
        }
        match self {
            Files::Host => {
                let opened = open_below(dir, file).map_err(BootError::io(&path))?;
                bounded(opened, &path, limit)
            }
            Files::Disk(_) => self.read(&path, limit),
        }
    }

    /// As [`Files::read_below`], but none if there is no such file.
    pub(super) fn read_optional(
        &self,
        dir: &Path,
        file: &str,
        limit: u64,
    ) -> Result<Option<Vec<u8>>, BootError> {
        match self.read_below(dir, Path::new(file), limit) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(BootError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn is_folder(&self, path: &Path) -> bool {
        match self {
            Files::Host => path.is_dir(),
            Files::Disk(ext4) => ext4.metadata(path).is_ok_and(|metadata| metadata.is_dir()),
        }
    }

    /// What is in a folder, in no order.
    pub(super) fn list(&self, dir: &Path) -> Result<Vec<Entry>, BootError> {
        let mut entries = Vec::new();
        let mut add = |path: PathBuf, kind| {
            if entries.len() == MAX_ENTRIES {
                return Err(BootError::Malformed {
                    path: dir.to_owned(),
                    problem: "a folder of over 20,000 entries",
                });
            }
            entries.push(Entry { path, kind });
            Ok(())
        };
        match self {
            Files::Host => {
                for entry in fs::read_dir(dir).map_err(BootError::io(dir))? {
                    let entry = entry.map_err(BootError::io(dir))?;
                    let kind = entry.file_type().map_err(BootError::io(entry.path()))?;
                    add(entry.path(), Kind::of(kind.is_dir(), kind.is_file()))?;
                }
            }
            Files::Disk(ext4) => {
                for entry in ext4.read_dir(dir).map_err(|error| at(dir, error))? {
                    let entry = entry.map_err(|error| at(dir, error))?;
                    let name = entry.file_name();
                    if matches!(name.as_ref(), b"." | b"..") {
                        continue;
                    }
                    let kind = entry.file_type().map_err(|error| at(dir, error))?;
                    let path = dir.join(std::ffi::OsStr::from_bytes(name.as_ref()));
                    add(path, Kind::of(kind.is_dir(), kind.is_regular_file()))?;
                }
            }
        }
        Ok(entries)
    }
}

impl Kind {
    fn of(folder: bool, file: bool) -> Kind {
        match (folder, file) {
            (true, _) => Kind::Folder,
            (_, true) => Kind::File,
            _ => Kind::Other,
        }
    }
}

/// A disk whose superblock does not tell of long extended attributes: `ext4-view` refuses such disks, though it
/// reads no attributes.
struct Disk {
    file: File,
    superblock: [u8; ext4::SUPERBLOCK],
}

impl Disk {
    fn new(file: File) -> io::Result<Disk> {
        Ok(Disk { superblock: ext4::superblock_without_long_values(&file)?, file })
    }
}

impl Ext4Read for Disk {
    fn read(&mut self, start: u64, bytes: &mut [u8]) -> Result<(), Box<dyn Error + Send + Sync + 'static>> {
        self.file.read_exact_at(bytes, start)?;
        let first = ext4::SUPERBLOCK as u64;
        if start >= first + self.superblock.len() as u64 {
            return Ok(());
        }
        for (at, byte) in (first..).zip(self.superblock) {
            if let Some(place) = at.checked_sub(start).and_then(|at| bytes.get_mut(at as usize)) {
                *place = byte;
            }
        }
        Ok(())
    }
}

fn at(path: &Path, error: Ext4Error) -> BootError {
    BootError::Io { path: path.to_owned(), source: error.into() }
}

/// A FIFO or a device must not be waited for.
fn open_regular(path: &Path) -> io::Result<File> {
    regular(
        OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY).open(path)?,
    )
}

fn open_below(dir: &Path, file: &Path) -> io::Result<File> {
    let folder =
        rustix::fs::openat(CWD, dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let below = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    regular(rustix::fs::openat2(folder, file, flags, Mode::empty(), below)?.into())
}

fn regular(file: File) -> io::Result<File> {
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("not a regular file")) }
}

fn bounded(file: impl Read, path: &Path, limit: u64) -> Result<Vec<u8>, BootError> {
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(BootError::io(path))?;
    if bytes.len() as u64 > limit {
        return Err(BootError::TooLarge { path: path.to_owned(), limit });
    }
    Ok(bytes)
}
