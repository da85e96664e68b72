//! What every VM boots from: the host's kernel and an initramfs made for it.
//!
//! In: the installed kernels, their modules, and the guest's binary. Out: a `vmlinuz` and an
//! `initramfs.cpio` in a folder of the daemon's own, named by the hash of all that went in. So a package
//! upgrade under a running daemon breaks no restart, and a second start of the daemon builds nothing.

mod initramfs;
mod kernel;
mod modules;

#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

pub use kernel::Kernel;

/// Where to look, and where to keep what was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The kernel image; none takes the newest of `/boot/vmlinuz-*` that has modules.
    pub kernel: Option<PathBuf>,
    /// Its modules; none takes `/lib/modules/RELEASE`, RELEASE being what follows `vmlinuz-`.
    pub modules: Option<PathBuf>,
    /// A folder that nothing else uses. Made if absent; what is old in it is removed.
    pub cache: PathBuf,
}

/// Complete boot files, readable by every user that can reach them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootFiles {
    /// A compressed kernel image.
    pub kernel: PathBuf,
    /// An uncompressed cpio archive: unpacking it in the guest is copying.
    pub initramfs: PathBuf,
    /// The kernel's release, for people.
    pub release: String,
}

/// Why there is nothing to boot.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// No kernel in the usual place.
    #[error(
        "no kernel with modules found ({boot}/vmlinuz-RELEASE and {modules}/RELEASE); install one (Debian: apt \
         install linux-image-cloud-amd64) or name one in the settings"
    )]
    NoKernel {
        /// Where kernels were looked for.
        boot: PathBuf,
        /// Where modules were looked for.
        modules: PathBuf,
    },
    /// A kernel was named, but not where its modules are.
    #[error(
        "cannot tell the modules of {0}, because it is not called vmlinuz-RELEASE; name their folder in the settings"
    )]
    UnknownRelease(PathBuf),
    /// The kernel lacks a driver.
    #[error(
        "{modules} has no module {name}, and it is not built in either; guests cannot boot with this kernel"
    )]
    NoModule {
        /// The module.
        name: String,
        /// Where it should be.
        modules: PathBuf,
    },
    /// A module that cannot be unpacked.
    #[error(
        "{path} is compressed with {kind}, which is not supported; unpack the modules or use another kernel"
    )]
    Compression {
        /// The module.
        path: PathBuf,
        /// The compression.
        kind: &'static str,
    },
    /// A file that is not what it should be.
    #[error("{path}: {problem}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A file that cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl BootError {
    fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> BootError {
        let path = path.into();
        |source| BootError::Io { path, source }
    }
}

/// Changes whenever the layout of the initramfs does.
const FORMAT: u32 = 1;

/// Finds or makes the boot files. Blocking: some 50 ms when it makes them. At most one call at a
/// time for one cache.
///
/// `guest` becomes `/init`.
pub fn prepare(settings: &Settings, guest: &[u8]) -> Result<BootFiles, BootError> {
    let kernel = Kernel::find(settings)?;
    let modules = modules::needed(&kernel.modules)?;
    let name = fingerprint(&kernel, &modules, guest)?;
    let dir = settings.cache.join(&name);
    if !dir.is_dir() {
        build(settings, &kernel, &modules, guest, &dir)?;
    }
    remove_others(&settings.cache, &name);
    Ok(BootFiles {
        kernel: dir.join(KERNEL_FILE),
        initramfs: dir.join(INITRAMFS_FILE),
        release: kernel.release,
    })
}

const KERNEL_FILE: &str = "vmlinuz";
const INITRAMFS_FILE: &str = "initramfs.cpio";
const STAGING: &str = "staging";

/// Builds in a staging folder and renames, so that a folder with a final name is complete.
fn build(
    settings: &Settings,
    kernel: &Kernel,
    modules: &[PathBuf],
    guest: &[u8],
    dir: &Path,
) -> Result<(), BootError> {
    let staging = settings.cache.join(STAGING);
    match fs::remove_dir_all(&staging) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(BootError::io(&staging)(error)),
        _ => {}
    }
    fs::create_dir_all(&staging).map_err(BootError::io(&staging))?;
    let target = staging.join(KERNEL_FILE);
    // A copy, because some distributions let only root read the original.
    fs::copy(&kernel.image, &target).map_err(BootError::io(&kernel.image))?;
    finish_file(&target).map_err(BootError::io(&target))?;
    let target = staging.join(INITRAMFS_FILE);
    let archive = initramfs::build(guest, modules)?;
    fs::write(&target, archive).and_then(|()| finish_file(&target)).map_err(BootError::io(&target))?;
    fs::set_permissions(&staging, fs::Permissions::from_mode(0o755)).map_err(BootError::io(&staging))?;
    fs::rename(&staging, dir).map_err(BootError::io(dir))
}

/// World-readable, and on disk before its folder gets its final name.
fn finish_file(path: &Path) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))?;
    File::open(path)?.sync_all()
}

/// A name for exactly these inputs. Modules and kernel are known by size and time, as make does.
fn fingerprint(kernel: &Kernel, modules: &[PathBuf], guest: &[u8]) -> Result<String, BootError> {
    let mut hash = Sha256::new();
    let mut add = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    add(&FORMAT.to_le_bytes());
    add(kernel.release.as_bytes());
    add(guest);
    for path in std::iter::once(&kernel.image).chain(modules) {
        let metadata = fs::metadata(path).map_err(BootError::io(path))?;
        add(path.as_os_str().as_encoded_bytes());
        let mut stamp = Vec::new();
        write!(stamp, "{} {} {}", metadata.len(), metadata.mtime(), metadata.mtime_nsec())
            .expect("a Vec takes everything");
        add(&stamp);
    }
    Ok(hex::encode(&hash.finalize()[..16]))
}

/// Boot files of earlier kernels: running VMs have read theirs, and the next start uses the new ones.
fn remove_others(cache: &Path, keep: &str) {
    let Ok(entries) = fs::read_dir(cache) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_name() != keep) {
        if let Err(error) = fs::remove_dir_all(entry.path()) {
            tracing::warn!(path = %entry.path().display(), %error, "cannot remove old boot files");
        }
    }
}
