//! Base disks in the state directory.
//!
//! ```text
//! <state>/staging/<uuid>/            pulls under way; emptied at start-up
//! <state>/images/sha256-…/disk.ext4  the base disk, read-only for all VMs
//! <state>/images/sha256-…/config.json
//! <state>/images/sha256-…/kernel, initrd, modules/  what came with a bundle
//! <state>/images/sha256-…/files.json                files of the host, in place of a disk
//! <state>/blobs/                     compressed layers (`blob`)
//! ```
//!
//! What is on the host's disk is `folders`' business; here it is filled, and answered for.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio_util::sync::DropGuard;
use uuid::Uuid;

use super::blob::{Blobs, CachedBlob};
use super::bundle;
use super::folders::{Folders, at, make_folder};
use super::host::Registered;
use super::local::{Job, finish, resolve_layout, stage_layout, stage_root};
use super::pull::{Supply, blocking, pull};
use super::registry::Registry;
use super::space::Space;
use super::{
    BaseDisk, Digest, HostFiles, ImageConfig, ImageError, Images, LayoutAt, Place, Progress, Root, Settings,
    Source, StagedDisk,
};

/// Gets images from wherever they are and keeps their base disks.
pub struct ImageStore {
    folders: Folders,
    registry: Registry,
    blobs: Arc<Blobs>,
    space: Arc<Space>,
    settings: Arc<Settings>,
}

/// How often one pull starts over because a layer that was kept is damaged; each time one less is.
const DAMAGES: usize = 4;

impl ImageStore {
    /// Opens the store in the daemon's state directory, makes its folders and removes what pulls
    /// before a crash left behind. One process at a time may do so.
    ///
    /// # Errors
    ///
    /// If the folders cannot be made or the host's TLS certificates cannot be read.
    pub fn open(state: &Path, settings: Settings) -> Result<Self, ImageError> {
        let folders = Folders { images: state.join("images"), staging: state.join("staging") };
        for folder in [&folders.images, &folders.staging] {
            make_folder(folder).map_err(at(folder))?;
        }
        folders.sweep().map_err(at(&folders.staging))?;
        let kept = state.join("blobs");
        DirBuilder::new().recursive(true).mode(0o700).create(&kept).map_err(at(&kept))?;
        let blobs = Blobs::new(kept, settings.blob_cache);
        blobs.tidy(false);
        let settings = Arc::new(settings);
        let registry = Registry::new(settings.clone())?;
        let space = Space::new(state.to_owned(), blobs.clone());
        Ok(ImageStore { folders, registry, blobs, space, settings })
    }

    /// A job that ends when the guard is dropped.
    fn job(&self) -> (Job, DropGuard) {
        Job::new(&self.folders.staging, &self.space, &self.settings)
    }

    /// What `fill` makes in a staging folder within the time for it.
    async fn staged<F>(
        &self,
        digest: &Digest,
        fill: impl FnOnce(PathBuf) -> F,
    ) -> Result<StagedDisk, ImageError>
    where
        F: Future<Output = Result<(u64, ImageConfig), ImageError>>,
    {
        let folder = self.folders.staging.join(Uuid::new_v4().to_string());
        make_folder(&folder).map_err(at(&folder))?;
        // From here on the folder goes when this is dropped.
        let mut staged = StagedDisk {
            digest: digest.clone(),
            dir: Some(folder.clone()),
            held: None,
            size: 0,
            config: ImageConfig::default(),
        };
        (staged.size, staged.config) = fill(folder).await?;
        Ok(staged)
    }

    /// Within the time for it; afterwards layers go that are too many to be kept.
    async fn in_time(
        &self,
        staged: impl Future<Output = Result<StagedDisk, ImageError>>,
    ) -> Result<StagedDisk, ImageError> {
        let limit = self.settings.pull_timeout;
        let staged = tokio::time::timeout(limit, staged).await;
        let staged =
            staged.unwrap_or_else(|_| Err(ImageError::unavailable(format!("not there within {limit:?}"))));
        let blobs = self.blobs.clone();
        let full = staged.as_ref().is_err_and(|error| error.reason == ImageError::NO_SPACE);
        let tidy = move || {
            blobs.tidy(full);
            Ok(())
        };
        blocking("removing layers", tidy).await?;
        staged
    }

    async fn stage_soundly(
        &self,
        source: &Source,
        digest: &Digest,
        progress: &watch::Sender<Progress>,
    ) -> Result<StagedDisk, ImageError> {
        let mut damages = 0;
        let mut others = self.blobs().await.is_ok_and(|kept| !kept.is_empty());
        loop {
            match self.staged(digest, |folder| Box::pin(self.fill(source, digest, folder, progress))).await {
                Err(error) if error.reason == ImageError::DAMAGED && damages < DAMAGES => {
                    tracing::warn!(image = %source, %error, "starting over without the damaged layer");
                    damages += 1;
                }
                // Room that was promised did not suffice: what earlier pulls left goes, and this is tried again.
                Err(error) if error.reason == ImageError::NO_SPACE && others => {
                    tracing::warn!(image = %source, %error, "starting over without kept layers");
                    others = false;
                    self.prune_blobs(0).await?;
                }
                staged => return staged,
            }
        }
    }

    /// Makes an image's files in its staging folder. Returns the disk's length in bytes, and the config.
    async fn fill(
        &self,
        source: &Source,
        digest: &Digest,
        folder: PathBuf,
        progress: &watch::Sender<Progress>,
    ) -> Result<(u64, ImageConfig), ImageError> {
        let (job, _guard) = self.job();
        let filled = match source.clone() {
            Source::Oci(reference) => {
                let reference = reference.parse()?;
                let supply = Supply {
                    registry: &self.registry,
                    blobs: &self.blobs,
                    space: &self.space,
                    settings: &self.settings,
                };
                return pull(&supply, &reference, digest, &folder, progress).await;
            }
            Source::OciLayout(layout) => {
                let LayoutAt { path, reference } = *layout;
                stage_layout(job, path, reference, digest.clone(), folder, progress.clone()).await
            }
            Source::Bundle(bundle) => {
                bundle::stage(job, &self.registry, &bundle.place, digest, folder, progress.clone()).await
            }
            Source::Files(files) => register(job, *files, digest.clone(), folder).await,
            Source::Vm(_) => Err(not_of_files()),
        };
        filled.map_err(of_host)
    }
}

/// Records files of the host in a staging folder.
async fn register(
    job: Job,
    files: HostFiles,
    digest: Digest,
    folder: PathBuf,
) -> Result<(u64, ImageConfig), ImageError> {
    let place = folder.clone();
    let size = blocking("looking at files", move || {
        let (registered, found) = Registered::look(&files, &job)?;
        if found != digest {
            return Err(ImageError::not_found(
                "the files changed since they were looked at; declare the image anew",
            ));
        }
        registered.write(&place)?;
        Ok(registered.size)
    })
    .await?;
    finish(folder, ImageConfig::default(), size).await
}

/// A VM is the engine's business: what comes of it arrives by [`Images::stage_root`].
fn not_of_files() -> ImageError {
    ImageError::invalid("a VM's root is no file of the host")
}

/// An error about files of the host: what is wrong with them can be mended without any change of the spec.
fn of_host(error: ImageError) -> ImageError {
    ImageError { transient: true, ..error }
}

#[async_trait]
impl Images for ImageStore {
    async fn resolve(&self, source: &Source) -> Result<Digest, ImageError> {
        let (job, _guard) = self.job();
        let found = match source.clone() {
            Source::Oci(reference) => return self.registry.resolve(&reference.parse()?).await,
            Source::OciLayout(layout) => resolve_layout(job, layout.path, layout.reference).await,
            Source::Bundle(bundle) => match (bundle.sha256, bundle.place) {
                (Some(digest), _) => Ok(digest),
                (None, Place::Path(path)) => bundle::resolve(job, path).await,
                (None, Place::Url(_)) => Err(ImageError::invalid("a bundle of a URL needs its sha256")),
            },
            Source::Files(files) => {
                blocking("looking at files", move || Ok(Registered::look(&files, &job)?.1)).await
            }
            Source::Vm(_) => Err(not_of_files()),
        };
        found.map_err(|error| of_host(error).at(source))
    }

    async fn stage(
        &self,
        source: &Source,
        digest: &Digest,
        progress: &watch::Sender<Progress>,
    ) -> Result<StagedDisk, ImageError> {
        let staged = self.in_time(Box::pin(self.stage_soundly(source, digest, progress))).await;
        staged.map_err(|error| error.at(source))
    }

    async fn stage_root(
        &self,
        root: Root,
        digest: &Digest,
        progress: &watch::Sender<Progress>,
    ) -> Result<StagedDisk, ImageError> {
        let (job, _guard) = self.job();
        let fill = |folder| Box::pin(stage_root(job, root, digest.clone(), folder, progress.clone()));
        self.in_time(self.staged(digest, fill)).await
    }

    async fn install(&self, staged: StagedDisk) -> Result<BaseDisk, ImageError> {
        let folders = self.folders.clone();
        blocking("installing an image", move || folders.install(staged)).await
    }

    async fn disk(&self, digest: &Digest) -> Option<BaseDisk> {
        let (folders, digest) = (self.folders.clone(), digest.clone());
        blocking("looking for an image", move || Ok(folders.disk(&digest))).await.ok().flatten()
    }

    async fn remove(&self, digest: &Digest) -> Result<(), ImageError> {
        let folders = self.folders.clone();
        let folder = self.folders.image(digest);
        blocking("removing an image", move || folders.discard(&folder).map_err(at(&folder))).await
    }

    async fn check(&self, digest: &Digest) -> Result<(), ImageError> {
        let (job, _guard) = self.job();
        let (folder, digest) = (self.folders.image(digest), digest.clone());
        blocking("looking at files", move || match Registered::read(&folder) {
            Some(registered) => registered.check(&digest, &job),
            None => Ok(()),
        })
        .await
    }

    async fn installed(&self) -> Result<Vec<Digest>, ImageError> {
        let folders = self.folders.clone();
        blocking("listing images", move || folders.installed().map_err(at(&folders.images))).await
    }

    async fn blobs(&self) -> Result<Vec<CachedBlob>, ImageError> {
        let blobs = self.blobs.clone();
        let what = "listing layers";
        blocking(what, move || blobs.list().map_err(|error| ImageError::host(what, &error))).await
    }

    async fn prune_blobs(&self, down_to: u64) -> Result<u64, ImageError> {
        let blobs = self.blobs.clone();
        let what = "removing layers";
        blocking(what, move || blobs.prune(down_to).map_err(|error| ImageError::host(what, &error))).await
    }
}
