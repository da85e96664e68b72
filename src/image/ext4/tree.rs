//! The names and inodes of a disk that is being built.

use std::collections::{BTreeMap, BTreeSet};

use super::checksum::Seed;
use super::extent::Extent;
use super::inode::Stamp;
use super::layout::{FIRST_INODE, ROOT_INODE};
use super::xattr::Xattrs;
use super::{Error, FileType, Inode, Limits, Meta, Special};

/// Hard links of one file.
const MAX_LINKS: u32 = 65000;
const MAX_NAME: usize = 255;
const MAX_TARGET: usize = 4095;
/// Symlinks shorter than this are kept in the inode.
pub(super) const SHORT_SYMLINK: usize = 60;
/// Memory for names, targets and attributes that each allowed inode brings, and the least in all.
const METADATA_PER_INODE: u64 = 256;
const MIN_METADATA: u64 = 16 << 20;
/// So many that every group of the largest disk has some and the sum still fits 32 bits.
const MAX_INODES: u32 = 1 << 30;

pub(super) type Entries = BTreeMap<Box<[u8]>, Inode>;

/// An inode.
pub(super) struct Node {
    pub(super) kind: Kind,
    pub(super) attributes: Attributes,
    /// Names, one for a directory.
    pub(super) links: u32,
}

/// What an inode is, with its content.
pub(super) enum Kind {
    Regular { size: u64, extents: Box<[Extent]> },
    Directory { parent: Inode, entries: Entries },
    Symlink(Box<[u8]>),
    Special(Special),
}

/// [`Meta`], checked.
pub(super) struct Attributes {
    /// Permission bits only.
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Stamp,
    pub(super) atime: Stamp,
    pub(super) xattrs: Option<Box<Xattrs>>,
}

impl Attributes {
    /// `seed` is the disk's.
    pub(super) fn new(meta: &Meta, seed: Seed) -> Result<Self, Error> {
        let Meta { mode, uid, gid, mtime, atime, xattrs } = meta;
        let xattrs = Xattrs::new(xattrs, seed)?;
        let (mtime, atime) = (Stamp::from(*mtime), Stamp::from(atime.unwrap_or(*mtime)));
        Ok(Attributes { mode: mode & 0o7777, uid: *uid, gid: *gid, mtime, atime, xattrs })
    }

    /// Bytes of memory that count against the limit.
    fn size(&self) -> u64 {
        self.xattrs.as_ref().map_or(0, |xattrs| xattrs.size() as u64)
    }

    /// Inodes for values of attributes.
    fn values(&self) -> u32 {
        self.xattrs.as_ref().map_or(0, |xattrs| xattrs.values.len() as u32)
    }
}

impl Kind {
    /// Linux tells a symlink in its inode by the inode's having no blocks, e2fsck by its length; the blocks of long
    /// attributes count as the inode's for both.
    fn check(&self, attributes: &Attributes) -> Result<(), Error> {
        match self {
            Kind::Symlink(target) if target.len() < SHORT_SYMLINK && attributes.values() > 0 => {
                Err(Error::SymlinkXattrs)
            }
            _ => Ok(()),
        }
    }

    pub(super) fn file_type(&self) -> FileType {
        match self {
            Kind::Regular { .. } => FileType::Regular,
            Kind::Directory { .. } => FileType::Directory,
            Kind::Symlink(_) => FileType::Symlink,
            Kind::Special(Special::Fifo) => FileType::Fifo,
            Kind::Special(Special::Socket) => FileType::Socket,
            Kind::Special(Special::Char { .. }) => FileType::Char,
            Kind::Special(Special::Block { .. }) => FileType::Block,
        }
    }
}

impl Node {
    /// Bytes of memory that count against the limit.
    fn size(&self) -> u64 {
        let target = if let Kind::Symlink(target) = &self.kind { target.len() as u64 } else { 0 };
        target + self.attributes.size()
    }
}

pub(super) struct Tree {
    /// By handle; the root is the first.
    nodes: Vec<Option<Node>>,
    /// Handles that can be given out again.
    free: BTreeSet<u32>,
    inodes: u32,
    /// Inodes for values of attributes: these have no names, and come behind the others.
    values: u32,
    names: u32,
    metadata: u64,
    max_inodes: u32,
    max_metadata: u64,
}

impl Tree {
    pub(super) const ROOT: Inode = Inode(0);

    pub(super) fn new(limits: Limits, seed: Seed) -> Result<Self, Error> {
        let attributes = Attributes::new(&Meta { mode: 0o755, ..Meta::default() }, seed)?;
        let kind = Kind::Directory { parent: Self::ROOT, entries: Entries::new() };
        let max_inodes = limits.max_inodes.min(MAX_INODES);
        Ok(Tree {
            nodes: vec![Some(Node { kind, attributes, links: 1 })],
            free: BTreeSet::new(),
            inodes: 1,
            values: 0,
            names: 0,
            metadata: 0,
            max_inodes,
            max_metadata: (METADATA_PER_INODE * u64::from(max_inodes)).max(MIN_METADATA),
        })
    }

    pub(super) fn node(&self, inode: Inode) -> Option<&Node> {
        self.nodes.get(inode.0 as usize)?.as_ref()
    }

    pub(super) fn node_mut(&mut self, inode: Inode) -> Option<&mut Node> {
        self.nodes.get_mut(inode.0 as usize)?.as_mut()
    }

    /// The names in a directory; none if it is none.
    pub(super) fn entries(&self, dir: Inode) -> Option<&Entries> {
        match &self.node(dir)?.kind {
            Kind::Directory { entries, .. } => Some(entries),
            _ => None,
        }
    }

    fn entries_mut(&mut self, dir: Inode, name: &[u8]) -> Result<&mut Entries, Error> {
        match self.node_mut(dir) {
            Some(Node { kind: Kind::Directory { entries, .. }, .. }) => Ok(entries),
            _ => Err(Error::NotADirectory { name: escape(name) }),
        }
    }

    /// Objects in it.
    pub(super) fn inodes(&self) -> u32 {
        self.inodes
    }

    /// All inodes in use, by their numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Inode, &Node)> {
        (0..).map(Inode).zip(&self.nodes).filter_map(|(inode, node)| Some((inode, node.as_ref()?)))
    }

    /// The highest inode number in use.
    pub(super) fn last_number(&self) -> u32 {
        let last = self.iter().last().map_or(ROOT_INODE, |(inode, _)| number(inode));
        last.max(FIRST_INODE - 1)
    }

    /// Takes a directory's names away, to save memory once they are written.
    pub(super) fn take_entries(&mut self, dir: Inode) -> Entries {
        self.entries_mut(dir, b"").map(std::mem::take).unwrap_or_default()
    }

    /// Whether `name` can be made in `dir` for `new_inodes` more inodes.
    pub(super) fn check_new(&self, dir: Inode, name: &[u8], new_inodes: u32) -> Result<(), Error> {
        let wrong = |byte: &u8| matches!(byte, b'/' | 0);
        if matches!(name, b"" | b"." | b"..") || name.len() > MAX_NAME || name.iter().any(wrong) {
            return Err(Error::Name { name: escape(name) });
        }
        let entries = self.entries(dir).ok_or_else(|| Error::NotADirectory { name: escape(name) })?;
        if entries.contains_key(name) {
            return Err(Error::Exists { name: escape(name) });
        }
        if self.names >= self.max_inodes {
            return Err(Error::TooManyInodes { max_inodes: self.max_inodes });
        }
        self.check_inodes(new_inodes)
    }

    fn check_inodes(&self, more: u32) -> Result<(), Error> {
        let all = self.inodes + self.values;
        match all.checked_add(more).is_some_and(|all| all <= self.max_inodes) {
            true => Ok(()),
            false => Err(Error::TooManyInodes { max_inodes: self.max_inodes }),
        }
    }

    /// Makes an inode with one name. Whoever calls has checked the name.
    pub(super) fn insert(
        &mut self,
        dir: Inode,
        name: &[u8],
        kind: Kind,
        attributes: Attributes,
    ) -> Result<Inode, Error> {
        self.check_new(dir, name, 1)?;
        let node = Node { kind, attributes, links: 1 };
        node.kind.check(&node.attributes)?;
        let values = node.attributes.values();
        self.check_inodes(1 + values)?;
        self.charge(node.size() + name.len() as u64)?;
        self.values += values;
        let inode = Inode(self.free.pop_first().unwrap_or(self.nodes.len() as u32));
        match self.nodes.get_mut(inode.0 as usize) {
            Some(slot) => *slot = Some(node),
            None => self.nodes.push(Some(node)),
        }
        self.inodes += 1;
        self.names += 1;
        self.entries_mut(dir, name)?.insert(name.into(), inode);
        Ok(inode)
    }

    pub(super) fn insert_symlink(
        &mut self,
        dir: Inode,
        name: &[u8],
        target: &[u8],
        attributes: Attributes,
    ) -> Result<Inode, Error> {
        if target.is_empty() || target.len() > MAX_TARGET || target.contains(&0) {
            return Err(Error::Target { name: escape(name) });
        }
        self.insert(dir, name, Kind::Symlink(target.into()), attributes)
    }

    pub(super) fn insert_special(
        &mut self,
        dir: Inode,
        name: &[u8],
        special: Special,
        attributes: Attributes,
    ) -> Result<Inode, Error> {
        if let Special::Char { major, minor } | Special::Block { major, minor } = special
            && (major >= 1 << 12 || minor >= 1 << 20)
        {
            return Err(Error::Device { name: escape(name), major, minor });
        }
        self.insert(dir, name, Kind::Special(special), attributes)
    }

    /// One more name for an inode.
    pub(super) fn link(&mut self, dir: Inode, name: &[u8], target: Inode) -> Result<(), Error> {
        self.check_new(dir, name, 0)?;
        let node = self.node(target).ok_or(Error::Gone)?;
        if matches!(node.kind, Kind::Directory { .. }) {
            return Err(Error::LinkToDirectory { name: escape(name) });
        }
        if node.links == MAX_LINKS {
            return Err(Error::TooManyLinks { name: escape(name) });
        }
        self.charge(name.len() as u64)?;
        self.node_mut(target).ok_or(Error::Gone)?.links += 1;
        self.names += 1;
        self.entries_mut(dir, name)?.insert(name.into(), target);
        Ok(())
    }

    pub(super) fn set_attributes(&mut self, inode: Inode, attributes: Attributes) -> Result<(), Error> {
        let node = self.node(inode).ok_or(Error::Gone)?;
        node.kind.check(&attributes)?;
        let (size, values) = (node.attributes.size(), node.attributes.values());
        self.check_inodes(attributes.values().saturating_sub(values))?;
        self.charge(attributes.size())?;
        self.metadata -= size;
        self.values = self.values + attributes.values() - values;
        self.node_mut(inode).ok_or(Error::Gone)?.attributes = attributes;
        Ok(())
    }

    /// Removes a name and, if it was the last one, what it stands for, with everything below. Returns
    /// the data that no file has any longer.
    pub(super) fn remove(&mut self, dir: Inode, name: &[u8]) -> Result<Vec<Extent>, Error> {
        let inode = self.entries_mut(dir, name)?.remove(name);
        let inode = inode.ok_or_else(|| Error::NotFound { name: escape(name) })?;
        self.forget_name(name);
        let mut freed = Vec::new();
        // A loop: what outsiders send may be nested deeper than a stack.
        let mut pending = vec![inode];
        while let Some(inode) = pending.pop() {
            let Some(slot) = self.nodes.get_mut(inode.0 as usize) else { continue };
            if let Some(node) = slot
                && node.links > 1
            {
                node.links -= 1;
                continue;
            }
            let Some(node) = slot.take() else { continue };
            self.free.insert(inode.0);
            self.inodes -= 1;
            self.values -= node.attributes.values();
            self.metadata -= node.size();
            match node.kind {
                Kind::Regular { extents, .. } => freed.extend(extents),
                Kind::Directory { entries, .. } => {
                    entries.keys().for_each(|name| self.forget_name(name));
                    pending.extend(entries.into_values());
                }
                Kind::Symlink(_) | Kind::Special(_) => {}
            }
        }
        Ok(freed)
    }

    fn forget_name(&mut self, name: &[u8]) {
        self.names -= 1;
        self.metadata -= name.len() as u64;
    }

    fn charge(&mut self, bytes: u64) -> Result<(), Error> {
        if self.metadata + bytes > self.max_metadata {
            return Err(Error::TooMuchMetadata { max_bytes: self.max_metadata });
        }
        self.metadata += bytes;
        Ok(())
    }
}

/// The inode's number on the disk.
pub(super) fn number(inode: Inode) -> u32 {
    if inode == Tree::ROOT { ROOT_INODE } else { FIRST_INODE - 1 + inode.0 }
}

/// For error messages.
fn escape(name: &[u8]) -> String {
    name.escape_ascii().to_string()
}
