//! Whether base disks hold what layers say, on layers that tools, chance and enemies wrote.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
#[path = "../common/mod.rs"]
mod common;

mod disagreements;
mod random;
mod stacks;
mod tools;
mod values;

use std::fs::File;
use std::path::{Path, PathBuf};

use common::oci::{Item, tar};
use common::tree::{Tree, read_disk};
use tempfile::TempDir;
use vmlet::image::{ImageError, Limits, probe};

/// A base disk in a folder that goes with it.
struct Disk {
    folder: TempDir,
}

impl Disk {
    /// Of these uncompressed layers, bottom to top.
    fn build(layers: &[Vec<u8>]) -> Result<Disk, ImageError> {
        let disk = Disk { folder: tempfile::tempdir().unwrap() };
        let file = File::options().read(true).write(true).create_new(true).open(disk.path()).unwrap();
        let summary = probe::build_disk(file, layers.iter().map(Vec::as_slice), &Limits::default())?;
        assert_eq!(summary.size, disk.path().metadata().unwrap().len());
        Ok(disk)
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("disk.ext4")
    }

    /// What e2fsck finds right and the kernel shows.
    fn tree(&self) -> Tree {
        read_disk(&self.path())
    }
}

/// The tree of layers of these entries.
fn tree_of(layers: &[&[Item]]) -> Tree {
    let layers: Vec<Vec<u8>> = layers.iter().map(|items| tar(items)).collect();
    Disk::build(&layers).unwrap().tree()
}

/// The error that a layer of these entries meets.
fn error_of(items: &[Item]) -> ImageError {
    Disk::build(&[tar(items)]).err().expect("the layer is refused")
}

/// Fails with the names, if they are others.
#[track_caller]
fn assert_names(tree: &Tree, expected: &[&str]) {
    let names: Vec<_> = tree.keys().map(|name| String::from_utf8_lossy(name)).collect();
    assert_eq!(names[1..], *expected);
}

/// Grows a disk that is not mounted, as e2fsprogs would grow any other.
fn grow(disk: &Path) {
    let file = File::options().write(true).open(disk).unwrap();
    file.set_len(disk.metadata().unwrap().len() + (200 << 20)).unwrap();
    let disk = disk.to_str().unwrap();
    common::tree::run("resize2fs", "e2fsprogs", &["-f", disk]);
    common::tree::run("e2fsck", "e2fsprogs", &["-fn", disk]);
}
