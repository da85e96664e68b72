//! The checksums of `metadata_csum`: CRC-32C without the final inversion, each started from a seed
//! that says whose metadata it is.

/// Continues a checksum over `data`.
pub(super) fn crc(seed: u32, data: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, data)
}

/// The start of every checksum of one filesystem.
#[derive(Clone, Copy)]
pub(super) struct Seed(u32);

impl Seed {
    pub(super) fn new(uuid: &[u8; 16]) -> Self {
        Seed(crc(!0, uuid))
    }

    /// For group descriptors (by group number) and the inode seed (by inode number).
    pub(super) fn number(self, number: u32) -> u32 {
        crc(self.0, &number.to_le_bytes())
    }

    /// For an inode and its directory and extent blocks; all generations are 0.
    pub(super) fn inode(self, number: u32) -> u32 {
        crc(self.number(number), &0u32.to_le_bytes())
    }

    /// Of a bitmap.
    pub(super) fn bitmap(self, bitmap: &[u8]) -> u32 {
        crc(self.0, bitmap)
    }

    /// Of an attribute's value in an inode of its own.
    pub(super) fn value(self, value: &[u8]) -> u32 {
        crc(self.0, value)
    }

    /// Of an xattr block that lies at `block` and has a zero in place of its checksum.
    pub(super) fn xattr_block(self, block: u64, content: &[u8]) -> u32 {
        crc(crc(self.0, &block.to_le_bytes()), content)
    }
}
