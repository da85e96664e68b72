//! Images that are on the host, or brought there whole: layouts, bundles, registered files.
//!
//! Work that reads files runs on threads for it; dropping a future ends its thread at the next chunk.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::SeekFrom;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::layout::Layout;
use super::manifest::Descriptor;
use super::pull::{Build, DISK, Layer, blocking, create_public, filesystem_uuid, write_config};
use super::space::{Promise, Space};
use super::{Digest, ImageConfig, ImageError, Limits, Progress, Root, Settings};

/// What a thread needs to work for a future.
#[derive(Clone)]
pub(crate) struct Job {
    /// Where files without a name may be.
    scratch: PathBuf,
    space: Arc<Space>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) cancel: CancellationToken,
}

impl Job {
    /// A job that ends when the guard is dropped.
    pub(crate) fn new(scratch: &Path, space: &Arc<Space>, settings: &Arc<Settings>) -> (Self, DropGuard) {
        let (cancel, settings) = (CancellationToken::new(), settings.clone());
        let job = Job { scratch: scratch.to_owned(), space: space.clone(), settings, cancel };
        let guard = job.cancel.clone().drop_guard();
        (job, guard)
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.settings.limits
    }

    /// Fails if nobody waits any more.
    pub(crate) fn go_on(&self) -> Result<(), ImageError> {
        if self.cancel.is_cancelled() { Err(ImageError::cancelled()) } else { Ok(()) }
    }

    /// Room for so many bytes. Not for an async thread.
    pub(crate) fn promise(&self, wanted: u64) -> Result<Promise, ImageError> {
        self.space.promise(wanted)
    }

    /// A file that goes with its last descriptor.
    pub(crate) fn unnamed(&self) -> Result<File, ImageError> {
        tempfile::tempfile_in(&self.scratch).map_err(|error| ImageError::host(self.scratch.display(), &error))
    }
}

/// The digest of an image in a folder or tar.
pub(crate) async fn resolve_layout(
    job: Job,
    path: PathBuf,
    reference: Option<String>,
) -> Result<Digest, ImageError> {
    blocking("reading a layout", move || Ok(Layout::open(&path, reference.as_deref(), None, &job)?.digest))
        .await
}

/// Makes the base disk of an image in a folder or tar, and its config, flushed to disk.
pub(crate) async fn stage_layout(
    job: Job,
    path: PathBuf,
    reference: Option<String>,
    digest: Digest,
    folder: PathBuf,
    progress: watch::Sender<Progress>,
) -> Result<(u64, ImageConfig), ImageError> {
    let opened = job.clone();
    let (uuid, place) = (filesystem_uuid(&digest), folder.join(DISK));
    let (layout, disk) = blocking("reading a layout", move || {
        let layout = Layout::open(&path, reference.as_deref(), Some(&digest), &opened)?;
        let disk = create_public(&place).map_err(|error| ImageError::host(place.display(), &error))?;
        Ok((layout, disk))
    })
    .await?;
    let Layout { config, layers: blobs, .. } = layout;
    let wanted = blobs.iter().fold(0u64, |sum, blob| sum.saturating_add(blob.descriptor.unpacked()));
    let room = job.clone();
    let promise = blocking("looking for room", move || room.promise(wanted)).await?;
    progress.send_modify(|progress| {
        let bytes = blobs.iter().map(|blob| blob.descriptor.size).sum();
        *progress = Progress { layers: blobs.len(), bytes, ..Progress::default() };
    });
    let layers = blobs.iter().zip(config.diff_ids).map(|(blob, diff_id)| Layer {
        blob: Box::new(blob.section.reader()),
        descriptor: blob.descriptor.clone(),
        diff_id: Some(diff_id),
    });
    let build = Build {
        disk,
        uuid,
        layers: layers.collect(),
        settings: job.settings.clone(),
        cancel: job.cancel.clone(),
        promise: Arc::new(promise),
        progress: progress.clone(),
    };
    let build = blocking("building the base disk", move || build.run());
    // Beside the build, which goes on what it inflates: both must come out right.
    let verify = blocking("verifying layers", move || {
        let arrived = |bytes| progress.send_modify(|progress| progress.bytes_done += bytes);
        blobs.iter().try_for_each(|blob| blob.verify(&job, arrived))
    });
    let ((), size) = tokio::try_join!(biased; verify, build)?;
    finish(folder, config.run, size).await
}

/// Makes a base disk of a root in a tar, flushed to disk.
pub(crate) async fn stage_root(
    job: Job,
    root: Root,
    digest: Digest,
    folder: PathBuf,
    progress: watch::Sender<Progress>,
) -> Result<(u64, ImageConfig), ImageError> {
    let Root { tar, config } = root;
    let place = folder.join(DISK);
    let size = blocking("making a base disk of a root", move || {
        let at = |error| ImageError::host(tar.display(), &error);
        let blob = File::open(&tar).map_err(at)?;
        // A tar on a sparse disk ends before the first hole.
        let size = rustix::fs::seek(&blob, SeekFrom::Hole(0)).map_err(|error| at(error.into()))?;
        rustix::fs::seek(&blob, SeekFrom::Start(0)).map_err(|error| at(error.into()))?;
        let promise = Arc::new(job.promise(size)?);
        let disk = create_public(&place).map_err(|error| ImageError::host(place.display(), &error))?;
        progress.send_modify(|progress| (progress.layers, progress.bytes) = (1, size));
        let descriptor = Descriptor { media_type: String::new(), digest: digest.clone(), size };
        let layers = vec![Layer { blob: Box::new(blob.take(size)), descriptor, diff_id: None }];
        let Job { settings, cancel, .. } = job;
        Build { disk, uuid: filesystem_uuid(&digest), layers, settings, cancel, promise, progress }.run()
    })
    .await?;
    finish(folder, config, size).await
}

/// Writes the config beside a disk that is complete.
pub(crate) async fn finish(
    folder: PathBuf,
    run: ImageConfig,
    size: u64,
) -> Result<(u64, ImageConfig), ImageError> {
    blocking("writing the image's config", move || {
        write_config(&folder, &run)?;
        Ok((size, run))
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::super::blob::Blobs;
    use super::super::layout::{Blob, Section, copy, drain};
    use super::*;

    /// What reads for as long as there is something to read, or for ever, ends with who waits for it.
    #[test]
    fn work_ends_when_nobody_waits_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let space = Space::new(folder.path().to_owned(), Blobs::new(folder.path().to_owned(), 0));
        let (job, guard) = Job::new(folder.path(), &space, &Arc::new(Settings::default()));
        assert!(job.go_on().is_ok());
        drop(guard);
        let blob = Blob {
            section: Section::new(Arc::new(job.unnamed().unwrap()), 0, 0),
            descriptor: Descriptor { media_type: String::new(), digest: Digest::of("it"), size: 0 },
            verified: true,
        };
        let ends = [
            job.go_on(),
            copy(io::repeat(0), &job.unnamed().unwrap(), None, &job).map(drop),
            drain(io::repeat(0), &job),
            blob.verify(&job, |_| ()),
        ];
        for end in ends {
            assert_eq!(end.unwrap_err().reason, "Cancelled");
        }
    }
}
