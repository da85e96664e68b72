//! Images that do not come from a registry: layouts and archives, bundles, files of the host.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
#[path = "../common/mod.rs"]
mod common;

mod bundle;
mod download;
mod durable;
mod files;
mod layout;
mod room;
mod root;

use std::fs;
use std::path::{Path, PathBuf};

use common::oci::{Image, Item, Layer, tar};
use common::tree::run;
use tempfile::TempDir;
use tokio::sync::watch;
use vmlet::image::{BaseDisk, Digest, ImageError, ImageStore, Images, Progress, Settings, Source};

/// An image store, and a folder of the host for sources.
struct Setup {
    state: TempDir,
    host: TempDir,
    store: ImageStore,
}

impl Setup {
    fn new() -> Self {
        Setup::with(Settings::default())
    }

    fn with(settings: Settings) -> Self {
        let state = tempfile::tempdir().unwrap();
        let store = ImageStore::open(state.path(), settings).unwrap();
        Setup { state, host: tempfile::tempdir().unwrap(), store }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.host.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// A small ext4 file system, made by the tool for it.
    fn ext4(&self, name: &str, features: &str) -> PathBuf {
        let tree = self.path("tree");
        fs::create_dir_all(tree.join("etc")).unwrap();
        fs::write(tree.join("etc/hostname"), "bundled\n").unwrap();
        let path = self.path(name);
        let (tree, target) = (tree.to_str().unwrap(), path.to_str().unwrap());
        run("mke2fs", "e2fsprogs", &["-q", "-F", "-t", "ext4", "-O", features, "-d", tree, target, "4M"]);
        path
    }

    async fn digest(&self, source: &Source) -> Digest {
        self.store.resolve(source).await.unwrap()
    }

    /// Resolves, stages and installs.
    async fn try_get(&self, source: &Source) -> Result<BaseDisk, ImageError> {
        let digest = self.store.resolve(source).await?;
        self.get_pinned(source, &digest).await
    }

    async fn get_pinned(&self, source: &Source, digest: &Digest) -> Result<BaseDisk, ImageError> {
        let (progress, _) = watch::channel(Progress::default());
        let staged = self.store.stage(source, digest, &progress).await?;
        self.store.install(staged).await
    }

    async fn get(&self, source: &Source) -> BaseDisk {
        self.try_get(source).await.unwrap()
    }

    /// What a source that cannot be used is refused with. Nothing is left of it.
    async fn refused(&self, source: &Source) -> String {
        let error = self.try_get(source).await.expect_err("it cannot be used");
        assert!(error.transient, "a file of the host can be replaced: {error}");
        let left = |name: &str| fs::read_dir(self.state.path().join(name)).unwrap().count();
        assert_eq!((left("staging"), left("images")), (0, 0), "after {error}");
        format!("{}: {error}", error.reason)
    }
}

fn image(content: &str) -> Image {
    let bottom = tar(&[
        Item::dir("etc"),
        Item::file("etc/issue", content).owner(7, 3_000_000_000),
        Item::file("old", ""),
    ]);
    let top = tar(&[
        Item::file(".wh.old", ""),
        Item::symlink("link", "etc/issue"),
        Item::hardlink("hard", "etc/issue"),
    ]);
    Image::new(vec![Layer::gzip(&bottom), Layer::gzip(&top)])
}

fn copy_tree(from: &Path, to: &Path) {
    run("cp", "coreutils", &["-a", from.to_str().unwrap(), to.to_str().unwrap()]);
}

impl Setup {
    /// Removes what is installed, so that what is left of an error can be seen.
    async fn store_is_emptied(&self) {
        for digest in self.store.installed().await.unwrap() {
            self.store.remove(&digest).await.unwrap();
        }
    }
}
