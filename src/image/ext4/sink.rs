//! Positioned writes, gathered: neighbours go out together, in pieces of up to a MiB.

use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::Error;
use super::alloc::Run;
use super::layout::{BLOCK, BLOCK_BYTES};

/// Bytes gathered before a write.
const CAPACITY: usize = 1 << 20;

pub(super) struct Sink {
    file: File,
    /// What waits to be written at `offset`.
    buffer: Vec<u8>,
    offset: u64,
}

impl Sink {
    pub(super) fn new(file: File) -> Self {
        Sink { file, buffer: Vec::with_capacity(CAPACITY), offset: 0 }
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
        Ok(())
    }

    /// The file, with everything written.
    pub(super) fn into_file(mut self) -> Result<File, Error> {
        self.flush()?;
        Ok(self.file)
    }
}
