//! Content in, disk out.

use std::fs::File;

use super::alloc::Blocks;
use super::checksum::Seed;
use super::disk::Disk;
use super::file::FileWriter;
use super::finish::finish;
use super::layout::{BLOCK_BYTES, MAX_BYTES};
use super::sink::Sink;
use super::tree::{Attributes, Kind, Tree};
use super::{Error, FileType, Inode, Limits, Meta, Special, Summary};

/// Writes one filesystem. Calls that fail change nothing, except that a disk whose file failed
/// ([`Error::Io`]) is good for nothing any more.
pub struct Builder {
    pub(super) tree: Tree,
    pub(super) disk: Disk,
    uuid: [u8; 16],
    seed: Seed,
}

impl Builder {
    /// Starts an empty filesystem in `file`, whose former content is lost. The root directory belongs
    /// to root with mode 755 until [`Builder::set_meta`] says otherwise.
    pub fn new(file: File, uuid: [u8; 16], limits: Limits) -> Result<Self, Error> {
        file.set_len(0).map_err(Error::io("clear"))?;
        let blocks = Blocks::new(limits.max_bytes.min(MAX_BYTES) / BLOCK_BYTES);
        let disk = Disk { blocks, sink: Sink::new(file), max_bytes: limits.max_bytes };
        let seed = Seed::new(&uuid);
        Ok(Builder { tree: Tree::new(limits, seed)?, disk, uuid, seed })
    }

    /// The root directory.
    pub fn root(&self) -> Inode {
        Tree::ROOT
    }

    /// What `name` stands for in a directory. `.` and `..` are no names here.
    pub fn lookup(&self, dir: Inode, name: &[u8]) -> Option<(Inode, FileType)> {
        let inode = *self.tree.entries(dir)?.get(name)?;
        Some((inode, self.tree.node(inode)?.kind.file_type()))
    }

    /// Where a symbolic link points; none for anything else.
    pub fn symlink_target(&self, inode: Inode) -> Option<&[u8]> {
        match &self.tree.node(inode)?.kind {
            Kind::Symlink(target) => Some(target),
            _ => None,
        }
    }

    /// A directory's names in the order of their bytes; nothing for what is no directory.
    pub fn children(&self, dir: Inode) -> impl Iterator<Item = (&[u8], Inode)> {
        let entries = self.tree.entries(dir).into_iter().flatten();
        entries.map(|(name, &inode)| (name.as_ref(), inode))
    }

    /// Makes a directory.
    pub fn mkdir(&mut self, parent: Inode, name: &[u8], meta: Meta) -> Result<Inode, Error> {
        let kind = Kind::Directory { parent, entries: Default::default() };
        self.tree.insert(parent, name, kind, Attributes::new(&meta, self.seed)?)
    }

    /// Starts a regular file. It exists once [`FileWriter::finish`] says so.
    pub fn create(&mut self, parent: Inode, name: &[u8], meta: Meta) -> Result<FileWriter<'_>, Error> {
        self.tree.check_new(parent, name, 1)?;
        let attributes = Attributes::new(&meta, self.seed)?;
        Ok(FileWriter::new(self, parent, name, attributes))
    }

    /// Makes a symbolic link.
    pub fn symlink(&mut self, parent: Inode, name: &[u8], target: &[u8], meta: Meta) -> Result<Inode, Error> {
        self.tree.insert_symlink(parent, name, target, Attributes::new(&meta, self.seed)?)
    }

    /// Makes a device, a named pipe or a socket.
    pub fn special(
        &mut self,
        parent: Inode,
        name: &[u8],
        special: Special,
        meta: Meta,
    ) -> Result<Inode, Error> {
        self.tree.insert_special(parent, name, special, Attributes::new(&meta, self.seed)?)
    }

    /// Makes another name for what is not a directory.
    pub fn link(&mut self, parent: Inode, name: &[u8], target: Inode) -> Result<(), Error> {
        self.tree.link(parent, name, target)
    }

    /// Replaces all metadata of an object.
    pub fn set_meta(&mut self, inode: Inode, meta: Meta) -> Result<(), Error> {
        self.tree.set_attributes(inode, Attributes::new(&meta, self.seed)?)
    }

    /// Removes a name; a directory goes with everything in it. Inodes without names are freed, and
    /// later files use their blocks.
    pub fn remove(&mut self, parent: Inode, name: &[u8]) -> Result<(), Error> {
        for extent in self.tree.remove(parent, name)? {
            self.disk.blocks.release(extent.run());
        }
        Ok(())
    }

    /// Writes all metadata and flushes the file to its device. Free space in it is holes.
    pub fn finish(self) -> Result<Summary, Error> {
        finish(self.tree, self.disk, self.uuid)
    }
}
