//! QEMU's command line: a pure function of what is launched and on which machine.
//!
//! Paths are relative to the VM's folder, which is QEMU's working directory: socket addresses hold at
//! most 107 bytes (unix(7)). What lies outside the folder comes as open descriptors.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::hypervisor::{EXPORT_FILE, Launch, gate};
use crate::network::{Link, Nic};
use crate::object::Protocol;

use super::accel::Accelerator;
use super::folder::{CONFIG_FILE, CONSOLE_LOG, ROOT_FILE, RUN_DIR};

/// The name of the guest's end of the byte stream: a port of its virtio-serial device.
pub(super) const LINK_PORT: &str = "dev.vmlet.link";

/// Sockets in [`RUN_DIR`].
pub(super) const LINK_SOCKET: &str = "link.sock";
pub(super) const CONSOLE_SOCKET: &str = "console.sock";
pub(super) const QMP_SOCKET: &str = "qmp.sock";

/// The machine models that are known to boot a stock kernel with virtio devices on PCI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// Few devices, quick to boot.
    Microvm,
    /// A whole PC.
    Q35,
}

impl Machine {
    fn as_arg(self) -> &'static str {
        match self {
            // Without PCI, stock kernels find no device on it.
            Machine::Microvm => "microvm,pcie=on",
            Machine::Q35 => "q35",
        }
    }
}

/// What is the same for all VMs of a daemon.
#[derive(Clone, Debug)]
pub(super) struct Host {
    pub(super) machine: Machine,
    pub(super) accelerator: Accelerator,
    pub(super) tsc_khz: u64,
}

/// Mebibytes of translated code that TCG keeps per VM. QEMU's own choice is up to 1 GiB, which
/// would cost more than small guests' memory; a boot needs less than half of this.
const TRANSLATION_CACHE: u32 = 128;

/// The files that QEMU gets opened, in the order of [`BASE`], [`KERNEL`], [`INITRAMFS`].
pub(super) fn files(launch: &Launch) -> Vec<PathBuf> {
    vec![launch.base_disk.clone(), launch.boot.kernel.clone(), launch.boot.initramfs.clone()]
}

const BASE: i32 = gate::FIRST_FILE;
const KERNEL: i32 = gate::FIRST_FILE + 1;
const INITRAMFS: i32 = gate::FIRST_FILE + 2;

fn descriptor(number: i32) -> String {
    format!("/proc/self/fd/{number}")
}

/// The arguments after the program's name.
pub(super) fn arguments(launch: &Launch, host: &Host) -> Vec<String> {
    let mut args = Args(Vec::new());
    args.machine(launch, host);
    args.kernel(launch, host);
    // The order of the disks is a contract with the guest: vda, vdb, vdc, vdd. The base disk is used as
    // opened, so its file may be the daemon's alone.
    args.option("add-fd", format!("fd={BASE},set=1"));
    args.disk("base", "/dev/fdset/1", Access::Shared);
    args.disk("root", ROOT_FILE, Access::Private);
    args.disk("config", CONFIG_FILE, Access::Shared);
    if launch.export.is_some() {
        args.disk("export", EXPORT_FILE, Access::Private);
    }
    if let Some(nic) = &launch.nic {
        args.nic(nic);
    }
    args.channels();
    args.0
}

enum Access {
    /// Read-only, by any number of VMs.
    Shared,
    /// Written by this VM; QEMU's lock on the file keeps others out.
    Private,
}

struct Args(Vec<String>);

impl Args {
    fn flag(&mut self, name: &str) {
        self.0.push(format!("-{name}"));
    }

    fn option(&mut self, name: &str, value: impl Into<String>) {
        self.flag(name);
        self.0.push(value.into());
    }

    fn machine(&mut self, launch: &Launch, host: &Host) {
        self.option("name", launch.key.to_string());
        self.option("uuid", launch.uid.to_string());
        self.option("machine", host.machine.as_arg());
        match host.accelerator {
            Accelerator::Kvm => {
                self.option("accel", "kvm");
                self.option("cpu", "host");
            }
            Accelerator::Tcg { .. } => {
                self.option("accel", format!("tcg,tb-size={TRANSLATION_CACHE}"));
                self.option("cpu", "max");
            }
        }
        self.option("smp", launch.cpus.to_string());
        self.option("m", format!("{}k", launch.memory.as_bytes() / 1024));
        self.flag("nodefaults");
        self.flag("no-user-config");
        self.option("display", "none");
        // A guest that reboots or panics ends QEMU: restarts are the daemon's business.
        self.flag("no-reboot");
        self.option("sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    }

    fn kernel(&mut self, launch: &Launch, host: &Host) {
        // A reset by triple fault: microvm has none of the devices that other ways need, and hangs.
        let mut line = "console=ttyS0 quiet panic=-1 reboot=t".to_owned();
        if let Accelerator::Tcg { .. } = host.accelerator {
            // Boots that compete for cores hang in the calibration of the clock: it is told. Side
            // channels of an emulated processor are not the real one's, so the guest's guards against
            // them only cost time (0.3 s a boot, with the self-tests of ciphers).
            line += &format!(" tsc_early_khz={}", host.tsc_khz);
            line += " no_timer_check mitigations=off nokaslr cryptomgr.notests";
        }
        if let Some(more) = &launch.command_line {
            line += &format!(" {more}");
        }
        self.option("kernel", descriptor(KERNEL));
        self.option("initrd", descriptor(INITRAMFS));
        self.option("append", line);
    }

    fn disk(&mut self, name: &str, file: &str, access: Access) {
        let mut protocol = json!({"driver": "file", "filename": file});
        let mut format = json!({"driver": "raw", "node-name": name});
        match access {
            Access::Shared => {
                set(&mut protocol, "locking", json!("off"));
                set(&mut protocol, "read-only", json!(true));
                set(&mut format, "read-only", json!(true));
            }
            Access::Private => {
                set(&mut protocol, "discard", json!("unmap"));
                set(&mut format, "discard", json!("unmap"));
            }
        }
        set(&mut format, "file", protocol);
        self.option("blockdev", format.to_string());
        // A host without room is the guest's error, not a reason to stand still.
        self.option(
            "device",
            format!(
                "virtio-blk-pci,drive={name},serial={name}{}",
                if name == "export" { ",werror=report" } else { "" }
            ),
        );
    }

    fn nic(&mut self, nic: &Nic) {
        let backend = match &nic.link {
            Link::Bridge { tap, .. } => format!("tap,id=net,ifname={tap},script=no,downscript=no,vhost=off"),
            Link::User => {
                let forwards = nic.ports.iter().map(|port| {
                    let protocol = match port.protocol {
                        Protocol::Tcp => "tcp",
                        Protocol::Udp => "udp",
                    };
                    format!(",hostfwd={protocol}:127.0.0.1:{}-:{}", port.host, port.guest)
                });
                forwards.fold("user,id=net,ipv6=off".to_owned(), |backend, forward| backend + &forward)
            }
        };
        self.option("netdev", backend);
        // No boot ROM: nothing boots from the network.
        self.option("device", format!("virtio-net-pci,netdev=net,mac={},romfile=", nic.mac));
    }

    /// Byte streams, randomness, and QEMU's own control.
    fn channels(&mut self) {
        let socket =
            |id: &str, name: &str| format!("socket,id={id},path={RUN_DIR}/{name},server=on,wait=off");
        self.option("chardev", socket("link", LINK_SOCKET));
        self.option("device", "virtio-serial-pci");
        self.option("device", format!("virtserialport,chardev=link,name={LINK_PORT}"));
        // Appending lets the daemon cut the log while QEMU writes.
        let log = format!(",logfile={CONSOLE_LOG},logappend=on");
        self.option("chardev", socket("console", CONSOLE_SOCKET) + &log);
        self.option("serial", "chardev:console");
        self.option("chardev", socket("qmp", QMP_SOCKET));
        self.option("mon", "chardev=qmp,mode=control");
        self.option("object", "rng-builtin,id=rng");
        self.option("device", "virtio-rng-pci,rng=rng");
    }
}

fn set(object: &mut Value, key: &str, value: Value) {
    object[key] = value;
}
