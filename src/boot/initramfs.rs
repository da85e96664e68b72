//! The initramfs: the guest as `/init`, its modules, and the few nodes that it needs at first.
//!
//! ```text
//! /init            the guest
//! /modules/order   file names, one a line, in load order
//! /modules/*.ko    uncompressed
//! /dev/console     so that the kernel can give init its standard streams
//! /dev /proc /sys /run
//! ```

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use cpio::newc;

use super::{BootError, modules};

/// A newc archive (the kernel's Documentation/driver-api/early-userspace/buffer-format). The same inputs
/// give the same bytes.
pub(super) fn build(guest: &[u8], module_files: &[PathBuf]) -> Result<Vec<u8>, BootError> {
    let mut archive = Archive { bytes: Vec::new(), entries: 0 };
    let internal = BootError::io("initramfs");
    let mut modules = Vec::new();
    for path in module_files {
        let name = modules::module_name(path).expect("the index lists nothing but modules");
        modules.push((format!("{name}.ko"), modules::read(path)?));
    }
    archive.fill(guest, &modules).map_err(internal)?;
    Ok(archive.bytes)
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
    fn fill(&mut self, guest: &[u8], modules: &[(String, Vec<u8>)]) -> io::Result<()> {
        for dir in ["dev", "proc", "sys", "run", "modules"] {
            self.entry(dir, DIRECTORY | 0o755, (0, 0), &[])?;
        }
        self.entry("dev/console", CHARACTER | 0o600, CONSOLE, &[])?;
        self.entry("init", REGULAR | 0o755, (0, 0), guest)?;
        let order: String = modules.iter().map(|(name, _)| format!("{name}\n")).collect();
        self.entry("modules/order", REGULAR | 0o644, (0, 0), order.as_bytes())?;
        for (name, bytes) in modules {
            let path = Path::new("modules").join(name);
            self.entry(&path.to_string_lossy(), REGULAR | 0o644, (0, 0), bytes)?;
        }
        newc::trailer(&mut self.bytes).map(drop)
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
