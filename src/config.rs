//! The daemon's settings: every folder, name and limit, with its unit.
//!
//! Each is a flag of `vmlet daemon` and an environment variable. Nothing else configures the daemon.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use ipnet::Ipv4Net;
use jiff::SignedDuration;

use crate::image::Limits;
use crate::object::Quantity;

/// What the daemon is told.
#[derive(Args, Clone, Debug)]
pub struct Settings {
    /// The folder of manifests, read recursively; never written.
    #[arg(long, value_name = "DIR", env = "VMLET_MANIFESTS", default_value_os_t = default_manifests(),
        hide_default_value = true)]
    pub manifests: PathBuf,

    /// The folder of the daemon's own: records, base disks, VMs' disks and logs.
    #[arg(long, value_name = "DIR", env = "VMLET_STATE", default_value_os_t = default_state(),
        hide_default_value = true)]
    pub state: PathBuf,

    /// The socket that the API is served on: the command line's global `--socket`.
    #[arg(skip = default_socket())]
    pub socket: PathBuf,

    /// How VMs are connected that do not say so themselves.
    #[arg(long, value_name = "MODE", env = "VMLET_NETWORK", default_value = "auto")]
    pub network: NetworkChoice,

    /// The bridge that VMs are connected to; made if it is missing. At most 15 bytes.
    #[arg(long, value_name = "NAME", env = "VMLET_BRIDGE", default_value = "vmlet0",
        value_parser = interface_name)]
    pub bridge: String,

    /// The VMs' addresses. The bridge takes the first one.
    #[arg(long, value_name = "CIDR", env = "VMLET_SUBNET", default_value = "10.63.0.0/24",
        value_parser = subnet)]
    pub subnet: Ipv4Net,

    /// Images that are pulled at once.
    #[arg(long, value_name = "N", env = "VMLET_MAX_PULLS", default_value = "4")]
    pub max_pulls: NonZeroUsize,

    /// VMs that boot at once; by default twice the number of processors, at least 2.
    #[arg(long, value_name = "N", env = "VMLET_MAX_BOOTS", default_value_t = default_boots(),
        hide_default_value = true)]
    pub max_boots: NonZeroUsize,

    /// What executes the guests' instructions.
    #[arg(long, value_name = "KIND", env = "VMLET_ACCELERATOR", default_value = "auto")]
    pub accelerator: AcceleratorChoice,

    /// The kernel that VMs boot whose image says nothing else; by default the newest one in /boot.
    #[arg(long, value_name = "FILE", env = "VMLET_KERNEL")]
    pub kernel: Option<PathBuf>,

    /// That kernel's modules; by default /lib/modules/VERSION of the kernel.
    #[arg(long, value_name = "DIR", env = "VMLET_MODULES")]
    pub modules: Option<PathBuf>,

    /// QEMU; by default qemu-system of this machine's architecture, looked up in PATH.
    #[arg(long, value_name = "FILE", env = "VMLET_QEMU")]
    pub qemu: Option<PathBuf>,

    /// Memory for all VMs together; by default 90 % of the host's.
    #[arg(long, value_name = "QUANTITY", env = "VMLET_MEMORY_CAPACITY")]
    pub memory_capacity: Option<Quantity>,

    /// Virtual processors of all VMs together; by default eight for each of the host's. VMs share the
    /// host's processors, and most of them are idle most of the time.
    #[arg(long, value_name = "N", env = "VMLET_CPU_CAPACITY", default_value_t = default_cpu_capacity(),
        hide_default_value = true)]
    pub cpu_capacity: u32,

    /// Full length of all VMs' private disks together; by default ten times what is free in the
    /// state folder when the daemon starts. Disks are sparse, so they may promise more than there
    /// is: most VMs write little of theirs.
    #[arg(long, value_name = "QUANTITY", env = "VMLET_DISK_CAPACITY")]
    pub disk_capacity: Option<Quantity>,

    /// How long base disks are kept that no image and no VM refers to any more: 90s, 10m, 24h; 0 removes
    /// them at once.
    #[arg(long, value_name = "TIME", env = "VMLET_IMAGE_GRACE", default_value = "10m", value_parser = grace)]
    pub image_grace: Duration,

    /// When less than this share of the state folder's file system is free, in percent, base disks that
    /// nothing refers to go before their time, the longest unused first. 0 never asks for room.
    #[arg(long, value_name = "PERCENT", env = "VMLET_DISK_LOW", default_value = "10",
        value_parser = clap::value_parser!(u8).range(0..=100))]
    pub disk_low: u8,

    /// Until this share is free, in percent.
    #[arg(long, value_name = "PERCENT", env = "VMLET_DISK_HIGH", default_value = "15",
        value_parser = clap::value_parser!(u8).range(0..=100))]
    pub disk_high: u8,

    /// How long smaller VMs may pass one that waits for memory, processors or disk space; in seconds.
    /// From then on none of lower rank is started before it, so that it cannot wait for ever.
    #[arg(long, value_name = "SECONDS", env = "VMLET_PATIENCE", default_value = "120")]
    pub patience: u32,

    /// A registry that is spoken to over plain http, beside those on loopback addresses. Can be
    /// repeated.
    #[arg(long, value_name = "HOST[:PORT]", env = "VMLET_INSECURE_REGISTRY", value_delimiter = ',')]
    pub insecure_registry: Vec<String>,

    /// Settings of registries: mirrors, certificates, plain http (docs/operations.md). By default
    /// /etc/vmlet/registries.yaml, or registries.yaml in $XDG_CONFIG_HOME/vmlet without root, if it
    /// exists.
    #[arg(long, value_name = "FILE", env = "VMLET_REGISTRIES")]
    pub registries: Option<PathBuf>,

    /// Credentials for registries, in the form of Docker's config.json. By default the first one
    /// that exists of $REGISTRY_AUTH_FILE, auth.json beside registries.yaml,
    /// $DOCKER_CONFIG/config.json and ~/.docker/config.json.
    #[arg(long, value_name = "FILE", env = "VMLET_AUTH_FILE")]
    pub auth_file: Option<PathBuf>,

    /// Compressed layers that are kept for the next pulls; the least recently used go first. 0 keeps
    /// none.
    #[arg(long, value_name = "QUANTITY", env = "VMLET_BLOB_CACHE_SIZE", default_value = "4Gi")]
    pub blob_cache_size: Quantity,

    /// A bound on images that are pulled, for one that you trust and that is over it: the message names
    /// it. Sizes may have a suffix, as in disk_bytes=128Gi. Can be repeated.
    #[arg(long, value_name = "NAME=VALUE", env = "VMLET_IMAGE_LIMIT", value_delimiter = ',')]
    pub image_limit: Vec<ImageLimit>,

    /// A scan that would delete more than this share of all objects, in percent, is not believed
    /// until it has stayed the same for a while. 100 believes every scan.
    #[arg(long, value_name = "PERCENT", env = "VMLET_MASS_DELETE_PERCENT", default_value = "50",
        value_parser = clap::value_parser!(u8).range(1..=100))]
    pub mass_delete_percent: u8,

    /// The form of the log on stderr.
    #[arg(long, value_name = "FORM", env = "VMLET_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,

    /// User numbers for VMMs, one for each VM: the first and the one after the last. Without root
    /// VMMs run as the daemon's user and this is not used.
    #[arg(long, value_name = "START-END", env = "VMLET_VMM_USERS", default_value = "3000000-3065536")]
    pub vmm_users: UserRange,
}

/// How VMs are connected that do not say so themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NetworkChoice {
    /// A bridge where the daemon can make one (as root), else user.
    Auto,
    /// On the host's bridge.
    Bridge,
    /// By the VMM's own user-space network.
    User,
}

/// What executes the guests' instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AcceleratorChoice {
    /// KVM where a self-test shows that it works, else TCG.
    Auto,
    /// The processor, by the kernel's KVM.
    Kvm,
    /// QEMU's translator: works everywhere, slowly.
    Tcg,
}

/// The form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A range of user numbers, the end excluded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserRange(pub Range<u32>);

impl FromStr for UserRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let range =
            text.split_once('-').and_then(|(start, end)| Some(start.parse().ok()?..end.parse().ok()?));
        // Number 0 is root, and the highest one means "unchanged" to chown(2).
        match range {
            Some(range) if !range.is_empty() && range.start > 0 => Ok(UserRange(range)),
            _ => Err("write two user numbers above 0, for example 3000000-3065536".to_owned()),
        }
    }
}

/// One of the [`Limits`] on images, with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageLimit {
    name: String,
    value: u64,
}

impl ImageLimit {
    /// Puts it among the others.
    pub fn apply(&self, limits: &mut Limits) {
        limits.set(&self.name, self.value);
    }
}

impl FromStr for ImageLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Limits::NAMES.join(", ");
        let (name, value) =
            text.split_once('=').ok_or_else(|| format!("write NAME=VALUE, with one of the names {known}"))?;
        let value = value
            .parse::<Quantity>()
            .map_err(|_| format!("{value:?} is no number; write for example disk_bytes=128Gi"))?
            .as_bytes();
        if !Limits::default().set(name, value) {
            return Err(format!("there is no limit {name:?}; there are {known}"));
        }
        Ok(ImageLimit { name: name.to_owned(), value })
    }
}

fn interface_name(text: &str) -> Result<String, String> {
    // dev_valid_name() in the kernel's net/core/dev.c.
    let valid = (1..16).contains(&text.len())
        && !matches!(text, "." | "..")
        && text.bytes().all(|byte| byte.is_ascii_graphic() && !b"/:%".contains(&byte));
    if valid {
        Ok(text.to_owned())
    } else {
        Err("an interface's name has 1 to 15 bytes, without spaces, '/', ':' and '%'".to_owned())
    }
}

fn grace(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let time = text.parse::<SignedDuration>().ok().and_then(|time| Duration::try_from(time).ok());
    time.ok_or_else(|| "write a length of time, for example 90s, 10m or 24h".to_owned())
}

fn subnet(text: &str) -> Result<Ipv4Net, String> {
    let net: Ipv4Net = text.parse().map_err(|_| "write for example 10.63.0.0/24".to_owned())?;
    if net != net.trunc() {
        return Err(format!("{net} has bits behind its prefix; did you mean {}?", net.trunc()));
    }
    if !(8..=29).contains(&net.prefix_len()) {
        return Err("use a prefix of 8 to 29 bits, so that there is room for VMs".to_owned());
    }
    Ok(net)
}

/// Where the daemon listens and clients connect: `/run/vmlet/vmlet.sock` as root, else in
/// `$XDG_RUNTIME_DIR`.
pub fn default_socket() -> PathBuf {
    own_dir("/run", "XDG_RUNTIME_DIR", ".cache").join("vmlet.sock")
}

impl Settings {
    /// The file with the settings of registries, if there is to be one.
    pub(crate) fn registries_file(&self) -> Option<PathBuf> {
        let default = || Some(config_dir().join("registries.yaml")).filter(|path| path.exists());
        self.registries.clone().or_else(default)
    }

    /// Where credentials for registries may be. The first file that exists counts, whenever it comes.
    pub(crate) fn auth_files(&self) -> Vec<PathBuf> {
        if let Some(file) = &self.auth_file {
            return vec![file.clone()];
        }
        let named =
            |variable| std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
        let docker = named("DOCKER_CONFIG").or_else(|| named("HOME").map(|home| home.join(".docker")));
        let own = config_dir().join("auth.json");
        let docker = docker.map(|folder| folder.join("config.json"));
        named("REGISTRY_AUTH_FILE").into_iter().chain([own]).chain(docker).collect()
    }
}

fn default_manifests() -> PathBuf {
    config_dir().join("manifests")
}

/// What the user sets for vmlet: `/etc/vmlet` as root, else in `$XDG_CONFIG_HOME`.
fn config_dir() -> PathBuf {
    own_dir("/etc", "XDG_CONFIG_HOME", ".config")
}

/// The folder of the daemon's own: `/var/lib/vmlet` as root, else in `$XDG_STATE_HOME`.
pub(crate) fn default_state() -> PathBuf {
    own_dir("/var/lib", "XDG_STATE_HOME", ".local/state")
}

fn default_boots() -> NonZeroUsize {
    let processors = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    processors.saturating_mul(NonZeroUsize::MIN.saturating_add(1))
}

fn default_cpu_capacity() -> u32 {
    let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    u32::try_from(processors).unwrap_or(u32::MAX).saturating_mul(8)
}

/// vmlet's folder of a kind (XDG Base Directory Specification), which for root is the system's.
fn own_dir(system: &str, variable: &str, in_home: &str) -> PathBuf {
    let base = if nix::unistd::geteuid().is_root() {
        PathBuf::from(system)
    } else {
        let named = std::env::var_os(variable).map(PathBuf::from).filter(|dir| dir.is_absolute());
        named.unwrap_or_else(|| {
            std::env::var_os("HOME").map_or_else(|| PathBuf::from("/tmp"), PathBuf::from).join(in_home)
        })
    };
    base.join("vmlet")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_is_whole_and_has_room() {
        assert_eq!(subnet("10.63.0.0/24").unwrap().to_string(), "10.63.0.0/24");
        assert!(subnet("10.63.0.1/24").unwrap_err().contains("did you mean 10.63.0.0/24"));
        assert!(subnet("10.63.0.0/30").is_err());
        assert!(subnet("::/64").is_err());
    }

    #[test]
    fn an_interface_has_a_name_that_the_kernel_takes() {
        assert!(interface_name("vmlet0").is_ok());
        for bad in ["", "..", "a/b", "has space", "sixteen-bytes-xx"] {
            assert!(interface_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_grace_is_a_length_of_time() {
        assert_eq!(grace("0"), Ok(Duration::ZERO));
        assert_eq!(grace("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(grace("1h30m"), Ok(Duration::from_secs(5400)));
        for bad in ["", "10", "-5m", "soon"] {
            assert!(grace(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn limits_on_images_have_names_and_values() {
        let mut limits = Limits::default();
        "disk_bytes=128Gi".parse::<ImageLimit>().unwrap().apply(&mut limits);
        "depth=1000".parse::<ImageLimit>().unwrap().apply(&mut limits);
        assert_eq!((limits.disk_bytes, limits.depth), (128 << 30, 1000));
        let error = |text: &str| text.parse::<ImageLimit>().unwrap_err();
        assert!(error("disc_bytes=1").contains("disk_bytes"));
        assert!(error("depth").contains("NAME=VALUE"));
        assert!(error("depth=many").contains("no number"));
    }

    #[test]
    fn user_numbers_are_a_range_without_root() {
        assert_eq!("10-20".parse(), Ok(UserRange(10..20)));
        for bad in ["0-5", "5-5", "7-3", "x-3", "12", ""] {
            assert!(bad.parse::<UserRange>().is_err(), "{bad:?}");
        }
    }
}
