//! Layers onto the tree of the disk, as the OCI image-spec says (layer.md, "Applying Changesets").
//!
//! Rules where the spec is silent:
//! - An entry's name is normalised as text, as if the root were the current directory: `..` never
//!   climbs above it. Symlinks on the way to an entry are followed inside the root, at most
//!   [`MAX_HOPS`] of them; the entry itself is never followed, so a directory replaces a symlink.
//! - Missing directories are made, 0755, root's, at time 0. A later entry of the same layer may
//!   still describe them, and a directory that is listed again keeps its children.
//! - Whiteouts and opaque directories hide what lower layers put there and nothing of their own
//!   layer, wherever in it they stand.
//! - What aufs kept for itself (`/.wh..wh.…`) is no part of the disk; hard links to its `.wh..wh.plnk` are
//!   hard links of one file.
//! - Metadata of hard link entries is ignored: it is the target's.

use std::collections::HashSet;

use super::archive::{Archive, CopyError, Entry, Kind};
use super::sparse::SparseMap;
use super::whiteout::{self, Name};
use crate::image::error::printable;
use crate::image::ext4::{self, Builder, FileType, Inode, Meta};
use crate::image::limits::check;
use crate::image::{ImageError, Limits};

/// Linux follows as many symlinks in one path (path_resolution(7)).
const MAX_HOPS: usize = 40;

/// The file system under construction.
pub(crate) struct Tree<'a> {
    pub(super) builder: Builder,
    limits: &'a Limits,
    entries: u64,
}

impl<'a> Tree<'a> {
    /// A tree of nothing but the root, which the builder makes as a missing directory would be made.
    pub(crate) fn new(builder: Builder, limits: &'a Limits) -> Self {
        Tree { builder, limits, entries: 0 }
    }

    /// The writer, to be finished.
    pub(crate) fn into_builder(self) -> Builder {
        self.builder
    }

    /// Bounds what one path may cost: Linux follows as many symlinks, and none of such a length together.
    fn check_hops(&self, hops: usize, followed: usize) -> Result<(), ImageError> {
        if hops > MAX_HOPS {
            return Err(ImageError::invalid("too many levels of symbolic links"));
        }
        let bound = self.limits.path_bytes;
        check("the symlinks on the way to a path, together,", "path_bytes", followed, bound)
    }

    /// Applies one layer, a tar stream.
    pub(crate) fn apply(&mut self, layer: impl std::io::BufRead) -> Result<(), ImageError> {
        let limits = self.limits;
        let mut archive = Archive::new(layer, limits);
        let mut layer =
            Layer { tree: self, made: HashSet::new(), linked: HashSet::new(), pruned: HashSet::new() };
        while let Some(mut entry) = archive.next()? {
            layer.tree.entries += 1;
            check("the number of tar entries", "entries", layer.tree.entries, limits.entries)?;
            let path = std::mem::take(&mut entry.path);
            layer
                .entry(&path, entry, &mut archive)
                .map_err(|error| error.at(format_args!("\"{}\"", printable(&path))))?;
        }
        layer.remove_aufs_links()
    }
}

/// What directories are that no layer describes.
pub(super) fn implied() -> Meta {
    Meta { mode: 0o755, ..Meta::default() }
}

/// A layer while it is applied: what in the tree is its own.
pub(super) struct Layer<'t, 'a> {
    pub(super) tree: &'t mut Tree<'a>,
    /// Made or, for directories, described by this layer. An inode that is freed may come back
    /// for another file: that one is this layer's too.
    pub(super) made: HashSet<Inode>,
    /// Names that this layer linked to files of lower layers. What takes the place of one is this layer's, too.
    pub(super) linked: HashSet<(Inode, Vec<u8>)>,
    /// Directories without anything of lower layers in or below them.
    pub(super) pruned: HashSet<Inode>,
}

impl Layer<'_, '_> {
    fn entry<R: std::io::BufRead>(
        &mut self,
        path: &[u8],
        entry: Entry,
        archive: &mut Archive<'_, R>,
    ) -> Result<(), ImageError> {
        let mut components = self.components(path)?;
        let Some(name) = components.pop() else {
            let root = self.tree.builder.root();
            return match entry.kind {
                Kind::Directory => self.tree.builder.set_meta(root, entry.meta).map_err(on_disk),
                _ => Err(ImageError::invalid("the root is not a directory")),
            };
        };
        match whiteout::meaning(&components, name) {
            Name::Whiteout(hidden) => return self.whiteout(components, hidden),
            Name::Opaque => return self.opaque(components),
            Name::Aufs => return Ok(()),
            Name::Plain => {}
        }
        let Some(parent) = self.resolve(components, true)? else { return Ok(()) };
        match entry.kind {
            Kind::Directory => self.directory(parent, name, entry.meta),
            Kind::Hardlink(target) => self.hardlink(parent, name, &target),
            Kind::File(size) => {
                self.clear(parent, name)?;
                let mut file = self.tree.builder.create(parent, name, entry.meta).map_err(on_disk)?;
                archive.copy(size, &mut file).map_err(copying)?;
                let inode = file.finish().map_err(on_disk)?;
                self.made.insert(inode);
                Ok(())
            }
            Kind::Sparse(map) => {
                self.clear(parent, name)?;
                let inode = self.sparse_file(parent, name, entry.meta, &map, archive)?;
                self.made.insert(inode);
                Ok(())
            }
            Kind::Symlink(target) => {
                check("the target of a symlink", "path_bytes", target.len(), self.tree.limits.path_bytes)?;
                self.clear(parent, name)?;
                let inode = self.tree.builder.symlink(parent, name, &target, entry.meta).map_err(on_disk)?;
                self.made.insert(inode);
                Ok(())
            }
            Kind::Special(special) => {
                self.clear(parent, name)?;
                let inode = self.tree.builder.special(parent, name, special, entry.meta).map_err(on_disk)?;
                self.made.insert(inode);
                Ok(())
            }
        }
    }

    /// A name's components, normalised as text.
    fn components<'p>(&self, path: &'p [u8]) -> Result<Vec<&'p [u8]>, ImageError> {
        check("a path", "path_bytes", path.len(), self.tree.limits.path_bytes)?;
        let mut components = Vec::new();
        for component in path.split(|byte| *byte == b'/') {
            match component {
                b"" | b"." => {}
                b".." => {
                    components.pop();
                }
                name => components.push(name),
            }
        }
        check("the depth of a path", "depth", components.len(), self.tree.limits.depth)?;
        Ok(components)
    }

    /// The directory at a path. Missing ones are made, or the answer is `None`. A missing one that the path
    /// leaves again by `..` is none of them.
    pub(super) fn resolve(&mut self, path: Vec<&[u8]>, make: bool) -> Result<Option<Inode>, ImageError> {
        let mut way = vec![self.tree.builder.root()];
        let mut missing: Vec<Vec<u8>> = Vec::new();
        let mut ahead: Vec<Vec<u8>> = path.into_iter().rev().map(<[u8]>::to_vec).collect();
        let (mut hops, mut followed) = (0, 0);
        while let Some(name) = ahead.pop() {
            let here = *way.last().expect("the root is never left");
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    if missing.pop().is_none() {
                        way.truncate((way.len() - 1).max(1));
                    }
                    continue;
                }
                _ if !missing.is_empty() => missing.push(name),
                _ => match self.tree.builder.lookup(here, &name) {
                    Some((inode, FileType::Directory)) => way.push(inode),
                    Some((inode, FileType::Symlink)) => {
                        hops += 1;
                        let target = self.tree.builder.symlink_target(inode).unwrap_or_default();
                        followed += target.len();
                        self.tree.check_hops(hops, followed)?;
                        if target.starts_with(b"/") {
                            way.truncate(1);
                        }
                        ahead.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
                    }
                    Some(_) => {
                        return Err(ImageError::invalid(format!(
                            "\"{}\" on its way is not a directory",
                            printable(&name)
                        )));
                    }
                    None => missing.push(name),
                },
            }
            let depth = way.len() + missing.len() - 1;
            check("the depth of a path", "depth", depth, self.tree.limits.depth)?;
        }
        if !make && !missing.is_empty() {
            return Ok(None);
        }
        let mut here = *way.last().expect("the root is never left");
        for name in missing {
            here = self.tree.builder.mkdir(here, &name, implied()).map_err(on_disk)?;
            self.made.insert(here);
        }
        Ok(Some(here))
    }

    fn directory(&mut self, parent: Inode, name: &[u8], meta: Meta) -> Result<(), ImageError> {
        let inode = match self.tree.builder.lookup(parent, name) {
            Some((inode, FileType::Directory)) => {
                self.tree.builder.set_meta(inode, meta).map_err(on_disk)?;
                inode
            }
            _ => {
                self.clear(parent, name)?;
                self.tree.builder.mkdir(parent, name, meta).map_err(on_disk)?
            }
        };
        self.made.insert(inode);
        Ok(())
    }

    fn hardlink(&mut self, parent: Inode, name: &[u8], target: &[u8]) -> Result<(), ImageError> {
        let inode = self.link_target(target)?;
        if self.tree.builder.lookup(parent, name).is_none_or(|(there, _)| there != inode) {
            self.clear(parent, name)?;
            // What was in the way may have been a directory with the target in it.
            if self.link_target(target)? != inode {
                return Err(ImageError::invalid("a hard link replaces its own target"));
            }
            self.tree.builder.link(parent, name, inode).map_err(on_disk)?;
        }
        if !self.made.contains(&inode) {
            self.linked.insert((parent, name.to_vec()));
        }
        Ok(())
    }

    fn link_target(&mut self, target: &[u8]) -> Result<Inode, ImageError> {
        let mut components = self.components(target)?;
        let name = components.pop();
        let parent = self.resolve(components, false)?;
        match parent.zip(name).and_then(|(parent, name)| self.tree.builder.lookup(parent, name)) {
            Some((_, FileType::Directory)) => Err(ImageError::invalid("a hard link to a directory")),
            Some((inode, _)) => Ok(inode),
            None => Err(ImageError::invalid(format!(
                "a hard link to \"{}\", which does not exist",
                printable(target)
            ))),
        }
    }

    fn sparse_file<R: std::io::BufRead>(
        &mut self,
        parent: Inode,
        name: &[u8],
        meta: Meta,
        map: &SparseMap,
        archive: &mut Archive<'_, R>,
    ) -> Result<Inode, ImageError> {
        let mut file = self.tree.builder.create(parent, name, meta).map_err(on_disk)?;
        let mut position = 0;
        for segment in &map.segments {
            file.seek_hole(segment.offset - position).map_err(on_disk)?;
            archive.copy(segment.length, &mut file).map_err(copying)?;
            position = segment.offset + segment.length;
        }
        file.seek_hole(map.size - position).map_err(on_disk)?;
        file.finish().map_err(on_disk)
    }

    /// Makes room for a new entry.
    pub(super) fn clear(&mut self, parent: Inode, name: &[u8]) -> Result<(), ImageError> {
        if self.tree.builder.lookup(parent, name).is_some() {
            self.tree.builder.remove(parent, name).map_err(on_disk)?;
        }
        Ok(())
    }
}

fn copying(error: CopyError) -> ImageError {
    match error {
        CopyError::Read(_) => error.into(),
        CopyError::Write(error) => match error.downcast::<ext4::Error>() {
            Ok(error) => on_disk(error),
            Err(error) => ImageError::host("writing the base disk", &error),
        },
    }
}

/// What the writer says, as what it means for an image.
pub(crate) fn on_disk(error: ext4::Error) -> ImageError {
    match error {
        ext4::Error::Io { action, source } => {
            ImageError::host(format_args!("cannot {action} the base disk"), &source)
        }
        ext4::Error::Full { max_bytes } => ImageError::limit("the base disk", "disk_bytes", max_bytes),
        ext4::Error::TooManyInodes { max_inodes } => {
            ImageError::limit("the number of files", "entries", max_inodes)
        }
        ext4::Error::TooMuchMetadata { max_bytes } => ImageError::limit(
            "what names, links and attributes take, at 256 bytes an entry,",
            "entries",
            max_bytes,
        ),
        other => ImageError::invalid(other.to_string()),
    }
}
