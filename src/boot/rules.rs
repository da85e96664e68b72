//! What kernels and their modules may be: one rule a test, by value.

use std::fs;
use std::path::{Path, PathBuf};

use super::files::Files;
use super::modules::needed;
use super::{BootError, unpack};

/// The header of a bzImage of this protocol, with this version text, and `sectors` of setup.
fn header(protocol: u16, version: &[u8], sectors: u8) -> Vec<u8> {
    let mut kernel = vec![0; 4096];
    kernel[0x1f1] = sectors;
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    kernel[0x206..0x208].copy_from_slice(&protocol.to_le_bytes());
    kernel[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
    kernel[0x300..0x300 + version.len()].copy_from_slice(version);
    kernel
}

#[test]
fn a_release_is_a_name_for_a_folder_and_nothing_else() {
    let release = |version: &str| {
        let kernel = header(0x20f, format!("{version}\0").as_bytes(), 1);
        unpack::release(&kernel).map(str::to_owned)
    };
    let longest = "6".repeat(128);
    for good in ["6.1.0-9-cloud_amd64+x~y", &longest] {
        assert_eq!(release(good).as_deref(), Some(good));
        assert_eq!(release(&format!("{good} (somebody)")).as_deref(), Some(good));
    }
    for bad in ["", "..", ".hidden", "6/../../etc", "6\n1", "6é", &"6".repeat(129)] {
        assert_eq!(release(bad), None, "{bad:?}");
    }
    let mut unnamed = header(0x20f, b"6.1\0", 1);
    unnamed[0x20e..0x210].fill(0);
    unnamed[0x200] = b'6';
    assert_eq!(unpack::release(&unnamed), None, "0 says that there is none");
    let mut other = header(0x20f, b"6.1\0", 1);
    other[0x202] = b'h';
    assert_eq!(unpack::release(&other), None, "no kernel");
    assert!(unpack::elf(&other).expect_err("no kernel").contains("neither"));
}

/// Why a kernel with this at its payload's place is not unpacked.
fn refusal(mut kernel: Vec<u8>, payload: &[u8], at: usize) -> String {
    kernel[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    kernel[at..at + payload.len()].copy_from_slice(payload);
    unpack::elf(&kernel).expect_err("it is not unpacked")
}

#[test]
fn a_kernel_says_where_its_payload_is_and_how_long() {
    const NOWHERE: &str = "does not say where";
    let nine = b"XXXXX\x01\0\0\0";
    assert!(
        refusal(header(0x207, b"", 1), nine, 1024).contains(NOWHERE),
        "its header is older than the field"
    );
    assert!(refusal(header(0x208, b"", 1), nine, 1024).contains("something unknown"));
    assert!(
        refusal(header(0x208, b"", 1), &nine[1..], 1024).contains(NOWHERE),
        "there is nothing but a length"
    );
    assert!(refusal(header(0x208, b"", 0), nine, 2560).contains("something unknown"), "0 stands for 4");
    let long = |length: u32| [b"XXXXX".as_slice(), &length.to_le_bytes()].concat();
    assert!(refusal(header(0x208, b"", 1), &long(512 << 20), 1024).contains("something unknown"));
    let told = refusal(header(0x208, b"", 1), &long((512 << 20) + 1), 1024);
    assert_eq!(told, "it says that it is 536870913 bytes long unpacked; at most 536870912 are possible");
}

#[test]
fn only_elfs_for_this_machine_are_taken_for_kernels() {
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(64, 0);
    elf[18] = 62;
    assert!(unpack::is_elf(&elf));
    for (place, byte) in [(0, 0), (4, 1), (5, 2), (18, 183)] {
        let mut other = elf.clone();
        other[place] = byte;
        assert!(!unpack::is_elf(&other), "byte {place} is {byte}");
    }
}

#[test]
fn a_pvh_entry_is_xens_note_in_a_segment_of_notes() {
    let elf = |segment: u32, name: &[u8; 4], kind: u32| {
        let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
        elf.resize(120, 0);
        elf[32..40].copy_from_slice(&64_u64.to_le_bytes());
        elf[54..56].copy_from_slice(&56_u16.to_le_bytes());
        elf[56..58].copy_from_slice(&1_u16.to_le_bytes());
        elf[64..68].copy_from_slice(&segment.to_le_bytes());
        elf[72..80].copy_from_slice(&120_u64.to_le_bytes());
        elf[96..104].copy_from_slice(&24_u64.to_le_bytes());
        elf.extend([4, 8, kind].map(u32::to_le_bytes).concat());
        elf.extend(name);
        elf.extend([0; 8]);
        unpack::has_pvh_entry(&elf)
    };
    assert!(elf(4, b"Xen\0", 18));
    assert!(!elf(1, b"Xen\0", 18), "a segment to be loaded");
    assert!(!elf(4, b"GNU\0", 18), "another's note of this number");
    assert!(!elf(4, b"Xen\0", 17), "another note");
}

#[test]
fn an_unpacked_module_has_a_longest_length() {
    let packed = zstd::encode_all([7; 1000].as_slice(), 0).expect("packed");
    assert_eq!(unpack::module(packed.clone(), "zst", 1000).expect("just fits"), [7; 1000]);
    assert!(unpack::module(packed, "zst", 999).is_err());
}

/// A module folder as depmod leaves it, in which virtio_pci needs a chain of so many others.
fn chain(length: usize) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let name = |number: usize| format!("m{number}.ko");
    let mut dep = format!("virtio_pci.ko: {}\n", name(0));
    for number in 0..length {
        let next = if number + 1 < length { name(number + 1) } else { String::new() };
        dep.push_str(&format!("{}: {next}\n", name(number)));
        fs::write(dir.path().join(name(number)), "module").expect("written");
    }
    fs::write(dir.path().join("virtio_pci.ko"), "module").expect("written");
    fs::write(dir.path().join("modules.dep"), dep).expect("written");
    let built_in = ["virtio_blk", "virtio_net", "virtio_console", "ext4", "overlay"];
    fs::write(dir.path().join("modules.builtin"), built_in.map(|name| format!("{name}.ko\n")).concat())
        .expect("written");
    dir
}

#[test]
fn so_many_modules_may_be_needed_and_no_more() {
    assert_eq!(needed(&Files::Host, chain(127).path()).expect("128 of them").len(), 128);
    let error = needed(&Files::Host, chain(128).path()).expect_err("129 of them");
    assert!(error.to_string().contains("over 128 others"), "{error}");
}

#[test]
fn an_empty_index_is_as_good_as_none() {
    let dir = chain(1);
    fs::write(dir.path().join("modules.dep"), "").expect("written");
    for module in ["m0", "virtio_pci"] {
        let text = "\x7fELF\0depends=\0";
        fs::write(dir.path().join(format!("{module}.ko")), text).expect("written");
    }
    assert_eq!(needed(&Files::Host, dir.path()).expect("by its files").len(), 1);
}

#[test]
fn modules_are_searched_so_deep_and_no_deeper() {
    let at = |depth: usize| {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let folder = dir.path().join(vec!["d"; depth].join("/"));
        fs::create_dir_all(&folder).expect("made");
        fs::write(folder.join("virtio_pci.ko"), "\x7fELF\0depends=\0").expect("written");
        let built_in = "virtio_blk.ko\nvirtio_net.ko\nvirtio_console.ko\next4.ko\noverlay.ko\n";
        fs::write(dir.path().join("modules.builtin"), built_in).expect("written");
        needed(&Files::Host, dir.path()).map(|found| found.len())
    };
    assert!(matches!(at(16), Ok(1)));
    assert!(matches!(at(17), Err(BootError::NoModule { .. })));
}

#[test]
fn folders_are_listed_to_a_bound() {
    // In memory, where so many names cost nothing.
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a temporary folder");
    let add = |number: usize| {
        std::os::unix::fs::symlink("x", dir.path().join(number.to_string())).expect("linked");
    };
    (0..20_000).for_each(add);
    assert_eq!(Files::Host.list(dir.path()).expect("just fits").len(), 20_000);
    add(20_000);
    assert!(matches!(Files::Host.list(dir.path()), Err(BootError::Malformed { .. })));
}

#[test]
fn files_are_read_to_a_bound() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let file = dir.path().join("file");
    fs::write(&file, "0123456789").expect("written");
    assert_eq!(Files::Host.read(&file, 10).expect("just fits"), b"0123456789");
    assert!(matches!(Files::Host.read(&file, 9), Err(BootError::TooLarge { limit: 9, .. })));
    assert_eq!(Files::Host.read_below(dir.path(), Path::new("file"), 10).expect("just fits").len(), 10);
    assert!(matches!(
        Files::Host.read_below(dir.path(), Path::new("file"), 9),
        Err(BootError::TooLarge { limit: 9, .. })
    ));
    assert_eq!(Files::Host.head(&file, 4).expect("a part"), b"0123");
    assert!(Files::Host.head(&PathBuf::from("/absent"), 4).is_err());
}
