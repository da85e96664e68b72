//! The test of KVM itself: here on this host, whatever it has, and inside a VM with an emulated
//! processor that has working virtualisation.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use vmlet::hypervisor::qemu::{Accelerator, AcceleratorSetting, choose_accelerator};

use crate::support::{HELPER, run};

#[tokio::test]
async fn a_choice_is_made_in_time_and_with_a_reason() {
    // It takes 1.5 s at most, and a test guest that nobody ends takes for ever.
    let choice = choose_accelerator(AcceleratorSetting::Auto, Path::new(HELPER));
    let choice = tokio::time::timeout(Duration::from_secs(120), choice).await.expect("it is made");
    if let Accelerator::Tcg { why } = &choice {
        assert!(why.contains("/dev/kvm") && why.len() < 300, "{why}");
        assert!(choice.to_string().starts_with("tcg: guests are emulated, because "));
    }
}

/// In a VM, `kvm-amd` finds QEMU's emulation of AMD's SVM, which executes guest code properly.
#[test]
fn kvm_that_works_is_recognised() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let root = dir.path().join("root");
    for folder in ["bin", "dev", "proc", "sys"] {
        fs::create_dir_all(root.join(folder)).expect("made");
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("apt install busybox-static");
    fs::copy(HELPER, root.join("vmlet")).expect("copied");
    run("strip", &[root.join("vmlet").to_str().expect("text")]);
    let script = format!(
        "for file in $(ldd {HELPER} | grep -o '/[^ ]*'); do mkdir -p .$(dirname $file); cp -L $file .$file; done; \
         for name in irqbypass kvm kvm-amd; do \
             cp $(find $(ls -d /lib/modules/*-cloud-amd64 | tail -n 1) -name $name.ko) .; done; \
         printf '%s' '{INIT}' > init; chmod +x init; find . | cpio -o -H newc --quiet > ../initramfs"
    );
    let made = Command::new("sh").args(["-ec", &script]).current_dir(&root).status();
    assert!(made.expect("sh").success(), "install cpio and linux-image-cloud-amd64");
    let script = "exec timeout 600 qemu-system-x86_64 -M q35 -accel tcg -cpu max,+svm,+npt -m 512 -nodefaults \
                  -no-user-config -display none -no-reboot -serial stdio -initrd initramfs \
                  -kernel $(ls /boot/vmlinuz-*-cloud-amd64 | tail -n 1) -append 'console=ttyS0 quiet panic=-1'";
    let output = Command::new("sh").args(["-c", script]).current_dir(dir.path()).output().expect("sh");
    let console = String::from_utf8_lossy(&output.stdout);
    assert!(console.contains("the probe ends with 0"), "{console}");
}

const INIT: &str = "#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
for name in irqbypass kvm kvm-amd; do /bin/busybox insmod /$name.ko; done
/vmlet __kvm-probe
echo the probe ends with $?
/bin/busybox poweroff -f
";
