//! A real Debian with systemd, from debootstrap.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::common::oci::{Image, Layer};
use crate::host::{Host, Net, vm};

/// Debian's minimal system with systemd as a tar, made once and kept with the build.
fn debian() -> Vec<u8> {
    let kept = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("debian-systemd.tar");
    if let Ok(tar) = std::fs::read(&kept) {
        return tar;
    }
    let work = tempfile::tempdir().unwrap();
    let root = work.path().join("root");
    run(
        "debootstrap",
        &["--variant=minbase", "--include=systemd-sysv,dbus", "bookworm", &root.display().to_string()],
    );
    let _ = std::fs::remove_dir_all(root.join("var/cache/apt/archives"));
    let tar = work.path().join("root.tar");
    run(
        "tar",
        &[
            "-C",
            &root.display().to_string(),
            "--xattrs",
            "--numeric-owner",
            "-cf",
            &tar.display().to_string(),
            ".",
        ],
    );
    let bytes = std::fs::read(&tar).unwrap();
    store(&kept, &bytes);
    bytes
}

fn store(path: &Path, bytes: &[u8]) {
    let beside = path.with_extension("new");
    std::fs::write(&beside, bytes).unwrap();
    std::fs::rename(beside, path).unwrap();
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}; apt-get install {program}"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stdout));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_debian_with_systemd_reaches_its_default_target() {
    let tar = tokio::task::spawn_blocking(debian).await.unwrap();
    let mut host = Host::start(Net::User).await;
    let image = Image::with_config(vec![Layer::gzip(&tar)], json!({"Cmd": ["bash"]}));
    host.registry.push(&image, "debian", "12").await;
    let spec = json!({"image": {"oci": host.reference("debian:12")}, "memory": "384Mi"});
    host.write("vm.yaml", &[vm("debian", spec)]);
    host.ready("debian").await;
    assert_eq!(host.exec("debian", &["cat", "/proc/1/comm"]), "systemd");
    let target = host.exec("debian", &["systemctl", "is-active", "multi-user.target"]);
    assert_eq!(target, "active");
    host.remove("vm.yaml");
    host.until("vms", "debian", serde_json::Value::is_null).await;
    assert!(!host.log().contains("Killing"), "a systemd that is asked to shut down does so");
    host.assert_host_is_clean().await;
}
