//! An empty filesystem with a journal, for writing.
//!
//! Every group keeps its bitmaps and inode table at its head, so that no bitmap needs to be on the
//! disk for a group without content: its descriptor says "nothing used yet", and everybody can work
//! out the rest. Only the descriptors grow with the size (64 bytes for 128 MiB, and their backups).

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::alloc::Run;
use super::checksum::Seed;
use super::finish::new_inode_bitmap;
use super::inode::{Body, EXTENTS, Record, Stamp};
use super::layout::{
    BLOCK, BLOCK_BYTES, BLOCKS_PER_GROUP, FIRST_INODE, INODE_SIZE, INODES_PER_BLOCK, JOURNAL_INODE,
    MAX_BYTES, MIN_INODES_PER_GROUP, ROOT_INODE, descriptor_blocks, has_superblock,
};
use super::superblock::{Descriptor, JournalBackup, Superblock};
use super::{Error, dir, extent};

const MIN_BYTES: u64 = 8 << 20;
/// A last group with less room than this behind its own metadata is left out.
const MIN_ROOM: u64 = 64;
const INODES_PER_GROUP: u32 = MIN_INODES_PER_GROUP;
const TABLE_BLOCKS: u64 = (INODES_PER_GROUP / INODES_PER_BLOCK) as u64;
/// The smallest journal that Linux takes (4 MiB), and one that hardly any load fills (64 MiB).
const JOURNAL_BLOCKS: std::ops::RangeInclusive<u64> = 1024..=16384;

/// Makes `file` an empty ext4 filesystem of `size` bytes (8 MiB to 16 TiB), whatever it was before.
///
/// The file becomes sparse; on it are 132 KiB for 10 GiB, and 9.6 MiB for 1 TiB (the descriptors of
/// all groups, and 18 backups of them). Inode tables need no zeroing after the first mount. The root directory is empty (no
/// `lost+found`), belongs to root and has mode 755; no blocks are reserved for root. Nothing is flushed.
/// With `long_values` extended attributes may be as long as Linux allows, which takes a kernel of 4.13 or newer.
pub fn format_empty(file: &File, size: u64, uuid: [u8; 16], long_values: bool) -> Result<(), Error> {
    if !(MIN_BYTES..=MAX_BYTES).contains(&size) {
        return Err(Error::Size { size });
    }
    file.set_len(0).map_err(Error::io("clear"))?;
    file.set_len(size).map_err(Error::io("set the length of"))?;
    let layout = Layout::new(size / BLOCK_BYTES);
    let seed = Seed::new(&uuid);
    let journal = layout.write_journal(file, seed)?;
    layout.write_root(file, &uuid, seed)?;
    let descriptors = layout.write_groups(file, seed)?;
    let superblock = Superblock {
        uuid,
        blocks: layout.blocks,
        free_blocks: descriptors.iter().map(|descriptor| u64::from(descriptor.free_blocks)).sum(),
        inodes_per_group: INODES_PER_GROUP,
        free_inodes: descriptors.iter().map(|descriptor| descriptor.free_inodes).sum(),
        scattered: false,
        long_values,
        journal: Some(journal),
    };
    let encoded = (0..).zip(&descriptors).flat_map(|(group, descriptor)| descriptor.encode(group, seed));
    superblock.write(file, &encoded.collect::<Vec<u8>>())
}

/// Where things are.
struct Layout {
    blocks: u64,
    groups: u64,
    journal_blocks: u64,
}

impl Layout {
    fn new(mut blocks: u64) -> Self {
        let layout = |blocks: u64| Layout {
            blocks,
            groups: blocks.div_ceil(BLOCKS_PER_GROUP),
            journal_blocks: (blocks / 64).clamp(*JOURNAL_BLOCKS.start(), *JOURNAL_BLOCKS.end()),
        };
        let whole = layout(blocks);
        let last = whole.groups - 1;
        if last > 0 && whole.group_blocks(last) < whole.metadata_blocks(last) + MIN_ROOM {
            blocks = last * BLOCKS_PER_GROUP;
        }
        layout(blocks)
    }

    fn group_blocks(&self, group: u64) -> u64 {
        (self.blocks - group * BLOCKS_PER_GROUP).min(BLOCKS_PER_GROUP)
    }

    /// The group's first block behind superblock and descriptors: the block bitmap. The inode bitmap
    /// and the inode table follow.
    fn bitmaps(&self, group: u64) -> u64 {
        let head = if has_superblock(group) { 1 + descriptor_blocks(self.groups) } else { 0 };
        group * BLOCKS_PER_GROUP + head
    }

    /// Blocks of the group that its own metadata takes.
    fn metadata_blocks(&self, group: u64) -> u64 {
        self.bitmaps(group) + 2 + TABLE_BLOCKS - group * BLOCKS_PER_GROUP
    }

    /// The root directory's block; the journal follows.
    fn root(&self) -> u64 {
        self.metadata_blocks(0)
    }

    fn used_blocks(&self, group: u64) -> u64 {
        let content = if group == 0 { 1 + self.journal_blocks } else { 0 };
        self.metadata_blocks(group) + content
    }

    fn write_root(&self, file: &File, uuid: &[u8; 16], seed: Seed) -> Result<(), Error> {
        let identity = dir::Identity {
            inode: ROOT_INODE,
            parent: ROOT_INODE,
            seed: seed.inode(ROOT_INODE),
            hash_seed: uuid,
        };
        write(file, self.root(), 0, &dir::encode(&identity, &[]).data)?;
        let content = Run { start: self.root(), blocks: 1 };
        self.write_inode(file, ROOT_INODE, 0o040_755, 2, content, seed)?;
        Ok(())
    }

    /// The journal is empty, so its superblock is all of it (fs/jbd2, big-endian).
    fn write_journal(&self, file: &File, seed: Seed) -> Result<JournalBackup, Error> {
        let fields: [(usize, u32); 7] = [
            (0x00, 0xc03b_3998), // magic
            (0x04, 4),           // superblock, version 2
            (0x0c, BLOCK as u32),
            (0x10, self.journal_blocks as u32),
            (0x14, 1), // the first block of the log
            (0x18, 1), // the first transaction's number
            (0x40, 1), // filesystems that use it
        ];
        let mut superblock = [0; 1024];
        for (at, value) in fields {
            superblock[at..at + 4].copy_from_slice(&value.to_be_bytes());
        }
        let content = Run { start: self.root() + 1, blocks: self.journal_blocks };
        write(file, content.start, 0, &superblock)?;
        let map = self.write_inode(file, JOURNAL_INODE, 0o100_600, 1, content, seed)?;
        Ok(JournalBackup { map, size: self.journal_blocks * BLOCK_BYTES })
    }

    /// Writes an inode whose content is contiguous; returns its map.
    fn write_inode(
        &self,
        file: &File,
        number: u32,
        mode: u16,
        links: u16,
        content: Run,
        seed: Seed,
    ) -> Result<[u8; 60], Error> {
        let Run { start, blocks } = content;
        let map = extent::single(start, blocks as u32);
        let body = Body { size: blocks * BLOCK_BYTES, blocks, flags: EXTENTS, map, xattr_block: 0 };
        let record = Record {
            mode,
            uid: 0,
            gid: 0,
            mtime: Stamp::default(),
            atime: Stamp::default(),
            ctime: Stamp::default(),
            crtime: Stamp::default(),
            version: 0,
            links,
            body: &body,
            xattrs: None,
        };
        let offset = u64::from(number - 1) * INODE_SIZE as u64;
        write(file, self.bitmaps(0) + 2, offset, &record.encode(number, seed))?;
        Ok(map)
    }

    /// Describes all groups and writes the few bitmaps that must be there.
    fn write_groups(&self, file: &File, seed: Seed) -> Result<Vec<Descriptor>, Error> {
        let mut descriptors: Vec<_> = (0..self.groups).map(|group| self.describe(group)).collect();
        // The last group's bitmap is needed to mark what lies behind the disk's end.
        for group in [0, self.groups - 1] {
            let descriptor = &mut descriptors[group as usize];
            let bitmap = self.block_bitmap(group);
            descriptor.block_bitmap_checksum = seed.bitmap(&bitmap);
            descriptor.flags &= !Descriptor::BLOCK_UNINIT;
            write(file, descriptor.block_bitmap, 0, &bitmap)?;
        }
        let first = &mut descriptors[0];
        let mut bitmap = new_inode_bitmap(INODES_PER_GROUP);
        set_bits(&mut bitmap, 0..u64::from(FIRST_INODE) - 1);
        first.inode_bitmap_checksum = seed.bitmap(&bitmap[..INODES_PER_GROUP as usize / 8]);
        first.flags &= !Descriptor::INODE_UNINIT;
        first.directories = 1;
        first.free_inodes -= FIRST_INODE - 1;
        first.unused_inodes -= FIRST_INODE - 1;
        write(file, first.inode_bitmap, 0, &bitmap)?;
        Ok(descriptors)
    }

    /// A group without inodes.
    fn describe(&self, group: u64) -> Descriptor {
        let bitmaps = self.bitmaps(group);
        Descriptor {
            block_bitmap: bitmaps,
            inode_bitmap: bitmaps + 1,
            inode_table: bitmaps + 2,
            free_blocks: (self.group_blocks(group) - self.used_blocks(group)) as u32,
            free_inodes: INODES_PER_GROUP,
            unused_inodes: INODES_PER_GROUP,
            flags: Descriptor::INODE_UNINIT | Descriptor::BLOCK_UNINIT | Descriptor::INODE_ZEROED,
            ..Descriptor::default()
        }
    }

    fn block_bitmap(&self, group: u64) -> Vec<u8> {
        let mut bitmap = vec![0; BLOCK];
        set_bits(&mut bitmap, 0..self.used_blocks(group));
        set_bits(&mut bitmap, self.group_blocks(group)..BLOCKS_PER_GROUP);
        bitmap
    }
}

fn set_bits(bitmap: &mut [u8], bits: std::ops::Range<u64>) {
    for bit in bits {
        bitmap[bit as usize / 8] |= 1 << (bit % 8);
    }
}

fn write(file: &File, block: u64, offset: u64, data: &[u8]) -> Result<(), Error> {
    file.write_all_at(data, block * BLOCK_BYTES + offset).map_err(Error::io("write to"))
}
