//! The 256 bytes of an inode.

use super::Time;
use super::checksum::{Seed, crc};
use super::layout::{EXTRA_INODE_SIZE, INODE_SIZE, high16, high32, low16, low32, put16, put32};
use super::xattr::INLINE;

/// The file's blocks are found by extents.
pub(super) const EXTENTS: u32 = 0x8_0000;
/// The content is the value of an attribute.
pub(super) const VALUE: u32 = 0x20_0000;
/// The directory is an index.
pub(super) const INDEXED: u32 = 0x1000;

/// What goes into an inode.
pub(super) struct Record<'a> {
    /// Type and permissions.
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Stamp,
    pub(super) atime: Stamp,
    /// The inode's last change, and its birth.
    pub(super) ctime: Stamp,
    pub(super) crtime: Stamp,
    /// Counts changes; nobody does in base disks.
    pub(super) version: u32,
    pub(super) links: u16,
    pub(super) body: &'a Body,
    pub(super) xattrs: Option<&'a [u8; INLINE]>,
}

/// Where an inode's content is.
pub(super) struct Body {
    /// Bytes of content.
    pub(super) size: u64,
    /// Blocks on the disk: content, extent tree and attributes.
    pub(super) blocks: u64,
    pub(super) flags: u32,
    /// `i_block`: the root of the extents, or a device's number, or a short symlink's target.
    pub(super) map: [u8; 60],
    /// The block with extended attributes, or 0.
    pub(super) xattr_block: u64,
}

impl Record<'_> {
    /// As the inode of this number.
    pub(super) fn encode(&self, number: u32, seed: Seed) -> [u8; INODE_SIZE] {
        let inode = &mut [0; INODE_SIZE];
        let sectors = self.body.blocks * 8;
        put16(inode, 0x00, self.mode);
        put16(inode, 0x02, low16(self.uid));
        put32(inode, 0x04, low32(self.body.size));
        put16(inode, 0x18, low16(self.gid));
        put16(inode, 0x1a, self.links);
        put32(inode, 0x1c, low32(sectors));
        put32(inode, 0x20, self.body.flags);
        put32(inode, 0x24, self.version);
        inode[0x28..0x64].copy_from_slice(&self.body.map);
        put32(inode, 0x68, low32(self.body.xattr_block));
        put32(inode, 0x6c, high32(self.body.size));
        put16(inode, 0x74, low16(high32(sectors)));
        put16(inode, 0x76, low16(high32(self.body.xattr_block)));
        put16(inode, 0x78, high16(self.uid));
        put16(inode, 0x7a, high16(self.gid));
        put16(inode, 0x80, EXTRA_INODE_SIZE);
        // Access, inode change, data change, birth.
        let times = [
            (0x08, 0x8c, self.atime),
            (0x0c, 0x84, self.ctime),
            (0x10, 0x88, self.mtime),
            (0x90, 0x94, self.crtime),
        ];
        for (at, extra_at, Stamp { seconds, extra }) in times {
            put32(inode, at, seconds);
            put32(inode, extra_at, extra);
        }
        if let Some(xattrs) = self.xattrs {
            inode[INODE_SIZE - INLINE..].copy_from_slice(xattrs);
        }
        let checksum = crc(seed.inode(number), inode);
        put16(inode, 0x7c, low16(checksum));
        put16(inode, 0x82, high16(checksum));
        *inode
    }
}

/// The last second that ext4 can hold: 2446-05-10 22:38:55 UTC. Of those from 2310-04-04 to 2378-04-22 e2fsck
/// remarks that they are likely from before 1970, as kernels before 3.14 wrote them; it has no error to tell.
const LATEST: i64 = (1 << 34) - (1 << 31) - 1;

/// The first second that ext4 can hold: 1901-12-13 20:45:52 UTC.
const EARLIEST: i64 = i32::MIN as i64;

/// A time as ext4 keeps it: signed 32-bit seconds, and 30 bits of nanoseconds above two bits that extend
/// the seconds upwards.
#[derive(Clone, Copy, Default)]
pub(super) struct Stamp {
    seconds: u32,
    extra: u32,
}

impl Stamp {
    /// A number in the place of a time's seconds.
    pub(super) fn of_word(word: u32) -> Self {
        Stamp { seconds: word, extra: 0 }
    }
}

impl From<Time> for Stamp {
    fn from(time: Time) -> Self {
        let seconds = time.sec.clamp(EARLIEST, LATEST);
        // Linux keeps no fraction of the first and the last second, and what is beyond becomes a whole one.
        let exact = seconds == time.sec && seconds > EARLIEST && seconds < LATEST;
        let nsec = if exact { time.nsec.min(999_999_999) } else { 0 };
        let low = seconds as i32;
        let epoch = ((seconds - i64::from(low)) >> 32) as u32;
        Stamp { seconds: low as u32, extra: nsec << 2 | epoch }
    }
}
