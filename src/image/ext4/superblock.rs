//! Superblock and group descriptors, their backups included.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::Error;
use super::checksum::{Seed, crc};
use super::layout::{
    BLOCK_BYTES, BLOCKS_PER_GROUP, DESCRIPTOR_SIZE, EXTRA_INODE_SIZE, FIRST_INODE, INODE_SIZE, JOURNAL_INODE,
    has_superblock, high16, high32, low16, low32, put16, put32,
};

const COMPAT_HAS_JOURNAL: u32 = 0x4;
const COMPAT_EXT_ATTR: u32 = 0x8;
const COMPAT_DIR_INDEX: u32 = 0x20;
const INCOMPAT_FILETYPE: u32 = 0x2;
const INCOMPAT_EXTENTS: u32 = 0x40;
const INCOMPAT_64BIT: u32 = 0x80;
const INCOMPAT_FLEX_BG: u32 = 0x200;
const INCOMPAT_EA_INODE: u32 = 0x400;
const RO_COMPAT_SPARSE_SUPER: u32 = 0x1;
const RO_COMPAT_LARGE_FILE: u32 = 0x2;
const RO_COMPAT_HUGE_FILE: u32 = 0x8;
const RO_COMPAT_DIR_NLINK: u32 = 0x20;
const RO_COMPAT_EXTRA_ISIZE: u32 = 0x40;
const RO_COMPAT_METADATA_CSUM: u32 = 0x400;

/// The flag in the superblock that names are hashed as unsigned characters.
const UNSIGNED_HASH: u32 = 2;
/// Half-MD4, in the superblock and in indexed directories.
pub(super) const HASH_VERSION: u8 = 1;

/// What differs from one filesystem to another.
pub(super) struct Superblock {
    pub(super) uuid: [u8; 16],
    pub(super) blocks: u64,
    pub(super) free_blocks: u64,
    pub(super) inodes_per_group: u32,
    pub(super) free_inodes: u32,
    /// Whether bitmaps and inode tables may lie outside their groups (`flex_bg`).
    pub(super) scattered: bool,
    /// Whether values of attributes may lie in inodes of their own (`ea_inode`).
    pub(super) long_values: bool,
    pub(super) journal: Option<JournalBackup>,
}

/// The copy of the journal inode's block map that the superblock keeps for e2fsck.
pub(super) struct JournalBackup {
    /// The inode's `i_block`.
    pub(super) map: [u8; 60],
    /// The journal's size in bytes.
    pub(super) size: u64,
}

impl Superblock {
    pub(super) fn groups(&self) -> u64 {
        self.blocks.div_ceil(BLOCKS_PER_GROUP)
    }

    /// Writes superblock and descriptors wherever they belong.
    pub(super) fn write(&self, file: &File, descriptors: &[u8]) -> Result<(), Error> {
        for group in (0..self.groups()).filter(|&group| has_superblock(group)) {
            let block = group * BLOCKS_PER_GROUP;
            // The first KiB of a disk belongs to boot loaders.
            let offset = if group == 0 { 1024 } else { block * BLOCK_BYTES };
            file.write_all_at(&self.encode(group), offset).map_err(Error::io("write to"))?;
            file.write_all_at(descriptors, (block + 1) * BLOCK_BYTES).map_err(Error::io("write to"))?;
        }
        Ok(())
    }

    /// The copy that lies in `group`.
    fn encode(&self, group: u64) -> [u8; 1024] {
        let groups = u32::try_from(self.groups()).expect("16 TiB have fewer groups");
        let sb = &mut [0; 1024];
        put32(sb, 0x00, self.inodes_per_group * groups);
        put32(sb, 0x04, low32(self.blocks));
        put32(sb, 0x0c, low32(self.free_blocks));
        put32(sb, 0x10, self.free_inodes);
        put32(sb, 0x18, 2); // block size: 1024 << 2
        put32(sb, 0x1c, 2); // cluster size, the same
        put32(sb, 0x20, BLOCKS_PER_GROUP as u32);
        put32(sb, 0x24, BLOCKS_PER_GROUP as u32);
        put32(sb, 0x28, self.inodes_per_group);
        put16(sb, 0x36, 0xffff); // no check after so many mounts
        put16(sb, 0x38, 0xef53); // magic
        put16(sb, 0x3a, 1); // cleanly unmounted
        put16(sb, 0x3c, 1); // on errors: continue
        put32(sb, 0x4c, 1); // revision with inode sizes and features
        put32(sb, 0x54, FIRST_INODE);
        put16(sb, 0x58, INODE_SIZE as u16);
        put16(sb, 0x5a, low16(low32(group)));
        self.encode_features(sb);
        sb[0x68..0x78].copy_from_slice(&self.uuid);
        sb[0xec..0xfc].copy_from_slice(&self.uuid); // hash seed
        sb[0xfc] = HASH_VERSION;
        put16(sb, 0xfe, DESCRIPTOR_SIZE as u16);
        put32(sb, 0x100, 0xc); // mount options: user_xattr, acl
        put32(sb, 0x150, high32(self.blocks));
        put32(sb, 0x158, high32(self.free_blocks));
        put16(sb, 0x15c, EXTRA_INODE_SIZE);
        put16(sb, 0x15e, EXTRA_INODE_SIZE);
        put32(sb, 0x160, UNSIGNED_HASH);
        sb[0x174] = if self.scattered { 4 } else { 0 }; // 16 groups are grown together
        sb[0x175] = 1; // checksums are CRC-32C
        if let Some(journal) = &self.journal {
            put32(sb, 0xe0, JOURNAL_INODE);
            sb[0xfd] = 1; // the backup that follows is there
            sb[0x10c..0x148].copy_from_slice(&journal.map);
            put32(sb, 0x148, high32(journal.size));
            put32(sb, 0x14c, low32(journal.size));
        }
        let checksum = crc(!0, &sb[..0x3fc]);
        put32(sb, 0x3fc, checksum);
        *sb
    }

    fn encode_features(&self, sb: &mut [u8]) {
        let mut compat = COMPAT_EXT_ATTR | COMPAT_DIR_INDEX;
        if self.journal.is_some() {
            compat |= COMPAT_HAS_JOURNAL;
        }
        let mut incompat = INCOMPAT_FILETYPE | INCOMPAT_EXTENTS | INCOMPAT_64BIT;
        if self.scattered {
            incompat |= INCOMPAT_FLEX_BG;
        }
        if self.long_values {
            incompat |= INCOMPAT_EA_INODE;
        }
        let ro_compat = RO_COMPAT_SPARSE_SUPER
            | RO_COMPAT_LARGE_FILE
            | RO_COMPAT_HUGE_FILE
            | RO_COMPAT_DIR_NLINK
            | RO_COMPAT_EXTRA_ISIZE
            | RO_COMPAT_METADATA_CSUM;
        put32(sb, 0x5c, compat);
        put32(sb, 0x60, incompat);
        put32(sb, 0x64, ro_compat);
    }
}

/// Where a group's metadata is and how much is free.
#[derive(Clone, Copy, Default)]
pub(super) struct Descriptor {
    pub(super) block_bitmap: u64,
    pub(super) inode_bitmap: u64,
    pub(super) inode_table: u64,
    pub(super) free_blocks: u32,
    pub(super) free_inodes: u32,
    pub(super) directories: u32,
    /// Inodes at the table's end that were never used.
    pub(super) unused_inodes: u32,
    pub(super) block_bitmap_checksum: u32,
    pub(super) inode_bitmap_checksum: u32,
    pub(super) flags: u16,
}

impl Descriptor {
    /// The inode bitmap is not written: nothing is used.
    pub(super) const INODE_UNINIT: u16 = 1;
    /// The block bitmap is not written: only the group's own metadata is used.
    pub(super) const BLOCK_UNINIT: u16 = 2;
    /// The inode table reads as zeros, so the kernel need not write them.
    pub(super) const INODE_ZEROED: u16 = 4;

    pub(super) fn encode(&self, group: u64, seed: Seed) -> [u8; DESCRIPTOR_SIZE] {
        let desc = &mut [0; DESCRIPTOR_SIZE];
        for (at, block) in [(0x00, self.block_bitmap), (0x04, self.inode_bitmap), (0x08, self.inode_table)] {
            put32(desc, at, low32(block));
            put32(desc, at + 0x20, high32(block));
        }
        let split = [
            (0x0c, 0x2c, self.free_blocks),
            (0x0e, 0x2e, self.free_inodes),
            (0x10, 0x30, self.directories),
            (0x1c, 0x32, self.unused_inodes),
            (0x18, 0x38, self.block_bitmap_checksum),
            (0x1a, 0x3a, self.inode_bitmap_checksum),
        ];
        for (low, high, value) in split {
            put16(desc, low, low16(value));
            put16(desc, high, high16(value));
        }
        put16(desc, 0x12, self.flags);
        let checksum = crc(seed.number(low32(group)), desc);
        put16(desc, 0x1e, low16(checksum));
        *desc
    }
}
