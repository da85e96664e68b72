//! What takes disk space, and what of it may go: the words of `/storage`.
//!
//! The engine gives them ([`Storage`]), the API sends them, the command line reads them. Plain data: all
//! sizes are bytes, as allocated, unless it is said otherwise.

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::image::{Digest, ImageConfig, ImageError, Source};
use crate::object::PullProgress;
use crate::store::RemoveDiskError;

/// Tells what takes disk space, and removes what may go.
#[async_trait]
pub trait Storage: Send + Sync + 'static {
    /// What is there.
    async fn report(&self) -> Report;

    /// Pulls an image, in the one pull that all share who want its digest. What happens comes as it
    /// happens; the last is [`PullUpdate::Done`] or [`PullUpdate::Failed`]. Dropping it gives the share up.
    fn pull(&self, source: Source) -> BoxStream<'static, PullUpdate>;

    /// Removes a base disk that nothing refers to.
    ///
    /// # Errors
    /// Why not, see [`RemovalError`].
    async fn remove(&self, digest: Digest) -> Result<Removed, RemovalError>;

    /// Removes everything that is kept only in case it is wanted again.
    ///
    /// # Errors
    /// Something could not be removed; all the rest is gone.
    async fn prune(&self, order: PruneOrder) -> Result<Pruned, RemovalError>;
}

/// What takes disk space.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// When this was so.
    pub now: Timestamp,
    /// Base disks, by digest.
    pub disks: Vec<DiskReport>,
    /// Pulls under way, by digest.
    pub pulls: Vec<PullReport>,
    /// Compressed layers that are kept for later pulls.
    pub blobs: Vec<BlobReport>,
    /// The folders of VMs: private disks and logs.
    pub vm_disks: Vec<VmDiskReport>,
    /// What pulls under way have put into the staging folder.
    pub staging: Staging,
    /// The state folder's file system, if it tells.
    pub filesystem: Option<FileSystem>,
    /// How long base disks are kept that nothing refers to.
    pub retention: RetentionReport,
}

/// A base disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskReport {
    /// The image's manifest digest.
    pub digest: Digest,
    /// How far it is.
    pub state: DiskPhase,
    /// The disk on the host, once it is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The disk's length.
    pub size: u64,
    /// What it takes of the state folder; nothing if it is a file of the host.
    pub allocated: u64,
    /// What it is, or was last, wanted as: references, paths.
    pub sources: Vec<String>,
    /// The objects that refer to it: `vm/web`, `image/debian`.
    pub used_by: Vec<String>,
    /// Since when nothing refers to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unused_since: Option<Timestamp>,
    /// Until when it is kept nevertheless, unless room is wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_until: Option<Timestamp>,
    /// What the image says about its process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<ImageConfig>,
    /// What is booted on it: images of one digest can have kernels of their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kernels: Vec<KernelReport>,
}

/// A kernel that is booted on a base disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KernelReport {
    /// Where it came from, for people: `the host's kernel`, `the kernel of debian:12`.
    pub from: String,
    /// Its release; none while it is being made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<String>,
    /// What the image adds to vmlet's command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command_line: Option<String>,
    /// The objects that boot it.
    pub used_by: Vec<String>,
}

/// How far a base disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DiskPhase {
    /// It is being put into its place.
    Installing,
    /// VMs can run on it.
    Ready,
    /// Its files are being removed.
    Removing,
}

/// A pull under way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PullReport {
    /// The digest that is pulled.
    pub digest: Digest,
    /// What it was first wanted as.
    pub source: String,
    /// How far it is.
    #[serde(flatten)]
    pub stage: PullStage,
}

/// How far a pull is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "state")]
pub enum PullStage {
    /// It waits for other pulls: as many as allowed are under way.
    Queued,
    /// It runs.
    Running {
        /// How far it is.
        progress: PullProgress,
    },
    /// Its last attempt failed.
    #[serde(rename_all = "camelCase")]
    Failed {
        /// Why.
        message: String,
        /// When it is tried again.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry: Option<Timestamp>,
    },
}

/// A compressed layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BlobReport {
    /// Its digest.
    pub digest: Digest,
    /// Its length on the host.
    pub size: u64,
    /// When it was last used, or last grew.
    pub last_used: Timestamp,
    /// It is not complete.
    pub partial: bool,
}

/// What a VM's folder takes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VmDiskReport {
    /// `vm/web`.
    pub vm: String,
    /// Whether a process of it is up.
    pub running: bool,
    /// What it takes.
    pub allocated: u64,
}

/// What pulls under way take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Staging {
    /// Folders.
    pub count: usize,
    /// What they take.
    pub allocated: u64,
}

/// A file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileSystem {
    /// What may still be written.
    pub free: u64,
    /// All of it.
    pub total: u64,
}

/// How long base disks are kept that nothing refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RetentionReport {
    /// So long, unless room is wanted.
    pub grace_seconds: u64,
    /// Room is wanted below this share of free space, in percent.
    pub disk_low: u8,
    /// Up to this one.
    pub disk_high: u8,
}

/// What happens in a pull that somebody watches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "type")]
pub enum PullUpdate {
    /// The source is asked for its digest.
    Resolving,
    /// It waits for other pulls.
    Queued {
        /// The digest that is pulled.
        digest: Digest,
    },
    /// It runs.
    Pulling {
        /// The digest that is pulled.
        digest: Digest,
        /// How far it is.
        progress: PullProgress,
    },
    /// The base disk is there.
    #[serde(rename_all = "camelCase")]
    Done {
        /// Its digest.
        digest: Digest,
        /// What it takes.
        allocated: u64,
        /// It was there already.
        already_there: bool,
        /// Until when it is kept if nothing refers to it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        kept_until: Option<Timestamp>,
    },
    /// It cannot be had.
    Failed {
        /// One CamelCase word.
        reason: String,
        /// Why.
        message: String,
    },
}

/// What was removed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Removed {
    /// Its digest.
    pub digest: Digest,
    /// What it took.
    pub allocated: u64,
}

/// Why a base disk is not removed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RemovalError {
    /// It may not go.
    #[error(transparent)]
    Refused(#[from] RemoveDiskError),
    /// It is marked, and the daemon goes on trying.
    #[error("{digest} is marked for removal, but its files cannot be removed: {why}; it is tried again")]
    Files {
        /// The disk.
        digest: Digest,
        /// What is in the way.
        why: String,
    },
    /// Layers cannot be listed or removed.
    #[error(transparent)]
    Blobs(#[from] ImageError),
    /// Nobody is left to remove it.
    #[error("the daemon is stopping")]
    Stopping,
}

/// What is to be removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PruneOrder {
    /// Only say what would be.
    #[serde(default)]
    pub dry_run: bool,
    /// Also the layers that are kept for later pulls.
    #[serde(default)]
    pub all: bool,
}

/// What was removed, or would be.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pruned {
    /// Base disks.
    pub disks: Vec<Removed>,
    /// Bytes of layers.
    pub blobs: u64,
    /// What all of it took.
    pub allocated: u64,
}
