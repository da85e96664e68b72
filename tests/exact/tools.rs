//! Trees that real tools packed: the disk must hold what the tools were shown.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, lchown, symlink};
use std::path::Path;
use std::process::Command;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, lsetxattr, mknodat, utimensat,
};

use crate::Disk;
use crate::common::oci::noise;
use crate::common::tree::{Tree, assert_same, read, run};
use crate::values::{CAP_NET_RAW, acl};

/// What a format cannot say.
#[derive(Clone, Copy, Default)]
struct Lost {
    xattrs: bool,
    acls: bool,
    fractions: bool,
    atimes: bool,
    /// Long names and targets, times before 1970 and large numbers, which the tree is then made without.
    extremes: bool,
    /// Fractions of seconds before 1970, which libarchive 3.6 writes as if they were after it.
    early_fractions: bool,
    linked_symlinks: bool,
}

/// Makes files of every kind below `root`.
fn plant(root: &Path, lost: Lost) {
    let path = |name: &[u8]| root.join(OsStr::from_bytes(name));
    let mut names: Vec<Vec<u8>> = Vec::new();
    let mut add = |name: &[u8]| names.push(name.to_vec());
    for dir in [&b"dir"[..], b"dir/deep", b"dir/sticky", b"empty", b"setgid"] {
        fs::create_dir(path(dir)).unwrap();
        add(dir);
    }
    let sizes = [0, 1, 511, 512, 513, 4095, 4096, 4097, 100_000];
    for size in sizes {
        let name = format!("dir/file {size}");
        fs::write(path(name.as_bytes()), noise(size as u64, size)).unwrap();
        add(name.as_bytes());
    }
    for name in [&b"dir/caf\xc3\xa9"[..], b"dir/\xff\xfe", b"dir/new\nline", b"dir/quo\"te\\", b"dir/-dash"] {
        fs::write(path(name), name).unwrap();
        add(name);
    }
    let length = if lost.extremes { 98 } else { 255 };
    let long = [b"dir/deep/", vec![b'l'; length].as_slice()].concat();
    fs::write(path(&long), "long").unwrap();
    add(&long);
    for length in if lost.extremes { [1, 59, 60, 61, 99] } else { [1, 59, 60, 101, 4095] } {
        let name = format!("dir/link {length}");
        symlink("t".repeat(length), path(name.as_bytes())).unwrap();
        add(name.as_bytes());
    }
    fs::hard_link(path(b"dir/file 4097"), path(b"empty/hard")).unwrap();
    if !lost.linked_symlinks {
        fs::hard_link(path(b"dir/link 60"), path(b"empty/hard link")).unwrap();
    }
    let (major, minor) = if lost.extremes { (7, 200) } else { (4095, 1_048_575) };
    for (name, kind) in [("dir/char", FileType::CharacterDevice), ("dir/block", FileType::BlockDevice)] {
        let number = rustix::fs::makedev(major, minor);
        mknodat(CWD, path(name.as_bytes()), kind, Mode::from(0o640), number).unwrap();
        add(name.as_bytes());
    }
    mknodat(CWD, path(b"dir/fifo"), FileType::Fifo, Mode::from(0o600), 0).unwrap();
    add(b"dir/fifo");
    let sparse = File::create(path(b"dir/sparse")).unwrap();
    sparse.set_len(50 << 20).unwrap();
    for number in 0..40 {
        sparse.write_all_at(&noise(number, 5000), number << 20).unwrap();
    }
    add(b"dir/sparse");
    dress(root, &names, lost);
}

fn dress(root: &Path, names: &[Vec<u8>], lost: Lost) {
    let path = |name: &[u8]| root.join(OsStr::from_bytes(name));
    let ids = if lost.extremes { [0, 1000, 65_534, 262_143] } else { [0, 65_536, 2_097_152, 4_294_967_294] };
    let seconds = if lost.extremes {
        [0, 1, 1_700_000_000, 2_147_483_648]
    } else {
        [-2_147_483_648, -1, 0, 8_589_934_591]
    };
    for (index, name) in names.iter().enumerate() {
        lchown(path(name), Some(ids[index % 4]), Some(ids[(index + 1) % 4])).unwrap();
        if !path(name).is_symlink() {
            let mode = [0o4755, 0o2711, 0o1777, 0o600, 0o0, 0o644][index % 6];
            fs::set_permissions(path(name), fs::Permissions::from_mode(mode)).unwrap();
        }
    }
    let set = |name: &str, key: &str, value: &[u8]| {
        lsetxattr(path(name.as_bytes()), key, value, XattrFlags::empty()).unwrap();
    };
    if !lost.xattrs {
        set("dir/file 4096", "security.capability", &CAP_NET_RAW);
        set("dir/file 511", "user.binary", b"\0\n=\xff value");
        set("dir/file 513", "user.large", &noise(9, 3000));
        set("dir/link 59", "trusted.of_a_link", b"t");
        set("dir", "user.of_a_directory", b"d");
    }
    if !lost.acls {
        let entries =
            [(1, 6, u32::MAX), (2, 7, 70_000), (4, 4, u32::MAX), (16, 7, u32::MAX), (32, 4, u32::MAX)];
        set("dir/file 512", "system.posix_acl_access", &acl(&entries));
        set("setgid", "system.posix_acl_default", &acl(&entries));
    }
    let time = |index: usize, nsec| {
        let sec = seconds[index % 4];
        Timespec { tv_sec: sec, tv_nsec: if sec < 0 && lost.early_fractions { 0 } else { nsec } }
    };
    let fraction = if lost.fractions { 0 } else { 123_456_789 };
    for (index, name) in names.iter().enumerate().rev() {
        let mtime = time(index, fraction);
        let atime = if lost.atimes { mtime } else { time(index + 1, fraction) };
        let times = Timestamps { last_access: atime, last_modification: mtime };
        utimensat(CWD, path(name), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
    let times = Timestamps { last_access: time(2, 0), last_modification: time(2, 0) };
    utimensat(CWD, root, &times, AtFlags::empty()).unwrap();
}

/// Packs a tree with a tool and compares the disk with it. The tree is read first, and its times of access
/// are put back.
fn round_trip(what: &str, lost: Lost, pack: impl FnOnce(&Path, &Path)) {
    println!("{what}");
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    fs::create_dir(&root).unwrap();
    plant(&root, lost);
    let mut truth = read(&root);
    // Reading set them.
    for (name, node) in &truth {
        let time = |(sec, nsec): (i64, i64)| Timespec { tv_sec: sec, tv_nsec: nsec };
        let times = Timestamps { last_access: time(node.atime), last_modification: time(node.mtime) };
        utimensat(CWD, root.join(OsStr::from_bytes(name)), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
    let archive = folder.path().join("layer.tar");
    pack(&root, &archive);
    let mut tree = Disk::build(&[fs::read(&archive).unwrap()]).unwrap().tree();
    forget(&mut truth, lost);
    forget(&mut tree, lost);
    assert_same(&tree, &truth);
}

/// Drops what need not be the same.
fn forget(tree: &mut Tree, lost: Lost) {
    for node in tree.values_mut() {
        if lost.atimes {
            node.atime = (0, 0);
        }
        if lost.xattrs {
            node.xattrs = BTreeMap::new();
        }
    }
}

const ALL: Lost = Lost {
    xattrs: true,
    acls: true,
    fractions: true,
    atimes: true,
    extremes: true,
    early_fractions: false,
    linked_symlinks: false,
};

fn gnu_tar(root: &Path, archive: &Path, options: &[&str]) {
    let (root, archive) = (root.to_str().unwrap(), archive.to_str().unwrap());
    let common = ["--create", "--numeric-owner", "--file", archive, "--directory", root];
    run("tar", "tar", &[&common[..], options, &["."]].concat());
}

#[test]
fn gnu_tar_is_read() {
    round_trip("posix", Lost::default(), |root, archive| {
        let options = ["--format=posix", "--xattrs", "--xattrs-include=*", "--atime-preserve=system"];
        gnu_tar(root, archive, &options);
    });
    let times = Lost { atimes: true, ..Lost::default() };
    for version in ["0.0", "0.1", "1.0"] {
        round_trip(version, times, |root, archive| {
            let sparse = format!("--sparse-version={version}");
            let options = ["--format=posix", "--xattrs", "--xattrs-include=*", "--sparse", &sparse];
            gnu_tar(root, archive, &options);
        });
    }
    let gnu = Lost { extremes: false, ..ALL };
    round_trip("gnu", gnu, |root, archive| gnu_tar(root, archive, &["--format=gnu", "--sparse"]));
    round_trip("oldgnu", gnu, |root, archive| gnu_tar(root, archive, &["--format=oldgnu", "--sparse"]));
    round_trip("ustar", ALL, |root, archive| gnu_tar(root, archive, &["--format=ustar"]));
}

#[test]
fn bsdtar_is_read() {
    let pack = |format: &'static str| {
        move |root: &Path, archive: &Path| {
            let (root, archive) = (root.to_str().unwrap(), archive.to_str().unwrap());
            let options = ["--numeric-owner", "--xattrs", "--acls", "--format", format];
            run(
                "bsdtar",
                "libarchive-tools",
                &[&["-c", "-f", archive, "-C", root], &options[..], &["."]].concat(),
            );
        }
    };
    round_trip("pax", Lost { atimes: true, early_fractions: true, ..Lost::default() }, pack("pax"));
    round_trip("gnutar", ALL, pack("gnutar"));
    round_trip("ustar", ALL, pack("ustar"));
}

#[test]
fn python_is_read() {
    let pack = |format: &'static str| {
        move |root: &Path, archive: &Path| {
            let program = format!(
                "import sys, tarfile\n\
                 with tarfile.open(sys.argv[2], 'w', format=tarfile.{format}, errors='surrogateescape') as tar:\n    \
                 tar.add(sys.argv[1], '')"
            );
            let status =
                Command::new("python3").args(["-c", &program]).args([root, archive]).status().unwrap();
            assert!(status.success());
        }
    };
    let common = Lost { xattrs: true, acls: true, atimes: true, linked_symlinks: true, ..Lost::default() };
    round_trip("PAX", Lost { fractions: true, ..common }, pack("PAX_FORMAT"));
    round_trip("GNU", Lost { fractions: true, ..common }, pack("GNU_FORMAT"));
    round_trip("USTAR", Lost { linked_symlinks: true, ..ALL }, pack("USTAR_FORMAT"));
}
