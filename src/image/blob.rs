//! A blob that is read while it still arrives.
//!
//! Chunks flow in from the download, through a thread that writes and hashes them; a reader on
//! another thread follows. The file has no name, so nothing is left of it after a crash, and its space
//! is free as soon as both ends are done. The reader meets the end of the blob only after its
//! digest was found right; it fails as soon as the download does.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::{Digest, ImageError};

/// Chunks between the network and the disk.
const QUEUE: usize = 16;

/// Makes an empty blob; `scratch` is a name that nobody uses.
pub(crate) fn create(scratch: &Path) -> io::Result<(BlobWriter, BlobReader)> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(scratch)?;
    std::fs::remove_file(scratch)?;
    let shared = Arc::new(Shared {
        file,
        state: Mutex::new(State { written: 0, end: End::Open }),
        changed: Condvar::new(),
    });
    Ok((BlobWriter { shared: shared.clone() }, BlobReader { shared, position: 0 }))
}

struct Shared {
    file: File,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// Bytes from the start that can be read.
    written: u64,
    end: End,
}

#[derive(Clone, Copy, PartialEq)]
enum End {
    Open,
    Verified,
    Failed,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_all();
    }
}

/// The end that the download holds. Dropped before it is started, it fails the reader.
pub(crate) struct BlobWriter {
    shared: Arc<Shared>,
}

impl BlobWriter {
    /// Starts the thread that writes and hashes.
    pub(crate) fn start(self) -> BlobSink {
        let (chunks, mut queue) = mpsc::channel::<Bytes>(QUEUE);
        let shared = self.shared.clone();
        let thread = tokio::task::spawn_blocking(move || {
            let mut hash = Sha256::new();
            let mut written = 0;
            while let Some(chunk) = queue.blocking_recv() {
                shared.file.write_all_at(&chunk, written)?;
                written += chunk.len() as u64;
                shared.change(|state| state.written = written);
                // After the change: the reader need not wait for the hash.
                hash.update(&chunk);
            }
            Ok(hash.finalize().into())
        });
        BlobSink { chunks, thread, _writer: self }
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        self.shared.change(|state| {
            if state.end == End::Open {
                state.end = End::Failed;
            }
        });
    }
}

/// A blob that is being written.
pub(crate) struct BlobSink {
    chunks: mpsc::Sender<Bytes>,
    thread: JoinHandle<io::Result<[u8; 32]>>,
    _writer: BlobWriter,
}

impl BlobSink {
    /// Appends a chunk; waits if the disk is slower than the network. Returns false when the disk
    /// failed: [`BlobSink::finish`] says how.
    pub(crate) async fn write(&mut self, chunk: Bytes) -> bool {
        self.chunks.send(chunk).await.is_ok()
    }

    /// Waits until all is written and compares the digest.
    pub(crate) async fn finish(self, expected: &Digest) -> Result<(), ImageError> {
        let BlobSink { chunks, thread, _writer } = self;
        drop(chunks);
        let hash = thread
            .await
            .map_err(io::Error::other)
            .flatten()
            .map_err(|error| ImageError::host("writing a layer to disk", &error))?;
        let actual = Digest::sha256(hash);
        if actual != *expected {
            return Err(ImageError::digest(format!(
                "the registry sent a blob of digest {actual} for {expected}"
            )));
        }
        _writer.shared.change(|state| state.end = End::Verified);
        Ok(())
    }
}

/// The end that the layer pipeline holds.
pub(crate) struct BlobReader {
    shared: Arc<Shared>,
    position: u64,
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let readable = {
            let waiting = |state: &mut State| state.written == self.position && state.end == End::Open;
            let state = self.shared.changed.wait_while(self.shared.state(), waiting);
            let state = state.unwrap_or_else(PoisonError::into_inner);
            match state.end {
                End::Failed => return Err(ImageError::cancelled().into()),
                End::Open | End::Verified => state.written - self.position,
            }
        };
        let wanted = buffer.len().min(usize::try_from(readable).unwrap_or(usize::MAX));
        let count = self.shared.file.read_at(&mut buffer[..wanted], self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}
