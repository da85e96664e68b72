//! Base disks on the host, by name: the blocking half of the store.
//!
//! Guarantees: what has a name under `images/` is complete and on disk, as it got there by one rename;
//! what leaves, leaves by one rename too.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::bundle::{INITRD, KERNEL, MODULES};
use super::host::Registered;
use super::pull::{CONFIG, DISK};
use super::{BaseDisk, Digest, ImageConfig, ImageError, KernelFiles, StagedDisk};

/// Where disks are, and where they are made.
#[derive(Clone)]
pub(super) struct Folders {
    pub(super) images: PathBuf,
    pub(super) staging: PathBuf,
}

impl Folders {
    pub(super) fn image(&self, digest: &Digest) -> PathBuf {
        self.images.join(digest.folder())
    }

    pub(super) fn disk(&self, digest: &Digest) -> Option<BaseDisk> {
        let folder = self.image(digest);
        let config = read_config(&folder.join(CONFIG)).ok()?;
        if let Some(registered) = Registered::read(&folder) {
            let (path, size, kernel) = (registered.root().to_owned(), registered.size, registered.kernel());
            return Some(BaseDisk { digest: digest.clone(), path, size, config, kernel });
        }
        let path = folder.join(DISK);
        let size = fs::metadata(&path).ok().filter(fs::Metadata::is_file)?.len();
        let present = |name: &str| Some(folder.join(name)).filter(|path| path.exists());
        let kernel = present(KERNEL).map(|kernel| KernelFiles {
            kernel,
            initrd: present(INITRD),
            modules: present(MODULES),
        });
        (size > 0).then(|| BaseDisk { digest: digest.clone(), path, size, config, kernel })
    }

    pub(super) fn install(&self, mut staged: StagedDisk) -> Result<BaseDisk, ImageError> {
        let target = self.image(&staged.digest);
        let missing = || ImageError::host(target.display(), &io::Error::other("nothing was staged"));
        let folder = staged.dir.clone().ok_or_else(missing)?;
        // Twice: a broken image that is in the way is moved out of it.
        for _ in 0..2 {
            match fs::rename(&folder, &target) {
                Ok(()) => {
                    staged.dir = None;
                    sync(&self.images).map_err(at(&self.images))?;
                    return self.disk(&staged.digest).ok_or_else(missing);
                }
                Err(error) if is_taken(&error) => {
                    if let Some(disk) = self.disk(&staged.digest) {
                        return Ok(disk);
                    }
                    tracing::warn!(path = %target.display(), "replacing an incomplete image");
                    self.discard(&target).map_err(at(&target))?;
                }
                Err(error) => return Err(ImageError::host(target.display(), &error)),
            }
        }
        Err(missing())
    }

    pub(super) fn installed(&self) -> io::Result<Vec<Digest>> {
        let mut digests = Vec::new();
        for entry in fs::read_dir(&self.images)? {
            let name = entry?.file_name();
            let digest = name.to_str().and_then(|name| name.replacen('-', ":", 1).parse().ok());
            digests.extend(digest.filter(|digest| self.disk(digest).is_some()));
        }
        digests.sort();
        Ok(digests)
    }

    /// Takes a folder out of sight at once, then removes it. Absent is fine.
    pub(super) fn discard(&self, folder: &Path) -> io::Result<()> {
        let doomed = self.staging.join(Uuid::new_v4().to_string());
        match fs::rename(folder, &doomed) {
            Ok(()) => sync(&self.images)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        }
        fs::remove_dir_all(doomed)
    }

    pub(super) fn sweep(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.staging)? {
            let entry = entry?;
            let path = entry.path();
            tracing::info!(path = %path.display(), "removing what an interrupted pull left");
            // Where a file system has no files without a name, those of ours have one for a moment.
            if entry.file_type()?.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
        }
        Ok(())
    }
}

/// Others may pass through, as VMMs run as other users, but not look around.
pub(super) fn make_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o711).create(folder)?;
    fs::set_permissions(folder, Permissions::from_mode(0o711))
}

fn read_config(path: &Path) -> io::Result<ImageConfig> {
    /// Larger than any that `pull` writes: its source is bounded by `config_bytes`, 8 MiB unless raised.
    const BOUND: u64 = 64 << 20;
    let mut text = Vec::new();
    File::open(path)?.take(BOUND).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn is_taken(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory
    )
}

/// The host's error with the path that it is about.
pub(super) fn at(path: &Path) -> impl FnOnce(io::Error) -> ImageError {
    move |error| ImageError::host(path.display(), &error)
}
