//! Kernels are found, unpacked, completed with their modules and kept ready.
//!
//! Here are the kernels, module folders and caches that the cases start from.

mod cache;
mod disk;
mod kernel;
mod modules;
mod packed;

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::files::Files;
use super::modules::{Module, needed};
use super::*;

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

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime")
}

fn file(kernel: PathBuf, modules: Option<&Path>) -> KernelRequest {
    KernelRequest::Files(KernelFiles { kernel, initrd: None, modules: modules.map(Path::to_owned) })
}
