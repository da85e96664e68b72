//! One file's data on its way to the disk.

use std::io;

use super::builder::Builder;
use super::extent::{self, Extent};
use super::layout::BLOCK_BYTES;
use super::tree::{Attributes, Kind};
use super::{Error, Inode};

/// What 32-bit block numbers within a file reach.
const MAX_FILE: u64 = (u32::MAX as u64) * BLOCK_BYTES;

/// Writes a file from its start to its end. Dropped before [`FileWriter::finish`], it leaves nothing.
///
/// As an [`io::Write`] it never writes less than it was given, and its errors hold an [`Error`].
#[must_use = "the file exists only once it is finished"]
pub struct FileWriter<'a> {
    builder: &'a mut Builder,
    parent: Inode,
    name: Box<[u8]>,
    /// Taken when the file is finished.
    attributes: Option<Attributes>,
    extents: Vec<Extent>,
    position: u64,
    /// Bytes from `position` to the end of the last block that is allocated; less than a block
    /// between calls.
    room: u64,
}

impl<'a> FileWriter<'a> {
    pub(super) fn new(builder: &'a mut Builder, parent: Inode, name: &[u8], attributes: Attributes) -> Self {
        let (name, attributes) = (name.into(), Some(attributes));
        FileWriter { builder, parent, name, attributes, extents: Vec::new(), position: 0, room: 0 }
    }

    /// Writes all of `data`, zeros included.
    pub fn append(&mut self, mut data: &[u8]) -> Result<(), Error> {
        self.check_length(data.len() as u64)?;
        while !data.is_empty() {
            if self.room == 0 {
                self.allocate(data.len() as u64)?;
            }
            let (piece, rest) = data.split_at(data.len().min(self.room as usize));
            self.builder.disk.sink.write(piece)?;
            self.advance(piece.len() as u64);
            data = rest;
        }
        Ok(())
    }

    /// Skips `count` bytes, which read as zeros. Whole blocks of them take no space.
    pub fn seek_hole(&mut self, count: u64) -> Result<(), Error> {
        self.check_length(count)?;
        let zeros = count.min(self.room);
        self.builder.disk.sink.write_zeros(zeros)?;
        self.advance(zeros);
        self.position += count - zeros;
        Ok(())
    }

    /// Ends the file and gives it its name.
    pub fn finish(mut self) -> Result<Inode, Error> {
        self.builder.disk.sink.write_zeros(self.room)?;
        self.room = 0;
        let attributes = self.attributes.take().ok_or(Error::Gone)?;
        let kind = Kind::Regular { size: self.position, extents: self.extents.as_slice().into() };
        let inode = self.builder.tree.insert(self.parent, &self.name, kind, attributes)?;
        self.extents.clear();
        Ok(inode)
    }

    fn check_length(&self, more: u64) -> Result<(), Error> {
        match self.position.checked_add(more) {
            Some(length) if length <= MAX_FILE => Ok(()),
            _ => Err(Error::FileTooBig),
        }
    }

    /// Gets blocks for the next bytes, or for the first of them, and goes to where they are. The
    /// position may be within a block whose beginning was skipped.
    fn allocate(&mut self, bytes: u64) -> Result<(), Error> {
        let skipped = self.position % BLOCK_BYTES;
        let disk = &mut self.builder.disk;
        let run = disk.alloc((skipped + bytes).div_ceil(BLOCK_BYTES))?;
        let logical = (self.position / BLOCK_BYTES) as u32;
        extent::push(&mut self.extents, logical, run);
        disk.sink.seek(run.start * BLOCK_BYTES)?;
        disk.sink.write_zeros(skipped)?;
        self.room = run.blocks * BLOCK_BYTES - skipped;
        Ok(())
    }

    fn advance(&mut self, written: u64) {
        self.position += written;
        self.room -= written;
    }
}

impl Drop for FileWriter<'_> {
    fn drop(&mut self) {
        for extent in self.extents.drain(..) {
            self.builder.disk.blocks.release(extent.run());
        }
    }
}

impl io::Write for FileWriter<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.append(data)?;
        Ok(data.len())
    }

    /// Does nothing: the data is flushed when the disk is finished.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
