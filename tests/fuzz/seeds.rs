//! What fuzzing starts from: small inputs that hold a bit of everything.

use crate::common::oci::{Image, Item, Layer, Sparse, gzip, noise, tar};
use crate::{alone, check_corpus};

fn kinds() -> Vec<Item> {
    vec![
        Item::dir("./").mode(0o755),
        Item::dir("dir/").mode(0o1777).owner(1000, 70_000),
        Item::file("dir/file", noise(1, 5000)).mode(0o4755).mtime(1_600_000_000, 123_456_789),
        Item::hardlink("dir/hard", "dir/file"),
        Item::symlink("dir/link", "../dir"),
        Item::file("dir/link/dir/link/through", "x"),
        Item::char_device("dir/null", 1, 3),
        Item::block_device("dir/disk", 259, 70_000),
        Item::fifo("dir/pipe"),
        Item::file("n".repeat(200), "").gnu_names(),
        Item::file("p".repeat(200), ""),
        Item::symlink("long", "t".repeat(300)),
        Item::file("owned", "").owner(4_000_000_000, 3_000_000).mtime(-5, 7),
    ]
}

fn hiding() -> Vec<Item> {
    vec![
        Item::dir("a"),
        Item::file("a/one", "1"),
        Item::dir("a/sub"),
        Item::file("a/sub/two", "2"),
        Item::file("a/.wh..wh..opq", ""),
        Item::file("a/.wh.one", ""),
        Item::file(".wh.b", ""),
        Item::file("b/c/d", "x"),
        Item::file(".wh..wh.plnk/1.2", "shared"),
        Item::hardlink("linked", ".wh..wh.plnk/1.2"),
    ]
}

fn attributes() -> Vec<Item> {
    let mut acl = vec![2, 0, 0, 0];
    for (tag, permissions, id) in
        [(1u16, 6u16, u32::MAX), (2, 7, 9), (4, 4, u32::MAX), (16, 7, u32::MAX), (32, 4, u32::MAX)]
    {
        acl.extend([tag.to_le_bytes(), permissions.to_le_bytes()].concat());
        acl.extend(id.to_le_bytes());
    }
    vec![
        Item::file("f", "x").xattr("user.a", noise(2, 100)).xattr("system.posix_acl_access", &acl),
        Item::file("g", "x")
            .record("LIBARCHIVE.xattr.user.b%20", "AAECAw")
            .xattr("user.large", noise(3, 2000))
            .xattr("user.long", noise(5, 5000)),
        Item::dir("d")
            .record("SCHILY.acl.default", "user::rwx,user:lisa:r--:502,group::r-x,mask::rwx,other::---"),
        Item::file("h", "").record("atime", "-1.5").record("mtime", "99999999999"),
    ]
}

fn sparse(form: Sparse) -> Vec<Item> {
    let many: Vec<(u64, &[u8])> = (0..30).map(|index| (index * 9000, b"data".as_slice())).collect();
    vec![
        Item::sparse("few", form, 1 << 20, &[(4096, b"some"), (100_000, b"more")]),
        Item::sparse("many", form, 1 << 30, &many),
        Item::sparse("none", form, 5000, &[]),
    ]
}

/// What belongs into a bundle beside its root.
fn bundle(root: Item) -> Vec<u8> {
    tar(&[
        root,
        Item::file("./vmlinuz", noise(4, 700)),
        Item::file("./initrd", "initrd"),
        Item::dir("./modules"),
        Item::dir("./modules/kernel"),
        Item::file("./modules/kernel/fs/overlay.ko", "module").mode(0o600).owner(7, 7),
        Item::file("./modules/modules.dep", "kernel/fs/overlay.ko:\n"),
        Item::file("./config.json", r#"{"config": {"Cmd": ["/bin/app"], "Env": ["A=b"], "User": "1:2"}}"#),
    ])
}

/// As much of an ext4 file system as is looked at: a superblock.
fn superblock() -> Vec<u8> {
    let mut disk = vec![0; 8 << 10];
    let fields: [(usize, &[u8]); 5] =
        [(0x04, &[8]), (0x38, &[0x53, 0xef]), (0x3a, &[1]), (0x4c, &[1]), (0x60, &[0x42])];
    for (at, bytes) in fields {
        disk[1024 + at..][..bytes.len()].copy_from_slice(bytes);
    }
    disk
}

#[test]
fn the_stored_seeds_are_these() {
    let _alone = alone();
    let layers: Vec<(String, Vec<u8>)> = [
        ("kinds", kinds()),
        ("hiding", hiding()),
        ("attributes", attributes()),
        ("sparse-old", sparse(Sparse::Old)),
        ("sparse-0.0", sparse(Sparse::Pax00)),
        ("sparse-0.1", sparse(Sparse::Pax01)),
        ("sparse-1.0", sparse(Sparse::Pax10)),
    ]
    .into_iter()
    .map(|(name, items)| (format!("{name}.tar"), tar(&items)))
    .collect();
    check_corpus("layers", &layers);

    let small = tar(&hiding());
    let members: Vec<u8> = small.chunks(2000).flat_map(gzip).collect();
    let blobs = [
        ("plain.tar", small.clone()),
        ("one.tar.gz", gzip(&small)),
        ("members.tar.gz", members),
        ("one.tar.zst", zstd::encode_all(small.as_slice(), 3).unwrap()),
    ];
    check_corpus("blobs", &blobs.map(|(name, bytes)| (name.to_owned(), bytes)));

    let packed = zstd::encode_all(small.as_slice(), 3).unwrap();
    let bundles = [
        ("plain.tar", bundle(Item::file("rootfs.tar", &small))),
        ("gzip.tar", bundle(Item::file("rootfs.tar.gz", gzip(&small)))),
        ("ext4.tar", bundle(Item::file("rootfs.ext4", superblock()))),
        ("zstd.tar.gz", gzip(&bundle(Item::file("rootfs.tar.zst", packed)))),
        ("root-only.tar.zst", zstd::encode_all(&*tar(&[Item::file("rootfs.tar", &small)]), 3).unwrap()),
    ];
    check_corpus("bundles", &bundles.map(|(name, bytes)| (name.to_owned(), bytes)));

    let image = Image::new(vec![Layer::gzip(&small), Layer::zstd(&small)]);
    let docker = String::from_utf8(image.manifest.clone())
        .unwrap()
        .replace("oci.image.manifest.v1", "docker.distribution.manifest.v2")
        .replace("oci.image.config.v1", "docker.container.image.v1");
    let manifests = [
        ("image.json", image.manifest.clone()),
        ("index.json", image.index()),
        ("docker.json", docker.into()),
    ];
    check_corpus("manifests", &manifests.map(|(name, bytes)| (name.to_owned(), bytes)));

    let config = image.blobs.values().find(|blob| blob.starts_with(b"{")).unwrap();
    check_corpus("configs", &[("image.json".to_owned(), config.clone())]);

    let digest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    let references = [
        ("tag", "registry.example/team/app:1.2".to_owned()),
        ("digest", format!("registry.example:5000/app@{digest}")),
        ("both", format!("[::1]:5000/a/b/c:v1@{digest}")),
        ("short", "busybox".to_owned()),
    ];
    check_corpus("references", &references.map(|(name, text)| (name.to_owned(), text.into_bytes())));
}
