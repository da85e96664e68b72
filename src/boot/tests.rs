use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;

use proptest::prelude::*;

use super::kernel::{compare_releases, newest};
use super::modules::{depends_field, needed};
use super::*;

#[test]
fn releases_are_ordered_as_people_read_them() {
    let ascending = [
        "5.10.0-9-amd64",
        "5.10.0-30-amd64",
        "6.1.0-9-amd64",
        "6.1.0-56-amd64",
        "6.1.0-56-cloud-amd64",
        "6.9.12",
        "6.12.0-rc7-amd64",
        "6.12.0-1-amd64",
        "6.12.0-1-amd64-extra",
    ];
    for pair in ascending.windows(2) {
        assert_eq!(compare_releases(pair[0], pair[1]), Ordering::Less, "{pair:?}");
    }
}

proptest! {
    #[test]
    fn the_order_of_releases_is_one(a in "[0-9a-c.~-]{0,12}", b in "[0-9a-c.~-]{0,12}", c in "[0-9a-c.~-]{0,12}") {
        prop_assert_eq!(compare_releases(&a, &b), compare_releases(&b, &a).reverse());
        let mut sorted = [a, b, c];
        sorted.sort_by(|a, b| compare_releases(a, b));
        prop_assert!(compare_releases(&sorted[0], &sorted[2]).is_le());
    }

    #[test]
    fn depends_survives_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = depends_field(&bytes);
    }
}

#[test]
fn the_newest_kernel_that_has_modules_is_taken() {
    let host = tempfile::tempdir().expect("a temporary folder");
    let (boot, modules) = (host.path().join("boot"), host.path().join("modules"));
    fs::create_dir_all(&boot).expect("made");
    assert!(matches!(newest(&boot, None, &modules), Err(BootError::NoKernel { .. })));
    for release in ["6.1.0-9-amd64", "6.1.0-10-amd64", "6.2.0-1-amd64"] {
        fs::write(boot.join(format!("vmlinuz-{release}")), release).expect("written");
    }
    fs::write(boot.join("config-6.3.0"), "").expect("written");
    for release in ["6.1.0-9-amd64", "6.1.0-10-amd64"] {
        fs::create_dir_all(modules.join(release)).expect("made");
    }
    assert_eq!(newest(&boot, None, &modules).expect("found").release, "6.1.0-10-amd64");
    let named = modules.join("6.1.0-9-amd64");
    assert_eq!(newest(&boot, Some(&named), &modules).expect("found").release, "6.2.0-1-amd64");
}

/// A module folder: name, and what it depends on.
const MODULES: [(&str, &str); 9] = [
    ("drivers/virtio_ring.ko", ""),
    ("drivers/virtio.ko", "virtio_ring"),
    ("drivers/virtio_pci.ko", "virtio,virtio_ring"),
    ("drivers/virtio_blk.ko", "virtio_ring,virtio"),
    ("drivers/virtio-rng.ko", "virtio"),
    ("drivers/virtio_console.ko", "virtio"),
    ("net/virtio_net.ko", "net_failover,virtio"),
    ("net/net_failover.ko", ""),
    ("fs/overlay.ko", ""),
];
const LOAD_ORDER: [&str; 9] = [
    "virtio_ring",
    "virtio",
    "virtio-rng",
    "virtio_pci",
    "virtio_blk",
    "net_failover",
    "virtio_net",
    "virtio_console",
    "overlay",
];

fn module(depends: &str) -> Vec<u8> {
    format!("\x7fELF…\0license=GPL\0depends={depends}\0retpoline=Y\0").into_bytes()
}

fn module_folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for (path, depends) in MODULES {
        let path = dir.path().join("kernel").join(path);
        fs::create_dir_all(path.parent().expect("has one")).expect("made");
        fs::write(path, module(depends)).expect("written");
    }
    fs::write(dir.path().join("modules.builtin"), "kernel/fs/ext4/ext4.ko\n").expect("written");
    std::os::unix::fs::symlink("/", dir.path().join("build")).expect("linked");
    dir
}

fn stems(files: &[PathBuf]) -> Vec<&str> {
    let names = files.iter().filter_map(|path| path.file_name()?.to_str());
    names.filter_map(|name| name.strip_suffix(".ko")).collect()
}

#[test]
fn dependencies_load_first_with_and_without_depmod() {
    let dir = module_folder();
    let from_modules = needed(dir.path()).expect("complete");
    assert_eq!(stems(&from_modules), LOAD_ORDER);
    let mut dep = String::new();
    for (path, depends) in MODULES {
        let path_of = |name: &str| {
            let found = MODULES.iter().find(|(path, _)| path.ends_with(&format!("/{name}.ko")));
            format!(" kernel/{}", found.expect("listed").0)
        };
        let depends: String = depends.split(',').filter(|name| !name.is_empty()).map(path_of).collect();
        dep += &format!("kernel/{path}:{depends}\n");
    }
    fs::write(dir.path().join("modules.dep"), dep).expect("written");
    assert_eq!(needed(dir.path()).expect("complete"), from_modules);
}

#[test]
fn a_kernel_without_a_needed_module_is_refused() {
    let dir = module_folder();
    fs::remove_file(dir.path().join("kernel/fs/overlay.ko")).expect("removed");
    let error = needed(dir.path()).expect_err("incomplete");
    assert!(matches!(&error, BootError::NoModule { name, .. } if name == "overlay"), "{error}");
    fs::write(dir.path().join("modules.builtin"), "kernel/fs/ext4/ext4.ko\nkernel/fs/overlay.ko\n")
        .expect("written");
    needed(dir.path()).expect("built in is fine");
}

#[test]
fn a_cycle_of_modules_ends() {
    let dir = module_folder();
    fs::write(dir.path().join("kernel/drivers/virtio_ring.ko"), module("virtio")).expect("written");
    assert_eq!(needed(dir.path()).expect("complete").len(), MODULES.len());
}

#[test]
fn compressed_modules_are_unpacked_and_unknown_ones_named() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let bytes = module("virtio");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&bytes).expect("a Vec takes everything");
    let files: BTreeMap<&str, Vec<u8>> = [
        ("a.ko", bytes.clone()),
        ("b.ko.gz", gzip.finish().expect("a Vec takes everything")),
        ("c.ko.zst", zstd::encode_all(&*bytes, 1).expect("a Vec takes everything")),
    ]
    .into();
    for (name, packed) in files {
        let path = dir.path().join(name);
        fs::write(&path, packed).expect("written");
        assert_eq!(modules::read(&path).expect("unpacked"), bytes, "{name}");
    }
    let path = dir.path().join("d.ko.xz");
    fs::write(&path, b"?").expect("written");
    let error = modules::read(&path).expect_err("unsupported").to_string();
    assert!(error.contains("d.ko.xz") && error.contains("xz"), "{error}");
}

/// Name, mode, device number, bytes.
type Entry = (String, u32, (u32, u32), Vec<u8>);

fn unpack(archive: &Path) -> Vec<Entry> {
    let mut bytes = fs::File::open(archive).expect("there");
    let mut entries = Vec::new();
    loop {
        let mut reader = cpio::newc::Reader::new(bytes).expect("an entry");
        let entry = reader.entry().clone();
        if entry.is_trailer() {
            return entries;
        }
        let mut content = Vec::new();
        reader.read_to_end(&mut content).expect("whole");
        let device = (entry.rdev_major(), entry.rdev_minor());
        entries.push((entry.name().to_owned(), entry.mode(), device, content));
        bytes = reader.finish().expect("padding");
    }
}

fn settings(host: &Path, modules: &Path) -> Settings {
    let image = host.join("vmlinuz-6.1.0-test");
    fs::write(&image, "a kernel").expect("written");
    Settings { kernel: Some(image), modules: Some(modules.to_owned()), cache: host.join("cache") }
}

#[test]
fn boot_files_hold_guest_and_modules_and_are_made_once() {
    let (host, modules) = (tempfile::tempdir().expect("a folder"), module_folder());
    let settings = settings(host.path(), modules.path());
    let files = prepare(&settings, b"the guest").expect("made");
    assert_eq!(files.release, "6.1.0-test");
    assert_eq!(fs::read(&files.kernel).expect("copied"), b"a kernel");
    let entries = unpack(&files.initramfs);
    let find = |name: &str| entries.iter().find(|entry| entry.0 == name).expect(name);
    assert_eq!((find("init").1, find("init").3.as_slice()), (0o100_755, b"the guest".as_slice()));
    assert_eq!((find("dev/console").1, find("dev/console").2), (0o020_600, (5, 1)));
    let order = String::from_utf8(find("modules/order").3.clone()).expect("text");
    let expected: Vec<String> = LOAD_ORDER.iter().map(|name| name.replace('-', "_") + ".ko").collect();
    assert_eq!(order.lines().collect::<Vec<_>>(), expected);
    for name in order.lines() {
        assert!(find(&format!("modules/{name}")).3.starts_with(b"\x7fELF"));
    }

    let made = fs::metadata(&files.initramfs).expect("there").modified().expect("a time");
    assert_eq!(prepare(&settings, b"the guest").expect("found"), files);
    assert_eq!(fs::metadata(&files.initramfs).expect("there").modified().expect("a time"), made);

    // What is left of a build that was cut short, and what an upgrade replaces, goes.
    fs::create_dir_all(settings.cache.join("staging/half")).expect("made");
    let upgraded = prepare(&settings, b"a newer guest").expect("made");
    assert_ne!(upgraded.initramfs, files.initramfs);
    assert_eq!(fs::read_dir(&settings.cache).expect("there").count(), 1);
}

#[test]
fn a_kernel_that_does_not_tell_its_modules_is_refused() {
    let host = tempfile::tempdir().expect("a temporary folder");
    let kernel = Some(host.path().join("bzImage"));
    let settings = Settings { kernel, modules: None, cache: host.path().join("cache") };
    assert!(matches!(prepare(&settings, b""), Err(BootError::UnknownRelease(_))));
}
