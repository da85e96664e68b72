//! The workload's output, from a guest's log ring into a file.
//!
//! A guest counts its output since boot. Which of these bytes are in the file is told by the file's
//! length and one anchor, kept beside it: *byte `offset` of boot `boot_id` is at `position` of the
//! file with this inode*. Plain appends keep it true without a write of its own, so a daemon killed
//! at any instant goes on exactly where the file ends. Only a new boot, a gap and a rotation move
//! it.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Buf, Bytes};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use vmlet_wire::cost;

use super::AgentError;
use super::connection::Command;

/// The log's name in its VM's folder.
pub const LOG_FILE: &str = "workload.log";

/// The length at which a log is rotated, unless said otherwise, in bytes.
pub const DEFAULT_LOG_LIMIT: u64 = 10 << 20;

/// The longest anchor, in bytes.
const MAX_ANCHOR: u64 = 4096;

/// Chunks that are written in one go.
const BATCH: usize = 64;

/// How long a disk that takes nothing is left alone.
const RETRY: Duration = Duration::from_secs(5);

/// Where a workload's output goes: an append-only file, which becomes `<path>.1` when it is full; or
/// nowhere.
#[derive(Clone, Debug)]
pub struct LogSink(Option<Place>);

impl LogSink {
    /// A sink that rotates `path` at `limit` bytes. Beside it, `<path>.1` and `<path>.anchor` are
    /// its own.
    pub fn new(path: PathBuf, limit: u64) -> Self {
        LogSink(Some(Place { path, limit }))
    }

    /// A sink that takes everything and keeps nothing.
    pub fn nowhere() -> Self {
        LogSink(None)
    }
}

/// A log's file and its limit.
#[derive(Clone, Debug)]
struct Place {
    path: PathBuf,
    limit: u64,
}

impl Place {
    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(suffix);
        name.into()
    }
}

/// Pieces of a log stream.
#[derive(Debug)]
pub(super) enum Chunk {
    /// What follows starts at this offset.
    From(u64),
    Data(Bytes),
}

/// Where a boot's output is in a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Anchor {
    boot_id: String,
    offset: u64,
    position: u64,
    inode: u64,
}

/// A sink in use for one boot of one guest.
#[derive(Debug)]
pub(super) enum Log {
    File(Writer),
    Nowhere,
}

impl Log {
    pub(super) async fn open(sink: LogSink, boot_id: String) -> Result<Self, AgentError> {
        match sink.0 {
            Some(place) => Writer::open(place, boot_id).await.map(Log::File),
            None => Ok(Log::Nowhere),
        }
    }

    /// Where the log is to be continued.
    pub(super) fn offset(&self) -> u64 {
        match self {
            Log::File(writer) => writer.next,
            Log::Nowhere => 0,
        }
    }

    /// Takes what comes, and gives credit for what is taken.
    pub(super) async fn run(
        self,
        mut chunks: mpsc::UnboundedReceiver<Chunk>,
        commands: mpsc::WeakUnboundedSender<Command>,
        stream: u32,
    ) {
        match self {
            Log::File(writer) => writer.run(chunks, commands, stream).await,
            Log::Nowhere => {
                while let Some(chunk) = chunks.recv().await {
                    let Some(commands) = commands.upgrade() else { return };
                    let _ = commands.send(Command::Credit { stream, amount: chunk.cost() });
                }
            }
        }
    }
}

/// The file in use for one boot of one guest.
#[derive(Debug)]
pub(super) struct Writer {
    sink: Place,
    file: File,
    length: u64,
    anchor: Anchor,
    /// The offset of the next byte of output.
    next: u64,
}

impl Writer {
    async fn open(sink: Place, boot_id: String) -> Result<Self, AgentError> {
        let path = sink.path.clone();
        let opened = spawn_blocking(move || Writer::open_blocking(sink, boot_id)).await;
        opened.map_err(io::Error::other).flatten().map_err(|source| AgentError::Log { path, source })
    }

    fn open_blocking(sink: Place, boot_id: String) -> io::Result<Self> {
        let recorded = read_anchor(&sink.beside(".anchor")).ok();
        let recorded: Option<Anchor> = recorded.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let (file, length, inode) = open_log(&sink.path)?;
        let next = recorded.filter(|anchor| anchor.boot_id == boot_id).map_or(0, |anchor| {
            let anchored = if anchor.inode == inode {
                Some(length)
            } else {
                // Killed in the middle of a rotation.
                let old = fs::metadata(sink.beside(".1")).ok();
                old.filter(|old| old.ino() == anchor.inode).map(|old| old.len() + length)
            };
            let appended = anchored.unwrap_or_default().saturating_sub(anchor.position);
            anchor.offset.saturating_add(appended)
        });
        let anchor = Anchor { boot_id, offset: next, position: length, inode };
        let writer = Writer { sink, file, length, anchor, next };
        writer.save_anchor()?;
        Ok(writer)
    }

    /// Writes what comes, and gives credit for what is written.
    async fn run(
        mut self,
        mut chunks: mpsc::UnboundedReceiver<Chunk>,
        commands: mpsc::WeakUnboundedSender<Command>,
        stream: u32,
    ) {
        let mut waiting = VecDeque::new();
        let mut batch = Vec::new();
        loop {
            if waiting.is_empty() && chunks.recv_many(&mut batch, BATCH).await == 0 {
                return;
            }
            waiting.extend(batch.drain(..).map(|chunk| (chunk.cost(), chunk)));
            let written = spawn_blocking(move || {
                let result = self.write_all(&mut waiting);
                (self, waiting, result)
            });
            let Ok((writer, rest, (amount, result))) = written.await else { return };
            (self, waiting) = (writer, rest);
            if let Some(commands) = commands.upgrade().filter(|_| amount > 0) {
                let _ = commands.send(Command::Credit { stream, amount });
            }
            if let Err(error) = result {
                // Without credit the rest stays in the guest's ring, as far as it reaches; nobody
                // else is held up.
                let path = self.sink.path.display();
                tracing::warn!(%path, %error, "cannot write the workload's output; trying again");
                tokio::time::sleep(RETRY).await;
                if commands.upgrade().is_none() {
                    return;
                }
            }
        }
    }

    /// Writes what it can, and removes that from the queue. Returns the credit for it.
    fn write_all(&mut self, waiting: &mut VecDeque<(u32, Chunk)>) -> (u32, io::Result<()>) {
        let mut amount = 0;
        while let Some((cost, chunk)) = waiting.front_mut() {
            if let Err(error) = self.write(chunk) {
                return (amount, Err(error));
            }
            amount += *cost;
            waiting.pop_front();
        }
        (amount, Ok(()))
    }

    /// Writes a chunk. After an error, what is left of it is what was not written.
    fn write(&mut self, chunk: &mut Chunk) -> io::Result<()> {
        match chunk {
            Chunk::Data(data) => {
                if self.length > 0 && self.length.saturating_add(data.len() as u64) > self.sink.limit {
                    self.rotate()?;
                }
                while !data.is_empty() {
                    let written = self.file.write(data)?;
                    if written == 0 {
                        return Err(io::ErrorKind::WriteZero.into());
                    }
                    data.advance(written);
                    self.length += written as u64;
                    self.next = self.next.saturating_add(written as u64);
                }
                Ok(())
            }
            Chunk::From(offset) if *offset == self.next => Ok(()),
            Chunk::From(offset) => self.jump(*offset),
        }
    }

    /// Output was lost, or the guest counts anew.
    fn jump(&mut self, offset: u64) -> io::Result<()> {
        let lost = offset.saturating_sub(self.next);
        let note = if lost > 0 {
            format!("\n[vmlet: {lost} bytes of output were lost here]\n")
        } else {
            String::new()
        };
        // First the anchor: behind a kill in between, only the note is missing.
        let position = self.length + note.len() as u64;
        self.anchor = Anchor { offset, position, ..self.anchor.clone() };
        self.save_anchor()?;
        self.next = offset;
        self.file.write_all(note.as_bytes())?;
        self.length = position;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        match fs::rename(&self.sink.path, self.sink.beside(".1")) {
            // An earlier try came this far.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed?,
        }
        let (file, length, inode) = open_log(&self.sink.path)?;
        (self.file, self.length) = (file, length);
        self.anchor = Anchor { offset: self.next, position: length, inode, ..self.anchor.clone() };
        self.save_anchor()
    }

    /// Whole or not at all.
    fn save_anchor(&self) -> io::Result<()> {
        let staged = self.sink.beside(".anchor.new");
        match fs::remove_file(&staged) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // Made anew: a link that stands here is refused, not followed.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o640).open(&staged)?;
        file.write_all(&serde_json::to_vec(&self.anchor)?)?;
        fs::rename(staged, self.sink.beside(".anchor"))
    }
}

impl Chunk {
    fn cost(&self) -> u32 {
        match self {
            Chunk::From(_) => cost(0),
            Chunk::Data(data) => cost(data.len()),
        }
    }
}

/// The anchor as written; what stands there may be the VMM's.
fn read_anchor(path: &Path) -> io::Result<Vec<u8>> {
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let mut bytes = Vec::new();
    file.take(MAX_ANCHOR).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The file, its length and its inode. The folder is the VMM's user's: no link in it is followed.
fn open_log(path: &Path) -> io::Result<(File, u64, u64)> {
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let file = OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.nlink() != 1 {
        return Err(io::Error::other("it is not a file of its own"));
    }
    Ok((file, metadata.len(), metadata.ino()))
}
