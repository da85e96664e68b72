//! The file that becomes the disk, with its free blocks.

use super::Error;
use super::alloc::{Blocks, Run};
use super::extent::{self, Extent};
use super::layout::BLOCK_BYTES;
use super::sink::Sink;

pub(super) struct Disk {
    pub(super) blocks: Blocks,
    pub(super) sink: Sink,
    /// For the message when it is full.
    pub(super) max_bytes: u64,
}

impl Disk {
    /// One to `want` contiguous blocks.
    pub(super) fn alloc(&mut self, want: u64) -> Result<Run, Error> {
        self.blocks.alloc(want).ok_or(Error::Full { max_bytes: self.max_bytes })
    }

    pub(super) fn alloc_block(&mut self) -> Result<u64, Error> {
        Ok(self.alloc(1)?.start)
    }

    pub(super) fn write_block(&mut self, block: u64, data: &[u8]) -> Result<(), Error> {
        self.sink.seek(block * BLOCK_BYTES)?;
        self.sink.write(data)
    }

    /// Writes whole blocks somewhere and says where.
    pub(super) fn place(&mut self, mut data: &[u8]) -> Result<Vec<Extent>, Error> {
        let mut extents = Vec::new();
        let mut logical = 0;
        while !data.is_empty() {
            let run = self.alloc(data.len() as u64 / BLOCK_BYTES)?;
            let (piece, rest) = data.split_at((run.blocks * BLOCK_BYTES) as usize);
            self.write_block(run.start, piece)?;
            logical += extent::push(&mut extents, logical, run);
            data = rest;
        }
        Ok(extents)
    }
}
