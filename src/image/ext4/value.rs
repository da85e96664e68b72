//! Values of extended attributes in inodes of their own.

use super::Error;
use super::FileType;
use super::checksum::Seed;
use super::disk::Disk;
use super::finish::{Groups, place, type_code};
use super::inode::{Body, Record, Stamp, VALUE};
use super::layout::{BLOCK, BLOCK_BYTES};
use super::tree::Attributes;

/// The inodes of values, numbered behind all others.
pub(super) struct Values {
    before: u32,
    written: Vec<Written>,
    seed: Seed,
}

/// A value that is on the disk, and what its inode is made of.
struct Written {
    body: Body,
    hash: u32,
    uid: u32,
    gid: u32,
    mtime: Stamp,
}

impl Values {
    /// Behind the last number of the others.
    pub(super) fn behind(last: u32, seed: Seed) -> Self {
        Values { before: last, written: Vec::new(), seed }
    }

    pub(super) fn last_number(&self) -> u32 {
        self.before + self.written.len() as u32
    }

    pub(super) fn are_there(&self) -> bool {
        !self.written.is_empty()
    }

    /// Writes the values of one object, and puts their inodes' numbers beside their names. Returns the blocks that
    /// they take, which count as the object's, too.
    pub(super) fn write(&mut self, attributes: &mut Attributes, disk: &mut Disk) -> Result<u64, Error> {
        let Attributes { uid, gid, mtime, .. } = *attributes;
        let Some(xattrs) = &mut attributes.xattrs else { return Ok(0) };
        let mut blocks = 0;
        for value in xattrs.take_values(self.last_number() + 1) {
            let length = value.bytes.len() as u64;
            let mut data = value.bytes.into_vec();
            data.resize(data.len().next_multiple_of(BLOCK), 0);
            let mut body = place(&data, length, self.seed.inode(self.last_number() + 1), disk)?;
            body.flags |= VALUE;
            blocks += length.div_ceil(BLOCK_BYTES);
            self.written.push(Written { body, hash: value.hash, uid, gid, mtime });
        }
        Ok(blocks)
    }

    /// Writes the inodes. Other inodes' times are other things here (fs/ext4/xattr.c): the access is the value's
    /// hash; the change, with the version below it, is the number of entries that have the value.
    pub(super) fn write_inodes(&self, groups: &mut Groups, disk: &mut Disk) -> Result<(), Error> {
        for (number, value) in (self.before + 1..).zip(&self.written) {
            let record = Record {
                mode: type_code(FileType::Regular).1 | 0o600,
                uid: value.uid,
                gid: value.gid,
                mtime: value.mtime,
                atime: Stamp::of_word(value.hash),
                ctime: Stamp::of_word(0),
                crtime: value.mtime,
                version: 1,
                links: 1,
                body: &value.body,
                xattrs: None,
            };
            disk.sink.seek(groups.use_inode(number, false))?;
            disk.sink.write(&record.encode(number, self.seed))?;
        }
        Ok(())
    }
}
