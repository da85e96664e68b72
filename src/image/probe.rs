//! The parts of a pull on bytes that are at hand, without a registry: what comparisons with other unpackers
//! and fuzzing drive. Each does what a pull does with the same bytes.

use std::fs::File;
use std::io::{BufRead, Write};
use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::blob::Blobs;
use super::ext4::{self, Builder};
use super::layer::{Budget, Tree, inflate, on_disk};
use super::layout::plain;
use super::local::Job;
use super::manifest::{Config, Document};
use super::space::Space;
use super::{ImageConfig, ImageError, Limits, Progress, Settings, bundle};

/// The filesystem of every disk that is made here.
const UUID: [u8; 16] = *b"vmlet probe disk";

/// Makes `disk` the base disk of these layers, uncompressed tars, bottom to top.
///
/// # Errors
/// What a pull of such an image fails with.
pub fn build_disk<R: BufRead>(
    disk: File,
    layers: impl IntoIterator<Item = R>,
    limits: &Limits,
) -> Result<ext4::Summary, ImageError> {
    let mut tree = Tree::new(Builder::new(disk, UUID, limits.disk()).map_err(on_disk)?, limits);
    layers.into_iter().try_for_each(|layer| tree.apply(layer))?;
    tree.into_builder().finish().map_err(on_disk)
}

/// Makes `disk` the base disk of these layers as registries serve them, compressed or not, bottom to top.
/// There are no digests to check them against.
///
/// # Errors
/// What a pull of such an image fails with.
pub fn build_disk_of_blobs(
    disk: File,
    blobs: &[&[u8]],
    limits: &Limits,
) -> Result<ext4::Summary, ImageError> {
    let mut tree = Tree::new(Builder::new(disk, UUID, limits.disk()).map_err(on_disk)?, limits);
    let mut budget = Budget::new(limits, CancellationToken::new());
    for blob in blobs {
        inflate(*blob, blob.len() as u64, None, &mut budget, |chunks| tree.apply(chunks))?;
    }
    tree.into_builder().finish().map_err(on_disk)
}

/// Reads what a reference stands for: an image's manifest, or an index.
///
/// # Errors
/// If it is neither, or not one that can run here.
pub fn read_manifest(bytes: &[u8], limits: &Limits) -> Result<(), ImageError> {
    Document::parse(bytes, limits).map(drop)
}

/// Reads the config of an image of so many layers.
///
/// # Errors
/// If it is malformed, or of an image that cannot run here.
pub fn read_config(bytes: &[u8], layers: usize) -> Result<(), ImageError> {
    Config::parse(bytes, layers).map(drop)
}

/// Puts what is in a bundle into a folder that is there. Returns the disk's length in bytes, and the config.
///
/// # Errors
/// If the bundle is malformed or over a limit; if the folder cannot be written to.
pub fn unpack_bundle(bytes: &[u8], folder: &Path, limits: &Limits) -> Result<(u64, ImageConfig), ImageError> {
    let settings = Arc::new(Settings { limits: limits.clone(), ..Settings::default() });
    let space = Space::new(folder.to_owned(), Blobs::new(folder.join("blobs"), 0));
    let (job, _guard) = Job::new(folder, &space, &settings);
    let mut file = job.unnamed()?;
    file.write_all(bytes).map_err(|error| ImageError::host("writing a bundle", &error))?;
    let (progress, _) = watch::channel(Progress::default());
    bundle::unpack(plain(file, &job)?, folder, UUID, &job, progress)
}
