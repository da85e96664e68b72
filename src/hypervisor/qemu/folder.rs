//! A VM's folder.
//!
//! ```text
//! DIR/              the daemon's, mode 0710: QEMU's user may pass, not write
//!   root.ext4       the private disk
//!   config.img      what the guest is told
//!   console.log     the guest's serial console of this run; .1 is older
//!   vmm.log         QEMU's own words of this run; .1 is older
//!   export.tar      what an export's guest writes; root.ext4 is then the stopped VM's own
//!   vmm.json        QEMU's process, for a daemon whose store knows nothing of it
//!   run/            QEMU's, mode 0700: the sockets that it makes
//! ```
//!
//! So a QEMU that was taken over cannot plant links for the daemon to follow, except in `run`, where
//! the daemon only connects. Everything here blocks. What is half done when the daemon dies is
//! done again by the next [`prepare`].

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};

use crate::hypervisor::{DriverError, EXPORT_FILE, Launch, ProcessIdentity};
use crate::image::ext4;

pub(super) const ROOT_FILE: &str = "root.ext4";
pub(super) const CONFIG_FILE: &str = "config.img";
pub(super) const CONSOLE_LOG: &str = "console.log";
pub(super) const VMM_LOG: &str = "vmm.log";
pub(super) const RUN_DIR: &str = "run";
const PROCESS_FILE: &str = "vmm.json";

/// The longest configuration for a guest, in bytes; the guest reads no more.
const MAX_CONFIG: usize = 1 << 20;
/// Disks consist of whole blocks of this many bytes.
const BLOCK: usize = 4096;
/// A log that exceeds this many bytes becomes the older log, and an empty one takes its place.
pub(super) const MAX_LOG: u64 = 10 << 20;

/// Makes the folder, the private disk unless it is there, and the guest's configuration.
pub(super) fn prepare(launch: &Launch) -> Result<(), DriverError> {
    let config = config_image(launch)?;
    let at = |path: &Path| DriverError::at("PrepareFailed", path);
    let (dir, owner) = (&launch.dir, launch.vmm_user);
    make_dir(dir, None, owner, if owner.is_some() { 0o710 } else { 0o700 }).map_err(at(dir))?;
    let run = dir.join(RUN_DIR);
    make_dir(&run, owner, owner, 0o700).map_err(at(&run))?;
    let root = dir.join(ROOT_FILE);
    if let Some(export) = &launch.export {
        let disk = export.of.join(ROOT_FILE);
        let again = |error: &io::Error| error.kind() == io::ErrorKind::AlreadyExists;
        match fs::hard_link(&disk, &root) {
            Err(error) if !again(&error) => return Err(at(&disk)(error)),
            _ => {}
        }
        let tar = dir.join(EXPORT_FILE);
        stage(&tar, owner, |file| file.set_len(export.room.as_bytes())).map_err(at(&tar))?;
    }
    if root.try_exists().map_err(at(&root))? {
        chown(&root, owner, owner).map_err(at(&root))?;
    } else {
        stage(&root, owner, |file| {
            let size = launch.root_size.as_bytes();
            // What is changed in the overlay is copied with its attributes: as long as they may be below. A base
            // disk that cannot be read is told of when the VMM is to have it.
            let base = File::open(&launch.base_disk);
            let long_values = base.and_then(|base| ext4::has_long_values(&base)).unwrap_or(false);
            ext4::format_empty(file, size, launch.uid.into_bytes(), long_values).map_err(io::Error::other)
        })
        .map_err(at(&root))?;
    }
    let path = dir.join(CONFIG_FILE);
    stage(&path, owner, |file| (&*file).write_all(&config)).map_err(at(&path))
}

/// The configuration as a disk: JSON padded with zeros.
fn config_image(launch: &Launch) -> Result<Vec<u8>, DriverError> {
    let mut image = serde_json::to_vec(&launch.guest).expect("plain data with text keys");
    if image.len() > MAX_CONFIG {
        return Err(DriverError {
            reason: "ConfigTooLarge",
            message: format!(
                "command, environment and network settings take {} bytes as JSON; at most {MAX_CONFIG} are possible",
                image.len()
            ),
            transient: false,
        });
    }
    image.resize(image.len().next_multiple_of(BLOCK), 0);
    Ok(image)
}

fn make_dir(path: &Path, uid: Option<u32>, gid: Option<u32>, mode: u32) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    chown(path, uid, gid)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Fills a new file beside `path` and renames it into place, so that there is all of it or nothing.
fn stage(path: &Path, owner: Option<u32>, fill: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
    let staging = suffixed(path, ".new");
    absent_is_fine(fs::remove_file(&staging))?;
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&staging)?;
    fchown(&file, owner, owner)?;
    fill(&file)?;
    file.sync_all()?;
    fs::rename(&staging, path)
}

/// Writes down which process is about to run in the folder.
pub(super) fn record_process(dir: &Path, process: &ProcessIdentity) -> Result<(), DriverError> {
    let path = dir.join(PROCESS_FILE);
    let text = serde_json::to_vec(process).expect("plain data with text keys");
    let staging = suffixed(&path, ".new");
    let write = fs::write(&staging, text).and_then(|()| fs::rename(&staging, &path));
    write.map_err(DriverError::at("PrepareFailed", &path))
}

/// The process that was last about to run in the folder, if that is written there.
pub(super) fn recorded_process(dir: &Path) -> Option<ProcessIdentity> {
    let text = fs::read(dir.join(PROCESS_FILE)).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Removes the private disk. Absent is fine.
pub(super) fn remove_disk(dir: &Path) -> Result<(), DriverError> {
    let root = dir.join(ROOT_FILE);
    for path in [suffixed(&root, ".new"), root] {
        absent_is_fine(fs::remove_file(&path)).map_err(DriverError::at("RemoveFailed", &path))?;
    }
    Ok(())
}

/// What is in the folder of VMs, in order.
pub(super) fn list(root: &Path) -> Result<Vec<PathBuf>, DriverError> {
    let entries = match fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(DriverError::at("ListFailed", root))?,
    };
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<PathBuf>>>();
    let mut paths = paths.map_err(DriverError::at("ListFailed", root))?;
    paths.sort();
    Ok(paths)
}

/// Removes the folder. Absent is fine. Links are removed, not followed.
pub(super) fn remove(dir: &Path) -> Result<(), DriverError> {
    absent_is_fine(fs::remove_dir_all(dir)).map_err(DriverError::at("RemoveFailed", dir))
}

/// How files in the VMM's user's own folder are opened: what stands there may be a link, or a FIFO.
fn unfollowed() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK);
    options
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Begins the logs of a new run. Returns the one for QEMU's standard output and error.
pub(super) fn begin_logs(launch: &Launch) -> Result<File, DriverError> {
    let begin = |name: &str| {
        let path = launch.dir.join(name);
        let begin = || {
            if fs::metadata(&path).is_ok_and(|log| log.len() > 0) {
                fs::rename(&path, suffixed(&path, ".1"))?;
            }
            let log = unfollowed().append(true).create(true).mode(0o600).open(&path)?;
            fchown(&log, launch.vmm_user, launch.vmm_user)?;
            Ok(log)
        };
        begin().map_err(DriverError::at("PrepareFailed", &path))
    };
    begin(CONSOLE_LOG)?;
    begin(VMM_LOG)
}

/// Cuts logs that a guest has filled beyond [`MAX_LOG`]. What is written in the moment between copy and cut
/// is lost.
pub(super) fn bound_logs(dir: &Path) -> io::Result<()> {
    for path in [dir.join(CONSOLE_LOG), dir.join(VMM_LOG)] {
        if fs::metadata(&path)?.len() > MAX_LOG {
            copy_tail(&path, &suffixed(&path, ".1"))?;
            unfollowed().write(true).open(&path)?.set_len(0)?;
        }
    }
    Ok(())
}

fn copy_tail(from: &Path, to: &Path) -> io::Result<()> {
    let mut from = unfollowed().read(true).open(from)?;
    let length = from.metadata()?.len();
    from.seek(SeekFrom::Start(length.saturating_sub(MAX_LOG)))?;
    absent_is_fine(fs::remove_file(to))?;
    let mut to = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    io::copy(&mut from.take(MAX_LOG), &mut to).map(drop)
}

/// The last bytes of a log; empty if it cannot be read.
pub(super) fn log_tail(dir: &Path, name: &str, limit: u64) -> Vec<u8> {
    let read = || {
        let mut log = unfollowed().read(true).open(dir.join(name))?;
        let length = log.metadata()?.len();
        log.seek(SeekFrom::Start(length.saturating_sub(limit)))?;
        let mut tail = Vec::new();
        log.take(limit).read_to_end(&mut tail)?;
        Ok(tail)
    };
    read().unwrap_or_else(|error: io::Error| {
        tracing::debug!(dir = %dir.display(), name, %error, "cannot read a log");
        Vec::new()
    })
}

/// Connects to a socket in `run`, whatever the length of the path. Links there are not followed.
pub(super) fn connect(dir: &Path, socket: &str) -> io::Result<std::os::unix::net::UnixStream> {
    let here = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let run = rustix::fs::open(dir.join(RUN_DIR), here | OFlags::DIRECTORY, Mode::empty())?;
    let socket = rustix::fs::openat(&run, socket, here, Mode::empty())?;
    if FileType::from_raw_mode(rustix::fs::fstat(&socket)?.st_mode) != FileType::Socket {
        return Err(io::Error::other("not a socket"));
    }
    let stream = std::os::unix::net::UnixStream::connect(format!("/proc/self/fd/{}", socket.as_raw_fd()))?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
