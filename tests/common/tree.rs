//! File trees as values, to be compared entry by entry.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// All that `stat`, `readlink`, `listxattr` and reading tell about a file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    pub(crate) kind: &'static str,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, i64),
    /// The last access before this one; of directories only reading tells, which changes it.
    pub(crate) atime: (i64, i64),
    /// Names; 0 for directories.
    pub(crate) links: u64,
    /// Bytes; 0 for all but files.
    pub(crate) size: u64,
    pub(crate) rdev: u64,
    /// The target of a symlink, or the digest of a file.
    pub(crate) content: Vec<u8>,
    /// The first name of the same file.
    pub(crate) first_name: Vec<u8>,
    pub(crate) xattrs: BTreeMap<String, Vec<u8>>,
}

pub(crate) type Tree = BTreeMap<Vec<u8>, Node>;

/// Reads the tree below `root`, which itself is the entry with the empty name.
pub(crate) fn read(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut first_names = HashMap::new();
    let mut first_atimes = HashMap::new();
    let mut ahead = vec![root.to_owned()];
    while let Some(path) = ahead.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            ahead.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
        let mut node = node(&path, &meta);
        // Reading by one name is an access by all.
        node.atime = *first_atimes.entry(meta.ino()).or_insert(node.atime);
        tree.insert(name, node);
    }
    for (name, node) in &mut tree {
        if node.kind != "directory" {
            let inode = fs::symlink_metadata(join(root, name)).unwrap().ino();
            node.first_name = first_names.entry(inode).or_insert_with(|| name.clone()).clone();
        }
    }
    tree
}

fn join(root: &Path, name: &[u8]) -> PathBuf {
    root.join(std::ffi::OsStr::from_bytes(name))
}

fn node(path: &Path, meta: &fs::Metadata) -> Node {
    let kind = meta.file_type();
    let (kind, content) = if kind.is_dir() {
        ("directory", Vec::new())
    } else if kind.is_symlink() {
        ("symlink", fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec())
    } else if kind.is_file() {
        ("file", Sha256::digest(fs::read(path).unwrap()).to_vec())
    } else if kind.is_fifo() {
        ("fifo", Vec::new())
    } else if kind.is_char_device() {
        ("char", Vec::new())
    } else {
        ("block", Vec::new())
    };
    Node {
        kind,
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        mtime: (meta.mtime(), meta.mtime_nsec()),
        atime: if kind == "directory" { (0, 0) } else { (meta.atime(), meta.atime_nsec()) },
        links: if kind == "directory" { 0 } else { meta.nlink() },
        size: if kind == "file" { meta.size() } else { 0 },
        rdev: meta.rdev(),
        content,
        first_name: Vec::new(),
        xattrs: xattrs(path),
    }
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 64 << 10];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let name = String::from_utf8(name.to_vec()).unwrap();
            let mut value = vec![0; 64 << 10];
            let length = rustix::fs::lgetxattr(path, name.as_str(), &mut value[..]).unwrap();
            value.truncate(length);
            (name, value)
        })
        .collect()
}

/// Fails with the first few differences.
pub(crate) fn assert_same(ours: &Tree, theirs: &Tree) {
    let names: std::collections::BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
    let different: Vec<String> = names
        .into_iter()
        .filter(|name| ours.get(*name) != theirs.get(*name))
        .map(|name| {
            format!("{:?}{}", String::from_utf8_lossy(name), difference(ours.get(name), theirs.get(name)))
        })
        .collect();
    assert!(
        different.is_empty(),
        "{} differ:\n{}",
        different.len(),
        different[..different.len().min(8)].join("\n")
    );
}

/// What differs, a line for each thing.
fn difference(ours: Option<&Node>, theirs: Option<&Node>) -> String {
    let (Some(ours), Some(theirs)) = (ours, theirs) else {
        return format!(
            "\n  ours   {:?}\n  theirs {:?}",
            ours.map(|node| node.kind),
            theirs.map(|node| node.kind)
        );
    };
    let facts = |node: &Node| {
        let Node { kind, mode, uid, gid, mtime, atime, links, size, rdev, .. } = node;
        let Node { content, first_name, xattrs, .. } = node;
        [
            format!("{kind} {mode:o} {uid}:{gid}, {links} links, {size} bytes, device {rdev}"),
            format!("mtime {mtime:?} atime {atime:?}"),
            format!("content {}", content[..content.len().min(40)].escape_ascii()),
            format!("same as {}", first_name.escape_ascii()),
            format!(
                "{:?}",
                xattrs.iter().map(|(name, value)| (name, hex::encode(value))).collect::<Vec<_>>()
            ),
        ]
    };
    let pairs = facts(ours).into_iter().zip(facts(theirs)).filter(|(ours, theirs)| ours != theirs);
    pairs.map(|(ours, theirs)| format!("\n  ours   {ours:.400}\n  theirs {theirs:.400}")).collect()
}

/// Runs a tool; tells what to install if it is missing.
pub(crate) fn run(program: &str, package: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}; install it (apt-get install {package})"));
    let text =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "{program} {args:?}: {}\n{text}", output.status);
    text
}

/// A disk that is mounted read-only until this is dropped.
pub(crate) struct Mounted {
    folder: TempDir,
}

impl Mounted {
    pub(crate) fn new(disk: &Path) -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test mounts a disk: run it as root");
        let folder = tempfile::tempdir().unwrap();
        run("mount", "mount", &["-o", "ro,loop", disk.to_str().unwrap(), folder.path().to_str().unwrap()]);
        Mounted { folder }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazy: a process that another test is just starting may still hold copies of our files.
        let _ = Command::new("umount").arg("--lazy").arg(self.folder.path()).status();
    }
}

/// The tree in a disk that e2fsck has nothing to say about.
pub(crate) fn read_disk(disk: &Path) -> Tree {
    run("e2fsck", "e2fsprogs", &["-fn", disk.to_str().unwrap()]);
    read(Mounted::new(disk).path())
}
