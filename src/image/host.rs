//! Files of the host that are registered as an image: validated, never copied, changed or deleted.
//!
//! ```text
//! <state>/images/sha256-…/files.json   where they are, beside config.json
//! ```
//!
//! Their digest is over where they are, how long they are, when they were changed and their inodes, so that
//! other files have another digest. It says nothing about content: who may write them is trusted.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::ext4::inspect;
use super::local::Job;
use super::{Digest, HostFiles, ImageError, KernelFiles};

/// The record of registered files in an image's folder.
pub(crate) const FILES: &str = "files.json";
/// Files in a folder of modules, and how deep they are.
const MAX_MODULES: usize = 20_000;
const MAX_DEPTH: usize = 16;
/// Larger than any record.
const MAX_RECORD: u64 = 1 << 20;

/// What was registered.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Registered {
    files: HostFiles,
    /// The root's length in bytes.
    pub(crate) size: u64,
}

/// One file, as its digest sees it. The order of the fields is the canonical one.
#[derive(Serialize)]
struct Seen<'a> {
    role: &'a str,
    path: &'a str,
    size: u64,
    /// Seconds and nanoseconds since 1970.
    mtime: (i64, i64),
    inode: u64,
}

impl Registered {
    /// Validates the files. Returns them with links resolved, and their digest.
    pub(crate) fn look(files: &HostFiles, job: &Job) -> Result<(Registered, Digest), ImageError> {
        let real = |path: &Path| fs::canonicalize(path).map_err(|error| ImageError::file(path, &error));
        let optional = |path: &Option<PathBuf>| path.as_deref().map(real).transpose();
        let files = HostFiles {
            root: real(&files.root)?,
            kernel: optional(&files.kernel)?,
            initrd: optional(&files.initrd)?,
            modules: optional(&files.modules)?,
        };
        let mut digest = Identity::default();
        let (root, size) = digest.file("root", &files.root)?;
        inspect(&root, size).map_err(|error| error.at(files.root.display()))?;
        for (role, path) in [("kernel", &files.kernel), ("initrd", &files.initrd)] {
            if let Some(path) = path {
                digest.file(role, path)?;
            }
        }
        if let Some(path) = &files.modules {
            digest.folder(path, 0, job)?;
        }
        Ok((Registered { files, size }, digest.finish()))
    }

    /// Fails if the files are not what they were when they got their digest.
    pub(crate) fn check(&self, digest: &Digest, job: &Job) -> Result<(), ImageError> {
        let (now, found) = Registered::look(&self.files, job)?;
        if found == *digest {
            return Ok(());
        }
        let what = match now.size == self.size {
            true => String::new(),
            false => format!(" (it had {} bytes, and has {})", self.size, now.size),
        };
        Err(ImageError {
            reason: "FilesChanged",
            message: format!(
                "{} or a file beside it changed after the image was made of it{what}; delete the Image and \
                 declare it again to use it as it is now, or put the old file back, times included",
                self.files.root.display()
            ),
            transient: true,
        })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.files.root
    }

    pub(crate) fn kernel(&self) -> Option<KernelFiles> {
        let HostFiles { kernel, initrd, modules, .. } = &self.files;
        let kernel = kernel.clone()?;
        Some(KernelFiles { kernel, initrd: initrd.clone(), modules: modules.clone() })
    }

    /// Reads the record in an image's folder; none if there is none that can be read.
    pub(crate) fn read(folder: &Path) -> Option<Registered> {
        let mut text = Vec::new();
        File::open(folder.join(FILES)).ok()?.take(MAX_RECORD).read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    }

    pub(crate) fn write(&self, folder: &Path) -> Result<(), ImageError> {
        let path = folder.join(FILES);
        let write = || {
            let file = super::pull::create_public(&path)?;
            serde_json::to_writer_pretty(&file, self)?;
            file.sync_all()
        };
        write().map_err(|error: std::io::Error| ImageError::host(path.display(), &error))
    }
}

/// The digest under way.
#[derive(Default)]
struct Identity {
    hash: Sha256,
    modules: usize,
}

impl Identity {
    /// Opens a plain file and takes it in. Returns it with its length.
    fn file(&mut self, role: &str, path: &Path) -> Result<(File, u64), ImageError> {
        let failed = |error| ImageError::file(path, &error);
        // Not waiting for the other end of a FIFO.
        let flags = (rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY).bits().cast_signed();
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(ImageError::invalid(format!("{} is not a plain file", path.display())));
        }
        self.take(role, path, &metadata)?;
        Ok((file, metadata.len()))
    }

    fn take(&mut self, role: &str, path: &Path, metadata: &fs::Metadata) -> Result<(), ImageError> {
        let Some(path) = path.to_str() else {
            return Err(ImageError::invalid(format!("the name of {} is not UTF-8", path.display())));
        };
        let mtime = (metadata.mtime(), metadata.mtime_nsec());
        let seen = Seen { role, path, size: metadata.len(), mtime, inode: metadata.ino() };
        self.hash.update(serde_json::to_vec(&seen).expect("plain data"));
        self.hash.update(b"\n");
        Ok(())
    }

    /// Takes in the files of a folder in the order of their names. Links in it are not followed.
    fn folder(&mut self, path: &Path, depth: usize, job: &Job) -> Result<(), ImageError> {
        let failed = |error| ImageError::file(path, &error);
        let entries = fs::read_dir(path).map_err(failed)?;
        let entries = entries.take(MAX_MODULES + 1).collect::<Result<Vec<_>, _>>();
        let mut entries = entries.map_err(failed)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        self.modules += entries.len();
        if self.modules > MAX_MODULES || depth > MAX_DEPTH {
            return Err(ImageError::invalid(format!(
                "{} holds more than {MAX_MODULES} files, or folders more than {MAX_DEPTH} deep: it is no folder \
                 of a kernel's modules",
                path.display()
            )));
        }
        for entry in entries {
            job.go_on()?;
            let metadata = entry.metadata().map_err(failed)?;
            if metadata.is_dir() {
                self.folder(&entry.path(), depth + 1, job)?;
            } else if metadata.is_file() {
                self.take("modules", &entry.path(), &metadata)?;
            }
        }
        Ok(())
    }

    fn finish(self) -> Digest {
        Digest::sha256(self.hash.finalize().into())
    }
}
