//! Kernels that are not the host's: files, those in an image, and those of another image.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::common::oci::{Image, Item, Layer, tar};
use crate::host::{Host, Net, PATIENCE, condition, image, is_ready, vm};
use crate::images::busybox_below;
use crate::pid;

/// The host's newest kernel.
fn installed() -> (PathBuf, String) {
    let kernels = std::fs::read_dir("/boot").unwrap().flatten().map(|entry| entry.path());
    let with_modules = |path: PathBuf| {
        let release = path.file_name()?.to_str()?.strip_prefix("vmlinuz-")?.to_owned();
        Path::new("/lib/modules").join(&release).is_dir().then_some((path, release))
    };
    kernels.filter_map(with_modules).max().expect("a kernel is installed")
}

/// The host's kernel under another name, so that one can tell which of them was taken. What it says of itself is
/// in its header only: the kernel that runs says what it always said.
fn renamed() -> (Vec<u8>, String) {
    let (path, release) = installed();
    let mut kernel = std::fs::read(path).unwrap();
    let at = usize::from(u16::from_le_bytes([kernel[0x20e], kernel[0x20f]])) + 0x200;
    assert_eq!(&kernel[at..at + release.len()], release.as_bytes());
    let other = format!("vmlet{}", &release[5..]);
    kernel[at..at + other.len()].copy_from_slice(other.as_bytes());
    (kernel, other)
}

fn xz(path: &Path) -> Vec<u8> {
    let output = Command::new("xz")
        .args(["--check=crc32", "--lzma2=dict=1MiB", "-1", "-c"])
        .stdin(Stdio::from(std::fs::File::open(path).unwrap()))
        .output()
        .expect("apt-get install xz-utils");
    output.stdout
}

/// A busybox image with a kernel, and what its guests need of its modules: packed, and without an index.
fn with_kernel() -> (Image, String) {
    let (_, release) = installed();
    let (kernel, other) = renamed();
    let host = Path::new("/lib/modules").join(&release);
    let index = std::fs::read_to_string(host.join("modules.dep")).unwrap();
    let wanted =
        ["virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "overlay", "virtio-rng", "ext4"];
    let mut files: Vec<&str> = index
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(file, _)| wanted.iter().any(|name| file.contains(&format!("/{name}.ko"))))
        .flat_map(|(file, needs)| std::iter::once(file).chain(needs.split_ascii_whitespace()))
        .collect();
    files.sort_unstable();
    files.dedup();
    let modules = format!("usr/lib/modules/{other}");
    let mut items = vec![
        Item::symlink("lib", "usr/lib"),
        Item::file(format!("boot/vmlinuz-{other}"), kernel),
        Item::file(
            format!("{modules}/modules.builtin"),
            std::fs::read(host.join("modules.builtin")).unwrap(),
        ),
    ];
    items.extend(files.iter().map(|file| {
        let plain = file.ends_with(".ko");
        let path = host.join(file);
        let bytes = if plain { xz(&path) } else { std::fs::read(path).unwrap() };
        Item::file(format!("{modules}/{file}{}", if plain { ".xz" } else { "" }), bytes)
    }));
    (busybox_below(Layer::gzip(&tar(&items))), other)
}

/// An initial RAM disk with a file.
fn initrd(dir: &Path) -> PathBuf {
    let script = "mkdir -p firmware && echo from-the-initrd > firmware/note && find firmware | cpio -o -H newc > initrd";
    let made = Command::new("sh").args(["-c", script]).current_dir(dir).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    dir.join("initrd")
}

fn image_with(name: &str, reference: &str, kernel: Value) -> Value {
    let mut image = image(name, reference);
    image["spec"]["kernel"] = kernel;
    image
}

/// Folders of kernels that are ready.
fn kernels(host: &Host) -> usize {
    std::fs::read_dir(host.path("state").join("boot")).unwrap().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn vms_boot_kernels_of_files_of_their_image_and_of_another() {
    let mut host = Host::prepare(Net::User).await;
    let (inner, release) = with_kernel();
    host.registry.push(&inner, "kernels", "1").await;
    host.start_daemon().await;
    assert_eq!(kernels(&host), 1, "the host's");

    let folder = host.path("files");
    std::fs::create_dir(&folder).unwrap();
    let file = folder.join("vmlinuz");
    std::fs::copy(installed().0, &file).unwrap();
    let (busybox, inside) = (host.reference("busybox:1"), host.reference("kernels:1"));
    let inner = |kernel: Value| image_with("inner", &inside, kernel);
    host.write("inner.yaml", &[inner(json!({"image": {}, "commandLine": "vmlet.test=inner"}))]);
    host.write(
        "others.yaml",
        &[
            image_with(
                "file",
                &busybox,
                json!({"file": {"kernel": file, "initrd": initrd(&folder)}, "commandLine": "vmlet.test=file"}),
            ),
            image_with("oci", &busybox, json!({"oci": {"reference": inside}})),
            image_with("none", &busybox, json!({"image": {}})),
        ],
    );
    let vms = ["inner", "file", "oci", "none"].map(|name| vm(name, json!({"image": {"name": name}})));
    host.write("vms.yaml", &vms);
    let (by_inner, by_file, _) = tokio::join!(host.ready("inner"), host.ready("file"), host.ready("oci"));

    let line = |vm: &str| host.exec(vm, &["cat", "/proc/cmdline"]);
    assert!(line("inner").ends_with(" vmlet.test=inner") && line("file").ends_with(" vmlet.test=file"));
    assert!(!line("oci").contains("vmlet.test"));
    let said = |image: &Value| image["status"]["kernel"].as_str().unwrap().to_owned();
    for name in ["inner", "oci"] {
        assert_eq!(said(&host.until("images", name, is_ready).await), release, "{name}");
    }
    assert_eq!(said(&host.until("images", "file", is_ready).await), installed().1);
    assert_eq!(kernels(&host), 3, "the host's, the file's with its initrd, and one for both of the image's");

    // One that has no kernel says so, and its VM waits.
    let stalled = host.until("images", "none", |image| condition(image, "Stalled")["status"] == "True").await;
    assert_eq!(condition(&stalled, "Ready")["reason"], "KernelNotFound", "{stalled}");
    let waiting = host.get("vms", "none").await;
    assert!(
        condition(&waiting, "Ready")["message"].as_str().unwrap().contains("/boot/vmlinuz-"),
        "{waiting}"
    );

    // A VM that dies boots what it booted, though the file is gone and the daemon another.
    std::fs::remove_dir_all(&folder).unwrap();
    host.stop_daemon().await;
    host.start_daemon().await;
    host.linked("file").await;
    assert_eq!(kernels(&host), 3);
    kill(Pid::from_raw(pid(&by_file).try_into().unwrap()), Signal::SIGKILL).unwrap();
    host.until("vms", "file", |vm| is_ready(vm) && vm["status"]["restarts"] == 1).await;
    assert!(host.exec("file", &["cat", "/proc/cmdline"]).ends_with(" vmlet.test=file"));

    // An edit of the image moves its VM, on its disk.
    host.exec("inner", &["sh", "-c", "echo kept > /kept && sync"]);
    host.write("inner.yaml", &[inner(json!({"host": {}}))]);
    let moved = host.until("vms", "inner", |vm| is_ready(vm) && vm["status"]["restarts"] == 1).await;
    assert_ne!(pid(&moved), pid(&by_inner));
    assert_eq!(host.exec("inner", &["cat", "/kept"]), "kept");
    assert!(!host.exec("inner", &["cat", "/proc/cmdline"]).contains("vmlet.test"));

    // When nobody refers to a kernel any more, the next daemon removes it; an image goes with the last one that
    // boots its kernel.
    for name in ["vms.yaml", "inner.yaml", "others.yaml"] {
        host.remove(name);
    }
    host.empty().await;
    host.stop_daemon().await;
    host.start_daemon().await;
    // It answers before it has swept.
    let swept = async {
        while kernels(&host) > 1 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, swept).await.expect("what nobody boots is removed");
    host.assert_host_is_clean().await;
}
