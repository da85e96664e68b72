//! From a [`Source`] to a bootable base disk.
//!
//! ```text
//! registry ─▶ manifest, config ─▶ blob × n (downloads, in parallel) ─┬▶ layer (inflate, tar, apply) ─▶ ext4 ─▶ store
//! layout (a folder or tar of the host) ─▶ manifest, config ─▶ blob × n ┤                                   │
//! bundle (a tar with a root) ──────────────────────────────────────────┴───────────────────────────────────┘
//! host (files where they are) ─▶ a record in the store
//! ```
//!
//! [`ImageStore`] is the real [`Images`]; `pull` is where its parts meet. Everything that comes from a
//! registry is bounded by [`Limits`].

mod blob;
mod bundle;
mod error;
pub mod ext4;
mod folders;
mod host;
mod layer;
mod layout;
mod limits;
mod local;
mod manifest;
pub mod probe;
mod pull;
mod reference;
mod registry;
mod source;
mod space;
mod store;
#[cfg(test)]
mod tests;

pub use blob::CachedBlob;
pub use limits::{Limits, Settings};
pub use reference::{Digest, Reference, ReferenceError};
pub use registry::Registries;
pub(crate) use registry::check_url;
pub use source::{BundleAt, HostFiles, LayoutAt, Place, Source, VmAt};
pub use store::ImageStore;

use std::path::PathBuf;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// Where images come from and what is made of them. The real one is a registry client and an ext4
/// writer; the fake one is scripted.
///
/// Nothing here holds a guard, and nothing is visible to VMs before [`Images::install`].
#[async_trait]
pub trait Images: Send + Sync + 'static {
    /// The digest that `source` stands for: of a registry's image the manifest for this host's platform.
    async fn resolve(&self, source: &Source) -> Result<Digest, ImageError>;

    /// Fetches the image and builds its base disk in a staging folder of its own. Dropping the
    /// future cancels the work; the staging folder goes with it, or with [`StagedDisk`].
    async fn stage(
        &self,
        source: &Source,
        digest: &Digest,
        progress: &watch::Sender<Progress>,
    ) -> Result<StagedDisk, ImageError>;

    /// The same of a root that is in a tar on the host, whoever wrote that.
    async fn stage_root(
        &self,
        root: Root,
        digest: &Digest,
        progress: &watch::Sender<Progress>,
    ) -> Result<StagedDisk, ImageError>;

    /// Renames a staged disk into its place, durably. If the place is taken by an earlier install
    /// of the same digest, that one stays and the staged one is removed.
    async fn install(&self, staged: StagedDisk) -> Result<BaseDisk, ImageError>;

    /// The installed base disk of a digest, if it is really there.
    async fn disk(&self, digest: &Digest) -> Option<BaseDisk>;

    /// Removes the installed disk of a digest. Absent is fine.
    async fn remove(&self, digest: &Digest) -> Result<(), ImageError>;

    /// Fails if a base disk is not what it was when it got its digest, before a VM starts on it. Only files
    /// of the host can change: those that were registered, and whose digest is not over their content.
    async fn check(&self, digest: &Digest) -> Result<(), ImageError> {
        let _ = digest;
        Ok(())
    }

    /// The digests that have an installed disk, for the sweep at start-up.
    async fn installed(&self) -> Result<Vec<Digest>, ImageError>;

    /// The compressed layers that are kept to save later pulls a download, in no order.
    async fn blobs(&self) -> Result<Vec<CachedBlob>, ImageError> {
        Ok(Vec::new())
    }

    /// Removes the least recently used of them until no more than this many bytes are left; running pulls
    /// lose none. Returns the bytes removed.
    async fn prune_blobs(&self, down_to: u64) -> Result<u64, ImageError> {
        let _ = down_to;
        Ok(0)
    }
}

/// A root that becomes a base disk as one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Root {
    /// The tar. What follows its end is not read.
    pub tar: PathBuf,
    /// What the image says about its process.
    pub config: ImageConfig,
}

/// A base disk that is installed: content-addressed, complete, read-only.
#[derive(Clone, Debug, PartialEq)]
pub struct BaseDisk {
    /// The image's manifest digest.
    pub digest: Digest,
    /// The raw ext4 disk.
    pub path: PathBuf,
    /// Its length in bytes.
    pub size: u64,
    /// What the image says about its process.
    pub config: ImageConfig,
    /// The kernel that came with the image.
    pub kernel: Option<KernelFiles>,
}

/// A kernel in files of the host: one that came with an image, or that a spec names.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KernelFiles {
    /// The kernel: compressed or not.
    pub kernel: PathBuf,
    /// An initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Its modules: a folder like `/lib/modules/6.1.0`, with or without `modules.dep`.
    pub modules: Option<PathBuf>,
}

/// A disk that is built but not installed. Removed with its folder when dropped.
#[derive(Debug)]
#[must_use = "install it, or drop it to remove it"]
pub struct StagedDisk {
    /// The image's manifest digest.
    pub digest: Digest,
    /// The staging folder; none for a scripted one.
    pub dir: Option<PathBuf>,
    /// What a scripted staging place is held by: it goes when this is dropped.
    pub held: Option<Box<dyn std::any::Any + Send + Sync>>,
    /// The disk's length in bytes.
    pub size: u64,
    /// What the image says about its process.
    pub config: ImageConfig,
}

impl Drop for StagedDisk {
    fn drop(&mut self) {
        if let Some(dir) = self.dir.take() {
            // The sweep at start-up finds what cannot be removed now.
            let _ = std::fs::remove_dir_all(dir);
        }
    }
}

/// The part of an image's config that says what to run (OCI image-spec, config.md, `config`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// `Entrypoint`.
    #[serde(default)]
    pub entrypoint: Vec<String>,
    /// `Cmd`.
    #[serde(default)]
    pub cmd: Vec<String>,
    /// `Env`, as `NAME=value`.
    #[serde(default)]
    pub env: Vec<String>,
    /// `WorkingDir`.
    #[serde(default)]
    pub working_dir: Option<String>,
    /// `User`.
    #[serde(default)]
    pub user: Option<String>,
    /// `StopSignal`, for example `SIGQUIT`.
    #[serde(default)]
    pub stop_signal: Option<String>,
}

/// How far a pull is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// Layers of the image; 0 until the manifest is read.
    pub layers: usize,
    /// Layers that are in the disk.
    pub layers_done: usize,
    /// Compressed bytes of all layers.
    pub bytes: u64,
    /// Compressed bytes downloaded.
    pub bytes_done: u64,
}

/// Why an image could not be had.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct ImageError {
    /// One CamelCase word for the condition: NotFound, Unauthorized, RegistryUnavailable,
    /// InvalidImage, LimitExceeded, NoSpace, …
    pub reason: &'static str,
    /// What happened, where, and what to do about it.
    pub message: String,
    /// Whether trying again without any change can help.
    pub transient: bool,
}
