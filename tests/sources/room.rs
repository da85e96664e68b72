//! Sources of the host, and a state folder without room for what they hold: nothing is begun that cannot end.

use std::fs;
use std::path::PathBuf;

use tokio::sync::watch;
use vmlet::image::{
    ImageConfig, ImageStore, Images, LayoutAt, Place, Progress, Root, Settings, Source, StagedDisk,
};

use super::bundle::{at, sum};
use super::common::disk::SmallDisk;
use super::common::oci::{Image, Item, Layer, gzip, noise, tar};
use super::download::Server;
use super::{Setup, image};

const MIB: u64 = 1 << 20;

/// A store on a small disk, and a folder of the host.
struct Small {
    disk: SmallDisk,
    setup: Setup,
}

impl Small {
    fn new() -> Small {
        let disk = SmallDisk::new(32 * MIB);
        let mut setup = Setup::new();
        setup.store = ImageStore::open(&disk.path().join("state"), Settings::default()).unwrap();
        Small { disk, setup }
    }

    /// With so many MiB `stage` is refused before it writes what there is no room for; with `enough` it succeeds.
    async fn fits_only_in<F>(&self, what: &str, [short, enough]: [u64; 2], stage: impl Fn() -> F)
    where
        F: Future<Output = Result<StagedDisk, vmlet::image::ImageError>>,
    {
        self.disk.fill(short * MIB);
        let error = stage().await.map(drop).expect_err(what);
        assert_eq!(error.reason, "NoSpace", "{what}: {error}");
        assert!(error.message.contains("promised to other pulls"), "{what} was begun: {error}");
        let staging = self.disk.path().join("state/staging");
        assert_eq!(fs::read_dir(staging).unwrap().count(), 0, "{what}");
        self.disk.fill(enough * MIB);
        stage().await.map(drop).unwrap_or_else(|error| panic!("{what}: {error}"));
    }

    async fn source_fits_only_in(&self, what: &str, mebibytes: [u64; 2], source: Source) {
        let (progress, _) = watch::channel(Progress::default());
        let digest = self.setup.digest(&source).await;
        self.fits_only_in(what, mebibytes, || self.setup.store.stage(&source, &digest, &progress)).await;
    }
}

fn layout(path: PathBuf) -> Source {
    Source::OciLayout(Box::new(LayoutAt { path, reference: None }))
}

/// A tar of so many bytes that cannot be compressed.
fn incompressible(name: &str, bytes: u64) -> Vec<u8> {
    tar(&[Item::file(name, noise(1, bytes as usize))])
}

#[tokio::test]
async fn a_layouts_disk_must_fit() {
    let small = Small::new();
    let content = incompressible("noise", 4 * MIB);
    for (what, layer, mebibytes) in
        [("plain", Layer::plain(&content), [3, 5]), ("gzip", Layer::gzip(&content), [7, 9])]
    {
        let path = small.setup.path(what);
        Image::new(vec![layer]).write_layout(&path, "app:1");
        small.source_fits_only_in(what, mebibytes, layout(path)).await;
    }
}

#[tokio::test]
async fn a_compressed_archive_must_fit_before_it_is_inflated() {
    let small = Small::new();
    image("hello").write_layout(&small.setup.path("layout"), "app:1");
    small.setup.write("layout/more", noise(2, 4 << 20));
    let (folder, tar) = (small.setup.path("layout"), small.setup.path("layout.tar"));
    super::run("tar", "tar", &["-cf", tar.to_str().unwrap(), "-C", folder.to_str().unwrap(), "."]);
    let zipped = small.setup.write("layout.tar.gz", gzip(&fs::read(tar).unwrap()));
    // Its digest is found by inflating it too.
    small.disk.fill(3 * MIB);
    let error = small.setup.store.resolve(&layout(zipped.clone())).await.unwrap_err();
    assert!(error.message.contains("promised to other pulls"), "{error}");
    small.disk.fill(10 * MIB);
    small.setup.digest(&layout(zipped)).await;
}

#[tokio::test]
async fn a_bundle_must_fit_and_so_must_its_disk() {
    let small = Small::new();
    let root = incompressible("noise", 4 * MIB);
    let bundle = small.setup.write("a.tar", tar(&[Item::file("rootfs.tar", &root)]));
    let source = at(Place::Path(bundle.clone()), None);
    small.source_fits_only_in("the bundle", [3, 9], source.clone()).await;
    small.source_fits_only_in("the disk that is a tar", [6, 9], source).await;
    let ext4 = tar(&[Item::file("rootfs.ext4", fs::read(small.setup.ext4("root", "^has_journal")).unwrap())]);
    let source = at(Place::Path(small.setup.write("b.tar", ext4)), None);
    let (digest, (progress, _)) = (small.setup.digest(&source).await, watch::channel(Progress::default()));
    // Hardly more than its metadata: holes need no room.
    small.disk.fill(9 * MIB / 2);
    drop(small.setup.store.stage(&source, &digest, &progress).await.unwrap());
}

#[tokio::test]
async fn a_download_must_fit() {
    let small = Small::new();
    let bundle = tar(&[Item::file("rootfs.tar", incompressible("noise", 4 * MIB))]);
    let server = Server::start(&bundle, None, "").await;
    small.source_fits_only_in("the download", [3, 9], server.source("good", &sum(&bundle))).await;
    let zipped = gzip(&bundle);
    let server = Server::start(&zipped, None, "").await;
    small.source_fits_only_in("what it inflates to", [7, 13], server.source("good", &sum(&zipped))).await;
}

#[tokio::test]
async fn a_root_must_fit() {
    let small = Small::new();
    let tar = small.setup.write("root.tar", incompressible("noise", 4 * MIB));
    let digest = sum(b"a VM, its run and its declaration");
    let (progress, _) = watch::channel(Progress::default());
    let root = || Root { tar: tar.clone(), config: ImageConfig::default() };
    let stage = || small.setup.store.stage_root(root(), &digest, &progress);
    small.fits_only_in("the root", [3, 5], stage).await;
}
