//! Our own ext4: written as a stream, without mounting, root rights or outside tools.
//!
//! Two things are made here:
//!
//! - **base disks**: a [`Builder`] takes directories, files, links and devices in any order, also the
//!   removal of what came earlier, and writes file data at once, from low block numbers on. The tree
//!   and the inodes stay in memory (about 250 bytes an inode) until [`Builder::finish`] puts the
//!   directories, inode tables and bitmaps behind the data.
//! - **private disks**: [`format_empty`] makes an empty journalled filesystem by writing little more
//!   than group descriptors; everything else is a hole in the file.
//!
//! Guaranteed: the same calls give the same bytes (no clock, no randomness but the given uuid);
//! `e2fsck -f` finds nothing to say; Linux mounts and grows the result, online too. What an outsider
//! controls is bounded by [`Limits`], and a wrong handle or name is an error, never a panic.
//!
//! The format is that of the kernel's Documentation/filesystems/ext4. Blocks are 4096 bytes, groups
//! 32768 blocks, inodes 256 bytes. Backups of the superblock are where `sparse_super` wants them,
//! because Linux refuses to grow a mounted filesystem that has `sparse_super2`; the allocator steps
//! over them.

mod alloc;
mod builder;
mod checksum;
mod dir;
mod disk;
mod empty;
mod extent;
mod file;
mod finish;
mod hash;
mod inode;
mod inspect;
mod layout;
mod sink;
mod superblock;
#[cfg(test)]
mod tests;
mod tree;
mod value;
mod writer;
mod xattr;

pub use builder::Builder;
pub use empty::format_empty;
pub use file::FileWriter;
pub(crate) use inspect::{SUPERBLOCK, has_long_values, inspect, superblock_without_long_values};

use std::io;

/// A file, directory or other object of one [`Builder`]. A handle is void once its last name is
/// removed, and may then come to stand for a later object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Inode(u32);

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileType {
    /// A file with data.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A unix socket.
    Socket,
    /// A character device.
    Char,
    /// A block device.
    Block,
}

/// How far a [`Builder`] may go.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Length of the disk in bytes, holes included; no more than 16 TiB are ever used.
    pub max_bytes: u64,
    /// Inodes, and names: a hard link counts as one name, a long value of an extended attribute as an inode. The memory for names, symlink targets
    /// and extended attributes is limited to 256 bytes for each of these (or 16 MiB, if that is more).
    pub max_inodes: u32,
}

/// What is known of an object besides its name, type and content.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Meta {
    /// Permission bits with set-user-id, set-group-id and sticky: `0o7777`. Others are ignored.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change; becomes the times of inode change and birth too.
    pub mtime: Time,
    /// Time of the last access; if there is none, that of the last change.
    pub atime: Option<Time>,
    /// Extended attributes: full names (`security.capability`, `system.posix_acl_access`, `user.…`,
    /// `trusted.…`) and values as `getxattr` gives them. Of two with one name the later counts.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A time as `stat` gives it. What ext4 cannot hold (before December 1901, after May 2446) becomes the nearest
/// time that it can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Time {
    /// Seconds since 1970.
    pub sec: i64,
    /// Nanoseconds, less than 1,000,000,000.
    pub nsec: u32,
}

/// An object without content. Majors have 12 bits and minors 20, as in Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// A named pipe.
    Fifo,
    /// A unix socket.
    Socket,
    /// A character device.
    Char {
        /// Which driver.
        major: u32,
        /// Which of the driver's devices.
        minor: u32,
    },
    /// A block device.
    Block {
        /// Which driver.
        major: u32,
        /// Which of the driver's devices.
        minor: u32,
    },
}

/// What [`Builder::finish`] wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The disk's length in bytes.
    pub size: u64,
    /// Objects in it, the root directory included.
    pub inodes: u32,
    /// Bytes of it that are not free space, metadata and unwritten inode tables included.
    pub used_bytes: u64,
}

/// Why a disk could not be written as asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file that holds the disk failed.
    #[error("cannot {action} the ext4 disk: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// [`Limits::max_bytes`] is reached.
    #[error("the content needs a disk of more than the allowed {max_bytes} bytes")]
    Full {
        /// The limit.
        max_bytes: u64,
    },
    /// [`Limits::max_inodes`] is reached.
    #[error("the content has more than the allowed {max_inodes} files and names")]
    TooManyInodes {
        /// The limit.
        max_inodes: u32,
    },
    /// The names, symlink targets and extended attributes take too much memory.
    #[error("the names, symlink targets and extended attributes take more than {max_bytes} bytes")]
    TooMuchMetadata {
        /// The limit that follows from [`Limits::max_inodes`].
        max_bytes: u64,
    },
    /// The name is taken.
    #[error("{name} exists already")]
    Exists {
        /// The name, escaped.
        name: String,
    },
    /// There is no such name.
    #[error("{name} does not exist")]
    NotFound {
        /// The name, escaped.
        name: String,
    },
    /// Something was to be done in a directory that is none, or is gone.
    #[error("cannot find or make {name} in what is not a directory")]
    NotADirectory {
        /// The name, escaped.
        name: String,
    },
    /// A handle's object is gone.
    #[error("the object was removed earlier")]
    Gone,
    /// Linux has no such names.
    #[error("{name} is not a file name: 1 to 255 bytes without `/` and NUL, not `.` or `..`")]
    Name {
        /// The name, escaped.
        name: String,
    },
    /// Linux has no such symbolic links.
    #[error("the target of symlink {name} must be 1 to 4095 bytes without NUL")]
    Target {
        /// The symlink's name, escaped.
        name: String,
    },
    /// Linux has no such devices.
    #[error("device {name} has number {major}:{minor}, beyond 4095:1048575")]
    Device {
        /// The device's name, escaped.
        name: String,
        /// Its major number.
        major: u32,
        /// Its minor number.
        minor: u32,
    },
    /// Directories have one name.
    #[error("{name} cannot be a hard link to a directory")]
    LinkToDirectory {
        /// The name, escaped.
        name: String,
    },
    /// ext4 counts to 65,000.
    #[error("{name} would be hard link number 65001 of a file; ext4 allows 65000")]
    TooManyLinks {
        /// The name, escaped.
        name: String,
    },
    /// ext4 counts 2^32 blocks.
    #[error("a file is longer than the 16 TiB that ext4 allows")]
    FileTooBig,
    /// An extended attribute, or all those of one object together, that ext4 does not hold.
    #[error("extended attribute {name}: {reason}")]
    Xattr {
        /// The attribute's name, escaped.
        name: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// What Linux and e2fsck do not read alike.
    #[error(
        "the extended attributes of a symlink with a target of less than 60 bytes must fit 4 KiB together"
    )]
    SymlinkXattrs,
    /// [`format_empty`] makes 8 MiB to 16 TiB.
    #[error("a disk of {size} bytes: ext4 disks are made from 8 MiB to 16 TiB")]
    Size {
        /// What was asked for, in bytes.
        size: u64,
    },
}

impl Error {
    /// For `map_err` on what failed while trying to `action` the disk.
    fn io(action: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Io { action, source }
    }
}

/// For [`FileWriter`] as [`io::Write`]: the error can be had back with [`io::Error::downcast`].
impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        let kind = match &error {
            Error::Io { source, .. } => source.kind(),
            Error::Full { .. } => io::ErrorKind::StorageFull,
            Error::FileTooBig => io::ErrorKind::FileTooLarge,
            _ => io::ErrorKind::InvalidInput,
        };
        io::Error::new(kind, error)
    }
}
