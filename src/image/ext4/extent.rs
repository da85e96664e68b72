//! Extents: which blocks of the disk are which blocks of a file. Up to four are in the inode, more
//! make a tree of blocks.

use super::Error;
use super::alloc::{MAX_RUN, Run};
use super::checksum::crc;
use super::disk::Disk;
use super::layout::{BLOCK, high32, low16, low32, put16, put32};

const MAGIC: u16 = 0xf30a;
/// Bytes of an extent, of an index entry and of the header before them.
const ENTRY: usize = 12;
const IN_INODE: usize = 4;
const IN_BLOCK: usize = (BLOCK - ENTRY) / ENTRY;

/// Contiguous blocks of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// The first block's number in the file.
    logical: u32,
    blocks: u32,
    /// The first block's number on the disk.
    start: u64,
}

impl Extent {
    pub(super) fn run(&self) -> Run {
        Run { start: self.start, blocks: self.blocks.into() }
    }
}

/// Appends a run that begins at block `logical` of the file, merging it with its predecessor as far as
/// that goes: the extents do not depend on the pieces in which a file was written. Returns the run's length.
pub(super) fn push(extents: &mut Vec<Extent>, logical: u32, run: Run) -> u32 {
    let blocks = run.blocks as u32;
    let mut merged = 0;
    if let Some(last) = extents.last_mut()
        && last.logical + last.blocks == logical
        && last.start + u64::from(last.blocks) == run.start
    {
        merged = blocks.min(MAX_RUN as u32 - last.blocks);
        last.blocks += merged;
    }
    if merged < blocks {
        let start = run.start + u64::from(merged);
        extents.push(Extent { logical: logical + merged, blocks: blocks - merged, start });
    }
    blocks
}

/// Writes the tree of a file's extents; returns the inode's part of it and how many blocks the rest took.
pub(super) fn write_tree(extents: &[Extent], seed: u32, disk: &mut Disk) -> Result<([u8; 60], u64), Error> {
    let mut level: Vec<[u8; ENTRY]> = extents.iter().map(leaf_entry).collect();
    let mut depth = 0;
    let mut blocks = 0;
    while level.len() > IN_INODE {
        let mut above = Vec::with_capacity(level.len().div_ceil(IN_BLOCK));
        for entries in level.chunks(IN_BLOCK) {
            let mut node = [0; BLOCK];
            encode_node(&mut node, entries, IN_BLOCK, depth);
            let tail = ENTRY + IN_BLOCK * ENTRY;
            let checksum = crc(seed, &node[..tail]);
            put32(&mut node, tail, checksum);
            let block = disk.alloc_block()?;
            disk.write_block(block, &node)?;
            above.push(index_entry(&entries[0], block));
        }
        blocks += above.len() as u64;
        level = above;
        depth += 1;
    }
    Ok((encode_root(&level, depth), blocks))
}

/// The inode's part of a tree that is one extent.
pub(super) fn single(start: u64, blocks: u32) -> [u8; 60] {
    encode_root(&[leaf_entry(&Extent { logical: 0, blocks, start })], 0)
}

fn encode_root(entries: &[[u8; ENTRY]], depth: u16) -> [u8; 60] {
    let mut root = [0; 60];
    encode_node(&mut root, entries, IN_INODE, depth);
    root
}

fn encode_node(node: &mut [u8], entries: &[[u8; ENTRY]], room: usize, depth: u16) {
    put16(node, 0, MAGIC);
    put16(node, 2, entries.len() as u16);
    put16(node, 4, room as u16);
    put16(node, 6, depth);
    node[ENTRY..ENTRY * (1 + entries.len())].copy_from_slice(entries.as_flattened());
}

fn leaf_entry(extent: &Extent) -> [u8; ENTRY] {
    let mut entry = [0; ENTRY];
    put32(&mut entry, 0, extent.logical);
    put16(&mut entry, 4, extent.blocks as u16);
    put16(&mut entry, 6, low16(high32(extent.start)));
    put32(&mut entry, 8, low32(extent.start));
    entry
}

/// Points to `block`, whose first entry is `first`: both kinds of entries begin with the file's block.
fn index_entry(first: &[u8; ENTRY], block: u64) -> [u8; ENTRY] {
    let mut entry = [0; ENTRY];
    entry[..4].copy_from_slice(&first[..4]);
    put32(&mut entry, 4, low32(block));
    put16(&mut entry, 8, low16(high32(block)));
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_do_not_depend_on_pieces() {
        let in_pieces = |piece: u64| {
            let (mut extents, mut at) = (Vec::new(), 0);
            while at < 100_000 {
                let blocks = piece.min(100_000 - at);
                push(&mut extents, at as u32, Run { start: 50 + at, blocks });
                at += blocks;
            }
            extents
        };
        let lengths: Vec<u64> = in_pieces(64).iter().map(|extent| extent.run().blocks).collect();
        assert_eq!(lengths, [MAX_RUN, MAX_RUN, MAX_RUN, 100_000 - 3 * MAX_RUN]);
        for piece in [1, 63, 1000, MAX_RUN - 1, MAX_RUN] {
            assert_eq!(in_pieces(piece), in_pieces(64), "{piece}");
        }
    }
}
