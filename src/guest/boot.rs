//! From the initramfs to the VM's own root: mounts, modules, disks.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, open};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use nix::unistd::{chdir, chroot};
use vmlet_wire::GuestConfig;

use crate::console;
use crate::failure::{During, Failure};

/// The shared base disk: ext4, read-only.
const BASE: &str = "/dev/vda";
/// The VM's private disk: ext4.
const PRIVATE: &str = "/dev/vdb";
/// The config disk: JSON padded with zeros.
const CONFIG: &str = "/dev/vdc";
/// Where an export goes.
pub(crate) const EXPORT: &str = "/dev/vdd";
/// More than this is no config.
const CONFIG_LIMIT: u64 = 1 << 20;
/// How long devices may take to appear. A busy emulated machine needs seconds.
const DEVICE_TIMEOUT: Duration = Duration::from_secs(30);

/// The private disk's mount, which is out of every path's reach once the root is switched.
pub(crate) struct PrivateDisk(pub(crate) OwnedFd);

struct FileSystem {
    kind: &'static str,
    target: &'static str,
    flags: MsFlags,
    options: &'static str,
}

const SAFE: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

/// What the guest itself needs, in the initramfs and on the root.
const KERNEL: [FileSystem; 3] = [
    FileSystem { kind: "proc", target: "/proc", flags: SAFE, options: "" },
    FileSystem { kind: "sysfs", target: "/sys", flags: SAFE, options: "" },
    FileSystem { kind: "devtmpfs", target: "/dev", flags: MsFlags::MS_NOSUID, options: "mode=755" },
];

/// What workloads expect.
const WORKLOAD: [FileSystem; 4] = [
    FileSystem {
        kind: "devpts",
        target: "/dev/pts",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        options: "gid=5,mode=620,ptmxmode=666",
    },
    FileSystem {
        kind: "tmpfs",
        target: "/dev/shm",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV),
        options: "mode=1777",
    },
    FileSystem {
        kind: "tmpfs",
        target: "/run",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV),
        options: "mode=755",
    },
    FileSystem { kind: "cgroup2", target: "/sys/fs/cgroup", flags: SAFE, options: "nsdelegate" },
];

/// Mounts /proc, /sys and /dev, and moves the standard streams to the console there.
pub(crate) fn mount_kernel_file_systems() -> Result<(), Failure> {
    for file_system in &KERNEL {
        file_system.mount().during(|| format!("mount {}", file_system.target))?;
    }
    console::attach();
    Ok(())
}

/// Mounts the rest. A workload may well do without.
pub(crate) fn mount_workload_file_systems() {
    for file_system in &WORKLOAD {
        if let Err(error) = file_system.mount() {
            console::say(format!("cannot mount {}: {error}", file_system.target));
        }
    }
    // devtmpfs has no links; shells and many programs need these.
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        let _ = symlink(target, link);
    }
}

impl FileSystem {
    fn mount(&self) -> io::Result<()> {
        make_dir(self.target)?;
        mount(Some(self.kind), self.target, Some(self.kind), self.flags, Some(self.options))?;
        Ok(())
    }
}

fn make_dir(path: &str) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(path)
}

/// Loads `/modules/*` in the order that `/modules/order` lists. A module that is missing or loaded
/// already is fine: a kernel may have it built in. What is really needed fails later, by name.
pub(crate) fn load_modules() {
    let order = fs::read_to_string("/modules/order").unwrap_or_default();
    for name in order.lines().map(str::trim).filter(|name| !name.is_empty()) {
        let Ok(module) = File::open(Path::new("/modules").join(name)) else {
            console::say(format!("no module {name} in the initramfs"));
            continue;
        };
        match finit_module(&module, c"", ModuleInitFlags::empty()) {
            Ok(()) | Err(nix::Error::EEXIST) => {}
            Err(error) => console::say(format!("cannot load module {name}: {error}")),
        }
    }
}

/// Reads the config disk.
pub(crate) fn read_config() -> Result<GuestConfig, Failure> {
    wait_for(CONFIG)?;
    let mut bytes = Vec::new();
    File::open(CONFIG)
        .and_then(|disk| disk.take(CONFIG_LIMIT).read_to_end(&mut bytes))
        .during(|| format!("read the config disk {CONFIG}"))?;
    parse_config(&bytes)
}

fn parse_config(bytes: &[u8]) -> Result<GuestConfig, Failure> {
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    serde_json::from_slice(&bytes[..end]).during(|| "understand the config disk".to_owned())
}

/// Devices appear some time after their driver is loaded.
fn wait_for(device: &str) -> Result<(), Failure> {
    let deadline = Instant::now() + DEVICE_TIMEOUT;
    while !Path::new(device).exists() {
        if Instant::now() > deadline {
            let limit = DEVICE_TIMEOUT.as_secs();
            return Err(Failure::new(format!(
                "{device} did not appear within {limit} s; is the virtio_blk module in the initramfs?"
            )));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Joins the base and the private disk into one root, makes it `/`, and frees the initramfs.
pub(crate) fn switch_root() -> Result<PrivateDisk, Failure> {
    mount_disk(BASE, "/base", MsFlags::MS_RDONLY, "noload")?;
    mount_disk(PRIVATE, "/private", MsFlags::empty(), "")?;
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let private = open("/private", flags, Mode::empty()).during(|| "open /private".to_owned())?;

    for dir in ["/private/upper", "/private/work", "/newroot"] {
        make_dir(dir).during(|| format!("make {dir}"))?;
    }
    // redirect_dir: renaming a directory of the image works as on any file system.
    let layers = "lowerdir=/base,upperdir=/private/upper,workdir=/private/work,redirect_dir=on";
    mount(Some("overlay"), "/newroot", Some("overlay"), MsFlags::empty(), Some(layers))
        .during(|| "join base and private disk with overlayfs".to_owned())?;

    for file_system in KERNEL.iter().rev() {
        umount2(file_system.target, MntFlags::MNT_DETACH)
            .during(|| format!("unmount {}", file_system.target))?;
    }
    // The initramfs is memory: what it held is not needed any more.
    let _ = fs::remove_dir_all("/modules");
    let _ = fs::remove_file("/init");

    let root = || "make the joined disks the root".to_owned();
    chdir("/newroot").during(root)?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).during(root)?;
    chroot(".").during(root)?;
    chdir("/").during(root)?;
    Ok(PrivateDisk(private))
}

/// Joins the disks for reading only. Returns where.
pub(crate) fn join_for_reading() -> Result<PathBuf, Failure> {
    wait_for(EXPORT)?;
    mount_disk(BASE, "/base", MsFlags::MS_RDONLY, "noload")?;
    // The kernel replays the journal of a VM that was killed.
    mount_disk(PRIVATE, "/private", MsFlags::MS_RDONLY, "")?;
    if !Path::new("/private/upper").is_dir() {
        return Ok(PathBuf::from("/base"));
    }
    make_dir("/newroot").during(|| "make /newroot".to_owned())?;
    let layers = "lowerdir=/private/upper:/base,redirect_dir=follow";
    mount(Some("overlay"), "/newroot", Some("overlay"), MsFlags::MS_RDONLY, Some(layers))
        .during(|| "join base and private disk with overlayfs".to_owned())?;
    Ok(PathBuf::from("/newroot"))
}

fn mount_disk(device: &str, target: &str, flags: MsFlags, options: &str) -> Result<(), Failure> {
    wait_for(device)?;
    make_dir(target).during(|| format!("make {target}"))?;
    mount(Some(device), target, Some("ext4"), flags, Some(options))
        .during(|| format!("mount {device} as ext4 on {target}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"{"hostname":"web","workload":{"preferInit":true,"argv":[],"graceSeconds":3}}"#;

    #[test]
    fn a_config_is_padded_with_zeros() {
        let padded = [CONFIG.as_bytes(), &[0; 512]].concat();
        assert_eq!(parse_config(&padded).unwrap().hostname, "web");
        assert_eq!(parse_config(CONFIG.as_bytes()).unwrap().workload.grace_seconds, 3);
    }

    #[test]
    fn an_empty_or_broken_config_disk_is_an_error() {
        for bytes in [&[][..], &[0; 512], b"{", b"{}\0\0x"] {
            let failure = parse_config(bytes).unwrap_err();
            assert!(failure.message.starts_with("cannot understand the config disk: "), "{failure}");
        }
    }
}
