//! Whether this host can run VMs, and what to do where it cannot: `vmlet doctor`.
//!
//! In flow the daemon's settings and what the hypervisor found out about its accelerator; out come
//! findings, the same on every host and always in the same order. Nothing is changed. What is asked of
//! others (QEMU, nft) has a time limit.

#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::process::Command;

use crate::network::forwarding_warnings;

/// How long a tool may take to tell its version.
const VERSION_TIMEOUT: Duration = Duration::from_secs(10);

/// Below this much free space images of usual size do not fit, in bytes.
const LITTLE_SPACE: u64 = 10 << 30;

/// Below this much nothing fits, in bytes.
const NO_SPACE: u64 = 1 << 30;

/// What an examination is about.
#[derive(Clone, Debug)]
pub struct Examination<'a> {
    /// Where the daemon keeps disks and records; it need not exist yet.
    pub state_dir: &'a Path,
    /// The name of the VMs' bridge.
    pub bridge: &'a str,
    /// What runs guest code: measured by the hypervisor, reported here.
    pub accelerator: Finding,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// What was looked at, in a word or two: `kernel`.
    pub name: String,
    /// How it is.
    pub status: Status,
    /// What was found.
    pub detail: String,
    /// What to do about it; none where all is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

/// How a finding is. Ordered: the worst finding is the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Status {
    /// It is as it should be.
    Ok,
    /// VMs run, with less than they could have.
    Warn,
    /// No VM runs.
    Fail,
}

impl Finding {
    /// All is well.
    pub fn ok(name: &str, detail: impl Into<String>) -> Self {
        Finding { name: name.to_owned(), status: Status::Ok, detail: detail.into(), fix: None }
    }

    /// VMs run, with less than they could have.
    pub fn warn(name: &str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Finding { fix: Some(fix.into()), status: Status::Warn, ..Finding::ok(name, detail) }
    }

    /// No VM runs.
    pub fn fail(name: &str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Finding { fix: Some(fix.into()), status: Status::Fail, ..Finding::ok(name, detail) }
    }
}

/// Looks at everything that VMs need of this host.
pub async fn examine(examination: Examination<'_>) -> Vec<Finding> {
    let Examination { state_dir, bridge, accelerator } = examination;
    let state_dir = state_dir.to_owned();
    let (qemu, nft, forwarding, host) = tokio::join!(
        qemu(),
        nft(),
        forwarding(bridge),
        tokio::task::spawn_blocking(move || {
            let kernel = kernel(Path::new("/boot"), Path::new("/lib/modules"));
            (kernel, tun(), disk_space(&state_dir), inotify(Path::new("/proc/sys/fs/inotify")))
        })
    );
    let mut findings = Vec::new();
    match host {
        Ok((kernel, tun, space, inotify)) => {
            findings.extend([kernel, qemu, accelerator, privileges(), tun, nft]);
            findings.extend(forwarding);
            findings.extend([space, inotify]);
        }
        Err(error) => findings.push(Finding::fail("host", error.to_string(), "report this as a bug")),
    }
    findings
}

/// The kernel that VMs boot: the newest one installed, with its modules.
fn kernel(boot: &Path, modules: &Path) -> Finding {
    const NAME: &str = "kernel";
    let install = "apt-get install linux-image-cloud-amd64";
    let mut versions: Vec<String> = std::fs::read_dir(boot)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some(entry.file_name().to_str()?.strip_prefix("vmlinuz-")?.to_owned()))
        .collect();
    versions.sort_by_key(|version| numbers(version));
    let Some(version) = versions.iter().rev().find(|version| modules.join(version).is_dir()) else {
        let detail = match versions.last() {
            Some(version) => format!("no modules for {version} in {}", modules.display()),
            None => format!("no kernel in {}", boot.display()),
        };
        return Finding::fail(NAME, detail, install);
    };
    let image = boot.join(format!("vmlinuz-{version}"));
    match std::fs::File::open(&image) {
        Ok(_) => Finding::ok(NAME, image.display().to_string()),
        Err(error) => Finding::fail(
            NAME,
            format!("{} cannot be read: {error}", image.display()),
            format!("as root: chmod a+r {}", image.display()),
        ),
    }
}

/// The numbers in a version, so that 6.10 comes after 6.9.
fn numbers(version: &str) -> Vec<u64> {
    version.split(|letter: char| !letter.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

async fn qemu() -> Finding {
    let program = format!("qemu-system-{}", std::env::consts::ARCH);
    match version(&program).await {
        Ok(version) => Finding::ok("qemu", version),
        Err(error) => {
            let fix = "apt-get install --no-install-recommends qemu-system-x86";
            Finding::fail("qemu", format!("{program}: {error}"), fix)
        }
    }
}

async fn nft() -> Finding {
    match version("nft").await {
        Ok(version) => Finding::ok("nftables", version),
        Err(error) => Finding::warn(
            "nftables",
            format!("nft: {error}; VMs have the user network only"),
            "apt-get install nftables",
        ),
    }
}

/// The first line that `program --version` prints.
async fn version(program: &str) -> io::Result<String> {
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(VERSION_TIMEOUT, command.output())
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    if !output.status.success() {
        return Err(io::Error::other(format!("--version failed: {}", output.status)));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().chars().take(120).collect())
}

fn privileges() -> Finding {
    if nix::unistd::geteuid().is_root() {
        return Finding::ok("privileges", "root: VMs can be on a bridge of their own");
    }
    Finding::warn(
        "privileges",
        "not root: VMs have the user network (outwards by the host, inwards by forwarded ports only)",
        "run the daemon as root for VMs that reach each other",
    )
}

fn tun() -> Finding {
    let path = "/dev/net/tun";
    match std::fs::OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Finding::ok("tun", path),
        Err(error) => Finding::warn(
            "tun",
            format!("{path}: {error}; VMs have the user network only"),
            "as root: modprobe tun",
        ),
    }
}

async fn forwarding(bridge: &str) -> Vec<Finding> {
    let warnings = forwarding_warnings(bridge).await;
    if warnings.is_empty() {
        return vec![Finding::ok("forwarding", "VMs on the bridge can reach beyond this host")];
    }
    warnings.into_iter().map(|warning| Finding::warn("forwarding", warning.detail, warning.fix)).collect()
}

/// Free space where the state directory is, or will be.
fn disk_space(state_dir: &Path) -> Finding {
    const NAME: &str = "disk space";
    let Some(existing) = nearest_existing(state_dir) else {
        let detail = format!("{} cannot be looked at", state_dir.display());
        return Finding::fail(NAME, detail, "choose another directory with --state");
    };
    let stat = match rustix::fs::statvfs(&existing) {
        Ok(stat) => stat,
        Err(error) => {
            let detail = format!("{}: {error}", existing.display());
            return Finding::fail(NAME, detail, "choose another directory with --state");
        }
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let detail = format!("{:.1} GiB free in {}", free as f64 / (1u64 << 30) as f64, existing.display());
    let fix = "free some space, or choose another directory with --state";
    match free {
        LITTLE_SPACE.. => Finding::ok(NAME, detail),
        NO_SPACE.. => Finding::warn(NAME, detail, fix),
        _ => Finding::fail(NAME, detail, fix),
    }
}

fn nearest_existing(path: &Path) -> Option<PathBuf> {
    let absolute = std::path::absolute(path).ok()?;
    absolute.ancestors().find(|ancestor| ancestor.exists()).map(Path::to_owned)
}

/// What the watch on the manifests needs (inotify(7)): one instance, a watch for each directory.
fn inotify(settings: &Path) -> Finding {
    const NAME: &str = "inotify";
    let limits = [("max_user_instances", 64), ("max_user_watches", 8192)];
    let read = |name: &str| -> Option<u64> {
        std::fs::read_to_string(settings.join(name)).ok()?.trim().parse().ok()
    };
    let mut details = Vec::new();
    for (name, least) in limits {
        match read(name) {
            Some(value) if value >= least => details.push(format!("{name} {value}")),
            Some(value) => {
                return Finding::warn(
                    NAME,
                    format!("{name} is {value}: edits of manifests may be seen only by the periodic scan"),
                    format!("sysctl -w fs.inotify.{name}={least}"),
                );
            }
            None => {
                return Finding::warn(
                    NAME,
                    format!("{} cannot be read", settings.join(name).display()),
                    "edits of manifests may be seen only by the periodic scan; use a kernel with inotify",
                );
            }
        }
    }
    Finding::ok(NAME, details.join(", "))
}
