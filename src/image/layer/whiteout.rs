//! What hides files of lower layers: whiteouts and opaque directories (OCI image-spec, layer.md), and the
//! files that aufs, where both come from, kept beside them.

use super::apply::{Layer, implied};
use super::on_disk;
use crate::image::ImageError;
use crate::image::ext4::{FileType, Inode};

const WHITEOUT: &[u8] = b".wh.";
const META: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// The folder at the root where aufs kept files with several names.
const LINKS: &[u8] = b".wh..wh.plnk";

/// What a name means.
#[derive(Debug, PartialEq)]
pub(super) enum Name<'a> {
    /// A file.
    Plain,
    /// Lower layers' files of this name are hidden.
    Whiteout(&'a [u8]),
    /// All that lower layers put into this directory is hidden.
    Opaque,
    /// aufs' own, which was never part of an image.
    Aufs,
}

/// What an entry called `name` in the directory `parents` means.
pub(super) fn meaning<'a>(parents: &[&[u8]], name: &'a [u8]) -> Name<'a> {
    match parents.first() {
        Some(&LINKS) => return Name::Plain,
        Some(first) if first.starts_with(META) => return Name::Aufs,
        _ => {}
    }
    if name == OPAQUE {
        return Name::Opaque;
    }
    if name.starts_with(META) {
        return Name::Aufs;
    }
    name.strip_prefix(WHITEOUT).map_or(Name::Plain, Name::Whiteout)
}

impl Layer<'_, '_> {
    pub(super) fn whiteout(&mut self, parents: Vec<&[u8]>, hidden: &[u8]) -> Result<(), ImageError> {
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(ImageError::invalid("a whiteout of no name"));
        }
        let Some(parent) = self.resolve(parents, false)? else { return Ok(()) };
        match self.tree.builder.lookup(parent, hidden) {
            Some((inode, FileType::Directory)) => {
                self.prune(inode)?;
                self.settle(parent, hidden, inode)
            }
            Some((inode, _)) => self.hide_file(parent, hidden, inode),
            None => Ok(()),
        }
    }

    pub(super) fn opaque(&mut self, path: Vec<&[u8]>) -> Result<(), ImageError> {
        match self.resolve(path, false)? {
            Some(directory) => self.prune(directory),
            None => Ok(()),
        }
    }

    /// Takes the folder of files with several names away: those that the layer links to stay.
    pub(super) fn remove_aufs_links(&mut self) -> Result<(), ImageError> {
        self.clear(self.tree.builder.root(), LINKS)
    }

    /// Removes everything of lower layers in and below a directory. Once is enough: all that comes later is
    /// this layer's. A loop, as directories may be nested deeper than a stack.
    fn prune(&mut self, top: Inode) -> Result<(), ImageError> {
        let mut ahead = vec![top];
        // Every directory after the one that it is in.
        let mut below = Vec::new();
        while let Some(directory) = ahead.pop() {
            if !self.pruned.insert(directory) {
                continue;
            }
            let children: Vec<(Vec<u8>, Inode)> =
                self.tree.builder.children(directory).map(|(name, inode)| (name.to_vec(), inode)).collect();
            for (name, inode) in children {
                if self.tree.builder.lookup(directory, &name) == Some((inode, FileType::Directory)) {
                    ahead.push(inode);
                    below.push((directory, name, inode));
                } else {
                    self.hide_file(directory, &name, inode)?;
                }
            }
        }
        below.into_iter().rev().try_for_each(|(parent, name, inode)| self.settle(parent, &name, inode))
    }

    fn hide_file(&mut self, parent: Inode, name: &[u8], inode: Inode) -> Result<(), ImageError> {
        let ours = self.made.contains(&inode) || self.linked.contains(&(parent, name.to_vec()));
        if ours { Ok(()) } else { self.clear(parent, name) }
    }

    /// Decides what becomes of a hidden directory of which only this layer's files are left.
    fn settle(&mut self, parent: Inode, name: &[u8], inode: Inode) -> Result<(), ImageError> {
        if self.made.contains(&inode) {
            return Ok(());
        }
        if self.tree.builder.children(inode).next().is_none() {
            return self.clear(parent, name);
        }
        // It is as if just made for them.
        self.tree.builder.set_meta(inode, implied()).map_err(on_disk)?;
        self.made.insert(inode);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_mean_what_aufs_meant() {
        let cases = [
            ("", "file", Name::Plain),
            ("a", ".wh.file", Name::Whiteout(b"file")),
            ("a", ".wh..wh..opq", Name::Opaque),
            ("", ".wh..wh.aufs", Name::Aufs),
            ("", ".wh..wh.plnk", Name::Aufs),
            (".wh..wh.plnk", "12.34", Name::Plain),
            (".wh..wh.orph", "file", Name::Aufs),
            ("", ".wh.", Name::Whiteout(b"")),
            (".wh.a", "file", Name::Plain),
        ];
        for (parent, name, expected) in cases {
            let parents: Vec<&[u8]> =
                [parent.as_bytes()].into_iter().filter(|name| !name.is_empty()).collect();
            assert_eq!(meaning(&parents, name.as_bytes()), expected, "{parent}/{name}");
        }
    }
}
