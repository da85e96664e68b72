//! The measures that all parts share, and the little-endian pen.

/// Bytes in a block.
pub(super) const BLOCK: usize = 4096;
/// Bytes in a block, for offsets.
pub(super) const BLOCK_BYTES: u64 = BLOCK as u64;
/// As many as one bitmap block has bits.
pub(super) const BLOCKS_PER_GROUP: u64 = 8 * BLOCK_BYTES;
/// As many as one bitmap block has bits.
pub(super) const MAX_INODES_PER_GROUP: u32 = 8 * BLOCK as u32;
/// One inode for 16 KiB, like mke2fs. A base disk would need fewer, but a copy of it can be grown,
/// and each new group brings this many. Unused ones are holes in the file.
pub(super) const MIN_INODES_PER_GROUP: u32 = 8192;
/// Bytes in an inode.
pub(super) const INODE_SIZE: usize = 256;
/// Inodes in a block of an inode table.
pub(super) const INODES_PER_BLOCK: u32 = (BLOCK / INODE_SIZE) as u32;
/// Bytes of the inode's second half that have fields; extended attributes follow.
pub(super) const EXTRA_INODE_SIZE: u16 = 32;
/// The root directory's inode number.
pub(super) const ROOT_INODE: u32 = 2;
/// The journal's inode number.
pub(super) const JOURNAL_INODE: u32 = 8;
/// The first inode number that is not reserved.
pub(super) const FIRST_INODE: u32 = 11;
/// Bytes in a group descriptor with `64bit`.
pub(super) const DESCRIPTOR_SIZE: usize = 64;
/// The largest filesystem made here: what 32-bit block numbers reach.
pub(super) const MAX_BYTES: u64 = BLOCK_BYTES << 32;

/// Blocks that the descriptors of so many groups fill.
pub(super) fn descriptor_blocks(groups: u64) -> u64 {
    (groups * DESCRIPTOR_SIZE as u64).div_ceil(BLOCK_BYTES)
}

/// Whether a group begins with the superblock and the descriptors (or a backup of them), by the rule
/// of `sparse_super`: 0, 1 and the powers of 3, 5 and 7.
pub(super) fn has_superblock(group: u64) -> bool {
    let power_of = |base: u64| {
        let mut rest = group;
        while rest.is_multiple_of(base) {
            rest /= base;
        }
        rest == 1
    };
    group <= 1 || [3, 5, 7].into_iter().any(power_of)
}

/// Puts a number at a byte offset.
pub(super) fn put16(buf: &mut [u8], at: usize, value: u16) {
    buf[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

/// Puts a number at a byte offset.
pub(super) fn put32(buf: &mut [u8], at: usize, value: u32) {
    buf[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// The lower half of a number that the format keeps in two places.
pub(super) fn low16(value: u32) -> u16 {
    (value & 0xffff) as u16
}

/// The upper half of a number that the format keeps in two places.
pub(super) fn high16(value: u32) -> u16 {
    (value >> 16) as u16
}

/// The lower half of a number that the format keeps in two places.
pub(super) fn low32(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}

/// The upper half of a number that the format keeps in two places.
pub(super) fn high32(value: u64) -> u32 {
    (value >> 32) as u32
}
