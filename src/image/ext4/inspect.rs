//! Whether a file that somebody else made is an ext4 file system that guests can mount read-only.
//!
//! Read from the superblock (kernel documentation, filesystems/ext4/super.rst), which is at byte 1024. The
//! blocks behind it are the guest kernel's to distrust.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::checksum::crc;
use super::layout::put32;
use crate::image::ImageError;

/// Where the superblock is, and its length, in bytes.
pub(crate) const SUPERBLOCK: usize = 1024;
const MAGIC: u16 = 0xef53;

/// Features that say more than "mount me if you know me": they mean that the disk is not at rest, or needs
/// more than one disk.
const INCOMPAT_RECOVER: u32 = 0x4;
const INCOMPAT_JOURNAL_DEV: u32 = 0x8;
/// filetype, meta_bg, extents, 64bit, mmp, flex_bg, ea_inode, csum_seed, large_dir, inline_data: what every
/// kernel since 4.13 mounts, however it was configured. Not encrypt and casefold, which are options.
const INCOMPAT_KNOWN: u32 = 0x2 | 0x10 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000;
const INCOMPAT_EA_INODE: u32 = 0x400;
const RO_COMPAT_METADATA_CSUM: u32 = 0x400;
const RO_COMPAT_ORPHAN_PRESENT: u32 = 0x1_0000;

const STATE_CLEAN: u16 = 1;
const STATE_ERRORS: u16 = 2;

/// Other file systems, to name them: offset, magic, name.
const OTHERS: [(usize, &[u8], &str); 5] = [
    (0, b"hsqs", "squashfs"),
    (1024, &[0xe2, 0xe1, 0xf5, 0xe0], "erofs"),
    (0, b"XFSB", "xfs"),
    (0, b"QFI\xfb", "a qcow2 image"),
    (0, &[0x1f, 0x8b], "gzip"),
];

/// Fails with what is wrong. `length` is the file's.
pub(crate) fn inspect(file: &File, length: u64) -> Result<(), ImageError> {
    let refuse = |why: String| {
        Err(ImageError::invalid(format!("{why}; make the root with mke2fs -t ext4, and unmount it cleanly")))
    };
    let mut head = [0; 2 * SUPERBLOCK];
    match file.read_exact_at(&mut head, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return refuse("it is too short for a file system".to_owned());
        }
        read => read.map_err(|error| ImageError::host("reading the superblock", &error))?,
    }
    let sb = &head[SUPERBLOCK..];
    if get16(sb, 0x38) != MAGIC {
        let other = OTHERS.iter().find(|(at, magic, _)| head[*at..].starts_with(magic));
        return refuse(match other {
            Some((_, _, name)) => format!("it is {name}, and guests mount ext4"),
            None => "it is no ext4 file system".to_owned(),
        });
    }
    let (incompat, ro_compat) = match get32(sb, 0x4c) {
        0 => (0, 0),
        _ => (get32(sb, 0x60), get32(sb, 0x64)),
    };
    if ro_compat & RO_COMPAT_METADATA_CSUM != 0 && crc(!0, &sb[..0x3fc]) != get32(sb, 0x3fc) {
        return refuse("its superblock does not match its checksum".to_owned());
    }
    if incompat & INCOMPAT_JOURNAL_DEV != 0 {
        return refuse("it is an external journal, not a file system".to_owned());
    }
    let state = get16(sb, 0x3a);
    if state & STATE_ERRORS != 0 {
        return refuse("it is marked as having errors; run e2fsck".to_owned());
    }
    let unclean = incompat & INCOMPAT_RECOVER != 0
        || ro_compat & RO_COMPAT_ORPHAN_PRESENT != 0
        || state & STATE_CLEAN == 0
        || get32(sb, 0xe8) != 0;
    if unclean {
        return refuse("it is mounted, or was not unmounted cleanly; run e2fsck".to_owned());
    }
    let unknown = incompat & !INCOMPAT_KNOWN;
    if unknown != 0 {
        return refuse(format!("it has features ({unknown:#x}) that not every guest kernel can mount"));
    }
    // Blocks larger than a page cannot be mounted.
    let (log, wide) = (get32(sb, 0x18), incompat & 0x80 != 0);
    if log > 2 {
        return refuse("its blocks are larger than 4 KiB".to_owned());
    }
    let high = if wide { u64::from(get32(sb, 0x150)) } else { 0 };
    let blocks = high << 32 | u64::from(get32(sb, 0x4));
    match blocks.checked_mul(1024 << log) {
        Some(size) if blocks > 0 && size <= length => Ok(()),
        _ => refuse(format!(
            "it is cut off: its superblock tells of {blocks} blocks, the file has {length} bytes"
        )),
    }
}

/// Whether values of extended attributes may lie in inodes of their own (`ea_inode`).
///
/// # Errors
/// If the superblock cannot be read.
pub(crate) fn has_long_values(disk: &File) -> io::Result<bool> {
    let mut sb = [0; SUPERBLOCK];
    disk.read_exact_at(&mut sb, SUPERBLOCK as u64)?;
    Ok(get32(&sb, 0x60) & INCOMPAT_EA_INODE != 0)
}

/// The superblock of the same file system for who reads no extended attributes: it does not say that they need
/// more than a reader may know.
///
/// # Errors
/// If the superblock cannot be read.
pub(crate) fn superblock_without_long_values(disk: &File) -> io::Result<[u8; SUPERBLOCK]> {
    let mut sb = [0; SUPERBLOCK];
    disk.read_exact_at(&mut sb, SUPERBLOCK as u64)?;
    let sound = crc(!0, &sb[..0x3fc]) == get32(&sb, 0x3fc);
    let incompat = get32(&sb, 0x60) & !INCOMPAT_EA_INODE;
    put32(&mut sb, 0x60, incompat);
    if sound {
        let checksum = crc(!0, &sb[..0x3fc]);
        put32(&mut sb, 0x3fc, checksum);
    }
    Ok(sb)
}

fn get16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn get32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
