//! One blob that pulls share: its state, and the ends that a pull holds.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::sink::{self, BlobSink, Started};
use super::{Blobs, Key};
use crate::image::ImageError;
use crate::image::pull::blocking;

/// A blob that at least one pull needs.
pub(super) struct Blob {
    pub(super) blobs: Arc<Blobs>,
    pub(super) key: Key,
    state: Mutex<State>,
    /// Wakes the threads that read.
    readable: Condvar,
    /// Wakes the tasks that wait for who downloads.
    changed: watch::Sender<()>,
}

pub(super) struct State {
    /// None until somebody has looked on the disk.
    pub(super) file: Option<Arc<File>>,
    /// Bytes from the start that can be read.
    pub(super) written: u64,
    pub(super) phase: Phase,
    /// What the one that downloads gave up with, if that is true for all.
    pub(super) verdict: Option<ImageError>,
}

#[derive(Clone)]
pub(super) enum Phase {
    /// Nobody sees to it: who comes first does.
    Idle,
    /// Somebody verifies, downloads or writes.
    Busy,
    Verified,
    Failed(ImageError),
}

impl Blob {
    pub(super) fn new(blobs: Arc<Blobs>, key: Key) -> Self {
        let state = State { file: None, written: 0, phase: Phase::Idle, verdict: None };
        let (changed, _) = watch::channel(());
        Blob { blobs, key, state: Mutex::new(state), readable: Condvar::new(), changed }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the state.
    pub(super) fn look<R>(&self, look: impl FnOnce(&mut State) -> R) -> R {
        look(&mut self.state())
    }

    /// Changes the state, and wakes who waits for that.
    pub(super) fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let result = change(&mut self.state());
        self.readable.notify_all();
        self.changed.send_replace(());
        result
    }

    /// The end of the blob, good or bad.
    pub(super) fn conclude(&self, result: &Result<(), ImageError>) {
        if result.is_err() {
            self.blobs.forget(self);
        }
        self.change(|state| {
            state.phase = match result {
                Ok(()) => Phase::Verified,
                Err(error) => Phase::Failed(error.clone()),
            }
        });
    }
}

impl Drop for Blob {
    fn drop(&mut self) {
        self.blobs.forget(self);
    }
}

/// The right to write a blob. Dropped before the blob is concluded, somebody else may have it.
pub(super) struct Claim {
    pub(super) blob: Arc<Blob>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let verdict = self.blob.look(|state| match state.phase {
            Phase::Busy => state.verdict.take(),
            _ => None,
        });
        if let Some(error) = verdict {
            return self.blob.conclude(&Err(error));
        }
        self.blob.change(|state| {
            if matches!(state.phase, Phase::Busy) {
                state.phase = Phase::Idle;
            }
        });
    }
}

/// Both ends of a blob for one pull.
pub(super) fn ends(blob: Arc<Blob>) -> (Arrival, BlobReader) {
    let gone = Arc::new(AtomicBool::new(false));
    (Arrival { blob: blob.clone(), gone: gone.clone() }, BlobReader { blob, gone, position: 0 })
}

/// The end that sees to it that the blob arrives. The reader fails once this is dropped, unless
/// the blob is complete.
pub(crate) struct Arrival {
    blob: Arc<Blob>,
    gone: Arc<AtomicBool>,
}

/// What is to be done.
pub(crate) enum Turn {
    /// Nothing: the blob is there, and right.
    Done,
    /// Download the rest.
    Download(BlobSink),
}

impl Arrival {
    /// Waits until the blob is there, or it is this one's turn to download it. `arrived` is told how
    /// many bytes there are.
    pub(crate) async fn turn(&self, arrived: impl Fn(u64)) -> Result<Turn, ImageError> {
        let mut changed = self.blob.changed.subscribe();
        loop {
            changed.borrow_and_update();
            let (phase, written) = self.blob.look(|state| {
                let phase = state.phase.clone();
                if matches!(phase, Phase::Idle) {
                    state.phase = Phase::Busy;
                }
                (phase, state.written)
            });
            arrived(written);
            match phase {
                Phase::Verified => return Ok(Turn::Done),
                Phase::Failed(error) => return Err(error),
                // The blob holds the sender.
                Phase::Busy => drop(changed.changed().await),
                Phase::Idle => {
                    let claim = Claim { blob: self.blob.clone() };
                    match blocking("looking for a layer", move || sink::start(claim)).await? {
                        Started::Complete => {}
                        Started::Partial(claim, from) => {
                            return Ok(Turn::Download(BlobSink::new(claim, from)));
                        }
                    }
                }
            }
        }
    }

    /// Waits for the blob's end, without a hand in it. False if its content is not what its digest
    /// promises.
    pub(crate) async fn is_right(&self) -> bool {
        let mut changed = self.blob.changed.subscribe();
        loop {
            changed.borrow_and_update();
            match self.blob.look(|state| state.phase.clone()) {
                Phase::Verified => return true,
                Phase::Failed(_) => return false,
                Phase::Idle | Phase::Busy => drop(changed.changed().await),
            }
        }
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::Relaxed);
        // Under the lock, lest a reader checks before and waits after.
        self.blob.change(|_| ());
    }
}

/// The end that the layer pipeline holds.
pub(crate) struct BlobReader {
    blob: Arc<Blob>,
    gone: Arc<AtomicBool>,
    position: u64,
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (file, readable) = {
            let gone = || self.gone.load(Ordering::Relaxed);
            let waiting = |state: &mut State| match state.phase {
                Phase::Verified | Phase::Failed(_) => false,
                Phase::Idle | Phase::Busy => state.written == self.position && !gone(),
            };
            let state = self.blob.readable.wait_while(self.blob.state(), waiting);
            let state = state.unwrap_or_else(PoisonError::into_inner);
            match (&state.phase, &state.file) {
                (Phase::Verified, Some(file)) => (file.clone(), state.written - self.position),
                (Phase::Idle | Phase::Busy, Some(file)) if !gone() => {
                    (file.clone(), state.written - self.position)
                }
                _ => return Err(ImageError::cancelled().into()),
            }
        };
        let wanted = buffer.len().min(usize::try_from(readable).unwrap_or(usize::MAX));
        let count = file.read_at(&mut buffer[..wanted], self.position)?;
        if count == 0 && wanted > 0 {
            return Err(ImageError::damaged("a layer on disk became shorter").into());
        }
        self.position += count as u64;
        Ok(count)
    }
}
