//! What is fuzzed: each target takes any bytes and panics if a promise is broken.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;

use rustix::fs::MemfdFlags;
use vmlet::image::{ImageError, Limits, Reference, probe};

/// Small bounds, so that they are met.
pub(crate) fn limits() -> Limits {
    Limits {
        disk_bytes: 1 << 30,
        unpacked_bytes: 64 << 20,
        entries: 2000,
        path_bytes: 1000,
        depth: 40,
        xattr_bytes: 8000,
        header_bytes: 64 << 10,
        sparse_segments: 500,
        ..Limits::default()
    }
}

/// A disk that is only in memory.
fn memory() -> File {
    File::from(rustix::fs::memfd_create("disk", MemfdFlags::CLOEXEC).unwrap())
}

/// An uncompressed layer, applied twice onto itself. With `closely`, the disk is looked at, too.
pub(crate) fn layer(bytes: &[u8], closely: bool) {
    let build = || {
        let disk = memory();
        let result = probe::build_disk(disk.try_clone().unwrap(), [bytes, bytes], &limits());
        (disk, result)
    };
    let (disk, result) = build();
    check_error(result.as_ref().err());
    if closely && result.is_ok() {
        fsck(&disk);
        let (again, _) = build();
        assert!(content(disk) == content(again), "the same bytes made another disk");
    }
}

/// A layer as it comes from a registry.
pub(crate) fn blob(bytes: &[u8], _closely: bool) {
    let result = probe::build_disk_of_blobs(memory(), &[bytes], &limits());
    check_error(result.as_ref().err());
}

/// A bundle, by path. With `closely`, what it leaves is looked at, too.
pub(crate) fn bundle(bytes: &[u8], closely: bool) {
    let unpack = || {
        let around = tempfile::tempdir().unwrap();
        let folder = around.path().join("image");
        std::fs::create_dir(&folder).unwrap();
        let result = probe::unpack_bundle(bytes, &folder, &limits());
        (around, result)
    };
    let (around, result) = unpack();
    check_error(result.as_ref().err());
    if closely {
        let left = files(around.path());
        let belongs = |path: &str| {
            let known = ["disk.ext4", "kernel", "initrd", "modules"];
            path.strip_prefix("image").is_some_and(|path| {
                let first = path.split('/').nth(1);
                first.is_none_or(|first| known.contains(&first))
            })
        };
        assert!(left.keys().all(|path| belongs(path)), "{:?}", left.keys());
        let (again, _) = unpack();
        assert!(left == files(again.path()), "the same bytes left something else");
    }
}

/// Everything below a folder, by path: plain files with their content, and folders.
fn files(root: &Path) -> BTreeMap<String, Option<Vec<u8>>> {
    let (mut found, mut ahead) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(folder) = ahead.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let (path, kind) = entry.map(|entry| (entry.path(), entry.file_type().unwrap())).unwrap();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            assert!(kind.is_dir() || kind.is_file(), "{name} is neither a file nor a folder");
            found.insert(name, kind.is_file().then(|| std::fs::read(&path).unwrap()));
            ahead.extend(kind.is_dir().then_some(path));
        }
    }
    found
}

/// A manifest or an index.
pub(crate) fn manifest(bytes: &[u8], _closely: bool) {
    check_error(probe::read_manifest(bytes, &limits()).as_ref().err());
}

/// An image's config.
pub(crate) fn config(bytes: &[u8], _closely: bool) {
    check_error(probe::read_config(bytes, 2).as_ref().err());
}

/// A reference; one that is read is written as what means the same.
pub(crate) fn reference(bytes: &[u8], _closely: bool) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(reference) = text.parse::<Reference>() {
        let written = reference.to_string();
        assert!(written.parse::<Reference>().is_ok_and(|again| again == reference), "{written:?}");
    }
}

/// Errors are for people: one line, not too long, and none that a second try would mend.
fn check_error(error: Option<&ImageError>) {
    let Some(error) = error else { return };
    assert!(!error.transient, "{error}");
    assert!(
        error.message.len() < 2000 && !error.message.contains(['\n', '\0', '\x1b']),
        "{:?}",
        error.message
    );
    assert!(matches!(error.reason, "InvalidImage" | "LimitExceeded"), "{}: {error}", error.reason);
    assert_eq!(error.reason == "LimitExceeded", error.message.contains("--image-limit "), "{error}");
}

fn content(disk: File) -> Vec<u8> {
    use std::io::Seek;
    let mut bytes = Vec::new();
    let mut disk = disk;
    disk.rewind().unwrap();
    disk.read_to_end(&mut bytes).unwrap();
    bytes
}

/// e2fsck must find nothing.
fn fsck(disk: &File) {
    let path = format!("/proc/{}/fd/{}", std::process::id(), disk.as_raw_fd());
    let output =
        Command::new("e2fsck").args(["-fn", &path]).output().expect("e2fsck runs: install e2fsprogs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "e2fsck: {text}");
}
