//! Kernels that are ready to boot, in a folder of the daemon's own.
//!
//! ```text
//! CACHE/ID/kernel                  as it was found
//! CACHE/ID/release
//! CACHE/ID/modules.cpio            what guests need of its modules, behind what came with the kernel
//! CACHE/ID/vmlinux                 the kernel as an ELF, if the driver wants it so
//! CACHE/ID/initramfs-GUEST.cpio    modules.cpio and this daemon's guest
//! CACHE/staging-…                  half done
//! ```
//!
//! ID is the hash of what was found, so that making the same twice comes to the same. What has its name is complete
//! and on disk. Kernels go at start-up only, before anything is made.

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::files::Files;
use super::kernel::Kernel;
use super::modules::{self, Module};
use super::{
    BootError, BootFiles, KernelError, KernelForm, KernelId, KernelPaths, KernelRequest, Kernels, initramfs,
    unpack,
};
use crate::image::KernelFiles;
use crate::metrics::Guarded;

/// Where to look, and where to keep what was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The host's kernel; none takes the newest of `/boot/vmlinuz-*` that has modules.
    pub kernel: Option<PathBuf>,
    /// Its modules; none looks in `/lib/modules`.
    pub modules: Option<PathBuf>,
    /// A folder that nothing else uses. Made if absent.
    pub cache: PathBuf,
}

/// Changes whenever what a kernel's folder holds does.
const FORMAT: u32 = 2;
/// The largest kernel, and the largest initial RAM disk, in bytes.
const MAX_FILE: u64 = 256 << 20;

const KERNEL: &str = "kernel";
const ELF: &str = "vmlinux";
const RELEASE: &str = "release";
const MODULES: &str = "modules.cpio";
const STAGING: &str = "staging-";
const HALF_WRITTEN: &str = "new";

/// The kernels of one daemon. Clones share them.
#[derive(Clone)]
pub struct BootCache {
    workshop: Arc<Workshop>,
    pub(super) host: (KernelId, BootFiles),
    /// Guards the map only: look-up and insertion, never the making.
    pub(super) under_way: Arc<Guarded<HashMap<KernelRequest, WeakShared<Making>>>>,
}

type Making = BoxFuture<'static, Result<KernelId, KernelError>>;

impl BootCache {
    /// Opens the cache and makes the host's kernel ready. Blocking: some 50 ms when it has to be made. One process
    /// at a time may do so.
    ///
    /// `guest` becomes `/init`; `form` is the driver's.
    ///
    /// # Errors
    /// When the host has no kernel that guests can boot.
    pub fn open(settings: &Settings, guest: &'static [u8], form: KernelForm) -> Result<Self, BootError> {
        let dir = settings.cache.clone();
        fs::create_dir_all(&dir).map_err(BootError::io(&dir))?;
        let guest_id = hex::encode(&Sha256::digest(guest)[..8]);
        let workshop = Workshop { dir, guest, guest_id, form, made: Guarded::default() };
        let paths = KernelPaths { kernel: settings.kernel.clone(), modules: settings.modules.clone() };
        let host = workshop.install(&Parts::gather(&Files::Host, &paths, None)?)?;
        Ok(BootCache { workshop: Arc::new(workshop), host, under_way: Arc::default() })
    }

    /// The host's kernel.
    pub fn host(&self) -> &BootFiles {
        &self.host.1
    }

    fn start(&self, request: KernelRequest) -> Making {
        let workshop = self.workshop.clone();
        let making = tokio::task::spawn_blocking(move || {
            let place = match &request {
                KernelRequest::Files(_) => None,
                KernelRequest::Disk { .. } => Some("in the image"),
            };
            workshop.make(&request).map_err(|error| KernelError::new(&error, place))
        });
        async move { making.await.unwrap_or_else(|panic| Err(KernelError::internal(panic))) }.boxed()
    }
}

#[async_trait]
impl Kernels for BootCache {
    async fn make(&self, request: &KernelRequest) -> Result<KernelId, KernelError> {
        let making: Shared<Making> = self.under_way.with(|under_way| {
            under_way.retain(|_, making| making.upgrade().is_some());
            under_way.get(request).and_then(WeakShared::upgrade).unwrap_or_else(|| {
                let making = self.start(request.clone()).shared();
                under_way.extend(making.downgrade().map(|weak| (request.clone(), weak)));
                making
            })
        });
        making.await
    }

    fn files(&self, kernel: Option<&KernelId>) -> Option<BootFiles> {
        match kernel {
            None => Some(self.host.1.clone()),
            Some(kernel) => self.workshop.made.with(|made| made.get(kernel).cloned()),
        }
    }

    async fn keep(&self, kernels: &BTreeSet<KernelId>) -> Result<(), KernelError> {
        let (workshop, mut kernels) = (self.workshop.clone(), kernels.clone());
        kernels.insert(self.host.0.clone());
        let kept = tokio::task::spawn_blocking(move || workshop.keep(&kernels)).await;
        kept.map_err(KernelError::internal)?.map_err(|error| KernelError::new(&error, None))
    }
}

/// The blocking half.
struct Workshop {
    dir: PathBuf,
    guest: &'static [u8],
    guest_id: String,
    form: KernelForm,
    /// Guards the map only. What is in its place, for this daemon's guest.
    made: Guarded<BTreeMap<KernelId, BootFiles>>,
}

impl Workshop {
    fn make(&self, request: &KernelRequest) -> Result<KernelId, BootError> {
        let parts = match request {
            KernelRequest::Files(KernelFiles { kernel, initrd, modules }) => {
                let paths = KernelPaths { kernel: Some(kernel.clone()), modules: modules.clone() };
                Parts::gather(&Files::Host, &paths, initrd.as_deref())?
            }
            KernelRequest::Disk { disk, paths } => Parts::gather(&Files::of_disk(disk)?, paths, None)?,
        };
        Ok(self.install(&parts)?.0)
    }

    fn install(&self, parts: &Parts) -> Result<(KernelId, BootFiles), BootError> {
        let id = parts.id();
        let target = self.dir.join(&id.0);
        if !target.is_dir() {
            let staging = self.dir.join(format!("{STAGING}{}", Uuid::new_v4()));
            let staged = parts.write(&staging).and_then(|()| match fs::rename(&staging, &target) {
                // Another has made the same meanwhile.
                Err(_) if target.is_dir() => fs::remove_dir_all(&staging),
                renamed => renamed.and_then(|()| File::open(&self.dir)?.sync_all()),
            });
            if staged.is_err() {
                // What cannot be removed now goes at the next start.
                let _ = fs::remove_dir_all(&staging);
            }
            staged.map_err(BootError::io(&target))?;
        }
        let files = self.ready(&target)?;
        self.made.with(|made| made.insert(id.clone(), files.clone()));
        Ok((id, files))
    }

    /// Adds what depends on this daemon: its guest, and the form that its driver wants.
    fn ready(&self, dir: &Path) -> Result<BootFiles, BootError> {
        let initramfs = dir.join(format!("initramfs-{}.cpio", self.guest_id));
        let (installed, elf) = (dir.join(KERNEL), dir.join(ELF));
        let ready = || {
            if !initramfs.is_file() {
                let mut archive = fs::read(dir.join(MODULES))?;
                archive.extend(initramfs::of_guest(self.guest)?);
                put(&initramfs, &archive)?;
            }
            if self.form == KernelForm::Elf && !elf.is_file() {
                match unpack::elf(&fs::read(&installed)?) {
                    Ok(Cow::Owned(unpacked)) if unpack::has_pvh_entry(&unpacked) => put(&elf, &unpacked)?,
                    Ok(_) => {}
                    Err(why) => {
                        let kernel = installed.display();
                        tracing::info!(%kernel, why, "a kernel is started packed, which takes its guests longer");
                    }
                }
            }
            installed.metadata()?;
            fs::read_to_string(dir.join(RELEASE))
        };
        let release = ready().map_err(BootError::io(dir))?;
        let kernel = if self.form == KernelForm::Elf && elf.is_file() { elf } else { installed };
        Ok(BootFiles { kernel, initramfs, release })
    }

    /// Kernels of VMs that run have been read by their VMMs: what goes is for starts that nobody will ask for.
    fn keep(&self, kernels: &BTreeSet<KernelId>) -> Result<(), BootError> {
        for entry in fs::read_dir(&self.dir).map_err(BootError::io(&self.dir))? {
            let entry = entry.map_err(BootError::io(&self.dir))?;
            let kept =
                entry.file_name().to_str().and_then(|name| kernels.get(&KernelId(name.to_owned())).cloned());
            let ready = kept.map(|id| (self.ready(&entry.path()), id));
            match ready {
                Some((Ok(files), id)) => {
                    remove_old_guests(&entry.path(), &files);
                    self.made.with(|made| made.insert(id, files));
                }
                Some((Err(error), _)) => {
                    tracing::warn!(%error, "a kernel is not whole; it is made anew when it is needed");
                    remove(&entry.path());
                }
                None => remove(&entry.path()),
            }
        }
        Ok(())
    }
}

/// And what was half written.
fn remove_old_guests(dir: &Path, files: &BootFiles) {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let old = |path: &PathBuf| {
        let kind = path.extension().and_then(|kind| kind.to_str());
        let current = path.ends_with(MODULES) || *path == files.initramfs;
        kind == Some(HALF_WRITTEN) || kind == Some("cpio") && !current
    };
    entries.filter(old).for_each(|path| remove(&path));
}

fn remove(path: &Path) {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    if let Err(error) = removed {
        tracing::warn!(path = %path.display(), %error, "cannot remove old boot files");
    }
}

/// What a kernel's folder is made of.
struct Parts {
    release: String,
    kernel: Vec<u8>,
    initrd: Option<Vec<u8>>,
    modules: Vec<Module>,
}

impl Parts {
    fn gather(files: &Files, paths: &KernelPaths, initrd: Option<&Path>) -> Result<Parts, BootError> {
        let found = Kernel::find(files, paths.kernel.as_deref(), paths.modules.as_deref())?;
        let kernel = files.read(&found.image, MAX_FILE)?;
        let refuse = |why: &str| BootError::NotBootable { path: found.image.clone(), why: why.to_owned() };
        if unpack::is_elf(&kernel) {
            if !unpack::has_pvh_entry(&kernel) {
                return Err(refuse("it is an ELF without a PVH entry (CONFIG_PVH)"));
            }
        } else if !unpack::is_bzimage(&kernel) {
            return Err(refuse("it is neither a bzImage nor a 64-bit ELF"));
        }
        let modules = match &found.modules {
            Some(dir) => modules::needed(files, dir)?,
            None => {
                let elf = unpack::elf(&kernel).ok();
                match elf.and_then(|elf| modules::not_built_in(&elf)) {
                    Some(name) => return Err(BootError::NotBuiltIn { name, kernel: found.image }),
                    None => Vec::new(),
                }
            }
        };
        let initrd = initrd.map(|initrd| files.read(initrd, MAX_FILE)).transpose()?;
        Ok(Parts { release: found.release, kernel, initrd, modules })
    }

    /// A name for exactly these.
    fn id(&self) -> KernelId {
        let mut hash = Sha256::new();
        let mut add = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        add(&FORMAT.to_le_bytes());
        add(self.release.as_bytes());
        add(&self.kernel);
        add(&[u8::from(self.initrd.is_some())]);
        add(self.initrd.as_deref().unwrap_or_default());
        for Module { file_name, bytes } in &self.modules {
            add(file_name.as_bytes());
            add(bytes);
        }
        KernelId(hex::encode(&hash.finalize()[..16]))
    }

    fn write(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir(dir)?;
        put(&dir.join(KERNEL), &self.kernel)?;
        put(&dir.join(RELEASE), self.release.as_bytes())?;
        let archive = initramfs::of_kernel(self.initrd.as_deref().unwrap_or_default(), &self.modules)?;
        put(&dir.join(MODULES), &archive)?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
        File::open(dir)?.sync_all()
    }
}

/// World-readable, and on disk before it has its name. Others may do the same at the same time.
fn put(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let staging = path.with_extension(format!("{}.{HALF_WRITTEN}", Uuid::new_v4()));
    let mut file = File::create_new(&staging)?;
    file.write_all(bytes)?;
    file.set_permissions(fs::Permissions::from_mode(0o644))?;
    file.sync_all()?;
    fs::rename(&staging, path)
}
