//! Positioned writes, gathered: neighbours go out together, in pieces of up to a MiB.
//!
//! File data is written by a thread of its own, so that the device works while more is gathered. What
//! comes behind it, the metadata, is little and is written at once.

use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::Error;
use super::alloc::Run;
use super::layout::{BLOCK, BLOCK_BYTES};
use super::writer::{Buffer, Writer};

pub(super) struct Sink {
    file: File,
    /// What waits to be written at `offset`.
    buffer: Buffer,
    offset: u64,
    /// Writes file data; none before there was any, and after the end of it.
    writer: Option<Writer>,
    /// All file data is written.
    data_ended: bool,
}

impl Sink {
    pub(super) fn new(file: File) -> Self {
        Sink { file, buffer: Buffer::new(), offset: 0, writer: None, data_ended: false }
    }

    /// Sets the byte offset at which the next write goes on.
    pub(super) fn seek(&mut self, offset: u64) -> Result<(), Error> {
        if offset != self.offset + self.buffer.filled().len() as u64 {
            self.flush()?;
            self.offset = offset;
        }
        Ok(())
    }

    pub(super) fn write(&mut self, mut data: &[u8]) -> Result<(), Error> {
        while !data.is_empty() {
            data = &data[self.buffer.fill(data)..];
            if self.buffer.is_full() {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Writes up to a block of zeros.
    pub(super) fn write_zeros(&mut self, count: u64) -> Result<(), Error> {
        self.write(&[0; BLOCK][..count as usize])
    }

    /// Ends the file data, and makes these blocks holes, or zeros where there are no holes.
    pub(super) fn end_data(&mut self, free: impl Iterator<Item = Run>) -> Result<(), Error> {
        self.flush()?;
        self.data_ended = true;
        if let Some(writer) = self.writer.take() {
            writer.finish().map_err(Error::io("write to"))?;
        }
        for run in free {
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

    /// Writes what was gathered, or has it written.
    fn flush(&mut self) -> Result<(), Error> {
        let length = self.buffer.filled().len() as u64;
        if length == 0 {
            return Ok(());
        }
        if self.data_ended {
            self.file.write_all_at(self.buffer.filled(), self.offset).map_err(Error::io("write to"))?;
            self.buffer.clear();
        } else {
            let writer = match self.writer.take() {
                Some(writer) => writer,
                None => Writer::start(&self.file).map_err(Error::io("write to"))?,
            };
            self.writer = Some(writer.write(&mut self.buffer, self.offset).map_err(Error::io("write to"))?);
        }
        self.offset += length;
        Ok(())
    }

    /// The file, with everything written.
    pub(super) fn into_file(mut self) -> Result<File, Error> {
        self.end_data(std::iter::empty())?;
        Ok(self.file)
    }
}
