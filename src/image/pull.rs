//! One image: from its manifest's digest to the files of its base disk in a staging folder.
//!
//! All layers download at once (as many as the settings allow) while one thread applies them bottom
//! to top, each as soon as its first bytes are there. Nothing of the result is published here, so
//! the disk may be built from bytes whose digest is not known yet: a wrong one fails the pull.
//! Dropping the future ends the threads at their next chunk.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::blob::{self, BlobWriter};
use super::ext4::Builder;
use super::layer::{Budget, Tree, inflate, on_disk};
use super::manifest::{Config, Descriptor, Manifest};
use super::registry::Registry;
use super::{Digest, ImageConfig, ImageError, Progress, Reference, Settings};

/// The base disk in an image's folder.
pub(crate) const DISK: &str = "disk.ext4";
/// The image's [`ImageConfig`], as JSON, in its folder.
pub(crate) const CONFIG: &str = "config.json";

/// Makes the base disk and the config of `digest` in `folder`, flushed to disk. Returns the disk's
/// length in bytes, and the config.
pub(crate) async fn pull(
    registry: &Registry,
    settings: &Arc<Settings>,
    reference: &Reference,
    digest: &Digest,
    folder: &Path,
    progress: &watch::Sender<Progress>,
) -> Result<(u64, ImageConfig), ImageError> {
    let manifest = registry.manifest(reference, digest).await?;
    progress.send_modify(|progress| {
        *progress = Progress { layers: manifest.layers.len(), bytes: manifest.size(), ..Progress::default() };
    });
    let config = registry.config(reference, &manifest.config).await?;
    let config = Config::parse(&config, manifest.layers.len())?;

    let cancel = CancellationToken::new();
    let _cancel_on_drop = cancel.clone().drop_guard();
    let files = Files::create(folder, &manifest, config.diff_ids).await?;
    let build = Build {
        disk: files.disk,
        uuid: filesystem_uuid(digest),
        layers: files.layers,
        settings: settings.clone(),
        cancel,
        progress: progress.clone(),
    };
    let build = blocking("building the base disk", move || build.run());
    let downloads = stream::iter(files.downloads)
        .map(|(layer, writer)| async move {
            let arrived = |bytes| progress.send_modify(|progress| progress.bytes_done += bytes);
            let place = |error: ImageError| error.at(format_args!("layer {}", layer.digest));
            registry.blob(reference, &layer, writer, arrived).await.map_err(place)
        })
        .buffer_unordered(settings.downloads.max(1))
        .try_collect::<()>();
    // Downloads first: when one fails, so does the build, and only the download knows why.
    let ((), size) = tokio::try_join!(biased; downloads, build)?;

    let run = config.run.clone();
    let folder = folder.to_owned();
    blocking("writing the image's config", move || write_config(&folder, &run)).await?;
    Ok((size, config.run))
}

/// Runs slow work on a thread for it.
pub(crate) async fn blocking<T: Send + 'static>(
    what: &str,
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(ImageError::host(what, &io::Error::other(error))),
    }
}

/// A UUID of the kind that is free to choose (RFC 9562, version 8), the same for the same image.
pub(crate) fn filesystem_uuid(digest: &Digest) -> [u8; 16] {
    let mut bytes = [0; 16];
    let hex = digest.as_str().trim_start_matches("sha256:");
    hex::decode_to_slice(&hex[..32], &mut bytes).expect("a digest has 64 hexadecimal digits");
    *uuid::Builder::from_custom_bytes(bytes).as_uuid().as_bytes()
}

/// The files that a pull works on.
struct Files {
    disk: File,
    downloads: Vec<(Descriptor, BlobWriter)>,
    layers: Vec<Layer>,
}

/// A layer to be applied.
pub(crate) struct Layer {
    pub(crate) blob: Box<dyn Read + Send>,
    pub(crate) descriptor: Descriptor,
    /// None where the whole was verified already.
    pub(crate) diff_id: Option<Digest>,
}

impl Files {
    async fn create(folder: &Path, manifest: &Manifest, diff_ids: Vec<Digest>) -> Result<Self, ImageError> {
        let folder = folder.to_owned();
        let descriptors = manifest.layers.clone();
        blocking("creating files", move || {
            let failed = |error| ImageError::host(folder.display(), &error);
            let disk = create_public(&folder.join(DISK)).map_err(failed)?;
            let mut files = Files { disk, downloads: Vec::new(), layers: Vec::new() };
            for (descriptor, diff_id) in descriptors.into_iter().zip(diff_ids) {
                let (writer, blob) = blob::create(&folder.join("blob")).map_err(failed)?;
                files.downloads.push((descriptor.clone(), writer));
                files.layers.push(Layer { blob: Box::new(blob), descriptor, diff_id: Some(diff_id) });
            }
            Ok(files)
        })
        .await
    }
}

/// Creates a file that everybody may read whatever the umask: VMMs run as other users.
pub(crate) fn create_public(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o644).open(path)?;
    file.set_permissions(Permissions::from_mode(0o644))?;
    Ok(file)
}

/// What the building thread needs.
pub(crate) struct Build {
    pub(crate) disk: File,
    pub(crate) uuid: [u8; 16],
    pub(crate) layers: Vec<Layer>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) cancel: CancellationToken,
    pub(crate) progress: watch::Sender<Progress>,
}

impl Build {
    /// Returns the disk's length in bytes.
    pub(crate) fn run(self) -> Result<u64, ImageError> {
        let limits = &self.settings.limits;
        let builder = Builder::new(self.disk, self.uuid, limits.disk()).map_err(on_disk)?;
        let mut tree = Tree::new(builder, limits)?;
        let mut budget = Budget::new(limits, self.cancel);
        for Layer { blob, descriptor, diff_id } in self.layers {
            inflate(blob, descriptor.size, diff_id.as_ref(), &mut budget, |chunks| tree.apply(chunks))
                .map_err(|error| error.at(format_args!("layer {}", descriptor.digest)))?;
            self.progress.send_modify(|progress| progress.layers_done += 1);
        }
        Ok(tree.into_builder().finish().map_err(on_disk)?.size)
    }
}

pub(crate) fn write_config(folder: &Path, run: &ImageConfig) -> Result<(), ImageError> {
    let path = folder.join(CONFIG);
    let write = || {
        let mut file = create_public(&path)?;
        file.write_all(&serde_json::to_vec_pretty(run)?)?;
        file.sync_all()?;
        File::open(folder)?.sync_all()
    };
    write().map_err(|error| ImageError::host(path.display(), &error))
}
