use std::fs;

use super::*;

#[test]
fn the_newest_kernel_with_modules_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let (boot, modules) = (dir.path().join("boot"), dir.path().join("modules"));
    fs::create_dir_all(&boot).unwrap();
    let look = || kernel(&boot, &modules);
    assert_eq!((look().status, look().detail.contains("no kernel")), (Status::Fail, true));
    for version in ["6.9.0-1", "6.10.0-2", "6.11.0-1"] {
        fs::write(boot.join(format!("vmlinuz-{version}")), "").unwrap();
    }
    assert!(look().detail.contains("no modules for 6.11.0-1"), "{:?}", look());
    for version in ["6.9.0-1", "6.10.0-2"] {
        fs::create_dir_all(modules.join(version)).unwrap();
    }
    assert_eq!((look().status, look().fix.clone()), (Status::Ok, None));
    assert!(look().detail.ends_with("vmlinuz-6.10.0-2"), "{:?}", look());
}

#[test]
fn inotify_limits_that_are_too_low_come_with_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(inotify(dir.path()).status, Status::Warn);
    fs::write(dir.path().join("max_user_instances"), "128\n").unwrap();
    fs::write(dir.path().join("max_user_watches"), "10\n").unwrap();
    let fix = inotify(dir.path()).fix.unwrap();
    assert_eq!(fix, "sysctl -w fs.inotify.max_user_watches=8192");
    fs::write(dir.path().join("max_user_watches"), "8192\n").unwrap();
    assert_eq!(inotify(dir.path()).status, Status::Ok);
}

#[test]
fn space_is_measured_where_the_directory_will_be() {
    let dir = tempfile::tempdir().unwrap();
    let finding = disk_space(&dir.path().join("not/yet/there"));
    assert!(finding.detail.contains(&dir.path().display().to_string()), "{finding:?}");
}

#[tokio::test]
async fn a_missing_tool_is_an_error() {
    assert_eq!(version("vmlet-no-such-tool").await.unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[tokio::test]
async fn every_host_gets_the_same_questions() {
    let state_dir = tempfile::tempdir().unwrap();
    let accelerator = Finding::warn("accelerator", "tcg", "enable KVM");
    let findings = examine(Examination {
        state_dir: state_dir.path(),
        bridge: "vmlet0",
        accelerator: accelerator.clone(),
    })
    .await;
    let mut names: Vec<_> = findings.iter().map(|finding| finding.name.as_str()).collect();
    names.dedup();
    assert_eq!(
        names,
        [
            "kernel",
            "qemu",
            "accelerator",
            "privileges",
            "tun",
            "nftables",
            "forwarding",
            "disk space",
            "inotify"
        ]
    );
    assert!(findings.contains(&accelerator));
    assert!(findings.iter().all(|finding| (finding.status == Status::Ok) == finding.fix.is_none()));
}
