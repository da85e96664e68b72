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

#[cfg(test)]
mod tests {
    use super::super::{Builder, Limits, Meta};
    use super::*;

    /// A disk at rest, with a long value of an attribute if so wanted.
    fn disk(long_value: bool) -> File {
        let file = tempfile::tempfile().unwrap();
        let limits = Limits { max_bytes: 64 << 20, max_inodes: 100 };
        let mut builder = Builder::new(file.try_clone().unwrap(), [1; 16], limits).unwrap();
        let xattrs = if long_value { vec![(b"user.long".to_vec(), vec![1; 20_000])] } else { Vec::new() };
        builder.mkdir(builder.root(), b"d", Meta { mode: 0o755, xattrs, ..Meta::default() }).unwrap();
        builder.finish().unwrap();
        file
    }

    /// What is said of the disk once its superblock is changed, with a right checksum.
    fn changed(change: impl FnOnce(&mut [u8])) -> String {
        let file = disk(false);
        let mut sb = [0; SUPERBLOCK];
        file.read_exact_at(&mut sb, SUPERBLOCK as u64).unwrap();
        change(&mut sb);
        let checksum = crc(!0, &sb[..0x3fc]);
        put32(&mut sb, 0x3fc, checksum);
        file.write_all_at(&sb, SUPERBLOCK as u64).unwrap();
        let length = file.metadata().unwrap().len();
        inspect(&file, length).map_or_else(|error| error.message, |()| "fine".to_owned())
    }

    fn or32(sb: &mut [u8], at: usize, bits: u32) {
        let value = get32(sb, at) | bits;
        put32(sb, at, value);
    }

    #[test]
    fn only_disks_at_rest_are_good() {
        assert_eq!(changed(|_| {}), "fine");
        assert!(changed(|sb| or32(sb, 0x60, INCOMPAT_JOURNAL_DEV)).contains("external journal"));
        let unclean: [fn(&mut [u8]); 4] = [
            |sb| or32(sb, 0x60, INCOMPAT_RECOVER),
            |sb| or32(sb, 0x64, RO_COMPAT_ORPHAN_PRESENT),
            // The first of the inodes that were open when they lost their names.
            |sb| or32(sb, 0xe8, 12),
            |sb| sb[0x3a] = 0,
        ];
        for change in unclean {
            let said = changed(change);
            assert!(said.contains("not unmounted cleanly"), "{said}");
        }
        assert!(changed(|sb| sb[0x3a] |= 2).contains("having errors"));
        assert!(changed(|sb| or32(sb, 0x60, 0x2_0000)).contains("features (0x20000)"));
    }

    #[test]
    fn lengths_are_as_wide_as_their_feature_says() {
        assert!(changed(|sb| put32(sb, 0x4, 0)).contains("cut off"), "no blocks are no file system");
        assert!(changed(|sb| or32(sb, 0x60, 0x80)).contains("fine"), "64bit, and no high half");
        let high = |sb: &mut [u8]| put32(sb, 0x150, 1);
        let wide = changed(|sb| {
            or32(sb, 0x60, 0x80);
            high(sb);
        });
        assert!(wide.contains("cut off"), "{wide}");
        let narrow = changed(|sb| {
            let incompat = get32(sb, 0x60) & !0x80;
            put32(sb, 0x60, incompat);
            high(sb);
        });
        assert_eq!(narrow, "fine", "without 64bit the field is somebody else's");
    }

    #[test]
    fn short_files_are_no_disks() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(2 * SUPERBLOCK as u64 - 1).unwrap();
        assert!(inspect(&file, 2047).unwrap_err().message.contains("too short"));
        file.set_len(2 * SUPERBLOCK as u64).unwrap();
        assert!(inspect(&file, 2048).unwrap_err().message.contains("no ext4"));
    }

    #[test]
    fn long_values_can_be_kept_from_a_reader() {
        let (long, short) = (disk(true), disk(false));
        assert!(has_long_values(&long).unwrap() && !has_long_values(&short).unwrap());
        let sb = |disk: &File| {
            let mut sb = [0; SUPERBLOCK];
            disk.read_exact_at(&mut sb, SUPERBLOCK as u64).unwrap();
            sb
        };
        assert_eq!(superblock_without_long_values(&short).unwrap(), sb(&short));
        let without = superblock_without_long_values(&long).unwrap();
        assert_eq!(get32(&without, 0x60), get32(&sb(&long), 0x60) & !INCOMPAT_EA_INODE);
        assert_eq!(crc(!0, &without[..0x3fc]), get32(&without, 0x3fc), "its checksum is right again");
        // One that was wrong stays wrong: this mends nothing.
        let mut wrong = sb(&long);
        wrong[0x3fc] ^= 1;
        long.write_all_at(&wrong, SUPERBLOCK as u64).unwrap();
        let without = superblock_without_long_values(&long).unwrap();
        assert_eq!(get32(&without, 0x3fc), get32(&wrong, 0x3fc));
    }
}
