//! VMs from start to end.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tokio::io::AsyncReadExt;
use vmlet::hypervisor::Driver;
use vmlet::hypervisor::qemu::MachineSetting;
use vmlet::network::{Link, Nic};
use vmlet_wire::{EXIT_LINE, GuestConfig};

use crate::support::{Host, LIMIT, VMM_USER, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_boots_talks_and_powers_off_on_every_machine() {
    for machine in [MachineSetting::Microvm, MachineSetting::Q35] {
        let host = Host::new(machine).await;
        let mut vm = host.start(host.launch("web")).await;
        assert_eq!(vm.line().await, "ready base root config");
        let config: GuestConfig = serde_json::from_str(&vm.ask("config").await).expect("the configuration");
        assert_eq!(config, vm.launch.guest);
        assert_eq!(vm.ask("base").await, "base");
        assert_eq!(vm.line().await, "refused");
        let root = vm.ask("root").await;
        let size: u64 = root.strip_prefix("size ").and_then(|size| size.parse().ok()).expect("a size");
        assert!((200_000..=262_144).contains(&size), "{root}");
        vm.ask(&format!("say {EXIT_LINE}7")).await;
        vm.tell("poweroff").await;
        let exit = vm.exit().await;
        assert_eq!((exit.code, exit.signal, exit.workload), (Some(0), None, Some(7)), "{exit:?}");
        assert!(!host.driver.alive(&vm.process));
        host.driver.cleanup(&vm.launch.dir).await.expect("the folder is removed");
        assert!(!vm.launch.dir.exists());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reboots_and_panics_end_the_vm_and_say_why() {
    for machine in [MachineSetting::Microvm, MachineSetting::Q35] {
        let host = Host::new(machine).await;
        let mut vm = host.start(host.launch("web")).await;
        vm.line().await;
        vm.tell("reboot").await;
        assert_eq!(vm.exit().await.code, Some(0));
        // The second start keeps the disk and begins a new console.
        let mut vm = host.start(vm.launch.clone()).await;
        vm.line().await;
        vm.tell("panic").await;
        let exit = vm.exit().await;
        assert_eq!(
            exit.message,
            "the guest's kernel panicked: Kernel panic - not syncing: sysrq triggered crash"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_vms_at_once_boot_on_few_cores() {
    let host = Host::new(MachineSetting::Auto).await;
    let names: Vec<String> = (0..8).map(|number| format!("vm-{number}")).collect();
    let boots = names.iter().map(|name| async {
        let mut vm = host.start(host.launch(name)).await;
        assert_eq!(vm.line().await, "ready base root config");
        vm
    });
    for mut vm in futures_util::future::join_all(boots).await {
        vm.tell("poweroff").await;
        assert_eq!(vm.exit().await.code, Some(0));
    }
}

#[test]
fn qemu_runs_unprivileged_with_a_tap_of_its_own() {
    // A network namespace of this thread, inherited by the runtime's threads and their children.
    let test = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root may");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.expect("a runtime").block_on(unprivileged_with_tap());
    });
    test.join().expect("no panic");
}

async fn unprivileged_with_tap() {
    const TAP: &str = "vmtap0";
    run("ip", &["tuntap", "add", TAP, "mode", "tap", "user", &VMM_USER.to_string()]);
    run("ip", &["address", "add", "10.99.77.1/24", "dev", TAP]);
    run("ip", &["link", "set", TAP, "up"]);
    let host = Host::new(MachineSetting::Auto).await;
    let mut launch = host.launch("web");
    launch.vmm_user = Some(VMM_USER);
    launch.nic = Some(Nic {
        mac: "52:54:00:12:34:56".to_owned(),
        link: Link::Bridge {
            tap: TAP.to_owned(),
            tap_owner: Some(VMM_USER),
            address: [10, 99, 77, 2].into(),
            prefix: 24,
            gateway: [10, 99, 77, 1].into(),
        },
        ports: vec![],
    });
    let mut vm = host.start(launch).await;
    vm.line().await;
    assert_eq!(vm.ask("network 10.99.77.2/24").await, "52:54:00:12:34:56");
    run("ping", &["-c", "1", "-W", "30", "10.99.77.2"]);

    let status = fs::read_to_string(format!("/proc/{}/status", vm.process.pid)).expect("it runs");
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).expect("a field of proc(5)");
        line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
    };
    let user = VMM_USER.to_string();
    assert_eq!(field("Uid:"), [user.as_str(); 4].join(" "));
    assert_eq!(field("Gid:"), [user.as_str(); 4].join(" "));
    assert_eq!(field("Groups:"), "");
    assert_eq!(field("CapEff:"), "0000000000000000");
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    let modes =
        |path: &Path| fs::metadata(path).map(|m| (m.uid(), m.gid(), m.mode() & 0o777)).expect("exists");
    assert_eq!(modes(&vm.launch.dir), (0, VMM_USER, 0o710));
    assert_eq!(modes(&vm.launch.dir.join("run")), (VMM_USER, VMM_USER, 0o700));
    assert_eq!(modes(&vm.launch.dir.join("root.ext4")), (VMM_USER, VMM_USER, 0o600));
    host.driver.kill(&vm.process).await.expect("it is killed");
    assert!(!host.driver.alive(&vm.process));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_link_can_be_taken_up_again_and_the_console_attached() {
    let host = Host::new(MachineSetting::Auto).await;
    // Longer than a socket address may be.
    let mut launch = host.launch("web");
    launch.dir = host.dir.path().join("x".repeat(120)).join("web");
    let mut vm = host.start(launch).await;
    vm.line().await;
    vm.connect().await;
    assert_eq!(vm.ask("echo again").await, "again");

    let mut console = host.driver.console(&vm.launch.dir).await.expect("the console attaches");
    vm.ask("say hello").await;
    let mut seen = Vec::new();
    while !seen.ends_with(b"hello") {
        let mut byte = [0];
        tokio::time::timeout(LIMIT, console.read_exact(&mut byte)).await.expect("in time").expect("a byte");
        seen.extend(byte);
    }
    host.driver.kill(&vm.process).await.expect("it is killed");
}
