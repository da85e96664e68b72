//! The smallest launch, for tests that drive a driver by hand.

use std::path::Path;

use vmlet_wire::GuestConfig;

use crate::boot::BootFiles;
use crate::hypervisor::Launch;
use crate::object::{Kind, ObjectKey, Quantity, Uid};

/// A VM in this folder and of its name, without a network, with nothing to run, on the kernel of a
/// scripted host. Files that it names need not exist for a scripted driver.
pub fn launch(dir: &Path) -> Launch {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    Launch {
        uid: Uid::new_v4(),
        key: ObjectKey::new(Kind::Vm, "default", &*name),
        dir: dir.to_owned(),
        cpus: 1,
        memory: Quantity::mebibytes(128),
        boot: BootFiles {
            kernel: "/boot/vmlinuz".into(),
            initramfs: "/boot/initramfs.cpio".into(),
            release: "host".to_owned(),
        },
        command_line: None,
        base_disk: "/images/base.ext4".into(),
        root_size: Quantity::mebibytes(64),
        nic: None,
        guest: GuestConfig { hostname: name.into_owned(), ..GuestConfig::default() },
        export: None,
        vmm_user: None,
    }
}
