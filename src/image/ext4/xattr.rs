//! Extended attributes: as many as fit lie in the inode's second half, the others in one block.
//!
//! Where that is not enough, long values lie in inodes of their own (`ea_inode`, since Linux 4.13). These have no
//! names; the attribute's entry has their number, and they have a hash of the value and a count of the entries in
//! fields that are times in other inodes (fs/ext4/xattr.c).

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
/// What `getxattr` gives at most (include/uapi/linux/limits.h).
const MAX_VALUE: usize = 64 << 10;
/// The longest values beside their names, tried in this order: no more lie elsewhere than need be, long ones first.
const BESIDE: [usize; 6] = [BLOCK, 2048, 512, 128, 32, 0];

/// Checked and encoded.
#[derive(Debug)]
pub(super) struct Xattrs {
    /// For the inode.
    pub(super) inline: Option<[u8; INLINE]>,
    /// For a block, except its checksum.
    pub(super) block: Option<Box<[u8; BLOCK]>>,
    /// For inodes of their own.
    pub(super) values: Vec<Value>,
}

/// A value that lies in an inode of its own.
#[derive(Debug)]
pub(super) struct Value {
    pub(super) bytes: Box<[u8]>,
    /// Over the bytes; the inode has it too.
    pub(super) hash: u32,
    /// Where its entry lies.
    entry: At,
}

#[derive(Clone, Copy, Debug)]
enum At {
    Inline(usize),
    Block(usize),
}

/// One attribute as ext4 keeps it.
struct Entry<'a> {
    /// ext4's code for the name's prefix, and the rest of the name.
    key: (u8, &'a [u8]),
    value: Vec<u8>,
    /// Set if the value lies in an inode of its own: the hash over it.
    elsewhere: Option<u32>,
}

impl Entry<'_> {
    fn size(&self) -> usize {
        let beside = if self.elsewhere.is_some() { 0 } else { self.value.len() };
        ENTRY + self.key.1.len().next_multiple_of(4) + beside.next_multiple_of(4)
    }

    /// Over name and value, or the value's hash; e2fsck compares it in blocks.
    fn hash(&self) -> u32 {
        let hash = self.key.1.iter().fold(0u32, |hash, &byte| hash.rotate_left(5) ^ u32::from(byte));
        let add = |hash: u32, chunk: &[u8]| {
            let mut word = [0; 4];
            word[..chunk.len()].copy_from_slice(chunk);
            hash.rotate_left(16) ^ u32::from_le_bytes(word)
        };
        match self.elsewhere {
            Some(value) => add(hash, &value.to_le_bytes()),
            None => self.value.chunks(4).fold(hash, add),
        }
    }
}

impl Xattrs {
    /// None if there are none.
    pub(super) fn new(xattrs: &[(Vec<u8>, Vec<u8>)], seed: Seed) -> Result<Option<Box<Xattrs>>, Error> {
        let mut by_name = BTreeMap::new();
        for (name, value) in xattrs {
            by_name.insert(name, value);
        }
        let mut entries = Vec::new();
        for (name, value) in by_name {
            let refuse = |reason| Error::Xattr { name: name.escape_ascii().to_string(), reason };
            if value.len() > MAX_VALUE {
                return Err(refuse("Linux has values of up to 64 KiB"));
            }
            entries.extend(parse(name, value).map_err(refuse)?);
        }
        if entries.is_empty() {
            return Ok(None);
        }
        for longest in BESIDE {
            for entry in &mut entries {
                let long = entry.value.len() > longest;
                entry.elsewhere = long.then(|| entry.elsewhere.unwrap_or_else(|| seed.value(&entry.value)));
            }
            if let Some((inline, block)) = split(&entries) {
                return Ok(Some(Box::new(Xattrs::encode(inline, block))));
            }
        }
        let name = entries.iter().max_by_key(|entry| entry.key.1.len()).map_or(&b""[..], |entry| entry.key.1);
        let reason = "the names of all attributes of one file must fit 4 KiB together";
        Err(Error::Xattr { name: name.escape_ascii().to_string(), reason })
    }

    fn encode(inline: Vec<&Entry<'_>>, mut block: Vec<&Entry<'_>>) -> Xattrs {
        let mut values = Vec::new();
        let mut keep = |entry: &Entry<'_>, at: At| {
            if let Some(hash) = entry.elsewhere {
                values.push(Value { bytes: entry.value.as_slice().into(), hash, entry: at });
            }
        };
        let inline = (!inline.is_empty()).then(|| {
            let mut area = [0; INLINE];
            put32(&mut area, 0, MAGIC);
            put_entries(&mut area, INLINE_HEADER, INLINE_HEADER, &inline, |entry, at| {
                keep(entry, At::Inline(at));
            });
            area
        });
        let block = (!block.is_empty()).then(|| {
            // The order that the kernel searches by.
            block.sort_by_key(|entry| (entry.key.0, entry.key.1.len(), entry.key.1));
            let mut area = Box::new([0; BLOCK]);
            put32(&mut *area, 0, MAGIC);
            put32(&mut *area, 4, 1); // inodes that share it
            put32(&mut *area, 8, 1); // blocks
            put_entries(&mut *area, BLOCK_HEADER, 0, &block, |entry, at| keep(entry, At::Block(at)));
            let hash = block.iter().fold(0u32, |all, entry| all.rotate_left(16) ^ entry.hash());
            put32(&mut *area, 12, hash);
            area
        });
        Xattrs { inline, block, values }
    }

    /// Bytes of memory.
    pub(super) fn size(&self) -> usize {
        let values = self.values.iter().map(|value| size_of::<Value>() + value.bytes.len());
        size_of::<Self>() + if self.block.is_some() { BLOCK } else { 0 } + values.sum::<usize>()
    }

    /// Gives the values their inodes, from this number on, and takes them out.
    pub(super) fn take_values(&mut self, first: u32) -> Vec<Value> {
        let values = std::mem::take(&mut self.values);
        for (number, value) in (first..).zip(&values) {
            let (area, at): (&mut [u8], usize) = match (value.entry, &mut self.inline, &mut self.block) {
                (At::Inline(at), Some(area), _) => (area, at),
                (At::Block(at), _, Some(area)) => (&mut **area, at),
                _ => unreachable!("an entry lies where it was put"),
            };
            put32(area, at + 4, number);
        }
        values
    }
}

/// Which entries lie in the inode and which in the block; none if they do not fit.
fn split<'a, 'b>(entries: &'b [Entry<'a>]) -> Option<(Vec<&'b Entry<'a>>, Vec<&'b Entry<'a>>)> {
    let (mut inline, mut block) = (Vec::new(), Vec::new());
    let mut inline_room = INLINE - INLINE_HEADER - END;
    let mut block_room = BLOCK - BLOCK_HEADER - END;
    for entry in entries {
        let size = entry.size();
        let (room, part) =
            if size <= inline_room { (&mut inline_room, &mut inline) } else { (&mut block_room, &mut block) };
        *room = room.checked_sub(size)?;
        part.push(entry);
    }
    Some((inline, block))
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
        let entry = |value| Entry { key: (index, b"".as_slice()), value, elsewhere: None };
        return Ok(Some(value).filter(|value| !value.is_empty()).map(entry));
    }
    let prefixes: [(u8, &[u8]); 3] = [(1, b"user."), (4, b"trusted."), (6, b"security.")];
    let key = prefixes.iter().find_map(|&(index, prefix)| Some((index, name.strip_prefix(prefix)?)));
    let key = key.ok_or("ext4 keeps user.*, trusted.*, security.* and POSIX ACLs")?;
    if key.1.is_empty() || name.len() > 255 || name.contains(&0) {
        return Err("a name has up to 255 bytes, no NUL, and more than a prefix");
    }
    Ok(Some(Entry { key, value: value.to_vec(), elsewhere: None }))
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

/// Entries from `first` upwards, values from the area's end downwards; the values' offsets count from
/// `base`. `put` is told where each entry lies.
fn put_entries<'a, 'b>(
    area: &mut [u8],
    first: usize,
    base: usize,
    entries: &[&'b Entry<'a>],
    mut put: impl FnMut(&'b Entry<'a>, usize),
) {
    let mut at = first;
    let mut end = area.len();
    for entry in entries {
        let (index, name) = entry.key;
        area[at] = name.len() as u8;
        area[at + 1] = index;
        if !entry.value.is_empty() && entry.elsewhere.is_none() {
            end -= entry.value.len().next_multiple_of(4);
            area[end..end + entry.value.len()].copy_from_slice(&entry.value);
            put16(area, at + 2, (end - base) as u16);
        }
        put32(area, at + 8, low32(entry.value.len() as u64));
        put32(area, at + 12, entry.hash());
        area[at + ENTRY..at + ENTRY + name.len()].copy_from_slice(name);
        put(entry, at);
        at += ENTRY + name.len().next_multiple_of(4);
    }
}
