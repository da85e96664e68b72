//! A host, VMs on it, and a busybox guest that does as the test says.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use vmlet::boot::{self, BootCache, BootFiles, KernelForm};
use vmlet::guest_image::GUEST;
use vmlet::hypervisor::qemu::{AcceleratorSetting, MachineSetting, QemuDriver, QemuSettings};
use vmlet::hypervisor::{Driver, GuestStream, Launch, ProcessIdentity, VmmExit};
use vmlet::object::Quantity;

/// The binary that knows the hidden subcommands.
pub(crate) const HELPER: &str = env!("CARGO_BIN_EXE_vmlet");
/// No step of a test takes longer, on a busy machine either.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);
/// The user that unprivileged VMs run as.
pub(crate) const VMM_USER: u32 = 2_100_000_001;

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
while true; do
    # Nobody is connected: the port is at its end until somebody is.
    read -r command argument <&3 || { $bb usleep 10000; continue; }
    case $command in
        echo) echo "$argument" >&3 ;;
        config) $bb head -c 4096 /dev/vdc | $bb tr -d '\0' >&3; echo >&3 ;;
        base) $bb head -c 4 /dev/vda >&3; echo >&3; echo x 2>/dev/null > /dev/vda && echo written >&3 || echo refused >&3 ;;
        root) $bb mkdir -p /root-disk; $bb mount -t ext4 /dev/vdb /root-disk && $bb df -k /root-disk | $bb tail -n 1 | $bb awk '{print "size", $2}' >&3; $bb umount /root-disk ;;
        network) $bb ip link set eth0 up; $bb ip address add $argument dev eth0; $bb cat /sys/class/net/eth0/address >&3 ;;
        say) echo "$argument" > /dev/console; echo said >&3 ;;
        poweroff) $bb poweroff -f ;;
        reboot) $bb reboot -f ;;
        panic) echo c > /proc/sysrq-trigger ;;
    esac
done
"#;

/// Everything a test needs, removed at its end.
pub(crate) struct Host {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) driver: QemuDriver,
    boot: BootFiles,
}

impl Host {
    /// A host whose VMs run [`INIT`].
    pub(crate) async fn new(machine: MachineSetting) -> Host {
        Host::with(machine, obedient_boot_files).await
    }

    /// A host whose VMs run the guest that vmlet ships.
    pub(crate) async fn with_real_guest(machine: MachineSetting) -> Host {
        Host::with(machine, |dir, form| boot_files(dir, GUEST, form)).await
    }

    async fn with(machine: MachineSetting, boot_files: impl FnOnce(&Path, KernelForm) -> BootFiles) -> Host {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let settings = QemuSettings {
            machine,
            accelerator: AcceleratorSetting::Tcg,
            helper: HELPER.into(),
            ..QemuSettings::default()
        };
        let driver = QemuDriver::new(settings).await.expect("QEMU is installed");
        let boot = boot_files(dir.path(), driver.kernel_form());
        Host { dir, driver, boot }
    }

    pub(crate) fn launch(&self, name: &str) -> Launch {
        let base = self.dir.path().join("base.ext4");
        fs::write(&base, [b"base".as_slice(), &[0; 4092]].concat()).expect("the base disk is written");
        fs::set_permissions(&base, fs::Permissions::from_mode(0o600)).expect("it is the daemon's alone");
        let mut launch = vmlet::testing::launch(&self.dir.path().join("vms").join(name));
        launch.guest.workload.argv = vec!["true".to_owned()];
        Launch { boot: self.boot.clone(), base_disk: base, root_size: Quantity::mebibytes(256), ..launch }
    }

    /// Starts a VM.
    pub(crate) async fn spawn(&self, launch: Launch) -> Running<'_> {
        self.driver.prepare(&launch).await.expect("the folder is made");
        let gated = self.driver.spawn(&launch).await.expect("the gate starts");
        let process = gated.process().clone();
        gated.release().await.expect("the gate opens");
        Running { host: self, launch, process, link: None }
    }

    /// Starts a VM and connects to it.
    pub(crate) async fn start(&self, launch: Launch) -> Running<'_> {
        let mut vm = self.spawn(launch).await;
        vm.connect().await;
        vm
    }
}

pub(crate) struct Running<'a> {
    host: &'a Host,
    pub(crate) launch: Launch,
    pub(crate) process: ProcessIdentity,
    link: Option<BufReader<GuestStream>>,
}

impl Running<'_> {
    /// The link, once QEMU listens.
    pub(crate) async fn stream(&self) -> GuestStream {
        let connected = async {
            loop {
                if let Ok(stream) = self.host.driver.connect(&self.launch.dir).await {
                    return stream;
                }
                assert!(self.host.driver.alive(&self.process), "{}", self.words());
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LIMIT, connected).await.expect("the link opens")
    }

    /// Takes up the link, after letting the old one go.
    pub(crate) async fn connect(&mut self) {
        self.link = None;
        self.link = Some(BufReader::new(self.stream().await));
    }

    pub(crate) async fn line(&mut self) -> String {
        let mut line = String::new();
        let link = self.link.as_mut().expect("connected");
        let read = tokio::time::timeout(LIMIT, link.read_line(&mut line)).await;
        match read {
            Ok(Ok(length)) if length > 0 => line.trim_end().to_owned(),
            other => panic!("{other:?}: {}", self.words()),
        }
    }

    pub(crate) async fn tell(&mut self, command: &str) {
        let link = self.link.as_mut().expect("connected");
        link.write_all(format!("{command}\n").as_bytes()).await.expect("the guest listens");
    }

    pub(crate) async fn ask(&mut self, command: &str) -> String {
        self.tell(command).await;
        self.line().await
    }

    pub(crate) async fn exit(&self) -> VmmExit {
        let exited = self.host.driver.exited(&self.launch.dir, &self.process);
        tokio::time::timeout(LIMIT, exited).await.unwrap_or_else(|_| panic!("still runs: {}", self.words()))
    }

    pub(crate) fn words(&self) -> String {
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

fn boot_files(dir: &Path, guest: &'static [u8], form: KernelForm) -> BootFiles {
    let settings = boot::Settings { kernel: None, modules: None, cache: dir.join("boot") };
    BootCache::open(&settings, guest, form).expect("a kernel is installed").host().clone()
}

/// The real boot files, with busybox and [`INIT`] in a second archive behind the first: the kernel
/// unpacks both, and the later `/init` wins.
fn obedient_boot_files(dir: &Path, form: KernelForm) -> BootFiles {
    let mut files = boot_files(dir, b"replaced", form);
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

/// Runs a tool that must succeed.
pub(crate) fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}; install it"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}
