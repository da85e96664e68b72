//! Everything but file data: written once the tree is complete, behind the data.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::alloc::Blocks;
use super::checksum::Seed;
use super::disk::Disk;
use super::inode::{Body, EXTENTS, INDEXED, Record};
use super::layout::{
    BLOCK, BLOCK_BYTES, BLOCKS_PER_GROUP, FIRST_INODE, INODE_SIZE, INODES_PER_BLOCK, MAX_INODES_PER_GROUP,
    MIN_INODES_PER_GROUP, put32,
};
use super::superblock::{Descriptor, Superblock};
use super::tree::{Kind, Node, SHORT_SYMLINK, Tree, number};
use super::value::Values;
use super::xattr::seal_block;
use super::{Error, FileType, Inode, Special, Summary, dir, extent};

/// Links of a directory beyond this are not counted (`dir_nlink`).
const MAX_DIRECTORY_LINKS: usize = 65000;

pub(super) fn finish(mut tree: Tree, mut disk: Disk, uuid: [u8; 16]) -> Result<Summary, Error> {
    let seed = Seed::new(&uuid);
    // Freed blocks read as zeros from here on, wherever the disk is built, and nothing of a removed
    // file stays behind. Inode tables rely on it.
    disk.sink.end_data(disk.blocks.free_runs())?;
    disk.blocks.trim();
    let mut values = Values::behind(tree.last_number(), seed);
    let bodies = write_bodies(&mut tree, &mut values, &mut disk, &uuid, seed)?;
    let full = Error::Full { max_bytes: disk.max_bytes };
    let mut groups = Groups::plan(&mut disk.blocks, values.last_number()).ok_or(full)?;
    write_inodes(&tree, &bodies, &mut groups, &mut disk, seed)?;
    values.write_inodes(&mut groups, &mut disk)?;
    let Disk { mut blocks, sink, .. } = disk;
    let file = sink.into_file()?;
    blocks.seal(groups.total);
    groups.write_bitmaps(&blocks, &file, seed)?;
    let superblock = groups.superblock(uuid, values.are_there());
    superblock.write(&file, &groups.encode(seed))?;
    let size = groups.total * BLOCK_BYTES;
    file.set_len(size).map_err(Error::io("set the length of"))?;
    file.sync_all().map_err(Error::io("flush"))?;
    let used_bytes = size - superblock.free_blocks * BLOCK_BYTES;
    Ok(Summary { size, inodes: tree.inodes(), used_bytes })
}

/// Writes directories, extent trees, long symlinks and attributes outside of inodes. Returns where each inode's
/// content is, and its link count, in the order of the inodes.
fn write_bodies(
    tree: &mut Tree,
    values: &mut Values,
    disk: &mut Disk,
    uuid: &[u8; 16],
    seed: Seed,
) -> Result<Vec<(Body, u16)>, Error> {
    let inodes: Vec<Inode> = tree.iter().map(|(inode, _)| inode).collect();
    let mut bodies = Vec::with_capacity(inodes.len());
    for inode in inodes {
        let (mut body, links) = if tree.entries(inode).is_some() {
            write_directory(tree, inode, disk, uuid, seed)?
        } else {
            let node = tree.node(inode).ok_or(Error::Gone)?;
            (write_content(node, seed.inode(number(inode)), disk)?, node.links as u16)
        };
        let node = tree.node_mut(inode).ok_or(Error::Gone)?;
        body.blocks += values.write(&mut node.attributes, disk)?;
        if let Some(block) = node.attributes.xattrs.as_ref().and_then(|xattrs| xattrs.block.as_ref()) {
            body.xattr_block = disk.alloc_block()?;
            body.blocks += 1;
            let mut content = block.clone();
            seal_block(&mut content, body.xattr_block, seed);
            disk.write_block(body.xattr_block, &*content)?;
        }
        bodies.push((body, links));
    }
    Ok(bodies)
}

fn write_directory(
    tree: &mut Tree,
    inode: Inode,
    disk: &mut Disk,
    uuid: &[u8; 16],
    seed: Seed,
) -> Result<(Body, u16), Error> {
    let parent = match tree.node(inode).map(|node| &node.kind) {
        Some(Kind::Directory { parent, .. }) => *parent,
        _ => Tree::ROOT,
    };
    let names = tree.take_entries(inode);
    let entries: Vec<_> = names
        .iter()
        .filter_map(|(name, &inode)| {
            let kind = type_code(tree.node(inode)?.kind.file_type()).0;
            Some(dir::Entry { name, inode: number(inode), kind })
        })
        .collect();
    let directory = type_code(FileType::Directory).0;
    let links = 2 + entries.iter().filter(|entry| entry.kind == directory).count();
    let links = if links > MAX_DIRECTORY_LINKS { 1 } else { links as u16 };
    let content_seed = seed.inode(number(inode));
    let identity =
        dir::Identity { inode: number(inode), parent: number(parent), seed: content_seed, hash_seed: uuid };
    let encoded = dir::encode(&identity, &entries);
    let mut body = place(&encoded.data, encoded.data.len() as u64, content_seed, disk)?;
    if encoded.indexed {
        body.flags |= INDEXED;
    }
    Ok((body, links))
}

/// The body of anything but a directory.
fn write_content(node: &Node, seed: u32, disk: &mut Disk) -> Result<Body, Error> {
    match &node.kind {
        Kind::Regular { size, extents } => mapped(extents, *size, seed, disk),
        Kind::Symlink(target) if target.len() >= SHORT_SYMLINK => {
            let mut block = [0; BLOCK];
            block[..target.len()].copy_from_slice(target);
            place(&block, target.len() as u64, seed, disk)
        }
        Kind::Symlink(target) => {
            let mut map = [0; 60];
            map[..target.len()].copy_from_slice(target);
            Ok(unmapped(map, target.len() as u64))
        }
        Kind::Special(Special::Char { major, minor } | Special::Block { major, minor }) => {
            Ok(unmapped(encode_device(*major, *minor), 0))
        }
        Kind::Special(_) | Kind::Directory { .. } => Ok(unmapped([0; 60], 0)),
    }
}

pub(super) fn place(data: &[u8], size: u64, seed: u32, disk: &mut Disk) -> Result<Body, Error> {
    let extents = disk.place(data)?;
    mapped(&extents, size, seed, disk)
}

fn mapped(extents: &[extent::Extent], size: u64, seed: u32, disk: &mut Disk) -> Result<Body, Error> {
    let (map, tree_blocks) = extent::write_tree(extents, seed, disk)?;
    let blocks = tree_blocks + extents.iter().map(|extent| extent.run().blocks).sum::<u64>();
    Ok(Body { size, blocks, flags: EXTENTS, map, xattr_block: 0 })
}

fn unmapped(map: [u8; 60], size: u64) -> Body {
    Body { size, blocks: 0, flags: 0, map, xattr_block: 0 }
}

/// Small numbers in the first word, others in the second: `old_encode_dev` and `new_encode_dev` of
/// include/linux/kdev_t.h.
fn encode_device(major: u32, minor: u32) -> [u8; 60] {
    let mut map = [0; 60];
    if major < 256 && minor < 256 {
        put32(&mut map, 0, major << 8 | minor);
    } else {
        put32(&mut map, 4, (minor & 0xff) | major << 8 | (minor & !0xff) << 12);
    }
    map
}

/// A type in directory entries and in inodes.
pub(super) fn type_code(kind: FileType) -> (u8, u16) {
    match kind {
        FileType::Regular => (1, 0o100_000),
        FileType::Directory => (2, 0o040_000),
        FileType::Char => (3, 0o020_000),
        FileType::Block => (4, 0o060_000),
        FileType::Fifo => (5, 0o010_000),
        FileType::Socket => (6, 0o140_000),
        FileType::Symlink => (7, 0o120_000),
    }
}

/// Writes the inode tables, as far as inodes are used, and counts them in their groups.
fn write_inodes(
    tree: &Tree,
    bodies: &[(Body, u16)],
    groups: &mut Groups,
    disk: &mut Disk,
    seed: Seed,
) -> Result<(), Error> {
    for ((inode, node), (body, links)) in tree.iter().zip(bodies) {
        let number = number(inode);
        let file_type = node.kind.file_type();
        let attributes = &node.attributes;
        let record = Record {
            mode: type_code(file_type).1 | attributes.mode,
            uid: attributes.uid,
            gid: attributes.gid,
            mtime: attributes.mtime,
            atime: attributes.atime,
            ctime: attributes.mtime,
            crtime: attributes.mtime,
            version: 0,
            links: *links,
            body,
            xattrs: attributes.xattrs.as_ref().and_then(|xattrs| xattrs.inline.as_ref()),
        };
        disk.sink.seek(groups.use_inode(number, file_type == FileType::Directory))?;
        disk.sink.write(&record.encode(number, seed))?;
    }
    Ok(())
}

/// The groups of the finished disk.
pub(super) struct Groups {
    descriptors: Vec<Descriptor>,
    inode_bitmaps: Vec<Vec<u8>>,
    inodes_per_group: u32,
    /// Blocks of the disk.
    total: u64,
}

impl Groups {
    /// Finds room for bitmaps and inode tables. How many there are depends on the number of groups,
    /// and that on the room they take: try until it fits. None if the disk is full.
    fn plan(blocks: &mut Blocks, last_inode: u32) -> Option<Groups> {
        let for_inodes = u64::from(last_inode.div_ceil(MAX_INODES_PER_GROUP));
        let mut count = blocks.end().div_ceil(BLOCKS_PER_GROUP).max(for_inodes);
        loop {
            let even = last_inode.div_ceil(count as u32).next_multiple_of(INODES_PER_BLOCK);
            let inodes_per_group = even.max(MIN_INODES_PER_GROUP);
            let mut trial = blocks.clone();
            let descriptors = place_groups(&mut trial, count, inodes_per_group)?;
            let total = trial.least(count)?;
            if total.div_ceil(BLOCKS_PER_GROUP) <= count {
                *blocks = trial;
                let inode_bitmaps = vec![new_inode_bitmap(inodes_per_group); descriptors.len()];
                let mut groups = Groups { descriptors, inode_bitmaps, inodes_per_group, total };
                (1..FIRST_INODE).for_each(|reserved| {
                    groups.use_inode(reserved, false);
                });
                return Some(groups);
            }
            count = total.div_ceil(BLOCKS_PER_GROUP);
        }
    }

    /// Marks an inode and returns its byte offset on the disk. Inodes come in rising order, except that
    /// the root is among the reserved ones.
    pub(super) fn use_inode(&mut self, number: u32, directory: bool) -> u64 {
        let index = number - 1;
        let group = (index / self.inodes_per_group) as usize;
        let index = index % self.inodes_per_group;
        let descriptor = &mut self.descriptors[group];
        let byte = &mut self.inode_bitmaps[group][index as usize / 8];
        let bit = 1 << (index % 8);
        if *byte & bit == 0 {
            *byte |= bit;
            descriptor.free_inodes -= 1;
            descriptor.unused_inodes = descriptor.unused_inodes.min(self.inodes_per_group - 1 - index);
        }
        descriptor.directories += u32::from(directory);
        descriptor.inode_table * BLOCK_BYTES + u64::from(index) * INODE_SIZE as u64
    }

    fn write_bitmaps(&mut self, blocks: &Blocks, file: &File, seed: Seed) -> Result<(), Error> {
        let inode_bytes = self.inodes_per_group as usize / 8;
        for (group, (descriptor, inodes)) in (0..).zip(self.descriptors.iter_mut().zip(&self.inode_bitmaps)) {
            let (bitmap, free) = blocks.bitmap(group);
            descriptor.free_blocks = free;
            descriptor.block_bitmap_checksum = seed.bitmap(&bitmap);
            descriptor.inode_bitmap_checksum = seed.bitmap(&inodes[..inode_bytes]);
            for (block, content) in [(descriptor.block_bitmap, &bitmap), (descriptor.inode_bitmap, inodes)] {
                file.write_all_at(content, block * BLOCK_BYTES).map_err(Error::io("write to"))?;
            }
        }
        Ok(())
    }

    fn superblock(&self, uuid: [u8; 16], long_values: bool) -> Superblock {
        Superblock {
            uuid,
            blocks: self.total,
            free_blocks: self.descriptors.iter().map(|descriptor| u64::from(descriptor.free_blocks)).sum(),
            inodes_per_group: self.inodes_per_group,
            free_inodes: self.descriptors.iter().map(|descriptor| descriptor.free_inodes).sum(),
            scattered: true,
            long_values,
            journal: None,
        }
    }

    fn encode(&self, seed: Seed) -> Vec<u8> {
        (0..).zip(&self.descriptors).flat_map(|(group, descriptor)| descriptor.encode(group, seed)).collect()
    }
}

fn place_groups(blocks: &mut Blocks, count: u64, inodes_per_group: u32) -> Option<Vec<Descriptor>> {
    let tables = blocks.alloc_runs(u64::from(inodes_per_group / INODES_PER_BLOCK), count)?;
    let describe = |inode_table| {
        Some(Descriptor {
            block_bitmap: blocks.alloc(1)?.start,
            inode_bitmap: blocks.alloc(1)?.start,
            inode_table,
            free_inodes: inodes_per_group,
            unused_inodes: inodes_per_group,
            flags: Descriptor::INODE_ZEROED,
            ..Descriptor::default()
        })
    };
    tables.into_iter().map(describe).collect()
}

/// Nothing used; what lies behind the group's inodes counts as used.
pub(super) fn new_inode_bitmap(inodes_per_group: u32) -> Vec<u8> {
    let mut bitmap = vec![0xff; BLOCK];
    bitmap[..inodes_per_group as usize / 8].fill(0);
    bitmap
}
