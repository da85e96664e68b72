//! Images from a real registry, as they come out in the base disk.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
mod common;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use common::oci::{Image, Item, Layer, Sparse, noise, tar};
use common::registry::DockerRegistry;
use common::tree::{Mounted, Tree, assert_same, read, read_disk, run};
use tempfile::TempDir;
use tokio::sync::watch;
use vmlet::image::{
    BaseDisk, Digest, ImageError, ImageStore, Images, Progress, Settings, Source, StagedDisk,
};

struct Setup {
    registry: DockerRegistry,
    state: TempDir,
    store: ImageStore,
}

impl Setup {
    async fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        let store = ImageStore::open(state.path(), Settings::default()).unwrap();
        Setup { registry: DockerRegistry::start().await, state, store }
    }

    async fn push(&self, image: &Image) -> (Source, Digest) {
        let reference = self.registry.push(image, "team/app", "1").await;
        (Source::Oci(reference), image.digest().parse().unwrap())
    }

    async fn stage(&self, image: &Image) -> Result<StagedDisk, ImageError> {
        let (source, digest) = self.push(image).await;
        let (progress, _) = watch::channel(Progress::default());
        self.store.stage(&source, &digest, &progress).await
    }

    async fn pull(&self, image: &Image) -> BaseDisk {
        let staged = self.stage(image).await.unwrap();
        self.store.install(staged).await.unwrap()
    }

    /// The tree of an image of these layers.
    async fn tree(&self, layers: &[&[Item]]) -> Tree {
        let layers = layers.iter().map(|items| Layer::gzip(&tar(items))).collect();
        read_disk(&self.pull(&Image::new(layers)).await.path)
    }

    /// The error that an image of one layer meets.
    async fn error(&self, items: &[Item]) -> ImageError {
        self.stage(&Image::new(vec![Layer::plain(&tar(items))])).await.unwrap_err()
    }
}

/// What umoci makes of an image.
fn unpacked(image: &Image) -> Tree {
    let folder = tempfile::tempdir().unwrap();
    let layout = folder.path().join("layout");
    image.write_layout(&layout, "1");
    let rootfs = folder.path().join("rootfs");
    let source = format!("{}:1", layout.display());
    run("umoci", "umoci", &["raw", "unpack", "--image", &source, rootfs.to_str().unwrap()]);
    read(&rootfs)
}

/// `security.capability` for cap_net_raw+ep, revision 2 (linux/capability.h).
const CAP_NET_RAW: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn long(length: usize) -> String {
    format!("long/{}", "n".repeat(length))
}

fn everything() -> Vec<Layer> {
    let bottom = tar(&[
        Item::dir("./").mode(0o755).mtime(1_600_000_000, 0),
        Item::dir("./etc/"),
        Item::file("./etc/passwd", "root:x:0:0\n").mtime(1_600_000_000, 123_456_789),
        Item::file("etc/shadow", "secret").mode(0o640).owner(0, 42),
        Item::dir("bin"),
        Item::file("bin/su", noise(1, 70_000)).mode(0o4755),
        Item::file("bin/ping", "ping").xattr("security.capability", CAP_NET_RAW),
        Item::symlink("bin/sh", "su"),
        Item::hardlink("bin/sh2", "bin/sh"),
        Item::hardlink("bin/su2", "bin/su"),
        Item::hardlink("bin/su3", "./bin/su2"),
        Item::dir("tmp").mode(0o1777),
        Item::dir("var").owner(3_000_000_000, 4_000_000_000),
        Item::file("var/empty", ""),
        Item::file("var/old", "1969").mtime(-1, 500_000_000),
        Item::file("var/far", "2100").mtime(4_102_444_800, 1),
        Item::file("var/tagged", "x").xattr("user.note", "hello"),
        Item::dir("dev"),
        Item::char_device("dev/null", 1, 3),
        Item::block_device("dev/odd", 259, 70_000),
        Item::fifo("dev/pipe").owner(1000, 1000),
        Item::dir("long"),
        Item::file(long(200), "pax"),
        Item::file(long(255), "gnu").gnu_names(),
        Item::symlink("long/link", "t".repeat(3000)),
        Item::symlink("long/gnulink", "t".repeat(101)).gnu_names(),
        Item::symlink("long/absolute", "/etc/passwd"),
        Item::file(b"long/latin-\xe9\xff", "not UTF-8"),
        Item::dir("hidden"),
        Item::file("hidden/one", "1"),
        Item::dir("hidden/dir"),
        Item::file("hidden/dir/two", "2"),
        Item::dir("gone"),
        Item::file("gone/file", "x"),
        Item::file("becomes-dir", "x"),
        Item::dir("becomes-file"),
        Item::file("becomes-file/inner", "x"),
    ]);
    let middle = tar(&[
        Item::dir("etc").mode(0o700).owner(1, 2),
        Item::file("etc/new", "new"),
        Item::file("etc/.wh.shadow", ""),
        Item::file(".wh.gone", ""),
        Item::dir("hidden").mode(0o711),
        Item::file("hidden/.wh..wh..opq", ""),
        Item::file("hidden/three", "3"),
        Item::dir("becomes-dir").mode(0o750),
        Item::file("becomes-dir/inner", "y"),
        Item::file("becomes-file", "y"),
        Item::hardlink("etc/passwd2", "etc/passwd"),
    ]);
    let top = tar(&[
        Item::file("bin/su", "replaced").mode(0o755),
        Item::symlink("etc/new", "passwd"),
        Item::file("big", noise(2, 3_000_000)),
    ]);
    vec![Layer::gzip(&bottom), Layer::plain(&middle), Layer::gzip(&top)]
}

#[tokio::test]
async fn disks_hold_what_another_unpacker_makes() {
    let setup = Setup::new().await;
    let image = Image::new(everything());
    let disk = setup.pull(&image).await;
    assert_same(&read_disk(&disk.path), &unpacked(&image));
    assert_eq!(disk.config.entrypoint, ["/bin/sh"]);
    assert_eq!(disk.config.user.as_deref(), Some("7"));
    assert_eq!(disk.size, std::fs::metadata(&disk.path).unwrap().len());
}

#[tokio::test]
async fn attributes_survive() {
    // u::rw- u:1000:rwx g::r-- m::rwx o::r--, as setxattr takes it (linux/posix_acl_xattr.h).
    let entries: [(u16, u16, u32); 5] =
        [(1, 6, u32::MAX), (2, 7, 1000), (4, 4, u32::MAX), (16, 7, u32::MAX), (32, 4, u32::MAX)];
    let mut acl = vec![2, 0, 0, 0];
    for (tag, permissions, id) in entries {
        acl.extend_from_slice(&tag.to_le_bytes());
        acl.extend_from_slice(&permissions.to_le_bytes());
        acl.extend_from_slice(&id.to_le_bytes());
    }
    let item = Item::file("f", "")
        .mode(0o674)
        .xattr("user.empty", "")
        .xattr("user.large", noise(6, 3000))
        .xattr("system.posix_acl_access", &acl)
        .xattr("trusted.kept", "1")
        .xattr("trusted.overlay.opaque", "y")
        .xattr("com.apple.quarantine", "y");
    let tree = Setup::new().await.tree(&[&[item]]).await;
    let expected = [
        ("system.posix_acl_access", acl),
        ("trusted.kept", b"1".to_vec()),
        ("user.empty", Vec::new()),
        ("user.large", noise(6, 3000)),
    ];
    let expected = expected.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    assert_eq!(tree[&b"f"[..]].xattrs, expected);
}

#[tokio::test]
async fn whiteouts_spare_their_own_layer() {
    let setup = Setup::new().await;
    let lower = [
        Item::dir("a"),
        Item::file("a/lower", "l"),
        Item::file("a/both", "lower"),
        Item::dir("a/sub"),
        Item::file("a/sub/lower", "l"),
        Item::dir("b").mode(0o700),
        Item::file("b/lower", "l"),
        Item::file("target", "t"),
    ];
    // Whatever the order, what is named in this layer stays and the rest goes.
    let upper = [
        Item::dir("a").mode(0o711),
        Item::file("a/both", "upper"),
        Item::hardlink("a/link", "target"),
        Item::dir("a/sub"),
        Item::file("a/sub/upper", "u"),
        Item::file("b/upper", "u"),
        Item::file("a/.wh.both", ""),
        Item::file("a/.wh..wh..opq", ""),
        Item::file("a/.wh..wh.aufs", ""),
        Item::file(".wh.b", ""),
        Item::file("nowhere/.wh.b", ""),
        Item::file(".wh.never-was", ""),
    ];
    let mut reversed = upper.to_vec();
    reversed.reverse();
    for upper in [upper.to_vec(), reversed] {
        let tree = setup.tree(&[&lower, &upper]).await;
        let names: Vec<&[u8]> = tree.keys().map(Vec::as_slice).collect();
        let expected: [&[u8]; 9] =
            [b"", b"a", b"a/both", b"a/link", b"a/sub", b"a/sub/upper", b"b", b"b/upper", b"target"];
        assert_eq!(names, expected);
        assert_eq!(tree[&b"a"[..]].mode, 0o711);
        assert_eq!(tree[&b"b"[..]].mode, 0o755, "only implied by the upper layer");
        assert_eq!(tree[&b"a/both"[..]].size, 5);
        assert_eq!(tree[&b"target"[..]].first_name, tree[&b"a/link"[..]].first_name);
    }
}

#[tokio::test]
async fn parents_are_made_and_described_later() {
    let setup = Setup::new().await;
    let tree = setup
        .tree(&[&[Item::file("x/y/z", "1"), Item::dir("x/y").mode(0o710), Item::file("x/y/z", "22")]])
        .await;
    let implied = &tree[&b"x"[..]];
    assert_eq!((implied.mode, implied.uid, implied.mtime), (0o755, 0, (0, 0)));
    assert_eq!(tree[&b"x/y"[..]].mode, 0o710);
    assert_eq!(tree[&b"x/y/z"[..]].size, 2, "the last one wins");
    assert_eq!(tree[&b""[..]].mode, 0o755);
}

#[tokio::test]
async fn names_stay_inside() {
    let setup = Setup::new().await;
    let tree = setup
        .tree(&[&[
            Item::file("/absolute", ""),
            Item::file("../../above", ""),
            Item::file("d/../../plain", ""),
            Item::dir("real"),
            Item::symlink("out", "../../../real"),
            Item::file("out/followed", ""),
            Item::symlink("missing", "/made/up"),
            Item::file("missing/file", ""),
            Item::hardlink("linked", "../out/followed"),
            Item::symlink("replaced", "/real"),
            Item::dir("replaced"),
        ]])
        .await;
    let names: Vec<_> = tree.keys().map(|name| String::from_utf8_lossy(name)).collect();
    let expected = [
        "",
        "above",
        "absolute",
        "linked",
        "made",
        "made/up",
        "made/up/file",
        "missing",
        "out",
        "plain",
        "real",
        "real/followed",
        "replaced",
    ];
    assert_eq!(names, expected);
    assert_eq!(tree[&b"replaced"[..]].kind, "directory");
}

#[tokio::test]
async fn hostile_layers_are_refused() {
    let setup = Setup::new().await;
    let cases: [(&str, Vec<Item>); 9] = [
        (
            "levels of symbolic links",
            vec![Item::symlink("a", "b"), Item::symlink("b", "a"), Item::file("a/x", "")],
        ),
        ("not a directory", vec![Item::file("a", ""), Item::file("a/x", "")]),
        ("does not exist", vec![Item::hardlink("a", "b")]),
        ("hard link to a directory", vec![Item::dir("d"), Item::hardlink("a", "d")]),
        ("does not exist", vec![Item::file("d/f", ""), Item::hardlink("d", "d/f")]),
        ("the root is not a directory", vec![Item::symlink("./", "/etc")]),
        ("no name", vec![Item::file(".wh.", "")]),
        ("depth", vec![Item::file("d/".repeat(300) + "f", "")]),
        ("path_bytes", vec![Item::file("d".repeat(5000), "")]),
    ];
    for (message, items) in cases {
        let error = setup.error(&items).await;
        assert!(error.message.contains(message), "{message}: {error}");
        assert!(!error.transient, "{error}");
    }
    assert!(std::fs::read_dir(setup.state.path().join("staging")).unwrap().next().is_none());
}

#[tokio::test]
async fn sparse_files_stay_sparse() {
    const MEBIBYTE: u64 = 1 << 20;
    let block = noise(3, 8192);
    let many: Vec<(u64, &[u8])> = (0..60).map(|index| (index * MEBIBYTE, &block[..4096])).collect();
    let setup = Setup::new().await;
    for form in [Sparse::Old, Sparse::Pax00, Sparse::Pax01, Sparse::Pax10] {
        let items = [
            Item::sparse("few", form, 64 * MEBIBYTE + 5, &[(4096, &block), (32 * MEBIBYTE, b"odd length")]),
            Item::sparse("many", form, 60 * MEBIBYTE, &many),
            Item::sparse("hole", form, 10 * MEBIBYTE, &[]),
            Item::file("after", "it"),
        ];
        let disk = setup.pull(&Image::new(vec![Layer::plain(&tar(&items))])).await;
        run("e2fsck", "e2fsprogs", &["-fn", disk.path.to_str().unwrap()]);
        let mounted = Mounted::new(&disk.path);
        let check = |name: &str, size: u64, segments: &[(u64, &[u8])]| {
            let mut expected = vec![0; usize::try_from(size).unwrap()];
            for (offset, bytes) in segments {
                let start = usize::try_from(*offset).unwrap();
                expected[start..start + bytes.len()].copy_from_slice(bytes);
            }
            let path = mounted.path().join(name);
            assert!(std::fs::read(&path).unwrap() == expected, "{name} differs");
            assert!(std::fs::metadata(&path).unwrap().blocks() * 512 < MEBIBYTE, "{name} is not sparse");
        };
        check("few", 64 * MEBIBYTE + 5, &[(4096, &block), (32 * MEBIBYTE, b"odd length")]);
        check("many", 60 * MEBIBYTE, &many);
        check("hole", 10 * MEBIBYTE, &[]);
        assert_eq!(std::fs::read(mounted.path().join("after")).unwrap(), b"it");
    }
}

#[tokio::test]
async fn the_same_image_gives_the_same_bytes() {
    let setup = Setup::new().await;
    let image = Image::new(everything());
    let (one, two) = (setup.stage(&image).await.unwrap(), setup.stage(&image).await.unwrap());
    let read = |staged: &StagedDisk| std::fs::read(staged.dir.as_ref().unwrap().join("disk.ext4")).unwrap();
    assert!(read(&one) == read(&two));
}

#[tokio::test]
async fn compression_does_not_matter() {
    let setup = Setup::new().await;
    let content = tar(&[Item::file("noise", noise(5, 2_000_000)), Item::file("zeros", vec![0; 3_000_000])]);
    let plain = read_disk(&setup.pull(&Image::new(vec![Layer::plain(&content)])).await.path);
    assert_eq!(plain[&b"zeros"[..]].size, 3_000_000);
    for layer in [Layer::gzip(&content), Layer::gzip_members(&content, 7), Layer::zstd(&content)] {
        assert_same(&read_disk(&setup.pull(&Image::new(vec![layer])).await.path), &plain);
    }
}

#[tokio::test]
async fn layers_are_what_the_config_says() {
    let setup = Setup::new().await;
    let content = tar(&[Item::file("a", "b")]);
    let mut wrong = Layer::gzip(&content);
    wrong.diff_id = common::oci::digest(b"else");
    let error = setup.stage(&Image::new(vec![wrong])).await.unwrap_err();
    assert_eq!((error.reason, error.transient), ("InvalidImage", false), "{error}");

    // What follows the end mark counts too, and does no harm.
    let padded = [content.as_slice(), &[7; 100_000]].concat();
    setup.pull(&Image::new(vec![Layer::gzip(&padded)])).await;

    let cut = Layer::gzip(&noise(4, 100_000));
    let error = setup.stage(&Image::new(vec![cut])).await.unwrap_err();
    assert_eq!(error.reason, "InvalidImage", "{error}");

    let mut broken = Layer::gzip(&content);
    broken.blob.truncate(broken.blob.len() - 9);
    broken.size = broken.blob.len() as u64;
    let error = setup.stage(&Image::new(vec![broken])).await.unwrap_err();
    assert_eq!(error.reason, "InvalidImage", "{error}");
}

#[tokio::test]
async fn tags_resolve_to_this_platform() {
    let setup = Setup::new().await;
    let image = Image::new(vec![Layer::gzip(&tar(&[Item::dir("a")]))]);
    let (source, digest) = setup.push(&image).await;
    assert_eq!(setup.store.resolve(&source).await.unwrap(), digest);

    // The registry wants all that an index names, so it gets an image for arm64 too.
    let index = image.index();
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = String::from_utf8(index).unwrap().replace(&common::oci::digest(b"nothing"), &image.digest());
    setup.registry.put_manifest("team/app", "multi", media_type, index.clone().into_bytes()).await;
    let multi = Source::Oci(format!("{}/team/app:multi", setup.registry.address));
    assert_eq!(setup.store.resolve(&multi).await.unwrap(), digest);
    let by_digest = format!("{}/team/app@{}", setup.registry.address, common::oci::digest(index.as_bytes()));
    assert_eq!(setup.store.resolve(&Source::Oci(by_digest)).await.unwrap(), digest);

    let foreign = index.replace("amd64", "riscv64");
    setup.registry.put_manifest("team/app", "foreign", media_type, foreign.into_bytes()).await;
    let foreign = Source::Oci(format!("{}/team/app:foreign", setup.registry.address));
    let error = setup.store.resolve(&foreign).await.unwrap_err();
    assert_eq!((error.reason, error.transient), ("InvalidImage", false));
    assert!(error.message.contains("linux/riscv64"), "{error}");
}

#[tokio::test]
async fn images_are_installed_kept_and_removed() {
    let setup = Setup::new().await;
    let image = Image::new(vec![Layer::gzip(&tar(&[Item::dir("a")]))]);
    let digest: Digest = image.digest().parse().unwrap();
    assert_eq!(setup.store.disk(&digest).await, None);

    let (first, second) = (setup.stage(&image).await.unwrap(), setup.stage(&image).await.unwrap());
    let installed = setup.store.install(first).await.unwrap();
    let inode = std::fs::metadata(&installed.path).unwrap().ino();
    assert_eq!(setup.store.install(second).await.unwrap(), installed, "the first one stays");
    assert_eq!(std::fs::metadata(&installed.path).unwrap().ino(), inode);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&installed.path), 0o644);
    assert_eq!(mode(installed.path.parent().unwrap()), 0o711);

    // What a crash leaves in staging goes when the store opens again; what is installed stays.
    let staging = setup.state.path().join("staging");
    assert!(std::fs::read_dir(&staging).unwrap().next().is_none());
    std::fs::create_dir(staging.join("left-over")).unwrap();
    std::fs::write(staging.join(".tmpAbCdEf"), "half an archive").unwrap();
    std::fs::create_dir(setup.state.path().join("images/not-a-digest")).unwrap();
    let store = ImageStore::open(setup.state.path(), Settings::default()).unwrap();
    assert!(std::fs::read_dir(&staging).unwrap().next().is_none());
    assert_eq!(store.disk(&digest).await.as_ref(), Some(&installed));
    assert_eq!(store.installed().await.unwrap(), std::slice::from_ref(&digest));

    // A damaged one counts as absent and is replaced.
    std::fs::File::create(&installed.path).unwrap();
    assert_eq!(store.disk(&digest).await, None);
    assert!(store.installed().await.unwrap().is_empty());
    assert_eq!(setup.pull(&image).await, installed);
    std::fs::remove_file(installed.path.parent().unwrap().join("config.json")).unwrap();
    assert_eq!(store.disk(&digest).await, None);
    assert_eq!(setup.pull(&image).await, installed);

    store.remove(&digest).await.unwrap();
    store.remove(&digest).await.unwrap();
    assert_eq!(store.disk(&digest).await, None);
    assert!(store.installed().await.unwrap().is_empty());
    assert!(std::fs::read_dir(&staging).unwrap().next().is_none());
}
