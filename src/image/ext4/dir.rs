//! Directory blocks: a plain list when it fits one block, else an index by hashed names (htree).

use super::checksum::crc;
use super::hash::half_md4;
use super::layout::{BLOCK, put16, put32};
use super::superblock::HASH_VERSION;

/// Where a block of names ends: the rest holds the checksum.
const NAMES_END: usize = BLOCK - 12;
/// Index entries in the root of an index and in the nodes below it.
const ROOT_ENTRIES: usize = (BLOCK - 32 - 8) / 8;
const NODE_ENTRIES: usize = (BLOCK - 8 - 8) / 8;

const DIRECTORY: u8 = 2;

/// One name of a directory.
pub(super) struct Entry<'a> {
    pub(super) name: &'a [u8],
    /// The inode's number.
    pub(super) inode: u32,
    /// ext4's code of the inode's type.
    pub(super) kind: u8,
}

/// A directory's content.
pub(super) struct Encoded {
    /// Whole blocks.
    pub(super) data: Vec<u8>,
    /// Whether it is an index.
    pub(super) indexed: bool,
}

/// What a directory is besides its names.
pub(super) struct Identity<'a> {
    pub(super) inode: u32,
    pub(super) parent: u32,
    /// For the blocks' checksums.
    pub(super) seed: u32,
    /// For the names' hashes.
    pub(super) hash_seed: &'a [u8; 16],
}

pub(super) fn encode(identity: &Identity<'_>, entries: &[Entry<'_>]) -> Encoded {
    let dots = [
        Entry { name: b".", inode: identity.inode, kind: DIRECTORY },
        Entry { name: b"..", inode: identity.parent, kind: DIRECTORY },
    ];
    let list = || {
        let mut pages = Pages::new(identity.seed);
        dots.iter().chain(entries).for_each(|entry| pages.push(entry));
        pages.finish()
    };
    let length: usize = dots.iter().chain(entries).map(|entry| record_length(entry.name)).sum();
    if length <= NAMES_END {
        return Encoded { data: list(), indexed: false };
    }
    match encode_index(identity, &dots, entries) {
        Some(data) => Encoded { data, indexed: true },
        None => Encoded { data: list(), indexed: false },
    }
}

/// None if two levels of index blocks do not suffice (from 3.8 million names on).
fn encode_index(identity: &Identity<'_>, dots: &[Entry<'_>; 2], entries: &[Entry<'_>]) -> Option<Vec<u8>> {
    let (leaves, hashes) = encode_leaves(identity, entries);
    let levels = if hashes.len() <= ROOT_ENTRIES { 0 } else { 1 };
    let nodes = if levels == 0 { 0 } else { hashes.len().div_ceil(NODE_ENTRIES) };
    if nodes > ROOT_ENTRIES {
        return None;
    }
    let mut root = [0; BLOCK];
    put_entry(&mut root, &dots[0], 12);
    put_entry(&mut root[12..], &dots[1], BLOCK - 12);
    root[28] = HASH_VERSION;
    root[29] = 8; // length of these four fields
    root[30] = levels;
    let first_leaf = 1 + nodes as u32;
    let leaf_pointers: Vec<_> = hashes.into_iter().zip(first_leaf..).collect();
    let mut data = Vec::with_capacity((1 + nodes) * BLOCK + leaves.len());
    if levels == 0 {
        put_index(&mut root, 32, &leaf_pointers, identity.seed);
        data.extend_from_slice(&root);
    } else {
        let chunks = leaf_pointers.chunks(NODE_ENTRIES);
        let node_pointers: Vec<_> =
            chunks.clone().zip(1..).map(|(chunk, block)| (chunk[0].0, block)).collect();
        put_index(&mut root, 32, &node_pointers, identity.seed);
        data.extend_from_slice(&root);
        for chunk in chunks {
            let mut node = [0; BLOCK];
            put16(&mut node, 4, BLOCK as u16); // looks like an empty list to those who know no index
            put_index(&mut node, 8, chunk, identity.seed);
            data.extend_from_slice(&node);
        }
    }
    data.extend(leaves);
    Some(data)
}

/// The blocks of names in the order of their hashes, and the hash from which on each block holds them.
fn encode_leaves(identity: &Identity<'_>, entries: &[Entry<'_>]) -> (Vec<u8>, Vec<u32>) {
    let mut hashed: Vec<_> =
        entries.iter().map(|entry| (half_md4(entry.name, identity.hash_seed), entry)).collect();
    hashed.sort_unstable_by_key(|&(hash, entry)| (hash, entry.name));
    let mut pages = Pages::new(identity.seed);
    let mut starts = Vec::new();
    let mut previous = None;
    for ((hash, _), entry) in hashed {
        pages.push(entry);
        if starts.len() < pages.count() {
            // The lowest bit: names with this hash are in the block before, too.
            starts.push(hash | u32::from(previous == Some(hash)));
        }
        previous = Some(hash);
    }
    (pages.finish(), starts)
}

/// Puts index entries, limit, count and checksum into a block from `at` on. The first entry's hash is
/// implied; limit and count take its place.
fn put_index(block: &mut [u8; BLOCK], at: usize, pointers: &[(u32, u32)], seed: u32) {
    let limit = (BLOCK - at - 8) / 8;
    for (index, &(hash, target)) in pointers.iter().enumerate() {
        put32(block, at + index * 8, hash);
        put32(block, at + index * 8 + 4, target);
    }
    put16(block, at, limit as u16);
    put16(block, at + 2, pointers.len() as u16);
    // Over the entries in use, then over the tail with a zero in place of the checksum.
    let checksum = crc(crc(seed, &block[..at + pointers.len() * 8]), &[0; 8]);
    put32(block, BLOCK - 4, checksum);
}

fn record_length(name: &[u8]) -> usize {
    (8 + name.len()).next_multiple_of(4)
}

fn put_entry(at: &mut [u8], entry: &Entry<'_>, length: usize) {
    put32(at, 0, entry.inode);
    put16(at, 4, length as u16);
    at[6] = entry.name.len() as u8;
    at[7] = entry.kind;
    at[8..8 + entry.name.len()].copy_from_slice(entry.name);
}

/// Blocks of names, filled one after the other.
struct Pages {
    data: Vec<u8>,
    /// Where the next entry goes in the last block.
    at: usize,
    /// Where the last entry of the last block begins.
    last: usize,
    seed: u32,
}

impl Pages {
    fn new(seed: u32) -> Self {
        Pages { data: Vec::new(), at: NAMES_END, last: 0, seed }
    }

    fn count(&self) -> usize {
        self.data.len() / BLOCK
    }

    fn push(&mut self, entry: &Entry<'_>) {
        let length = record_length(entry.name);
        if self.at + length > NAMES_END {
            self.close();
            self.data.resize(self.data.len() + BLOCK, 0);
            self.at = 0;
        }
        let block = self.data.len() - BLOCK;
        put_entry(&mut self.data[block + self.at..], entry, length);
        self.last = self.at;
        self.at += length;
    }

    /// Ends the last block: its last entry reaches to the checksum.
    fn close(&mut self) {
        let Some(block) = self.data.last_chunk_mut::<BLOCK>() else { return };
        put16(block, self.last + 4, (NAMES_END - self.last) as u16);
        put16(block, NAMES_END + 4, 12);
        block[NAMES_END + 7] = 0xde;
        let checksum = crc(self.seed, &block[..NAMES_END]);
        put32(block, NAMES_END + 8, checksum);
    }

    fn finish(mut self) -> Vec<u8> {
        self.close();
        self.data
    }
}
