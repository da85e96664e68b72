//! Who the VM is: its host name, and the files under `/etc` that say so.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use vmlet_wire::GuestConfig;

use crate::console;

/// Marks the lines of `/etc/hosts` that are ours.
const MARK: &str = "# vmlet";

/// Sets the host name and writes `/etc/hostname`, `/etc/hosts` and, with resolvers,
/// `/etc/resolv.conf`. What cannot be written is said on the console and is no failure.
pub(crate) fn apply(config: &GuestConfig) {
    complain("set the host name", nix::unistd::sethostname(&config.hostname).map_err(io::Error::from));
    let etc = Path::new("/etc");
    let _ = fs::create_dir_all(etc);
    complain("write /etc/hostname", replace(etc, "hostname", &format!("{}\n", config.hostname)));

    let address = config.network.as_ref().map_or("127.0.1.1", |network| &network.address);
    let old = fs::read(etc.join("hosts")).unwrap_or_default();
    let hosts = hosts(&String::from_utf8_lossy(&old), address, &config.hostname);
    complain("write /etc/hosts", replace(etc, "hosts", &hosts));

    let resolvers = config.network.as_ref().map_or(&[][..], |network| &network.resolvers);
    if !resolvers.is_empty() {
        let text: String = resolvers.iter().map(|resolver| format!("nameserver {resolver}\n")).collect();
        complain("write /etc/resolv.conf", replace(etc, "resolv.conf", &text));
    }
}

fn complain(doing: &str, result: io::Result<()>) {
    if let Err(error) = result {
        console::say(format!("cannot {doing}: {error}"));
    }
}

/// The image's hosts file with our own entry, replacing that of an earlier boot.
fn hosts(old: &str, address: &str, hostname: &str) -> String {
    let mut lines: Vec<String> =
        old.lines().filter(|line| !line.ends_with(MARK)).map(str::to_owned).collect();
    let has_localhost = lines.iter().any(|line| {
        let entry = line.split('#').next().unwrap_or_default();
        entry.split_whitespace().skip(1).any(|name| name == "localhost")
    });
    if !has_localhost {
        lines.push(format!("127.0.0.1 localhost {MARK}"));
        lines.push(format!("::1 localhost {MARK}"));
    }
    lines.push(format!("{address} {hostname} {MARK}"));
    lines.join("\n") + "\n"
}

/// Replaces a file, or the symbolic link that stands in its place, and never writes through one.
fn replace(dir: &Path, name: &str, content: &str) -> io::Result<()> {
    let staged = dir.join(format!(".{name}.vmlet"));
    let _ = fs::remove_file(&staged);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(&staged)?;
    file.write_all(content.as_bytes())?;
    fs::rename(&staged, dir.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_keeps_the_images_lines_and_replaces_ours() {
        let first = hosts("127.0.0.1\tlocalhost\n10.0.0.9 db\n", "10.63.0.4", "web");
        assert_eq!(first, "127.0.0.1\tlocalhost\n10.0.0.9 db\n10.63.0.4 web # vmlet\n");
        let second = hosts(&first, "10.63.0.5", "api");
        assert_eq!(second, "127.0.0.1\tlocalhost\n10.0.0.9 db\n10.63.0.5 api # vmlet\n");
    }

    #[test]
    fn hosts_names_localhost_when_the_image_does_not() {
        assert_eq!(
            hosts("# 127.0.0.1 localhost\n", "127.0.1.1", "web"),
            "# 127.0.0.1 localhost\n127.0.0.1 localhost # vmlet\n::1 localhost # vmlet\n127.0.1.1 web # vmlet\n"
        );
    }

    #[test]
    fn a_link_is_replaced_and_its_target_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("target"), "kept").unwrap();
        std::os::unix::fs::symlink("target", dir.path().join("resolv.conf")).unwrap();
        replace(dir.path(), "resolv.conf", "nameserver 10.63.0.1\n").unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("resolv.conf")).unwrap(), "nameserver 10.63.0.1\n");
        assert!(!dir.path().join("resolv.conf").is_symlink());
        assert_eq!(fs::read_to_string(dir.path().join("target")).unwrap(), "kept");
    }
}
