//! A disk that is full under the daemon's feet.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

use crate::common::oci::noise;
use crate::host::{Host, Net, vm};
use crate::pid;
use crate::traces::alive;

/// A small file system, unmounted when dropped.
struct Small<'a>(&'a Path);

impl<'a> Small<'a> {
    fn mount(at: &'a Path) -> Self {
        std::fs::create_dir(at).unwrap();
        mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some("size=256m")).unwrap();
        Small(at)
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        let _ = umount2(self.0, MntFlags::MNT_DETACH);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_without_room_for_its_records_ends_and_the_next_one_goes_on() {
    let mut host = Host::prepare(Net::User).await;
    let state = host.path("state");
    let small = Small::mount(&state);
    host.start_daemon().await;
    let spec = json!({"image": {"oci": host.reference("busybox:1")}, "rootDisk": {"size": "64Mi"}});
    host.write("vm.yaml", &[vm("steady", spec.clone())]);
    let before = host.ready("steady").await;
    let mut filler = File::create(state.join("filler")).unwrap();
    while filler.write_all(&[1; 4096]).is_ok() {}
    drop(filler);
    // More records than are left of what the store has claimed for its log.
    let mut halted = spec;
    halted["runPolicy"] = json!("Halted");
    let fat = |number: u64| {
        let mut manifest = vm(&format!("fat-{number}"), halted.clone());
        manifest["metadata"]["annotations"] = json!({"fat": hex::encode(noise(number, 90_000))});
        manifest
    };
    host.write("fat.yaml", &(1..=5).map(fat).collect::<Vec<_>>());
    let status = host.daemon_end().await;
    assert_eq!(status.code(), Some(1), "{}", host.log());
    assert!(host.log().contains("Running VMs are not touched. Free space"), "{}", host.log());
    assert!(alive(pid(&before)));

    host.remove("fat.yaml");
    std::fs::remove_file(state.join("filler")).unwrap();
    host.start_daemon().await;
    host.linked("steady").await;
    let after = host.ready("steady").await;
    assert_eq!((pid(&after), &after["status"]["restarts"]), (pid(&before), &Value::from(0)));
    host.assert_host_is_clean().await;
    drop(small);
}
