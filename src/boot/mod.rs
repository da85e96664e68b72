//! What VMs boot from: a kernel, and an initramfs made for it.
//!
//! In: which kernel ([`KernelSource`]: the host's, files, an image's own), its modules, and the guest's binary.
//! Out: [`BootFiles`] in a folder of the daemon's own ([`BootCache`]), named by the hash of all that went in. So a
//! package upgrade under a running daemon breaks no restart, an image's kernel stays what it was when the image
//! was looked at, and a second start of the daemon builds nothing.

mod cache;
mod error;
mod files;
mod initramfs;
mod kernel;
mod modules;
mod unpack;

#[cfg(test)]
mod rules;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

pub use cache::{BootCache, Settings};
pub use error::{BootError, KernelError};

use crate::image::KernelFiles;

/// Which kernel an image's VMs boot, as its spec says.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum KernelSource {
    /// The host's: what the daemon found when it started.
    Host,
    /// Files of the host.
    File(KernelFiles),
    /// Files in the image itself.
    Image(KernelPaths),
    /// The newest in another image, by its reference in a registry.
    Oci(String),
}

/// Where in an image the kernel is, as absolute paths there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KernelPaths {
    /// The kernel; none takes the newest of `/boot/vmlinuz-*` that has modules.
    pub kernel: Option<PathBuf>,
    /// The folder with its modules; none looks in `/lib/modules`.
    pub modules: Option<PathBuf>,
}

/// As people name it: `the host's kernel`, `/srv/vmlinuz`, `the kernel of debian:12`.
impl fmt::Display for KernelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KernelSource::Host => f.write_str("the host's kernel"),
            KernelSource::File(files) => files.kernel.display().fmt(f),
            KernelSource::Image(KernelPaths { kernel: Some(kernel), .. }) => {
                write!(f, "{} of the image", kernel.display())
            }
            KernelSource::Image(_) => f.write_str("the image's own kernel"),
            KernelSource::Oci(reference) => write!(f, "the kernel of {reference}"),
        }
    }
}

/// What an image's spec says about booting.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KernelChoice {
    /// Which kernel; none is the one that came with the image's root, or else the host's.
    pub source: Option<KernelSource>,
    /// Appended to vmlet's own command line.
    pub command_line: Option<String>,
}

/// What a VM boots: the choice, once its kernel is made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Boot {
    /// The kernel; none is the host's.
    pub kernel: Option<KernelId>,
    /// Appended to vmlet's own command line.
    pub command_line: Option<String>,
}

/// A kernel with its modules, by the hash of what they are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KernelId(pub(crate) String);

impl fmt::Display for KernelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A kernel to be made ready.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum KernelRequest {
    /// From files of the host.
    Files(KernelFiles),
    /// From a base disk, which is not mounted.
    Disk {
        /// The raw ext4 disk.
        disk: PathBuf,
        /// Where in it.
        paths: KernelPaths,
    },
}

/// Complete boot files, readable by every user that can reach them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootFiles {
    /// The kernel in the form that the driver asked for, if it can be had.
    pub kernel: PathBuf,
    /// An uncompressed cpio archive: unpacking it in the guest is copying. One that came with the kernel is
    /// before it, as it was.
    pub initramfs: PathBuf,
    /// The kernel's release, for people.
    pub release: String,
}

/// The form of a kernel that a driver starts best.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelForm {
    /// As it is installed: compressed, with the code that unpacks it.
    Installed,
    /// An ELF that is entered directly, so that the guest need not unpack it.
    Elf,
}

/// Where kernels are made ready. The real one is [`BootCache`]; the other one is scripted.
///
/// Nothing here holds a guard while it works.
#[async_trait]
pub trait Kernels: Send + Sync + 'static {
    /// Makes boot files of a kernel, or finds those that are made. Of any number that ask for the same one at
    /// once, one makes it; different ones are made at once.
    async fn make(&self, request: &KernelRequest) -> Result<KernelId, KernelError>;

    /// The files of a kernel, if they are there; with none, those of the host's kernel.
    fn files(&self, kernel: Option<&KernelId>) -> Option<BootFiles>;

    /// Readies these kernels for this daemon's VMs, as far as they are there, and removes all others but the
    /// host's. For start-up: what is made at the same time may go.
    async fn keep(&self, kernels: &BTreeSet<KernelId>) -> Result<(), KernelError>;
}
