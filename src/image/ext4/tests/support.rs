//! What the kernel and e2fsprogs say about a disk. Needs root, loop devices and e2fsprogs.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::super::{Builder, Limits, Meta, Summary, Time};

pub(super) const UUID: [u8; 16] = *b"\x8c\x01uuid of a test";
pub(super) const LIMITS: Limits = Limits { max_bytes: 64 << 30, max_inodes: 1 << 20 };

/// A disk in a folder that goes with it.
pub(super) struct TestDisk {
    folder: tempfile::TempDir,
}

impl TestDisk {
    pub(super) fn new() -> Self {
        TestDisk { folder: tempfile::tempdir().unwrap() }
    }

    pub(super) fn path(&self) -> PathBuf {
        self.folder.path().join("disk.ext4")
    }

    pub(super) fn create(&self) -> File {
        File::options().read(true).write(true).create(true).truncate(true).open(self.path()).unwrap()
    }

    pub(super) fn builder(&self) -> Builder {
        Builder::new(self.create(), UUID, LIMITS).unwrap()
    }

    /// Builds, and has e2fsck look at the result.
    pub(super) fn build(fill: impl FnOnce(&mut Builder)) -> (TestDisk, Summary) {
        let disk = TestDisk::new();
        let mut builder = disk.builder();
        fill(&mut builder);
        let summary = builder.finish().unwrap();
        assert_eq!(summary.size, disk.path().metadata().unwrap().len());
        disk.check();
        (disk, summary)
    }

    /// e2fsck must not have a word to say beyond its headings.
    pub(super) fn check(&self) {
        let output = Command::new("e2fsck").arg("-fn").arg(self.path()).output();
        let output = output.expect("e2fsck runs: install e2fsprogs");
        let text = String::from_utf8_lossy(&output.stdout);
        let heading = |line: &str| line.starts_with("Pass ") || line.ends_with(" blocks");
        assert!(output.status.success() && text.lines().all(heading), "e2fsck: {text}");
    }

    pub(super) fn resize(&self, bytes: u64) {
        File::options().write(true).open(self.path()).unwrap().set_len(bytes).unwrap();
        run(Command::new("resize2fs").arg("-f").arg(self.path()));
    }

    pub(super) fn mount(&self, options: &str) -> Mounted {
        let target = tempfile::tempdir().unwrap();
        run(Command::new("mount").args(["-o", options]).arg(self.path()).arg(target.path()));
        Mounted { target }
    }
}

/// A mounted disk, until dropped.
pub(super) struct Mounted {
    target: tempfile::TempDir,
}

impl Mounted {
    pub(super) fn path(&self) -> &Path {
        self.target.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A process that another test is just starting holds our files between its fork and its exec.
        let unmounted = (0..100).any(|_| {
            let done = Command::new("umount").arg(self.path()).status().is_ok_and(|status| status.success());
            if !done {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            done
        });
        assert!(unmounted || std::thread::panicking(), "cannot unmount {}", self.path().display());
    }
}

pub(super) fn run(command: &mut Command) -> String {
    let output = command.output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}; install e2fsprogs and mount"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}, which needs root and loop devices: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a name stands for, as the kernel shows it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Seen {
    /// Names with one group are hard links of each other: the first of them.
    pub(super) group: Vec<u8>,
    pub(super) content: Content,
    /// With [`Meta::xattrs`] in the order of their names.
    pub(super) meta: Meta,
    pub(super) links: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Content {
    Regular(Vec<u8>),
    Directory,
    Symlink(Vec<u8>),
    Fifo,
    Socket,
    Char(u32, u32),
    Block(u32, u32),
}

/// Everything below `root`, by path (the root's is empty).
pub(super) fn survey(root: &Path) -> BTreeMap<Vec<u8>, Seen> {
    let mut seen = BTreeMap::new();
    let mut groups = BTreeMap::new();
    let mut pending = vec![Vec::new()];
    while let Some(relative) = pending.pop() {
        let path = root.join(std::ffi::OsStr::from_bytes(&relative));
        let stat = fs::symlink_metadata(&path).unwrap();
        if stat.is_dir() {
            for entry in fs::read_dir(&path).unwrap() {
                let name = entry.unwrap().file_name().into_vec();
                let prefix = if relative.is_empty() { vec![] } else { [&relative[..], b"/"].concat() };
                pending.push([prefix, name].concat());
            }
        }
        let group: &mut Vec<u8> = groups.entry(stat.ino()).or_insert_with(|| relative.clone());
        *group = relative.clone().min(group.clone());
        let time = Time { sec: stat.mtime(), nsec: stat.mtime_nsec() as u32 };
        assert_eq!((time.sec, i64::from(time.nsec)), (stat.ctime(), stat.ctime_nsec()));
        let meta = Meta {
            mode: (stat.mode() & 0o7777) as u16,
            uid: stat.uid(),
            gid: stat.gid(),
            mtime: time,
            atime: None,
            xattrs: xattrs(&path),
        };
        let content = content(&path, &stat);
        seen.insert(relative, (stat.ino(), Seen { group: vec![], content, meta, links: stat.nlink() }));
    }
    let grouped = |(path, (inode, seen))| (path, Seen { group: groups[&inode].clone(), ..seen });
    seen.into_iter().map(grouped).collect()
}

fn content(path: &Path, stat: &fs::Metadata) -> Content {
    let kind = stat.file_type();
    let (major, minor) = (rustix::fs::major(stat.rdev()), rustix::fs::minor(stat.rdev()));
    if kind.is_dir() {
        Content::Directory
    } else if kind.is_symlink() {
        Content::Symlink(fs::read_link(path).unwrap().into_os_string().into_vec())
    } else if kind.is_fifo() {
        Content::Fifo
    } else if kind.is_socket() {
        Content::Socket
    } else if kind.is_char_device() {
        Content::Char(major, minor)
    } else if kind.is_block_device() {
        Content::Block(major, minor)
    } else {
        Content::Regular(fs::read(path).unwrap())
    }
}

fn xattrs(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut buffer = vec![0; 1 << 16];
    let length = rustix::fs::llistxattr(path, &mut buffer[..]).unwrap();
    let names = buffer[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty());
    let mut xattrs: Vec<_> = names
        .map(|name| {
            let mut value = vec![0; 1 << 16];
            let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            value.truncate(length);
            (name.to_vec(), value)
        })
        .collect();
    xattrs.sort();
    xattrs
}

/// A POSIX ACL as the system calls have it.
pub(super) fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        value.extend([tag.to_le_bytes(), permissions.to_le_bytes()].concat());
        value.extend(id.to_le_bytes());
    }
    value
}

/// Bytes that no other call with another `seed` gives.
pub(super) fn noise(length: usize, seed: u8) -> Vec<u8> {
    let mut state = u32::from(seed) + 1;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(|_| next()).collect()
}
