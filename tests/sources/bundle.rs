//! Bundles, by path and by URL.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;
use vmlet::image::{BundleAt, Digest, KernelFiles, Limits, Place, Settings, Source};

use super::Setup;
use super::common::oci::{Item, Sparse, digest, gzip, noise, tar};
use super::common::tree::{Mounted, read_disk, run};

fn bundle(path: PathBuf) -> Source {
    at(Place::Path(path), None)
}

pub(crate) fn at(place: Place, sha256: Option<Digest>) -> Source {
    Source::Bundle(Box::new(BundleAt { place, sha256 }))
}

pub(crate) fn sum(bytes: &[u8]) -> Digest {
    digest(bytes).parse().unwrap()
}

/// A root, a kernel and what belongs to it.
pub(crate) fn whole(root: &Path) -> Vec<u8> {
    tar(&[
        Item::file("./rootfs.ext4", fs::read(root).unwrap()),
        Item::file("./vmlinuz", noise(1, 5000)),
        Item::file("./initrd", "initrd"),
        Item::dir("./modules/"),
        Item::dir("./modules/kernel"),
        Item::dir("./modules/empty"),
        Item::file("./modules/kernel/fs/overlay.ko", "module").mode(0o600).owner(7, 7),
        Item::file("./modules/modules.dep", ""),
        Item::file("./config.json", json!({"config": {"Cmd": ["/bin/app"], "Env": null}}).to_string()),
    ])
}

#[tokio::test]
async fn a_bundle_brings_a_disk_and_its_kernel() {
    let setup = Setup::new();
    let plain = whole(&setup.ext4("root.ext4", "has_journal"));
    for (name, bytes) in [
        ("plain.tar", plain.clone()),
        ("a.tar.gz", gzip(&plain)),
        ("a.tar.zst", zstd::encode_all(&plain[..], 1).unwrap()),
    ] {
        let path = setup.write(name, &bytes);
        let disk = setup.get(&bundle(path.clone())).await;
        assert_eq!(disk.digest, sum(&bytes), "{name}");
        assert_eq!((disk.size, disk.config.cmd), (4 << 20, vec!["/bin/app".to_owned()]));
        assert_eq!(fs::read(&disk.path).unwrap(), fs::read(setup.path("root.ext4")).unwrap());
        let beside = |name: &str| disk.path.with_file_name(name);
        let kernel = KernelFiles {
            kernel: beside("kernel"),
            initrd: Some(beside("initrd")),
            modules: Some(beside("modules")),
        };
        assert_eq!(disk.kernel, Some(kernel));
        assert_eq!(fs::read(beside("kernel")).unwrap(), noise(1, 5000));
        assert_eq!(fs::read(beside("modules/kernel/fs/overlay.ko")).unwrap(), b"module");
        assert!(beside("modules/empty").is_dir());
        let mounted = Mounted::new(&disk.path);
        assert_eq!(fs::read(mounted.path().join("etc/hostname")).unwrap(), b"bundled\n");
    }
}

#[tokio::test]
async fn a_root_can_be_a_tar() {
    let setup = Setup::new();
    let root = tar(&[Item::dir("etc"), Item::file("etc/x", "1").owner(3, 4), Item::symlink("y", "etc/x")]);
    let mut trees = Vec::new();
    for (name, bytes) in [
        ("rootfs.tar", root.clone()),
        ("rootfs.tar.gz", gzip(&root)),
        ("rootfs.tar.zst", zstd::encode_all(&root[..], 1).unwrap()),
    ] {
        let path = setup.write("a.tar", tar(&[Item::file(name, bytes)]));
        let disk = setup.get(&bundle(path)).await;
        assert_eq!(disk.kernel, None);
        run("e2fsck", "e2fsprogs", &["-fn", disk.path.to_str().unwrap()]);
        trees.push(read_disk(&disk.path));
    }
    assert_eq!(trees[0][&b"etc/x"[..]].gid, 4);
    assert!(trees[0] == trees[1] && trees[0] == trees[2]);
}

#[tokio::test]
async fn what_is_not_as_promised_is_not_published() {
    let setup = Setup::new();
    let bytes = whole(&setup.ext4("root.ext4", "^has_journal"));
    let path = setup.write("a.tar", &bytes);
    let wrong = at(Place::Path(path.clone()), Some(sum(b"else")));
    let error = setup.refused(&wrong).await;
    assert!(error.starts_with("DigestMismatch") && error.contains(sum(&bytes).as_str()), "{error}");
    let right = at(Place::Path(path.clone()), Some(sum(&bytes)));
    assert_eq!(setup.get(&right).await.digest, sum(&bytes));
    // Trailing bytes count too.
    setup.store_is_emptied().await;
    fs::write(&path, [&bytes[..], b"more"].concat()).unwrap();
    setup.refused(&right).await;
    fs::remove_file(&path).unwrap();
    assert!(setup.refused(&right).await.contains("does not exist"));
}

#[tokio::test]
async fn bundles_that_lie_cost_an_error() {
    let settings =
        Settings { limits: Limits { unpacked_bytes: 32 << 20, ..Limits::default() }, ..Settings::default() };
    let setup = Setup::with(settings);
    let ext4 = fs::read(setup.ext4("root.ext4", "^has_journal")).unwrap();
    let root = || Item::file("rootfs.ext4", &ext4);
    let kernel = || Item::file("kernel", "k");
    let deep = format!("modules/{}x.ko", "d/".repeat(20));
    let far = format!("modules/{}x.ko", format!("{}/", "d".repeat(250)).repeat(9));
    let cases: Vec<(&str, Vec<Item>, &str)> = vec![
        ("no root", vec![kernel()], "has no root"),
        ("two roots", vec![root(), Item::file("rootfs.tar", "")], "more than one root"),
        ("two kernels", vec![root(), kernel(), Item::file("vmlinuz", "")], "more than one kernel"),
        ("twice", vec![root(), root()], "\"rootfs.ext4\" is there twice"),
        ("another spelling", vec![root(), Item::file("./rootfs.ext4", "")], "is there twice"),
        ("unknown", vec![root(), Item::file("README", "")], "\"README\" does not belong into a bundle"),
        ("folder", vec![root(), Item::dir("kernel")], "does not belong"),
        ("outside", vec![root(), Item::file("modules/../../x", "")], "leads out of"),
        ("upwards", vec![root(), kernel(), Item::file("modules/../x", "")], "does not belong"),
        ("symlink", vec![root(), Item::symlink("kernel", "/boot/vmlinuz")], "not a plain file"),
        ("hard link", vec![root(), Item::hardlink("kernel", "rootfs.ext4")], "not a plain file"),
        ("module link", vec![root(), kernel(), Item::symlink("modules/a", "/etc")], "not a plain file"),
        ("device", vec![root(), Item::char_device("kernel", 1, 3)], "not a plain file"),
        (
            "sparse",
            vec![Item::sparse("rootfs.ext4", Sparse::Pax10, 1 << 20, &[(0, b"x")])],
            "not a plain file",
        ),
        ("orphans", vec![root(), Item::file("modules/a.ko", "")], "no kernel that they are for"),
        (
            "file and folder",
            vec![root(), kernel(), Item::file("modules/a", ""), Item::file("modules/a/b", "")],
            "\"modules/a\" is a file and a folder",
        ),
        (
            "folder and file",
            vec![root(), kernel(), Item::dir("modules/a/b"), Item::file("modules/a/b", "")],
            "\"modules/a/b\" is a file and a folder",
        ),
        ("orphaned initrd", vec![root(), Item::file("initrd", "")], "no kernel that they are for"),
        ("long path", vec![root(), kernel(), Item::file(&far, "")], "too long"),
        ("long", vec![root(), kernel(), Item::file(format!("modules/{}", "x".repeat(256)), "")], "too long"),
        ("deep", vec![root(), kernel(), Item::file(&deep, "")], "too deep"),
        ("no ext4", vec![Item::file("rootfs.ext4", noise(1, 100_000))], "no ext4 file system"),
        ("config", vec![root(), Item::file("config.json", "[")], "config.json cannot be read"),
        ("bomb", vec![root(), Item::file("kernel", vec![0; 40 << 20])], "unpacked_bytes"),
    ];
    for (name, items, expected) in cases {
        let bytes = zstd::encode_all(&tar(&items)[..], 1).unwrap();
        let error = setup.refused(&bundle(setup.write("a.tar.zst", bytes))).await;
        assert!(error.contains(expected), "{name}: {error}");
    }
    let error = setup.refused(&bundle(setup.write("text", "no tar"))).await;
    assert!(error.starts_with("InvalidImage"), "{error}");
    run("mkfifo", "coreutils", &[setup.path("fifo").to_str().unwrap()]);
    for path in [setup.path("fifo"), setup.host.path().to_owned(), "/dev/zero".into()] {
        let error = setup.refused(&bundle(path)).await;
        assert!(error.contains("not a plain file"), "{error}");
    }
}

#[tokio::test]
async fn little_may_not_become_much() {
    let setup = Setup::new();
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    let block = vec![0; 1 << 20];
    (0..1030).for_each(|_| std::io::Write::write_all(&mut encoder, &block).unwrap());
    let error = setup.refused(&bundle(setup.write("bomb.tar.zst", encoder.finish().unwrap()))).await;
    assert!(error.starts_with("LimitExceeded") && error.contains("inflate_ratio"), "{error}");
}

#[tokio::test]
async fn archives_have_so_many_members_and_no_more() {
    let setup = Setup::new();
    let header = &tar(&[Item::file("x", "")])[..512];
    let named = tar(&[Item::file("n".repeat(1_000_000), "")]);
    let named = &named[..named.len() - 1024];
    for (bytes, fits) in [
        (header.repeat(100_000), true),
        (header.repeat(100_001), false),
        (named.repeat(16), true),
        (named.repeat(17), false),
    ] {
        let error = setup.refused(&bundle(setup.write("a.tar", bytes))).await;
        assert_eq!(error.contains("more than 100000 files, or 16 MiB of names"), !fits, "{error}");
    }
    let error = setup.refused(&bundle(setup.write("empty.tar", [0; 1024]))).await;
    assert!(error.contains("no tar, or an empty one"), "{error}");
}

#[tokio::test]
async fn the_example_makes_a_bundle() {
    let setup = Setup::new();
    setup.write("root/etc/issue", "example\n");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/images/make-bundle.sh");
    let (root, path) = (setup.path("root"), setup.path("a.tar.gz"));
    let printed = run(script, "tar", &[root.to_str().unwrap(), path.to_str().unwrap()]);
    let disk = setup.get(&bundle(path)).await;
    assert_eq!(printed.split(' ').next(), Some(&disk.digest.as_str()["sha256:".len()..]));
    assert_eq!(disk.config.cmd, ["/bin/sh"]);
    assert_eq!(read_disk(&disk.path)[&b"etc/issue"[..]].size, 8);
}
