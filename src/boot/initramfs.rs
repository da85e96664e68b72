//! The initramfs: two archives, one behind the other.
//!
//! ```text
//! what came with the kernel, and its modules        the same for every daemon
//!   /modules/order   file names, one a line, in load order
//!   /modules/*.ko    uncompressed
//! the guest and the few nodes that it needs at first: unpacked last, so that it wins
//!   /init            the guest
//!   /dev/console     so that the kernel can give init its standard streams
//!   /dev /proc /sys /run
//! ```
//!
//! Both are newc archives (the kernel's Documentation/driver-api/early-userspace/buffer-format). The same
//! inputs give the same bytes.

use std::io::{self, Write};
use std::path::Path;

use cpio::newc;

use super::modules::Module;

/// The kernel's part, behind its own initial RAM disk.
pub(super) fn of_kernel(initrd: &[u8], modules: &[Module]) -> io::Result<Vec<u8>> {
    let mut archive = Archive { bytes: initrd.to_vec(), entries: 0 };
    archive.pad();
    archive.entry("modules", DIRECTORY | 0o755, (0, 0), &[])?;
    let order: String = modules.iter().map(|module| format!("{}\n", module.file_name)).collect();
    archive.entry("modules/order", REGULAR | 0o644, (0, 0), order.as_bytes())?;
    for Module { file_name, bytes } in modules {
        let path = Path::new("modules").join(file_name);
        archive.entry(&path.to_string_lossy(), REGULAR | 0o644, (0, 0), bytes)?;
    }
    archive.finish()
}

/// The daemon's part.
pub(super) fn of_guest(guest: &[u8]) -> io::Result<Vec<u8>> {
    let mut archive = Archive { bytes: Vec::new(), entries: 0 };
    for dir in ["dev", "proc", "sys", "run"] {
        archive.entry(dir, DIRECTORY | 0o755, (0, 0), &[])?;
    }
    archive.entry("dev/console", CHARACTER | 0o600, CONSOLE, &[])?;
    archive.entry("init", REGULAR | 0o755, (0, 0), guest)?;
    archive.finish()
}

struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER: u32 = 0o020_000;
/// The major and minor number of `/dev/console` (the kernel's Documentation/admin-guide/devices.txt).
const CONSOLE: (u32, u32) = (5, 1);

impl Archive {
    /// Archives begin at multiples of four bytes; what is between them is skipped.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> io::Result<Vec<u8>> {
        newc::trailer(&mut self.bytes)?;
        self.pad();
        Ok(self.bytes)
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), bytes: &[u8]) -> io::Result<()> {
        self.entries += 1;
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        let header = newc::Builder::new(name)
            .ino(self.entries)
            .mode(mode)
            .nlink(1)
            .rdev_major(device.0)
            .rdev_minor(device.1);
        let mut writer = header.write(&mut self.bytes, length);
        writer.write_all(bytes)?;
        writer.finish().map(drop)
    }
}
