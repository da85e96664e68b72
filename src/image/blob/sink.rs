//! Writes and hashes a blob, on a thread of its own.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use bytes::Bytes;
use nix::libc::O_NOFOLLOW;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::shared::{Blob, Claim};
use super::{on_disk, remove};
use crate::image::{Digest, ImageError};

/// Chunks between the network and the disk.
const QUEUE: usize = 16;
/// Bytes that are read at once to be hashed.
const CHUNK: usize = 1 << 20;

/// What was on the disk.
pub(super) enum Started {
    /// All of it, and it is right.
    Complete,
    /// This many bytes from the start.
    Partial(Claim, u64),
}

/// Looks for a blob on the disk: verifies it, or opens what there is of it. Readers may follow at once.
pub(super) fn start(claim: Claim) -> Result<Started, ImageError> {
    let blob = &claim.blob;
    // Somebody else got so far.
    if let Some(from) = blob.look(|state| state.file.is_some().then_some(state.written)) {
        return Ok(Started::Partial(claim, from));
    }
    if let Some(file) = open_complete(&claim) {
        blob.change(|state| (state.file, state.written) = (Some(file.clone()), blob.key.size));
        let result = verify_complete(&claim, &file);
        blob.conclude(&result);
        return result.map(|()| Started::Complete);
    }
    match open_partial(&claim) {
        Ok((file, from)) => {
            blob.change(|state| (state.file, state.written) = (Some(Arc::new(file)), from));
            Ok(Started::Partial(claim, from))
        }
        Err(error) => {
            let error = on_disk(&error);
            blob.conclude(&Err(error.clone()));
            Err(error)
        }
    }
}

fn open_complete(claim: &Claim) -> Option<Arc<File>> {
    let path = claim.blob.blobs.complete(&claim.blob.key);
    let file = OpenOptions::new().read(true).write(true).custom_flags(O_NOFOLLOW).open(path).ok()?;
    let data = file.metadata().ok()?;
    if data.len() != claim.blob.key.size {
        return None;
    }
    // So it is known as used; if that fails it goes earlier.
    let _ = file.set_modified(SystemTime::now());
    Some(Arc::new(file))
}

fn verify_complete(claim: &Claim, file: &File) -> Result<(), ImageError> {
    let blob = &claim.blob;
    let mut hash = Sha256::new();
    read_into(&mut hash, file, blob.key.size)?;
    let actual = Digest::sha256(hash.finalize().into());
    if actual == blob.key.digest {
        return Ok(());
    }
    let path = blob.blobs.complete(&blob.key);
    tracing::warn!(path = %path.display(), "a layer that was kept is damaged, and is removed");
    remove(&path).map_err(|error| on_disk(&error))?;
    Err(ImageError::damaged(format!("{} was damaged", path.display())))
}

/// Hashes the first `length` bytes of a file.
fn read_into(hash: &mut Sha256, file: &File, length: u64) -> Result<(), ImageError> {
    let mut buffer = vec![0; CHUNK];
    let mut position = 0;
    while position < length {
        let wanted = buffer.len().min(usize::try_from(length - position).unwrap_or(usize::MAX));
        match file.read_at(&mut buffer[..wanted], position).map_err(|error| on_disk(&error))? {
            0 => return Err(ImageError::damaged("a layer on disk became shorter")),
            count => {
                hash.update(&buffer[..count]);
                position += count as u64;
            }
        }
    }
    Ok(())
}

/// Opens the partial file, and says how long it is. It has no name if nothing is to be kept.
fn open_partial(claim: &Claim) -> io::Result<(File, u64)> {
    let blobs = &claim.blob.blobs;
    let path = blobs.partial(&claim.blob.key);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(O_NOFOLLOW)
        .open(&path)?;
    let mut length = file.metadata()?.len();
    if blobs.capacity == 0 {
        remove(&path)?;
    }
    if length > claim.blob.key.size {
        file.set_len(0)?;
        length = 0;
    }
    Ok((file, length))
}

/// A blob that is being written. Dropped before its end, another pull goes on.
pub(crate) struct BlobSink {
    chunks: mpsc::Sender<Bytes>,
    thread: JoinHandle<Result<(), ImageError>>,
    blob: Arc<Blob>,
    position: u64,
}

impl BlobSink {
    /// Starts the thread that writes and hashes.
    pub(super) fn new(claim: Claim, from: u64) -> Self {
        let (chunks, queue) = mpsc::channel(QUEUE);
        let blob = claim.blob.clone();
        let thread = tokio::task::spawn_blocking(move || receive(&claim, from, queue));
        BlobSink { chunks, thread, blob, position: from }
    }

    /// Bytes that were there before.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Appends a chunk; waits if the disk is slower than the network. Returns false when the disk
    /// failed: [`BlobSink::finish`] says how.
    pub(crate) async fn write(&mut self, chunk: Bytes) -> bool {
        self.chunks.send(chunk).await.is_ok()
    }

    /// Waits until all is written and the digest compared.
    pub(crate) async fn finish(self) -> Result<(), ImageError> {
        drop(self.chunks);
        self.thread.await.unwrap_or_else(|error| Err(on_disk(&io::Error::other(error))))
    }

    /// Ends in failure. What holds for the registry fails all pulls that wait for this one; what
    /// holds for one repository or manifest lets another try.
    pub(crate) fn give_up(self, error: &ImageError) {
        if !matches!(error.reason, "NotFound" | "Unauthorized" | "InvalidImage") {
            self.blob.look(|state| state.verdict = Some(error.clone()));
        }
    }
}

fn receive(claim: &Claim, from: u64, queue: mpsc::Receiver<Bytes>) -> Result<(), ImageError> {
    let result = match write(claim, from, queue) {
        // The claim's end says what becomes of it.
        Ok(None) => return Err(ImageError::cancelled()),
        Ok(Some(digest)) => judge(claim, from, &digest),
        Err(error) => Err(error),
    };
    claim.blob.conclude(&result);
    result
}

/// Writes and hashes what comes. Returns the digest if all came.
fn write(claim: &Claim, from: u64, mut queue: mpsc::Receiver<Bytes>) -> Result<Option<Digest>, ImageError> {
    let blob = &claim.blob;
    let file = blob.look(|state| state.file.clone()).ok_or_else(ImageError::cancelled)?;
    let mut hash = Sha256::new();
    read_into(&mut hash, &file, from)?;
    let mut written = from;
    while let Some(chunk) = queue.blocking_recv() {
        file.write_all_at(&chunk, written).map_err(|error| on_disk(&error))?;
        written += chunk.len() as u64;
        blob.change(|state| state.written = written);
        // After the change: readers need not wait for the hash.
        hash.update(&chunk);
        blob.blobs.pace.pause(written, || blob.read.load(Ordering::Relaxed), || queue.is_closed());
    }
    Ok((written == blob.key.size).then(|| Digest::sha256(hash.finalize().into())))
}

/// Compares the digest, and keeps the file or removes it.
fn judge(claim: &Claim, from: u64, actual: &Digest) -> Result<(), ImageError> {
    let (blobs, key) = (&claim.blob.blobs, &claim.blob.key);
    let partial = blobs.partial(key);
    if *actual == key.digest {
        let kept = if key.size <= blobs.capacity {
            std::fs::rename(&partial, blobs.complete(key))
        } else {
            remove(&partial)
        };
        // Whoever reads it has it open.
        if let Err(error) = kept.or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        }) {
            tracing::warn!(path = %partial.display(), %error, "a layer cannot be kept");
        }
        return Ok(());
    }
    remove(&partial).map_err(|error| on_disk(&error))?;
    let message = format!("the registry sent a blob of digest {actual} for {}", key.digest);
    // What was there before may be what is wrong.
    Err(if from > 0 { ImageError::damaged(message) } else { ImageError::digest(message) })
}
