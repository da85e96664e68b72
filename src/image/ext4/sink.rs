//! Positioned writes, gathered: neighbours go out together, in pieces of up to a MiB. The device gets
//! them while more are written, so that little is left to wait for at the end.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::Error;
use super::alloc::Run;
use super::layout::{BLOCK, BLOCK_BYTES};

/// Bytes gathered before a write.
const CAPACITY: usize = 1 << 20;
/// Bytes written before the device gets them.
const WRITE_BACK: u64 = 32 << 20;

pub(super) struct Sink {
    file: File,
    /// What waits to be written at `offset`.
    buffer: Vec<u8>,
    offset: u64,
    /// Bytes written since the last time that the device was given some.
    held: u64,
    write_back: Option<WriteBack>,
}

impl Sink {
    pub(super) fn new(file: File) -> Self {
        Sink { file, buffer: Vec::with_capacity(CAPACITY), offset: 0, held: 0, write_back: None }
    }

    /// Sets the byte offset at which the next write goes on.
    pub(super) fn seek(&mut self, offset: u64) -> Result<(), Error> {
        if offset != self.offset + self.buffer.len() as u64 {
            self.flush()?;
            self.offset = offset;
        }
        Ok(())
    }

    pub(super) fn write(&mut self, mut data: &[u8]) -> Result<(), Error> {
        while !data.is_empty() {
            if self.buffer.is_empty() && data.len() >= CAPACITY {
                return self.write_through(data);
            }
            let (piece, rest) = data.split_at(data.len().min(CAPACITY - self.buffer.len()));
            self.buffer.extend_from_slice(piece);
            data = rest;
            if self.buffer.len() == CAPACITY {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Writes up to a block of zeros.
    pub(super) fn write_zeros(&mut self, count: u64) -> Result<(), Error> {
        self.write(&[0; BLOCK][..count as usize])
    }

    /// Writes what was gathered and makes these blocks holes, or zeros where there are no holes.
    pub(super) fn clear(&mut self, runs: impl Iterator<Item = Run>) -> Result<(), Error> {
        self.flush()?;
        for run in runs {
            let (offset, length) = (run.start * BLOCK_BYTES, run.blocks * BLOCK_BYTES);
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            match fallocate(&self.file, flags, offset, length) {
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                    self.seek(offset)?;
                    (0..run.blocks).try_for_each(|_| self.write_zeros(BLOCK_BYTES))?;
                }
                result => result.map_err(|errno| Error::io("free space in")(errno.into()))?,
            }
        }
        Ok(())
    }

    /// Writes what was gathered.
    fn flush(&mut self) -> Result<(), Error> {
        let buffer = std::mem::take(&mut self.buffer);
        let result = self.write_through(&buffer);
        self.buffer = buffer;
        self.buffer.clear();
        result
    }

    fn write_through(&mut self, data: &[u8]) -> Result<(), Error> {
        self.file.write_all_at(data, self.offset).map_err(Error::io("write to"))?;
        self.offset += data.len() as u64;
        self.held += data.len() as u64;
        if self.held >= WRITE_BACK {
            self.held = 0;
            self.write_back()?;
        }
        Ok(())
    }

    fn write_back(&mut self) -> Result<(), Error> {
        let write_back = match &self.write_back {
            Some(write_back) => write_back,
            None => self.write_back.insert(WriteBack::start(&self.file).map_err(Error::io("flush"))?),
        };
        write_back.go();
        Ok(())
    }

    /// The file, with everything written.
    pub(super) fn into_file(mut self) -> Result<File, Error> {
        self.flush()?;
        if let Some(write_back) = self.write_back {
            // The error would be reported to whoever flushes first, and to nobody after.
            write_back.finish().map_err(Error::io("flush"))?;
        }
        Ok(self.file)
    }
}

/// A thread that gives the device what is written, again and again. Dropped, it ends when it is done
/// with what it is at.
struct WriteBack {
    wake: SyncSender<()>,
    thread: JoinHandle<io::Result<()>>,
}

impl WriteBack {
    fn start(file: &File) -> io::Result<Self> {
        let file = file.try_clone()?;
        let (wake, woken) = sync_channel(1);
        let work = move || woken.iter().try_for_each(|()| file.sync_data());
        let thread = thread::Builder::new().name("write-back".to_owned()).spawn(work)?;
        Ok(WriteBack { wake, thread })
    }

    fn go(&self) {
        // It is already to go again, or it has failed, which `finish` tells.
        let _ = self.wake.try_send(());
    }

    fn finish(self) -> io::Result<()> {
        drop(self.wake);
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    }
}
