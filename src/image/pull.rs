//! One image: from its manifest's digest to the files of its base disk in a staging folder.
//!
//! All layers download at once (as many as the settings allow) while one thread applies them bottom
//! to top, each as soon as its first bytes are there. Nothing of the result is published here, so
//! the disk may be built from bytes whose digest is not known yet: a wrong one fails the pull.
//! Layers that another pull needs too, or that are on the host already, are not downloaded again.
//! Dropping the future ends the threads at their next chunk.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::blob::{Arrival, Blobs, Turn};
use super::ext4::Builder;
use super::layer::{Budget, Tree, inflate, on_disk};
use super::manifest::{Config, Descriptor, Manifest};
use super::registry::Registry;
use super::space::{Promise, Space};
use super::{Digest, ImageConfig, ImageError, Progress, Reference, Settings};

/// The base disk in an image's folder.
pub(crate) const DISK: &str = "disk.ext4";
/// The image's [`ImageConfig`], as JSON, in its folder.
pub(crate) const CONFIG: &str = "config.json";

/// Makes the base disk and the config of `digest` in `folder`, flushed to disk. Returns the disk's
/// length in bytes, and the config.
pub(crate) async fn pull(
    supply: &Supply<'_>,
    reference: &Reference,
    digest: &Digest,
    folder: &Path,
    progress: &watch::Sender<Progress>,
) -> Result<(u64, ImageConfig), ImageError> {
    let Supply { registry, blobs, space, settings } = supply;
    let manifest = registry.manifest(reference, digest).await?;
    progress.send_modify(|progress| {
        *progress = Progress { layers: manifest.layers.len(), bytes: manifest.size(), ..Progress::default() };
    });
    let config = registry.config(reference, &manifest.config).await?;
    let config = Config::parse(&config, manifest.layers.len())?;
    let cancel = CancellationToken::new();
    let _cancel_on_drop = cancel.clone().drop_guard();
    let disk = create_disk(folder).await?;
    let layers = manifest.layers.iter();
    let wanted = layers.fold(manifest.size(), |sum, layer| sum.saturating_add(layer.unpacked()));
    let host = reference.inner().registry();
    let (arrivals, layers) = open_layers(blobs, host, manifest, config.diff_ids);
    // What this pull uses itself does not go for its room.
    let room = Arc::clone(space);
    let promise = Arc::new(blocking("looking for room", move || room.promise(wanted)).await?);
    let build = Build {
        disk,
        uuid: filesystem_uuid(digest),
        layers,
        settings: Arc::clone(settings),
        cancel,
        promise: promise.clone(),
        progress: progress.clone(),
    };
    let build = blocking("building the base disk", move || build.run());
    let downloads: Vec<_> = arrivals
        .iter()
        .map(|(layer, arrival)| arrive(registry, reference, layer, arrival, &promise, progress))
        .collect();
    let downloads = stream::iter(downloads).buffer_unordered(settings.downloads.max(1)).try_collect::<()>();
    let size = both(downloads, build, &arrivals, progress).await?;

    let run = config.run.clone();
    let folder = folder.to_owned();
    blocking("writing the image's config", move || write_config(&folder, &run)).await?;
    Ok((size, config.run))
}

/// What a pull draws on.
pub(crate) struct Supply<'a> {
    pub(crate) registry: &'a Registry,
    pub(crate) blobs: &'a Arc<Blobs>,
    pub(crate) space: &'a Arc<Space>,
    pub(crate) settings: &'a Arc<Settings>,
}

/// Sees to it that a layer is on the host.
async fn arrive(
    registry: &Registry,
    reference: &Reference,
    layer: &Descriptor,
    arrival: &Arrival,
    promise: &Promise,
    progress: &watch::Sender<Progress>,
) -> Result<(), ImageError> {
    let seen = AtomicU64::new(0);
    let arrived = |total: u64| {
        let more = total.saturating_sub(seen.fetch_max(total, Ordering::Relaxed));
        if more > 0 {
            promise.used(more);
            progress.send_modify(|progress| progress.bytes_done += more);
        }
    };
    let place = |error: ImageError| error.at(format_args!("layer {}", layer.digest));
    match arrival.turn(&arrived).await.map_err(place)? {
        Turn::Done => Ok(()),
        Turn::Download(sink) => registry.blob(reference, layer, sink, &arrived).await.map_err(place),
    }
}

/// Waits for the layers and for the disk. When a download fails so does the build, and only the
/// download knows why.
async fn both(
    downloads: impl Future<Output = Result<(), ImageError>>,
    build: impl Future<Output = Result<u64, ImageError>>,
    arrivals: &[(Descriptor, Arrival)],
    progress: &watch::Sender<Progress>,
) -> Result<u64, ImageError> {
    let (mut downloads, mut build) = (std::pin::pin!(downloads), std::pin::pin!(build));
    let built = tokio::select! {
        biased;
        done = &mut downloads => {
            done?;
            return build.await;
        }
        built = &mut build => built,
    };
    let broken = match built {
        Ok(size) => return downloads.await.map(|()| size),
        Err(error) => error,
    };
    // Readers know of a layer's failure a moment before its download tells of it.
    if broken.reason == "Cancelled" {
        downloads.await?;
        return Err(broken);
    }
    // Wrong bytes make no sense: then not the image is to blame, but who sent them.
    let layer = progress.borrow().layers_done;
    if let Some((_, arrival)) = arrivals.get(layer).filter(|_| broken.reason == "InvalidImage") {
        tokio::select! {
            biased;
            Err(error) = &mut downloads => return Err(error),
            _ = arrival.is_right() => {}
        }
    }
    Err(broken)
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

/// A layer to be applied.
pub(crate) struct Layer {
    pub(crate) blob: Box<dyn Read + Send>,
    pub(crate) descriptor: Descriptor,
    /// None where the whole was verified already.
    pub(crate) diff_id: Option<Digest>,
}

/// Both ends of each layer, bottom to top.
fn open_layers(
    blobs: &Arc<Blobs>,
    registry: &str,
    manifest: Manifest,
    diff_ids: Vec<Digest>,
) -> (Vec<(Descriptor, Arrival)>, Vec<Layer>) {
    let open = |(descriptor, diff_id): (Descriptor, Digest)| {
        let (arrival, blob) = blobs.open(registry, &descriptor);
        ((descriptor.clone(), arrival), Layer { blob: Box::new(blob), descriptor, diff_id: Some(diff_id) })
    };
    manifest.layers.into_iter().zip(diff_ids).map(open).unzip()
}

async fn create_disk(folder: &Path) -> Result<File, ImageError> {
    let path = folder.join(DISK);
    blocking("creating the disk", move || {
        create_public(&path).map_err(|error| ImageError::host(path.display(), &error))
    })
    .await
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
    /// Of the room for it.
    pub(crate) promise: Arc<Promise>,
}

impl Build {
    /// Returns the disk's length in bytes.
    pub(crate) fn run(self) -> Result<u64, ImageError> {
        let limits = &self.settings.limits;
        let builder = Builder::new(self.disk, self.uuid, limits.disk()).map_err(on_disk)?;
        let mut tree = Tree::new(builder, limits);
        let mut budget = Budget::new(limits, self.cancel);
        for Layer { blob, descriptor, diff_id } in self.layers {
            inflate(blob, descriptor.size, diff_id.as_ref(), &mut budget, |chunks| tree.apply(chunks))
                .map_err(|error| error.at(format_args!("layer {}", descriptor.digest)))?;
            self.promise.used(descriptor.unpacked());
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
