//! Extended attributes that do not fit beside their inode.

use std::fs;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{XattrFlags, lgetxattr, lsetxattr};

use super::super::inspect::has_long_values;
use super::super::{Builder, Error, Limits, Meta, format_empty};
use super::support::{LIMITS, TestDisk, UUID, acl, noise, survey};
use super::{meta, put};

fn with(xattrs: &[(&str, Vec<u8>)]) -> Meta {
    let xattrs = xattrs.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.clone())).collect();
    Meta { xattrs, ..meta(0o755) }
}

/// Directories with attributes of many sizes, and what they are called.
fn bearers() -> Vec<(&'static str, Meta)> {
    let long_acl: Vec<_> = (0..3000).map(|id| (2, 5, id)).collect();
    let long_acl =
        [&[(1, 7, u32::MAX)][..], &long_acl, &[(4, 5, u32::MAX), (16, 5, u32::MAX), (32, 0, u32::MAX)]];
    let many: Vec<(String, Vec<u8>)> =
        (0..60).map(|number| (format!("user.{number}"), noise(number * 30, number as u8))).collect();
    let many: Vec<(&str, Vec<u8>)> =
        many.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    vec![
        ("longest", with(&[("user.a", noise(65_536, 1))])),
        ("just over", with(&[("user.a", noise(4096, 1)), ("user.b", noise(90, 1))])),
        (
            "three",
            with(&[("user.a", noise(8192, 1)), ("trusted.b", noise(9000, 2)), ("security.c", noise(2, 3))]),
        ),
        ("many", with(&many)),
        ("same", with(&[("user.a", noise(5000, 4)), ("user.b", noise(5000, 4))])),
        ("acl", with(&[("system.posix_acl_default", acl(&long_acl.concat()))])),
        ("fits", with(&[("user.a", noise(4000, 1)), ("user.b", noise(60, 1))])),
    ]
}

fn build() -> TestDisk {
    TestDisk::build(|builder| {
        put(builder, b"before", &noise(10_000, 1));
        for (name, meta) in bearers() {
            builder.mkdir(builder.root(), name.as_bytes(), meta).unwrap();
        }
        let link = with(&[("trusted.a", noise(7000, 1))]);
        let link = builder.symlink(builder.root(), b"link", &[b't'; 60], link).unwrap();
        builder.link(builder.root(), b"linked", link).unwrap();
        // What is replaced or removed leaves nothing.
        let gone = with(&[("user.a", noise(9000, 1))]);
        let kept = builder.mkdir(builder.root(), b"set anew", gone.clone()).unwrap();
        builder.set_meta(kept, meta(0o700)).unwrap();
        builder.mkdir(builder.root(), b"removed", gone).unwrap();
        builder.remove(builder.root(), b"removed").unwrap();
    })
    .0
}

#[test]
fn values_of_any_length_read_back() {
    let disk = build();
    assert!(has_long_values(&fs::File::open(disk.path()).unwrap()).unwrap());
    let mounted = disk.mount("ro,loop");
    let seen = survey(mounted.path());
    for (name, mut meta) in bearers() {
        meta.xattrs.sort();
        assert_eq!(seen[name.as_bytes()].meta, meta, "{name}");
    }
    assert_eq!(seen[&b"link"[..]].meta.xattrs, [(b"trusted.a".to_vec(), noise(7000, 1))]);
    assert_eq!(seen[&b"set anew"[..]].meta.xattrs, []);
    // 4 KiB of directory, 64 KiB of value.
    assert_eq!(fs::metadata(mounted.path().join("longest")).unwrap().blocks(), 8 + 128);
    drop(mounted);
    let (again, first) = (build(), fs::read(disk.path()).unwrap());
    assert!(first == fs::read(again.path()).unwrap(), "the same calls made another disk");
}

#[test]
fn the_feature_is_there_only_where_it_is_needed() {
    let fits = bearers().into_iter().find(|(name, _)| *name == "fits").unwrap().1;
    let (disk, _) = TestDisk::build(|builder| {
        builder.mkdir(builder.root(), b"fits", fits.clone()).unwrap();
        builder.mkdir(builder.root(), b"gone", with(&[("user.a", noise(9000, 1))])).unwrap();
        builder.remove(builder.root(), b"gone").unwrap();
    });
    assert!(!has_long_values(&fs::File::open(disk.path()).unwrap()).unwrap());
    let private = TestDisk::new();
    for long_values in [false, true] {
        format_empty(&private.create(), 64 << 20, UUID, long_values).unwrap();
        private.check();
        assert_eq!(has_long_values(&fs::File::open(private.path()).unwrap()).unwrap(), long_values);
        let mounted = private.mount("loop");
        let file = mounted.path().join("file");
        fs::write(&file, "").unwrap();
        let set = lsetxattr(&file, "user.a", &noise(9000, 1), XattrFlags::empty());
        assert_eq!(set.is_ok(), long_values);
    }
    private.check();
}

/// Linux counts on what the inodes say of themselves when it changes them.
#[test]
fn linux_can_change_and_remove_them() {
    let disk = build();
    disk.resize(64 << 20);
    {
        let mounted = disk.mount("loop");
        let at = |name: &str| mounted.path().join(name);
        lsetxattr(at("longest"), "user.a", &noise(5000, 9), XattrFlags::REPLACE).unwrap();
        rustix::fs::removexattr(at("three"), "user.a").unwrap();
        fs::remove_dir(at("many")).unwrap();
        fs::remove_dir(at("same")).unwrap();
        fs::remove_file(at("link")).unwrap();
        fs::remove_file(at("linked")).unwrap();
        lsetxattr(at("fits"), "user.c", &noise(60_000, 9), XattrFlags::empty()).unwrap();
    }
    disk.check();
    let mounted = disk.mount("ro,loop");
    let mut value = vec![0; 1 << 16];
    let length = lgetxattr(mounted.path().join("longest"), "user.a", &mut value[..]).unwrap();
    assert_eq!(value[..length], noise(5000, 9));
}

#[test]
fn values_count_as_inodes() {
    let disk = TestDisk::new();
    let mut builder = Builder::new(disk.create(), UUID, Limits { max_inodes: 6, ..LIMITS }).unwrap();
    let root = builder.root();
    let two = with(&[("user.a", noise(5000, 1)), ("user.b", noise(5000, 2))]);
    let first = builder.mkdir(root, b"first", two.clone()).unwrap();
    let full = |error| matches!(error, Err(Error::TooManyInodes { max_inodes: 6 }));
    assert!(full(builder.mkdir(root, b"second", two.clone()).map(drop)));
    let second = builder.mkdir(root, b"second", meta(0o755)).unwrap();
    assert!(full(builder.set_meta(second, two.clone())));
    builder.set_meta(first, two.clone()).unwrap();
    builder.set_meta(first, meta(0o755)).unwrap();
    builder.set_meta(second, two.clone()).unwrap();
    builder.remove(root, b"second").unwrap();
    builder.mkdir(root, b"third", two).unwrap();
    assert_eq!(builder.finish().unwrap().inodes, 3, "objects, not values");
    disk.check();
    assert_eq!(survey(disk.mount("ro,loop").path())[&b"third"[..]].meta.xattrs.len(), 2);
}

/// There Linux and e2fsck disagree.
#[test]
fn short_symlinks_have_none() {
    let disk = TestDisk::new();
    let mut builder = disk.builder();
    let (root, long) = (builder.root(), with(&[("trusted.a", noise(7000, 1))]));
    let refused = builder.symlink(root, b"link", &[b't'; 59], long.clone());
    assert!(matches!(refused, Err(Error::SymlinkXattrs)));
    let link = builder.symlink(root, b"link", b"t", with(&[("trusted.a", noise(3000, 1))])).unwrap();
    assert!(matches!(builder.set_meta(link, long), Err(Error::SymlinkXattrs)));
    builder.finish().unwrap();
    disk.check();
    let seen = survey(disk.mount("ro,loop").path());
    assert_eq!(seen[&b"link"[..]].meta.xattrs, [(b"trusted.a".to_vec(), noise(3000, 1))]);
}

#[test]
fn names_that_do_not_fit_are_refused() {
    let disk = TestDisk::new();
    let mut builder = disk.builder();
    let names: Vec<String> = (0..30).map(|number| format!("user.{number:0>200}")).collect();
    let xattrs: Vec<(&str, Vec<u8>)> = names.iter().map(|name| (name.as_str(), vec![1; 300])).collect();
    builder.mkdir(builder.root(), b"fits", with(&xattrs[..18])).unwrap();
    let error = builder.mkdir(builder.root(), b"x", with(&xattrs)).unwrap_err().to_string();
    assert!(error.contains("names of all attributes of one file must fit 4 KiB"), "{error}");
    builder.finish().unwrap();
    disk.check();
}
