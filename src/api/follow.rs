//! A file's text, from its last lines on, as it grows.
//!
//! The file may be truncated, or replaced by a new one (rotation): what was written before a
//! replacement is read to its end first. Folders of VMs are not trusted: a VMM writes there, so
//! only regular files are read and symlinks are not followed.

use std::io::{self, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use nix::fcntl::OFlag;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::watch::Chunks;

/// How soon growth is noticed.
const LOOK_PERIOD: Duration = Duration::from_millis(200);
/// How much is read at once, in bytes.
const BLOCK: usize = 32 << 10;

/// Reads a file and, if wanted, goes on as it grows.
pub(super) struct Follower<Alive> {
    path: PathBuf,
    /// None while there is no file (yet).
    file: Option<File>,
    position: u64,
    /// Whether growth is waited for, as long as `alive` says so.
    follow: bool,
    alive: Alive,
    cancel: CancellationToken,
    /// What ends the open file, noticed before its last bytes were read.
    last_look: Option<End>,
}

#[derive(Clone, Copy)]
enum End {
    /// Another file has taken its place.
    Replaced,
    /// Nobody writes to it any more.
    Dead,
}

impl<Alive: Fn() -> bool + Send + Sync + 'static> Follower<Alive> {
    /// Opens a file at the start of its last `tail` lines, or at its start. It may be missing if
    /// growth is waited for.
    ///
    /// # Errors
    /// When the file cannot be read, or is not a regular file.
    pub(super) async fn open(
        path: PathBuf,
        tail: Option<u64>,
        follow: bool,
        alive: Alive,
        cancel: CancellationToken,
    ) -> io::Result<Self> {
        let mut position = 0;
        let file = match open(&path).await {
            Ok(mut file) => {
                if let Some(lines) = tail {
                    position = start_of_last(&mut file, lines).await?;
                }
                Some(file)
            }
            Err(error) if follow && error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Ok(Follower { path, file, position, follow, alive, cancel, last_look: None })
    }

    async fn step(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            let Some(file) = &mut self.file else {
                if !(self.alive)() || !self.pause().await {
                    return Ok(None);
                }
                self.reopen().await?;
                continue;
            };
            file.seek(SeekFrom::Start(self.position)).await?;
            let mut block = BytesMut::with_capacity(BLOCK);
            if file.read_buf(&mut block).await? > 0 {
                self.position += block.len() as u64;
                return Ok(Some(block.freeze()));
            }
            match self.last_look.take() {
                Some(End::Dead) => return Ok(None),
                Some(End::Replaced) => {
                    self.reopen().await?;
                    continue;
                }
                None if !self.follow => return Ok(None),
                None => {}
            }
            let opened = file.metadata().await?;
            let current = tokio::fs::symlink_metadata(&self.path).await.ok();
            if opened.len() < self.position {
                self.position = 0;
            } else if current
                .is_some_and(|current| (current.dev(), current.ino()) != (opened.dev(), opened.ino()))
            {
                self.last_look = Some(End::Replaced);
            } else if !(self.alive)() {
                self.last_look = Some(End::Dead);
            } else if !self.pause().await {
                return Ok(None);
            }
        }
    }

    async fn reopen(&mut self) -> io::Result<()> {
        self.position = 0;
        self.file = match open(&self.path).await {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Ok(())
    }

    /// Waits for growth; false if the server stops.
    async fn pause(&self) -> bool {
        self.cancel.run_until_cancelled(sleep(LOOK_PERIOD)).await.is_some()
    }
}

impl<Alive: Fn() -> bool + Send + Sync + 'static> Chunks for Follower<Alive> {
    async fn next(&mut self) -> Option<Bytes> {
        self.step().await.unwrap_or_else(|error| {
            tracing::warn!(path = %self.path.display(), %error, "cannot read on; the answer ends here");
            None
        })
    }
}

async fn open(path: &Path) -> io::Result<File> {
    // Opening a FIFO that a VMM put there must not block.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = tokio::fs::OpenOptions::new().read(true).custom_flags(flags.bits()).open(path).await?;
    if !file.metadata().await?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    Ok(file)
}

/// Where the last `lines` lines of the file begin. A line that is not ended yet counts.
async fn start_of_last(file: &mut File, lines: u64) -> io::Result<u64> {
    let length = file.metadata().await?.len();
    let mut end = length;
    let mut left = lines;
    while left > 0 && end > 0 {
        let start = end.saturating_sub(BLOCK as u64);
        file.seek(SeekFrom::Start(start)).await?;
        let mut block = Vec::with_capacity(BLOCK);
        (&mut *file).take(end - start).read_to_end(&mut block).await?;
        for (index, _) in block.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            let next_line = start + index as u64 + 1;
            // The file's last line feed ends the last line and starts none.
            if next_line == length {
                continue;
            }
            left -= 1;
            if left == 0 {
                return Ok(next_line);
            }
        }
        end = start;
    }
    Ok(if lines == 0 { length } else { 0 })
}
