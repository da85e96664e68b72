use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::files::Files;
use super::kernel::{Kernel, compare_releases, newest};
use super::modules::{Module, depends_field, needed, not_built_in};
use super::*;
use crate::image::ext4;

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
    assert!(matches!(newest(&Files::Host, &boot, None, &modules), Err(BootError::NoKernel { .. })));
    for release in ["6.1.0-9-amd64", "6.1.0-10-amd64", "6.2.0-1-amd64"] {
        fs::write(boot.join(format!("vmlinuz-{release}")), release).expect("written");
    }
    fs::write(boot.join("config-6.3.0"), "").expect("written");
    for release in ["6.1.0-9-amd64", "6.1.0-10-amd64"] {
        fs::create_dir_all(modules.join(release)).expect("made");
    }
    assert_eq!(newest(&Files::Host, &boot, None, &modules).expect("found").release, "6.1.0-10-amd64");
    let named = modules.join("6.1.0-9-amd64");
    assert_eq!(newest(&Files::Host, &boot, Some(&named), &modules).expect("found").release, "6.2.0-1-amd64");
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
    "virtio_rng",
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

fn stems(modules: &[Module]) -> Vec<&str> {
    modules.iter().filter_map(|module| module.file_name.strip_suffix(".ko")).collect()
}

#[test]
fn dependencies_load_first_with_and_without_depmod() {
    let dir = module_folder();
    let from_modules = needed(&Files::Host, dir.path()).expect("complete");
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
    assert_eq!(needed(&Files::Host, dir.path()).expect("complete"), from_modules);
}

#[test]
fn a_kernel_without_a_needed_module_is_refused() {
    let dir = module_folder();
    fs::remove_file(dir.path().join("kernel/fs/overlay.ko")).expect("removed");
    let error = needed(&Files::Host, dir.path()).expect_err("incomplete");
    assert!(matches!(&error, BootError::NoModule { name, .. } if name == "overlay"), "{error}");
    fs::write(dir.path().join("modules.builtin"), "kernel/fs/ext4/ext4.ko\nkernel/fs/overlay.ko\n")
        .expect("written");
    needed(&Files::Host, dir.path()).expect("built in is fine");
}

#[test]
fn a_cycle_of_modules_ends() {
    let dir = module_folder();
    fs::write(dir.path().join("kernel/drivers/virtio_ring.ko"), module("virtio")).expect("written");
    assert_eq!(needed(&Files::Host, dir.path()).expect("complete").len(), MODULES.len());
}

#[test]
fn what_is_built_in_is_known_by_either_list_or_presumed() {
    let dir = module_folder();
    fs::remove_file(dir.path().join("modules.builtin")).expect("removed");
    // Nothing says what is built in: what is no module must be.
    assert_eq!(stems(&needed(&Files::Host, dir.path()).expect("presumed")), LOAD_ORDER);
    let modinfo = |text: &str| fs::write(dir.path().join("modules.builtin.modinfo"), text).expect("written");
    modinfo("crc16.license=GPL\0ext4.license=GPL\0ext4.alias=fs-ext4\0");
    assert_eq!(stems(&needed(&Files::Host, dir.path()).expect("listed")), LOAD_ORDER);
    modinfo("crc16.license=GPL\0");
    let error = needed(&Files::Host, dir.path()).expect_err("there is no ext4");
    assert!(matches!(&error, BootError::NoModule { name, .. } if name == "ext4"), "{error}");
    let empty = tempfile::tempdir().expect("a temporary folder");
    let error = needed(&Files::Host, empty.path()).expect_err("a wrong folder").to_string();
    assert!(error.contains("no modules in it"), "{error}");
}

#[test]
fn a_module_folder_names_nothing_outside_of_it() {
    let (dir, outside) = (module_folder(), tempfile::tempdir().expect("a temporary folder"));
    let secret = outside.path().join("overlay.ko");
    fs::write(&secret, module("")).expect("written");
    let dep = |path: &str| {
        let others = MODULES.iter().filter(|(path, _)| !path.contains("overlay"));
        let lines: String = others.map(|(path, _)| format!("kernel/{path}:\n")).collect();
        fs::write(dir.path().join("modules.dep"), format!("{lines}{path}:\n")).expect("written");
        needed(&Files::Host, dir.path())
    };
    dep("kernel/fs/overlay.ko").expect("a good one");
    let up = format!("{}{}", "../".repeat(20), secret.display());
    for path in [secret.to_str().expect("text"), &up] {
        let error = dep(path).expect_err(path).to_string();
        assert!(error.contains("not below its folder"), "{error}");
    }
    let link = dir.path().join("kernel/fs/linked");
    std::os::unix::fs::symlink(outside.path(), &link).expect("linked");
    assert!(matches!(dep("kernel/fs/linked/overlay.ko"), Err(BootError::Io { .. })), "a link led out");
    let fifo = dir.path().join("kernel/fs/fifo");
    fs::create_dir(&fifo).expect("made");
    nix::unistd::mkfifo(&fifo.join("overlay.ko"), nix::sys::stat::Mode::S_IRWXU).expect("made");
    assert!(matches!(dep("kernel/fs/fifo/overlay.ko"), Err(BootError::Io { .. })), "a FIFO was waited for");
}

/// What a tool makes of its standard input.
fn pack(command: &[&str], bytes: &[u8]) -> Vec<u8> {
    let spawned =
        Command::new(command[0]).args(&command[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut tool =
        spawned.unwrap_or_else(|error| panic!("{}: {error}; see scripts/install-deps.sh", command[0]));
    let mut stdin = tool.stdin.take().expect("piped");
    let bytes = bytes.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&bytes).expect("the tool reads all"));
    let output = tool.wait_with_output().expect("it ends");
    writer.join().expect("written");
    assert!(output.status.success(), "{command:?}");
    output.stdout
}

/// As kernels' own build packs them (scripts/Makefile.lib, Makefile.modinst).
const PACKERS: [&[&str]; 5] = [
    &["gzip", "-n", "-f", "-9"],
    &["xz", "--check=crc32", "--x86", "--lzma2=dict=32MiB", "-c"],
    &["zstd", "-q", "-c", "--ultra", "-22"],
    &["lz4", "-q", "-l", "-9", "-c"],
    &["lzma", "-9", "-c"],
];

#[test]
fn modules_are_read_however_they_are_compressed() {
    let bytes = module("virtio");
    let packed = [
        ("ko", bytes.clone()),
        ("gz", pack(&["gzip", "-n", "-f"], &bytes)),
        ("zst", pack(&["zstd", "-q", "-c"], &bytes)),
        ("xz", pack(&["xz", "--check=crc32", "--lzma2=dict=1MiB", "-c"], &bytes)),
    ];
    for (extension, packed) in packed {
        assert_eq!(unpack::module(packed.clone(), extension, 1000).expect("unpacked"), bytes, "{extension}");
        if extension != "ko" {
            assert!(unpack::module(packed, extension, 10).is_err(), "{extension}: over the limit");
            assert!(unpack::module(b"?".to_vec(), extension, 1000).is_err(), "{extension}: broken");
        }
    }
    let dir = module_folder();
    let xz = dir.path().join("kernel/fs/overlay.ko.xz");
    fs::write(&xz, pack(&["xz", "-c"], &module(""))).expect("written");
    fs::remove_file(dir.path().join("kernel/fs/overlay.ko")).expect("removed");
    let modules = needed(&Files::Host, dir.path()).expect("complete");
    assert_eq!(
        (stems(&modules), modules.last().map(|last| last.bytes.clone())),
        (LOAD_ORDER.into(), Some(module("")))
    );
    fs::write(&xz, b"?").expect("written");
    let error = needed(&Files::Host, dir.path()).expect_err("broken").to_string();
    assert!(error.contains("overlay.ko.xz cannot be unpacked"), "{error}");
}

/// An ELF with this note, and these words in it.
fn elf(note: &[u8], words: &[&str]) -> Vec<u8> {
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(64 + 56, 0);
    elf[18..20].copy_from_slice(&62u16.to_le_bytes());
    elf[32..40].copy_from_slice(&64u64.to_le_bytes());
    elf[54..56].copy_from_slice(&56u16.to_le_bytes());
    elf[56..58].copy_from_slice(&1u16.to_le_bytes());
    elf[64..68].copy_from_slice(&4u32.to_le_bytes());
    elf[72..80].copy_from_slice(&120u64.to_le_bytes());
    elf[96..104].copy_from_slice(&(note.len() as u64).to_le_bytes());
    elf.extend(note);
    words.iter().for_each(|word| elf.extend(format!("{word}\0").into_bytes()));
    // So that there is something to pack.
    elf.extend((0..200_000u32).flat_map(|number| (number / 7).to_le_bytes()));
    elf
}

fn note(kind: u32) -> Vec<u8> {
    let mut note = [4u32, 4, 1, 4, 8, kind].map(u32::to_le_bytes).concat();
    note.splice(12..12, *b"GNU\0abcd");
    [note, b"Xen\0".to_vec(), vec![0; 8]].concat()
}

const PVH: u32 = 18;
const DRIVERS: [&str; 6] = ["virtio-pci", "virtio_blk", "virtio_net", "virtio_console", "ext4", "overlay"];

/// A bzImage that holds this.
fn bzimage(payload: &[u8], length: usize, release: &str) -> Vec<u8> {
    let mut kernel = vec![0; 1024];
    kernel[0x1f1] = 1;
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    kernel[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
    kernel[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
    kernel[0x24c..0x250].copy_from_slice(&(payload.len() as u32 + 4).to_le_bytes());
    let version = format!("{release} (somebody@somewhere) #1 SMP\0");
    kernel[0x300..0x300 + version.len()].copy_from_slice(version.as_bytes());
    kernel.extend(payload);
    kernel.extend((length as u32).to_le_bytes());
    kernel.extend([0; 512]);
    kernel
}

fn installed(release: &str) -> Vec<u8> {
    let elf = elf(&note(PVH), &DRIVERS);
    bzimage(&pack(PACKERS[3], &elf), elf.len(), release)
}

#[test]
fn kernels_are_unpacked_whatever_they_are_packed_with() {
    let inner = elf(&note(PVH), &[]);
    for packer in PACKERS {
        let packed = pack(packer, &inner);
        let kernel = bzimage(&packed, inner.len(), "6.1.0-9");
        assert_eq!(*unpack::elf(&kernel).expect(packer[0]), *inner, "{packer:?}");
        assert_eq!(unpack::release(&kernel), Some("6.1.0-9"));
        for wrong in [inner.len() - 1, inner.len() + 1, usize::try_from(u32::MAX).expect("64 bits"), 0] {
            assert!(unpack::elf(&bzimage(&packed, wrong, "6")).is_err(), "{packer:?} of {wrong} bytes");
        }
        let cut = bzimage(&packed[..packed.len() / 2], inner.len(), "6");
        assert!(unpack::elf(&cut).is_err(), "{packer:?} cut off");
    }
    assert_eq!(*unpack::elf(&inner).expect("as it is"), *inner);
    for (magic, name) in [(&b"BZh91AY&SY"[..], "bzip2"), (b"\x89LZO\0\r\n\x1a\n1", "lzo")] {
        let other = unpack::elf(&bzimage(magic, 100, "6")).expect_err("not supported");
        assert!(other.contains(&format!("packed with {name}; gzip, xz, lzma, zstd and lz4 can")), "{other}");
    }
    let text = unpack::elf(&bzimage(&pack(PACKERS[0], b"no kernel at all"), 16, "6")).expect_err("text");
    assert!(text.contains("no 64-bit ELF"), "{text}");
}

#[test]
fn the_kernel_of_this_host_is_unpacked() {
    let kernel = Kernel::find(&Files::Host, None, None).expect("a kernel is installed");
    let image = fs::read(&kernel.image).expect("readable");
    assert_eq!(unpack::release(&image), Some(kernel.release.as_str()));
    let elf = unpack::elf(&image).expect("unpacked");
    assert!(elf.len() > 2 * image.len() && unpack::has_pvh_entry(&elf));
    // Its virtio drivers are modules, and all that it needs resolves.
    assert!(not_built_in(&elf).is_some());
    assert!(!needed(&Files::Host, &kernel.modules.expect("has some")).expect("complete").is_empty());
}

#[test]
fn a_pvh_entry_is_seen_behind_other_notes() {
    assert!(unpack::has_pvh_entry(&elf(&note(PVH), &[])));
    assert!(!unpack::has_pvh_entry(&elf(&note(17), &[])));
    assert!(!unpack::has_pvh_entry(&elf(&[0xff; 40], &[])));
}

proptest! {
    #[test]
    fn kernels_of_any_bytes_are_survived(
        at in 0usize..0x400, bytes in proptest::collection::vec(any::<u8>(), 1..16), cut in 0usize..4000
    ) {
        let mut kernel = bzimage(&[0x02, 0x21, 0x4c, 0x18, 1, 0, 0, 0, 0], 10, "6.1");
        kernel[at..(at + bytes.len()).min(0x400)].copy_from_slice(&bytes[..bytes.len().min(0x400 - at)]);
        kernel.truncate(cut);
        let _ = (unpack::elf(&kernel), unpack::release(&kernel), unpack::has_pvh_entry(&kernel));
        let mut elf = elf(&note(PVH), &[]);
        elf.truncate(200);
        let place = at % 150;
        elf[place..(place + bytes.len()).min(200)].copy_from_slice(&bytes[..bytes.len().min(200 - place)]);
        let _ = unpack::has_pvh_entry(&elf);
    }
}

/// Name, mode, device number, bytes.
type Entry = (String, u32, (u32, u32), Vec<u8>);

/// Both archives' entries.
fn entries(archive: &Path) -> Vec<Entry> {
    let mut file = fs::File::open(archive).expect("there");
    let length = file.metadata().expect("a length").len();
    let mut entries = Vec::new();
    while std::io::Seek::stream_position(&mut file).expect("a position") < length {
        let mut reader = cpio::newc::Reader::new(file).expect("an entry");
        let entry = reader.entry().clone();
        let mut content = Vec::new();
        reader.read_to_end(&mut content).expect("whole");
        let device = (entry.rdev_major(), entry.rdev_minor());
        if !entry.is_trailer() {
            entries.push((entry.name().to_owned(), entry.mode(), device, content));
        }
        file = reader.finish().expect("padding");
    }
    entries
}

const HOST: &str = "6.1.0-test";

fn settings(host: &Path, modules: &Path) -> Settings {
    let image = host.join("vmlinuz");
    fs::write(&image, installed(HOST)).expect("written");
    Settings { kernel: Some(image), modules: Some(modules.to_owned()), cache: host.join("cache") }
}

fn open(settings: &Settings) -> BootCache {
    BootCache::open(settings, b"the guest", KernelForm::Installed).expect("made")
}

fn folders(settings: &Settings) -> BTreeSet<String> {
    let entries = fs::read_dir(&settings.cache).expect("there").flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

#[test]
fn boot_files_hold_guest_and_modules_and_are_made_once() {
    let (host, modules) = (tempfile::tempdir().expect("a folder"), module_folder());
    let settings = settings(host.path(), modules.path());
    let files = open(&settings).host().clone();
    assert_eq!(files.release, HOST);
    assert_eq!(fs::read(&files.kernel).expect("copied"), installed(HOST));
    let entries = entries(&files.initramfs);
    let find = |name: &str| entries.iter().find(|entry| entry.0 == name).expect(name);
    assert_eq!((find("init").1, find("init").3.as_slice()), (0o100_755, b"the guest".as_slice()));
    assert_eq!((find("dev/console").1, find("dev/console").2), (0o020_600, (5, 1)));
    let order = String::from_utf8(find("modules/order").3.clone()).expect("text");
    assert_eq!(order.lines().collect::<Vec<_>>(), LOAD_ORDER.map(|name| format!("{name}.ko")));
    for name in order.lines() {
        assert!(find(&format!("modules/{name}")).3.starts_with(b"\x7fELF"));
    }

    let made = |path: &Path| fs::metadata(path).expect("there").modified().expect("a time");
    let before = (made(&files.initramfs), made(&files.kernel));
    assert_eq!(*open(&settings).host(), files);
    assert_eq!((made(&files.initramfs), made(&files.kernel)), before);

    // Another guest changes nothing of the kernel, and a driver that wants an ELF gets one.
    let elf = BootCache::open(&settings, b"a newer guest", KernelForm::Elf).expect("made").host().clone();
    assert_eq!(
        fs::read(&elf.kernel).expect("unpacked"),
        unpack::elf(&installed(HOST)).expect("can be").into_owned()
    );
    assert_ne!(elf.initramfs, files.initramfs);
    assert_eq!(made(&files.kernel), before.1);
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime")
}

fn file(kernel: PathBuf, modules: Option<&Path>) -> KernelRequest {
    KernelRequest::Files(KernelFiles { kernel, initrd: None, modules: modules.map(Path::to_owned) })
}

#[test]
fn kernels_that_are_pinned_are_kept_and_others_go() {
    let (host, modules) = (tempfile::tempdir().expect("a folder"), module_folder());
    let settings = settings(host.path(), modules.path());
    let (cache, runtime) = (open(&settings), runtime());
    let request = |name: &str| {
        let kernel = host.path().join(name);
        fs::write(&kernel, installed(name)).expect("written");
        file(kernel, Some(modules.path()))
    };
    let make = |request: &KernelRequest| runtime.block_on(cache.make(request)).expect("made");
    let (kept, dropped) = (make(&request("6.2.0")), make(&request("6.3.0")));
    assert_eq!(cache.files(Some(&kept)).expect("there").release, "6.2.0");
    assert_eq!(cache.files(None).expect("there").release, HOST);
    // A file that changed is another kernel; the one that was made stays what it was.
    fs::write(host.path().join("6.2.0"), installed("6.2.1")).expect("written");
    let changed = make(&file(host.path().join("6.2.0"), Some(modules.path())));
    assert!(changed != kept && cache.files(Some(&kept)).expect("there").release == "6.2.0");

    fs::create_dir(settings.cache.join("staging-half")).expect("made");
    let next = BootCache::open(&settings, b"a newer guest", KernelForm::Installed).expect("made");
    assert_eq!(next.files(Some(&kept)), None, "not before it is readied for this guest");
    runtime.block_on(next.keep(&[kept.clone()].into())).expect("swept");
    assert_eq!(folders(&settings), [kept.0.clone(), next.host.0.0.clone()].into());
    let files = next.files(Some(&kept)).expect("readied");
    assert_eq!(next.files(Some(&dropped)), None);
    let guest = entries(&files.initramfs).into_iter().find(|entry| entry.0 == "init").expect("has one").3;
    assert_eq!(guest, b"a newer guest");
    let archives = fs::read_dir(files.initramfs.parent().expect("has one")).expect("there").flatten();
    let archives = archives.filter(|entry| entry.path().extension().is_some_and(|kind| kind == "cpio"));
    assert_eq!(archives.count(), 2, "modules.cpio, and the initramfs of one guest");

    // One that is not whole is made anew.
    fs::remove_file(settings.cache.join(&kept.0).join("kernel")).expect("removed");
    let third = open(&settings);
    runtime.block_on(third.keep(&[kept.clone()].into())).expect("swept");
    assert_eq!(third.files(Some(&kept)), None);
    assert_eq!(folders(&settings), [third.host.0.0.clone()].into());
}

#[test]
fn one_kernel_is_made_once_and_two_at_once() {
    let (host, modules) = (tempfile::tempdir().expect("a folder"), module_folder());
    let settings = settings(host.path(), modules.path());
    let cache = open(&settings);
    let request = |name: &str| {
        let fifo = host.path().join(name);
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("made");
        file(fifo, Some(modules.path()))
    };
    let same = file(host.path().join("vmlinuz"), Some(modules.path()));
    runtime().block_on(async {
        let (one, other) = tokio::join!(cache.make(&same), cache.make(&same));
        assert_eq!(one.expect("made"), other.expect("made"));
        assert_eq!(cache.under_way.with(|under_way| under_way.len()), 1, "one flight for both");
        // A FIFO is no kernel, and nobody waits for its writer.
        let error = cache.make(&request("fifo")).await.expect_err("refused");
        assert!(error.message.contains("not a regular file"), "{error}");
        assert_eq!(cache.under_way.with(|under_way| under_way.len()), 1, "those that ended are forgotten");
    });
    assert_eq!(folders(&settings).len(), 1, "the same as the host's");
}

#[test]
fn a_kernel_that_cannot_be_booted_is_refused_with_a_reason() {
    let (host, modules) = (tempfile::tempdir().expect("a folder"), module_folder());
    let cache = open(&settings(host.path(), modules.path()));
    let refused = |bytes: Vec<u8>, modules: Option<&Path>| {
        let kernel = host.path().join("bad");
        fs::write(&kernel, bytes).expect("written");
        let error = runtime().block_on(cache.make(&file(kernel, modules))).expect_err("refused");
        (error.reason, error.transient, error.message)
    };
    let (reason, transient, message) = refused(b"?".to_vec(), Some(modules.path()));
    assert!((reason, transient) == ("InvalidKernel", false) && message.contains("neither"), "{message}");
    let (reason, _, message) = refused(elf(&note(17), &DRIVERS), None);
    assert!(reason == "InvalidKernel" && message.contains("PVH"), "{message}");
    let (reason, transient, message) = refused(elf(&note(PVH), &DRIVERS[..5]), None);
    assert!((reason, transient) == ("KernelLacksDriver", false) && message.contains("overlay"), "{message}");
    let absent = file("/nowhere/vmlinuz".into(), None);
    let error = runtime().block_on(cache.make(&absent)).expect_err("absent");
    assert_eq!((error.reason, error.transient), ("KernelNotFound", true));
    // All built in, and no modules.
    let kernel = host.path().join("monolithic");
    fs::write(&kernel, elf(&note(PVH), &DRIVERS)).expect("written");
    runtime().block_on(cache.make(&file(kernel, None))).expect("complete");
}

#[test]
fn an_initial_ram_disk_is_unpacked_below_our_own() {
    let (host, modules) = (tempfile::tempdir().expect("a folder"), module_folder());
    let cache = open(&settings(host.path(), modules.path()));
    let mut archive = Vec::new();
    let mut writer = cpio::newc::Builder::new("init").mode(0o100_755).write(&mut archive, 3);
    writer.write_all(b"his").expect("a Vec takes everything");
    writer.finish().expect("a Vec takes everything");
    cpio::newc::trailer(&mut archive).expect("a Vec takes everything");
    let initrd = host.path().join("initrd");
    fs::write(&initrd, &archive).expect("written");
    let kernel = host.path().join("vmlinuz");
    let request = KernelRequest::Files(KernelFiles {
        kernel,
        initrd: Some(initrd),
        modules: Some(modules.path().to_owned()),
    });
    let made = runtime().block_on(cache.make(&request)).expect("made");
    let all = entries(&cache.files(Some(&made)).expect("there").initramfs);
    let inits: Vec<_> =
        all.iter().filter(|entry| entry.0 == "init").map(|entry| entry.3.as_slice()).collect();
    assert_eq!(inits, [b"his".as_slice(), b"the guest"]);
}

/// A disk by the writer that images are made with, holding a kernel of this release, named by it or not.
fn disk(dir: &Path, name: &str, release: &str, modules: &[(&str, &str)]) -> PathBuf {
    let path = dir.join("disk.ext4");
    let file =
        fs::File::options().read(true).write(true).create(true).truncate(true).open(&path).expect("made");
    let limits = ext4::Limits { max_bytes: 1 << 30, max_inodes: 1000 };
    let mut builder = ext4::Builder::new(file, [7; 16], limits).expect("begun");
    let mut put = |path: &str, bytes: Result<&[u8], &str>| {
        let mut at = builder.root();
        let (folders, name) = path.rsplit_once('/').unwrap_or(("", path));
        for folder in folders.split('/').filter(|folder| !folder.is_empty()) {
            at = match builder.lookup(at, folder.as_bytes()) {
                Some((inode, _)) => inode,
                None => builder.mkdir(at, folder.as_bytes(), meta(0o755)).expect("made"),
            };
        }
        match bytes {
            Ok(bytes) => {
                let mut writer = builder.create(at, name.as_bytes(), meta(0o644)).expect("made");
                writer.append(bytes).expect("written");
                writer.finish().expect("written");
            }
            Err(target) => {
                builder.symlink(at, name.as_bytes(), target.as_bytes(), meta(0o777)).expect("made");
            }
        }
    };
    // As merged systems have it.
    put("lib", Err("usr/lib"));
    put(&format!("boot/{name}"), Ok(&installed(release)));
    put("boot/vmlinuz-loop", Err("vmlinuz-loop"));
    let folder = format!("usr/lib/modules/{release}");
    for (path, depends) in modules {
        put(&format!("{folder}/kernel/{path}"), Ok(&module(depends)));
    }
    put(&format!("{folder}/modules.builtin"), Ok(b"kernel/fs/ext4/ext4.ko\n"));
    put(&format!("{folder}/build"), Err("/"));
    builder.finish().expect("whole");
    path
}

fn meta(mode: u16) -> ext4::Meta {
    ext4::Meta { mode, ..ext4::Meta::default() }
}

#[test]
fn a_kernel_in_a_disk_is_found_with_its_modules() {
    let (host, modules) = (tempfile::tempdir().expect("a folder"), module_folder());
    let cache = open(&settings(host.path(), modules.path()));
    let make = |disk: PathBuf, paths: KernelPaths| {
        runtime().block_on(cache.make(&KernelRequest::Disk { disk, paths }))
    };
    for name in ["vmlinuz-6.9.1-in", "vmlinuz-virt"] {
        let made = make(disk(host.path(), name, "6.9.1-in", &MODULES), KernelPaths::default()).expect(name);
        let files = cache.files(Some(&made)).expect("there");
        assert_eq!(
            (files.release.as_str(), fs::read(&files.kernel).expect("copied")),
            ("6.9.1-in", installed("6.9.1-in"))
        );
        let order =
            entries(&files.initramfs).into_iter().find(|entry| entry.0 == "modules/order").expect("there").3;
        assert_eq!(order, LOAD_ORDER.map(|name| format!("{name}.ko\n")).concat().into_bytes());
    }
    let named = KernelPaths { kernel: Some("/boot/vmlinuz-virt".into()), modules: None };
    make(disk(host.path(), "vmlinuz-virt", "6.9.1-in", &MODULES), named.clone()).expect("named");

    let refused = |disk: PathBuf, paths: KernelPaths| {
        let error = make(disk, paths).expect_err("refused");
        assert!(!error.transient && error.message.starts_with("in the image: "), "{error}");
        error
    };
    let error = refused(disk(host.path(), "vmlinuz-6", "6.9.1-in", &MODULES[..8]), KernelPaths::default());
    assert_eq!(error.reason, "KernelLacksDriver", "{error}");
    let error = refused(disk(host.path(), "bzImage", "6.9.1-in", &MODULES), KernelPaths::default());
    assert!(error.reason == "KernelNotFound" && error.message.contains("install one there"), "{error}");
    let error = refused(disk(host.path(), "bzImage", "6.9.1-in", &MODULES), named);
    assert_eq!(error.reason, "KernelNotFound", "{error}");
    let looped = KernelPaths { kernel: Some("/boot/vmlinuz-loop".into()), modules: None };
    refused(disk(host.path(), "vmlinuz-6", "6.9.1-in", &MODULES), looped);
    let text = host.path().join("text");
    fs::write(&text, [b'?'; 100_000]).expect("written");
    assert_eq!(refused(text, KernelPaths::default()).reason, "InvalidKernel");
}
