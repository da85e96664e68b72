//! Bundles: a root, and perhaps the kernel that it runs on, in one tar (plain, gzip or zstd).
//!
//! | name | what |
//! | --- | --- |
//! | `rootfs.ext4`, or `rootfs.tar`, `rootfs.tar.gz`, `rootfs.tar.zst` | the root; exactly one |
//! | `vmlinuz` or `kernel` | a kernel; at most one |
//! | `initrd`, `modules/…` | what belongs to that kernel |
//! | `config.json` | the `config` of an OCI image config |
//!
//! The whole file goes into a file without a name first, inflated, and is hashed on the way. Nothing of it
//! is looked at before its SHA-256 is known to be the one that was asked for.

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use super::error::printable;
use super::ext4::inspect;
use super::layer::decoder;
use super::layout::{Member, Section, copy, drain, members, plain};
use super::limits::check;
use super::local::{Job, finish};
use super::manifest::{Descriptor, run_config};
use super::pull::{Build, DISK, Layer, blocking, create_public, filesystem_uuid};
use super::registry::Registry;
use super::{Digest, ImageConfig, ImageError, Place, Progress};

/// The kernel, its initial RAM disk and its modules in an image's folder.
pub(crate) const KERNEL: &str = "kernel";
pub(crate) const INITRD: &str = "initrd";
pub(crate) const MODULES: &str = "modules";

/// Folders above a module, and bytes of its name with them: with the state folder before it, it stays below
/// Linux' PATH_MAX.
const MAX_DEPTH: usize = 16;
const MAX_PATH: usize = 2048;
/// Linux' NAME_MAX.
const MAX_NAME: usize = 255;
/// A disk's length is a multiple of this.
const BLOCK: u64 = 4096;

/// The digest of a bundle on the host: its SHA-256.
pub(crate) async fn resolve(job: Job, path: PathBuf) -> Result<Digest, ImageError> {
    blocking("reading a bundle", move || {
        let mut file = Hashed::open(&path)?;
        drain(&mut file, &job)?;
        Ok(file.digest())
    })
    .await
}

/// Makes what is in the bundle of this digest, flushed to disk.
pub(crate) async fn stage(
    job: Job,
    registry: &Registry,
    place: &Place,
    digest: &Digest,
    folder: PathBuf,
    progress: watch::Sender<Progress>,
) -> Result<(u64, ImageConfig), ImageError> {
    let (tar, actual) = bring(job.clone(), registry, place, &progress).await?;
    if actual != *digest {
        return Err(ImageError::digest(format!("its digest is {actual}, and {digest} was asked for")));
    }
    let (unpacked, uuid) = (folder.clone(), filesystem_uuid(digest));
    let (size, run) =
        blocking("unpacking a bundle", move || unpack(tar, &unpacked, uuid, &job, progress)).await?;
    finish(folder, run, size).await
}

/// Puts what is in a bundle, which is a plain tar by now, into an image's folder. Returns the disk's length in
/// bytes, and the config.
pub(crate) fn unpack(
    tar: File,
    folder: &Path,
    uuid: [u8; 16],
    job: &Job,
    progress: watch::Sender<Progress>,
) -> Result<(u64, ImageConfig), ImageError> {
    Bundle::open(tar, job)?.unpack(folder, uuid, job, progress)
}

/// The bundle as a plain tar without a name, and its digest.
async fn bring(
    job: Job,
    registry: &Registry,
    place: &Place,
    progress: &watch::Sender<Progress>,
) -> Result<(File, Digest), ImageError> {
    let begin = |bytes| {
        progress.send_modify(|progress| {
            *progress = Progress { layers: 1, bytes, ..Progress::default() };
        })
    };
    match place {
        Place::Path(path) => {
            let path = path.clone();
            let mut file = blocking("opening a bundle", move || Hashed::open(&path)).await?;
            begin(file.length);
            let tar = blocking("reading a bundle", move || {
                let (tar, compressed) = (job.unnamed()?, file.length);
                let _room = job.promise(compressed.min(file.allocated))?;
                let bad = |error| ImageError::from_read("the bundle cannot be decompressed", error);
                copy(decoder(&mut file).map_err(bad)?, &tar, Some(compressed), &job)?;
                drain(&mut file, &job)?;
                Ok((tar, file.digest()))
            })
            .await?;
            progress.send_modify(|progress| progress.bytes_done = progress.bytes);
            Ok(tar)
        }
        Place::Url(url) => {
            let file = job.unnamed()?;
            let arrived = |bytes| progress.send_modify(|progress| progress.bytes_done += bytes);
            let digest = registry.fetch(url, &file, &job, begin, arrived).await?;
            let tar = blocking("inflating a bundle", move || plain(file, &job)).await?;
            Ok((tar, digest))
        }
    }
}

/// A file that is hashed while it is read.
struct Hashed {
    file: File,
    hash: Sha256,
    length: u64,
    /// Bytes that are no holes.
    allocated: u64,
}

impl Hashed {
    fn open(path: &Path) -> Result<Self, ImageError> {
        let failed = |error: io::Error| ImageError::file(path, &error);
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC | rustix::fs::OFlags::NONBLOCK;
        let file =
            rustix::fs::open(path, flags, rustix::fs::Mode::empty()).map_err(|error| failed(error.into()))?;
        let file = File::from(file);
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(ImageError::invalid(format!("{} is not a plain file", path.display())));
        }
        let (length, allocated) = (metadata.len(), metadata.blocks() * 512);
        Ok(Hashed { file, hash: Sha256::new(), length, allocated })
    }

    /// Of what was read.
    fn digest(self) -> Digest {
        Digest::sha256(self.hash.finalize().into())
    }
}

impl Read for Hashed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}

/// What is in a bundle, all names checked.
#[derive(Debug)]
struct Bundle {
    root: Root,
    kernel: Option<Section>,
    initrd: Option<Section>,
    /// Paths below `modules/`; none for folders.
    modules: Vec<(PathBuf, Option<Section>)>,
    config: Option<Section>,
}

#[derive(Debug)]
enum Root {
    Ext4(Section),
    Tar(Section),
}

impl Bundle {
    fn open(tar: File, job: &Job) -> Result<Self, ImageError> {
        let limits = job.limits();
        let (mut root, mut kernel, mut initrd, mut config, mut modules) =
            (None, None, None, None, Vec::new());
        let members = members(&tar, limits)?;
        let (tar, mut total) = (Arc::new(tar), 0u64);
        let mut names = HashSet::new();
        for (name, member) in members {
            let shown = printable(&name);
            let refuse = |why: &str| Err(ImageError::invalid(format!("\"{shown}\" {why}")));
            if matches!(member, Member::File { .. }) && !names.insert(name.clone()) {
                return refuse("is there twice");
            }
            let Ok(name) = std::str::from_utf8(&name) else { return refuse("is not a name of UTF-8") };
            let section = match member {
                Member::Folder => None,
                Member::File { offset, size } => Some(Section::new(tar.clone(), offset, size)),
                Member::Link(_) | Member::Other => return refuse("is not a plain file"),
            };
            total = total.saturating_add(section.as_ref().map_or(0, |section| section.size));
            check("the size of the bundle's files", "unpacked_bytes", total, limits.unpacked_bytes)?;
            let slot = match (name, section) {
                ("" | MODULES, None) => continue,
                (path, section) if path.starts_with("modules/") => {
                    let below = Path::new(&path[MODULES.len() + 1..]).to_owned();
                    if below.components().count() > MAX_DEPTH {
                        return refuse("lies too deep");
                    }
                    if path.len() > MAX_PATH || path.split('/').any(|name| name.len() > MAX_NAME) {
                        return refuse("is too long a name");
                    }
                    modules.push((below, section));
                    continue;
                }
                ("rootfs.ext4", Some(section)) => (root.replace(Root::Ext4(section)).is_some(), "root"),
                ("rootfs.tar" | "rootfs.tar.gz" | "rootfs.tar.zst", Some(section)) => {
                    (root.replace(Root::Tar(section)).is_some(), "root")
                }
                ("vmlinuz" | "kernel", Some(section)) => (kernel.replace(section).is_some(), "kernel"),
                ("initrd", Some(section)) => (initrd.replace(section).is_some(), "initrd"),
                ("config.json", Some(section)) => (config.replace(section).is_some(), "config"),
                (_, _) => {
                    return refuse(
                        "does not belong into a bundle: it has one of rootfs.ext4, rootfs.tar, rootfs.tar.gz and \
                         rootfs.tar.zst, and may have vmlinuz (or kernel), initrd, modules/… and config.json",
                    );
                }
            };
            if let (true, what) = slot {
                return Err(ImageError::invalid(format!("the bundle has more than one {what}")));
            }
        }
        let Some(root) = root else {
            return Err(ImageError::invalid("the bundle has no root: rootfs.ext4 or rootfs.tar"));
        };
        if kernel.is_none() && (initrd.is_some() || !modules.is_empty()) {
            return Err(ImageError::invalid(
                "the bundle has an initrd or modules, but no kernel that they are for",
            ));
        }
        check_folders(&modules)?;
        Ok(Bundle { root, kernel, initrd, modules, config })
    }

    /// Returns the disk's length in bytes, and the config.
    fn unpack(
        self,
        folder: &Path,
        uuid: [u8; 16],
        job: &Job,
        progress: watch::Sender<Progress>,
    ) -> Result<(u64, ImageConfig), ImageError> {
        let run = match &self.config {
            Some(config) => {
                let bytes = config.bytes("config.json", "config_bytes", job.limits().config_bytes)?;
                run_config(&bytes)?
            }
            None => ImageConfig::default(),
        };
        for (name, section) in [(KERNEL, &self.kernel), (INITRD, &self.initrd)] {
            if let Some(section) = section {
                write(&folder.join(name), section, job)?;
            }
        }
        self.unpack_modules(&folder.join(MODULES), job)?;
        let path = folder.join(DISK);
        let disk = create_public(&path).map_err(|error| ImageError::host(path.display(), &error))?;
        let size = match self.root {
            Root::Ext4(section) => install(&section, disk, job).map_err(|error| error.at("rootfs.ext4"))?,
            Root::Tar(section) => {
                let whole = Digest::sha256([0; 32]);
                let descriptor = Descriptor { media_type: String::new(), digest: whole, size: section.size };
                let layer = Layer { blob: Box::new(section.reader()), descriptor, diff_id: None };
                let promise = Arc::new(job.promise(section.size)?);
                let (settings, cancel) = (job.settings.clone(), job.cancel.clone());
                Build { disk, uuid, layers: vec![layer], settings, cancel, promise, progress }.run()?
            }
        };
        Ok((size, run))
    }

    fn unpack_modules(&self, folder: &Path, job: &Job) -> Result<(), ImageError> {
        if self.modules.is_empty() {
            return Ok(());
        }
        let mut folders = BTreeSet::new();
        for (path, section) in &self.modules {
            let path = folder.join(path);
            let parent = if section.is_some() { path.parent().unwrap_or(folder) } else { &path };
            make_folder(parent)?;
            folders
                .extend(parent.ancestors().take_while(|above| above.starts_with(folder)).map(Path::to_owned));
            if let Some(section) = section {
                write(&path, section, job)?;
            }
        }
        // That its files are on disk does not mean that their names are.
        folders.iter().try_for_each(|folder| {
            let synced = File::open(folder).and_then(|folder| folder.sync_all());
            synced.map_err(|error| ImageError::host(folder.display(), &error))
        })
    }
}

/// Nothing is a file and a folder at once.
fn check_folders(modules: &[(PathBuf, Option<Section>)]) -> Result<(), ImageError> {
    let files: HashSet<&Path> =
        modules.iter().filter(|(_, section)| section.is_some()).map(|(path, _)| path.as_path()).collect();
    for (path, section) in modules {
        let mut folders = path.ancestors().skip(usize::from(section.is_some()));
        if let Some(path) = folders.find(|folder| files.contains(folder)) {
            let shown = printable(format!("{MODULES}/{}", path.display()).as_bytes());
            return Err(ImageError::invalid(format!("\"{shown}\" is a file and a folder")));
        }
    }
    Ok(())
}

fn make_folder(path: &Path) -> Result<(), ImageError> {
    let failed = |error: io::Error| ImageError::host(path.display(), &error);
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).create(path).map_err(failed)?;
    fs::set_permissions(path, Permissions::from_mode(0o755)).map_err(failed)
}

fn write(path: &Path, section: &Section, job: &Job) -> Result<(), ImageError> {
    let failed = |error: io::Error| ImageError::host(path.display(), &error);
    let file = create_public(path).map_err(failed)?;
    copy(section.reader(), &file, None, job)?;
    file.sync_all().map_err(failed)
}

/// Copies a file system, without its holes, and checks it. Returns the disk's length.
fn install(section: &Section, disk: File, job: &Job) -> Result<u64, ImageError> {
    check("the disk", "disk_bytes", section.size, job.limits().disk_bytes)?;
    let failed = |error: io::Error| ImageError::host("writing the disk", &error);
    let _room = job.promise(section.allocated().map_err(failed)?)?;
    copy(section.reader(), &disk, None, job)?;
    let length = section.size.next_multiple_of(BLOCK);
    disk.set_len(length).map_err(failed)?;
    inspect(&disk, section.size)?;
    disk.sync_all().map_err(failed)?;
    Ok(length)
}
