//! Extended attributes: as many as fit lie in the inode's second half, the others in one block.

use std::collections::BTreeMap;

use super::Error;
use super::checksum::Seed;
use super::layout::{BLOCK, EXTRA_INODE_SIZE, INODE_SIZE, low32, put16, put32};

const MAGIC: u32 = 0xea02_0000;
/// Bytes for attributes in an inode.
pub(super) const INLINE: usize = INODE_SIZE - 128 - EXTRA_INODE_SIZE as usize;
/// Bytes of an entry before its name.
const ENTRY: usize = 16;
/// The four zeros that end the list of entries.
const END: usize = 4;
const INLINE_HEADER: usize = 4;
const BLOCK_HEADER: usize = 32;

/// Checked and encoded.
#[derive(Debug)]
pub(super) struct Xattrs {
    /// For the inode.
    pub(super) inline: Option<[u8; INLINE]>,
    /// For a block, except its checksum.
    pub(super) block: Option<Box<[u8; BLOCK]>>,
}

/// One attribute as ext4 keeps it.
struct Entry<'a> {
    /// ext4's code for the name's prefix, and the rest of the name.
    key: (u8, &'a [u8]),
    value: Vec<u8>,
}

impl Entry<'_> {
    fn size(&self) -> usize {
        ENTRY + self.key.1.len().next_multiple_of(4) + self.value.len().next_multiple_of(4)
    }

    /// Over name and value; e2fsck compares it in blocks.
    fn hash(&self) -> u32 {
        let hash = self.key.1.iter().fold(0u32, |hash, &byte| hash.rotate_left(5) ^ u32::from(byte));
        self.value.chunks(4).fold(hash, |hash, chunk| {
            let mut word = [0; 4];
            word[..chunk.len()].copy_from_slice(chunk);
            hash.rotate_left(16) ^ u32::from_le_bytes(word)
        })
    }
}

impl Xattrs {
    /// None if there are none.
    pub(super) fn new(xattrs: &[(Vec<u8>, Vec<u8>)]) -> Result<Option<Box<Xattrs>>, Error> {
        let mut by_name = BTreeMap::new();
        for (name, value) in xattrs {
            by_name.insert(name, value);
        }
        let mut inline = Vec::new();
        let mut block = Vec::new();
        let mut inline_room = INLINE - INLINE_HEADER - END;
        let mut block_room = BLOCK - BLOCK_HEADER - END;
        for (name, value) in by_name {
            let refuse = |reason| Error::Xattr { name: name.escape_ascii().to_string(), reason };
            let Some(entry) = parse(name, value).map_err(refuse)? else { continue };
            let size = entry.size();
            if size <= inline_room {
                inline_room -= size;
                inline.push(entry);
            } else if size <= block_room {
                block_room -= size;
                block.push(entry);
            } else {
                return Err(refuse("the attributes of one file must fit 4 KiB together"));
            }
        }
        if inline.is_empty() && block.is_empty() {
            return Ok(None);
        }
        let inline = (!inline.is_empty()).then(|| encode_inline(&inline));
        let block = (!block.is_empty()).then(|| encode_block(block));
        Ok(Some(Box::new(Xattrs { inline, block })))
    }

    /// Bytes of memory.
    pub(super) fn size(&self) -> usize {
        size_of::<Self>() + if self.block.is_some() { BLOCK } else { 0 }
    }
}

/// Puts the checksum into an attribute block that will lie at `block`.
pub(super) fn seal_block(content: &mut [u8; BLOCK], block: u64, seed: Seed) {
    let checksum = seed.xattr_block(block, content);
    put32(content, 16, checksum);
}

/// None if the attribute says nothing (an ACL without entries).
fn parse<'a>(name: &'a [u8], value: &[u8]) -> Result<Option<Entry<'a>>, &'static str> {
    let acl = match name {
        b"system.posix_acl_access" => Some(2),
        b"system.posix_acl_default" => Some(3),
        _ => None,
    };
    if let Some(index) = acl {
        let value = convert_acl(value)?;
        return Ok((!value.is_empty()).then(|| Entry { key: (index, b"".as_slice()), value }));
    }
    let prefixes: [(u8, &[u8]); 3] = [(1, b"user."), (4, b"trusted."), (6, b"security.")];
    let key = prefixes.iter().find_map(|&(index, prefix)| Some((index, name.strip_prefix(prefix)?)));
    let key = key.ok_or("ext4 keeps user.*, trusted.*, security.* and POSIX ACLs")?;
    if key.1.is_empty() || name.len() > 255 || name.contains(&0) {
        return Err("a name has up to 255 bytes, no NUL, and more than a prefix");
    }
    Ok(Some(Entry { key, value: value.to_vec() }))
}

/// From the form of the system calls (include/uapi/linux/posix_acl_xattr.h: version 2, every entry
/// with an id) to that of the disk (fs/ext4/acl.h: version 1, ids only where they mean something).
fn convert_acl(value: &[u8]) -> Result<Vec<u8>, &'static str> {
    let entries = value.strip_prefix(&2u32.to_le_bytes()).ok_or("not a POSIX ACL of version 2")?;
    let (entries, []) = entries.as_chunks::<8>() else {
        return Err("a POSIX ACL with half an entry");
    };
    if entries.is_empty() {
        return Ok(Vec::new());
    }
    let mut disk = 1u32.to_le_bytes().to_vec();
    for entry in entries {
        disk.extend_from_slice(match u16::from_le_bytes([entry[0], entry[1]]) {
            0x01 | 0x04 | 0x10 | 0x20 => &entry[..4], // owner, owning group, mask, others
            0x02 | 0x08 => entry,                     // a user, a group
            _ => return Err("a POSIX ACL with an unknown kind of entry"),
        });
    }
    Ok(disk)
}

fn encode_inline(entries: &[Entry<'_>]) -> [u8; INLINE] {
    let mut area = [0; INLINE];
    put32(&mut area, 0, MAGIC);
    put_entries(&mut area, INLINE_HEADER, INLINE_HEADER, entries);
    area
}

fn encode_block(mut entries: Vec<Entry<'_>>) -> Box<[u8; BLOCK]> {
    // The order that the kernel searches by.
    entries.sort_by_key(|entry| (entry.key.0, entry.key.1.len(), entry.key.1));
    let mut block = Box::new([0; BLOCK]);
    put32(&mut *block, 0, MAGIC);
    put32(&mut *block, 4, 1); // inodes that share it
    put32(&mut *block, 8, 1); // blocks
    let hashes = put_entries(&mut *block, BLOCK_HEADER, 0, &entries);
    let hash = hashes.iter().fold(0u32, |all, hash| all.rotate_left(16) ^ hash);
    put32(&mut *block, 12, hash);
    block
}

/// Entries from `first` upwards, values from the area's end downwards; the values' offsets count from
/// `base`. Returns the entries' hashes.
fn put_entries(area: &mut [u8], first: usize, base: usize, entries: &[Entry<'_>]) -> Vec<u32> {
    let mut at = first;
    let mut end = area.len();
    for entry in entries {
        let (index, name) = entry.key;
        area[at] = name.len() as u8;
        area[at + 1] = index;
        if !entry.value.is_empty() {
            end -= entry.value.len().next_multiple_of(4);
            area[end..end + entry.value.len()].copy_from_slice(&entry.value);
            put16(area, at + 2, (end - base) as u16);
        }
        put32(area, at + 8, low32(entry.value.len() as u64));
        put32(area, at + 12, entry.hash());
        area[at + ENTRY..at + ENTRY + name.len()].copy_from_slice(name);
        at += ENTRY + name.len().next_multiple_of(4);
    }
    entries.iter().map(Entry::hash).collect()
}
