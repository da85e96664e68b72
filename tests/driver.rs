//! The QEMU driver with real VMs: a busybox guest that does as the test says.
//!
//! Needs root, and Debian's qemu-system-x86, linux-image-cloud-amd64, busybox-static, iproute2, e2fsprogs.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use vmlet::boot::{self, BootFiles};
use vmlet::hypervisor::qemu::{AcceleratorSetting, MachineSetting, QemuDriver, QemuSettings};
use vmlet::hypervisor::{Driver, GuestStream, Launch, VmmExit};
use vmlet::network::{Link, Nic};
use vmlet::object::{Kind, ObjectKey, Quantity, Uid};
use vmlet_wire::{EXIT_LINE, GuestConfig, Workload};

const HELPER: &str = env!("CARGO_BIN_EXE_vmlet");
/// No step of a test takes longer, on a busy machine either.
const LIMIT: Duration = Duration::from_secs(120);
/// The first of the users that VMs run as in these tests.
const VMM_USER: u32 = 2_100_000_001;

/// What the guest does: loads the modules, then obeys one-line commands on its link.
const INIT: &str = r#"#!/bin/busybox sh
bb=/bin/busybox
$bb mount -t proc proc /proc; $bb mount -t sysfs sysfs /sys; $bb mount -t devtmpfs dev /dev
while read module; do $bb insmod /modules/$module; done < /modules/order
for port in /sys/class/virtio-ports/*; do
    [ "$($bb cat $port/name)" = dev.vmlet.link ] && link=/dev/${port##*/}
done
exec 3<>$link
for disk in vda vdb vdc; do disks="$disks $($bb cat /sys/block/$disk/serial)"; done
echo "ready$disks" >&3
while read -r command argument <&3; do
    case $command in
        echo) echo "$argument" >&3 ;;
        config) $bb head -c 4096 /dev/vdc | $bb tr -d '\0' >&3; echo >&3 ;;
        base) $bb head -c 4 /dev/vda >&3; echo >&3; echo x 2>/dev/null > /dev/vda && echo written >&3 || echo refused >&3 ;;
        root) $bb mkdir -p /root-disk; $bb mount -t ext4 /dev/vdb /root-disk && $bb df -k /root-disk | $bb tail -n 1 | $bb awk '{print "size", $2}' >&3; $bb umount /root-disk ;;
        network) $bb ip link set eth0 up; $bb ip address add $argument dev eth0; $bb cat /sys/class/net/eth0/address >&3 ;;
        uptime) $bb cut -d ' ' -f 1 /proc/uptime >&3 ;;
        say) echo "$argument" > /dev/console; echo said >&3 ;;
        flood) $bb yes | $bb head -c $argument > /dev/console; echo flooded >&3 ;;
        poweroff) $bb poweroff -f ;;
        reboot) $bb reboot -f ;;
        panic) echo c > /proc/sysrq-trigger ;;
    esac
done
"#;

/// Everything a test needs, removed at its end.
struct Host {
    dir: tempfile::TempDir,
    driver: QemuDriver,
}

impl Host {
    async fn new(machine: MachineSetting) -> Host {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let settings = QemuSettings {
            machine,
            accelerator: AcceleratorSetting::Tcg,
            helper: HELPER.into(),
            ..QemuSettings::default()
        };
        let driver = QemuDriver::new(settings, boot_files(dir.path())).await.expect("QEMU is installed");
        Host { dir, driver }
    }

    fn launch(&self, name: &str) -> Launch {
        let base = self.dir.path().join("base.ext4");
        fs::write(&base, [b"base".as_slice(), &[0; 4092]].concat()).expect("the base disk is written");
        fs::set_permissions(&base, fs::Permissions::from_mode(0o644)).expect("it is made readable");
        Launch {
            uid: Uid::new_v4(),
            key: ObjectKey::new(Kind::Vm, "default", name),
            dir: self.dir.path().join("vms").join(name),
            cpus: 1,
            memory: Quantity::mebibytes(128),
            base_disk: base,
            root_size: Quantity::mebibytes(256),
            nic: None,
            guest: GuestConfig {
                hostname: name.to_owned(),
                network: None,
                workload: Workload {
                    prefer_init: false,
                    argv: vec!["true".to_owned()],
                    env: vec![],
                    working_dir: None,
                    user: None,
                    stop_signal: None,
                    grace_seconds: 1,
                },
            },
            vmm_user: None,
        }
    }

    async fn start(&self, launch: Launch) -> Running<'_> {
        self.driver.prepare(&launch).await.expect("the folder is made");
        let gated = self.driver.spawn(&launch).await.expect("the gate starts");
        let process = gated.process().clone();
        gated.release().await.expect("the gate opens");
        let mut vm = Running { host: self, launch, process, link: None };
        vm.connect().await;
        vm
    }
}

struct Running<'a> {
    host: &'a Host,
    launch: Launch,
    process: vmlet::hypervisor::ProcessIdentity,
    link: Option<BufReader<GuestStream>>,
}

impl Running<'_> {
    async fn connect(&mut self) {
        self.link = None;
        let connected = async {
            loop {
                if let Ok(stream) = self.host.driver.connect(&self.launch.dir).await {
                    return stream;
                }
                assert!(self.host.driver.alive(&self.process), "{}", self.words());
                tokio::task::yield_now().await;
            }
        };
        let stream = tokio::time::timeout(LIMIT, connected).await.expect("the link opens");
        self.link = Some(BufReader::new(stream));
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        let link = self.link.as_mut().expect("connected");
        let read = tokio::time::timeout(LIMIT, link.read_line(&mut line)).await;
        match read {
            Ok(Ok(length)) if length > 0 => line.trim_end().to_owned(),
            other => panic!("{other:?}: {}", self.words()),
        }
    }

    async fn tell(&mut self, command: &str) {
        let link = self.link.as_mut().expect("connected");
        link.write_all(format!("{command}\n").as_bytes()).await.expect("the guest listens");
    }

    async fn ask(&mut self, command: &str) -> String {
        self.tell(command).await;
        self.line().await
    }

    async fn exit(&self) -> VmmExit {
        let exited = self.host.driver.exited(&self.launch.dir, &self.process);
        tokio::time::timeout(LIMIT, exited).await.unwrap_or_else(|_| panic!("still runs: {}", self.words()))
    }

    fn words(&self) -> String {
        let read = |name| fs::read_to_string(self.launch.dir.join(name)).unwrap_or_default();
        format!("QEMU said {:?}, the guest {:?}", read("vmm.log"), read("console.log"))
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if self.host.driver.alive(&self.process) {
            let pid = nix::unistd::Pid::from_raw(self.process.pid as i32);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
    }
}

/// The real boot files, with busybox and [`INIT`] in a second archive behind the first: the kernel
/// unpacks both, and the later `/init` wins.
fn boot_files(dir: &Path) -> BootFiles {
    let settings = boot::Settings { kernel: None, modules: None, cache: dir.join("boot") };
    let mut files = boot::prepare(&settings, b"replaced").expect("a kernel is installed");
    let mut archive = fs::read(&files.initramfs).expect("the archive is there");
    let busybox = fs::read("/bin/busybox").expect("apt install busybox-static");
    let mut add = |name: &str, mode: u32, bytes: &[u8]| {
        let header = cpio::newc::Builder::new(name).ino(1000).mode(mode);
        let mut writer = header.write(&mut archive, bytes.len() as u32);
        writer.write_all(bytes).expect("a Vec takes everything");
        writer.finish().expect("a Vec takes everything");
    };
    add("bin", 0o040_755, &[]);
    add("bin/busybox", 0o100_755, &busybox);
    add("init", 0o100_755, INIT.as_bytes());
    cpio::newc::trailer(&mut archive).expect("a Vec takes everything");
    files.initramfs = dir.join("test.cpio");
    fs::write(&files.initramfs, archive).expect("the archive is written");
    fs::set_permissions(&files.initramfs, fs::Permissions::from_mode(0o644)).expect("it is made readable");
    files
}

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

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}; install it"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}
