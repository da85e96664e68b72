mod alloc;
mod long_values;
mod model;
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;

use sha2::{Digest, Sha256};

use super::hash::half_md4;
use super::layout::has_superblock;
use super::{Builder, Error, FileType, Limits, Meta, Special, Time, format_empty};
use support::{LIMITS, TestDisk, UUID, acl, noise, run};

fn meta(mode: u16) -> Meta {
    Meta { mode, ..Meta::default() }
}

fn put(builder: &mut Builder, name: &[u8], data: &[u8]) {
    let mut file = builder.create(builder.root(), name, meta(0o644)).unwrap();
    file.write_all(data).unwrap();
    file.finish().unwrap();
}

#[test]
fn an_empty_tree_is_a_valid_disk() {
    let (disk, summary) = TestDisk::build(|_| {});
    assert_eq!(summary.inodes, 1);
    let mounted = disk.mount("ro,loop");
    assert_eq!(fs::read_dir(mounted.path()).unwrap().count(), 0);
}

#[test]
fn a_disk_can_be_written_to() {
    let (disk, _) = TestDisk::build(|builder| {
        for number in 0..300 {
            put(builder, format!("a name that is a little longer {number}").as_bytes(), b"data");
        }
    });
    // A base disk has no free space of its own.
    disk.resize(64 << 20);
    {
        let mounted = disk.mount("loop");
        let folder = mounted.path().join("folder");
        fs::create_dir(&folder).unwrap();
        // Splits blocks of the root's index too.
        for number in 0..300 {
            fs::write(mounted.path().join(format!("new {number}")), b"more").unwrap();
            fs::remove_file(mounted.path().join(format!("a name that is a little longer {number}"))).unwrap();
        }
        fs::write(folder.join("b"), noise(100_000, 1)).unwrap();
    }
    disk.check();
}

#[test]
fn same_calls_same_bytes() {
    let build = || {
        let (disk, _) = TestDisk::build(|builder| {
            for number in 0..2000u32 {
                put(builder, format!("{number}").as_bytes(), &noise(number as usize * 7, number as u8));
            }
            for number in (0..2000u32).step_by(3) {
                builder.remove(builder.root(), format!("{number}").as_bytes()).unwrap();
            }
            put(builder, b"in the gaps", &noise(3 << 20, 1));
        });
        Sha256::digest(fs::read(disk.path()).unwrap())
    };
    assert_eq!(build(), build());
}

/// A file system of another kind, mounted over a folder while this is there.
struct Over(std::path::PathBuf);

impl Over {
    fn mount(kind: &str, folder: &std::path::Path) -> Self {
        run(Command::new("mount").args(["-t", kind, kind]).arg(folder));
        Over(folder.to_owned())
    }
}

impl Drop for Over {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn a_file_system_without_direct_writes_gets_the_same_disk() {
    let fill = |builder: &mut Builder| {
        put(builder, b"large", &noise(5 << 20, 1));
        put(builder, b"small", &noise(70_000, 2));
        put(builder, b"tail", &noise((1 << 20) + 7, 3));
    };
    let (usual, _) = TestDisk::build(fill);
    let other = TestDisk::new();
    let _over = Over::mount("ramfs", other.path().parent().unwrap());
    let direct = rustix::fs::fcntl_setfl(other.create(), rustix::fs::OFlags::DIRECT);
    assert_eq!(direct, Err(rustix::io::Errno::INVAL), "else this tests nothing");
    let mut builder = other.builder();
    fill(&mut builder);
    builder.finish().unwrap();
    assert!(fs::read(other.path()).unwrap() == fs::read(usual.path()).unwrap());
}

#[test]
fn large_directories_are_indexed_in_two_levels() {
    let (disk, _) = TestDisk::build(|builder| {
        let dir = builder.mkdir(builder.root(), b"many", meta(0o755)).unwrap();
        let first = builder.symlink(dir, b"first", b"/target", meta(0o777)).unwrap();
        for number in 0..60_000 {
            builder.link(dir, format!("name number {number:08}").as_bytes(), first).unwrap();
        }
        for number in 0..60_000 {
            builder.symlink(dir, format!("{number:032}").as_bytes(), b"/target", meta(0o777)).unwrap();
        }
    });
    let htree = run(Command::new("debugfs").args(["-R", "htree_dump /many"]).arg(disk.path()));
    assert!(htree.contains("Indirect levels: 1"), "{}", &htree[..500]);
    let mounted = disk.mount("ro,loop");
    let dir = mounted.path().join("many");
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 120_001);
    for number in (0..60_000).step_by(97) {
        assert!(fs::symlink_metadata(dir.join(format!("name number {number:08}"))).is_ok());
        assert!(fs::symlink_metadata(dir.join(format!("{number:032}"))).is_ok());
    }
    assert!(fs::symlink_metadata(dir.join("absent")).is_err());
}

/// Of two names with one hash, the second in the next block of the index: the kernel must find both.
#[test]
fn equal_hashes_may_span_blocks_of_an_index() {
    let mut by_hash = BTreeMap::<u32, Vec<String>>::new();
    for number in 0..300_000 {
        let name = format!("{number:08}");
        by_hash.entry(half_md4(name.as_bytes(), &UUID).0).or_default().push(name);
    }
    // An entry takes 16 bytes; 255 fit a block.
    let before = |hash: u32| by_hash.range(..hash).filter(|(_, names)| names.len() == 1).take(254);
    let pair = by_hash.iter().find(|&(&hash, names)| names.len() == 2 && before(hash).count() == 254);
    let (&hash, pair) = pair.unwrap();
    let (disk, _) = TestDisk::build(|builder| {
        for name in before(hash).flat_map(|(_, names)| names).chain(pair) {
            put(builder, name.as_bytes(), b"");
        }
    });
    let htree = run(Command::new("debugfs").args(["-R", "htree_dump /"]).arg(disk.path()));
    assert!(htree.contains(&format!("Entry #1: Hash {:#010x}, block 2", hash | 1)), "{htree}");
    let mounted = disk.mount("ro,loop");
    assert!(pair.iter().all(|name| mounted.path().join(name).exists()));
}

#[test]
fn subdirectories_beyond_65000_are_not_counted() {
    let (disk, summary) = TestDisk::build(|builder| {
        let dir = builder.mkdir(builder.root(), b"many", meta(0o755)).unwrap();
        for number in 0..64_999 {
            builder.mkdir(dir, format!("{number}").as_bytes(), meta(0o755)).unwrap();
        }
    });
    assert_eq!(summary.inodes, 65_001);
    let mounted = disk.mount("ro,loop");
    assert_eq!(fs::metadata(mounted.path().join("many")).unwrap().nlink(), 1);
}

#[test]
fn sparse_files_have_deep_trees_and_are_longer_than_32_bits() {
    let (disk, summary) = TestDisk::build(|builder| {
        let mut file = builder.create(builder.root(), b"sparse", meta(0o600)).unwrap();
        for number in 0..2000u64 {
            file.append(&number.to_le_bytes()).unwrap();
            file.seek_hole(5 * 1024 * 1024 - 8).unwrap();
        }
        file.finish().unwrap();
    });
    assert!(summary.used_bytes < 16 << 20);
    let mounted = disk.mount("ro,loop");
    let file = fs::File::open(mounted.path().join("sparse")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 2000 * 5 * 1024 * 1024);
    // 2000 blocks of data, and 7 of tree.
    assert_eq!(file.metadata().unwrap().blocks(), 2007 * 8);
    for number in 0..2000u64 {
        let mut word = [0; 8];
        file.read_exact_at(&mut word, number * 5 * 1024 * 1024).unwrap();
        assert_eq!(u64::from_le_bytes(word), number);
    }
}

#[test]
fn a_file_can_have_all_the_blocks_that_ext4_counts() {
    let (disk, summary) = TestDisk::build(|builder| {
        let mut file = builder.create(builder.root(), b"long", meta(0o600)).unwrap();
        file.seek_hole((1 << 44) - 8195).unwrap();
        file.append(b"end").unwrap();
        file.seek_hole(4096).unwrap();
        assert!(matches!(file.append(b"x"), Err(Error::FileTooBig)));
        file.finish().unwrap();
    });
    assert!(summary.used_bytes < 4 << 20);
    let mounted = disk.mount("ro,loop");
    let file = fs::File::open(mounted.path().join("long")).unwrap();
    assert_eq!((file.metadata().unwrap().len(), file.metadata().unwrap().blocks()), ((1 << 44) - 4096, 8));
    let mut end = [1; 8];
    file.read_exact_at(&mut end, (1 << 44) - 8200).unwrap();
    assert_eq!(&end, b"\0\0\0\0\0end");
}

#[test]
fn times_outside_ext4_become_the_nearest() {
    let last = (1 << 34) - (1 << 31) - 1;
    let times =
        [i64::MIN, -(1 << 31), -1, 0, 1 << 31, 10_737_418_239, 12_884_901_888, last - 1, last, i64::MAX];
    let (disk, _) = TestDisk::build(|builder| {
        for (index, sec) in times.into_iter().enumerate() {
            let meta = Meta { mtime: Time { sec, nsec: 5 }, ..Meta::default() };
            builder.mkdir(builder.root(), format!("{index}").as_bytes(), meta).unwrap();
        }
    });
    let mounted = disk.mount("ro,loop");
    let seen = |index| {
        let data = fs::metadata(mounted.path().join(format!("{index}"))).unwrap();
        (data.mtime(), data.mtime_nsec())
    };
    // Without fractions at both ends, as Linux would keep them.
    let mut expected = times.map(|sec| (sec, 5));
    (expected[0], expected[1]) = ((-(1 << 31), 0), (-(1 << 31), 0));
    (expected[8], expected[9]) = ((last, 0), (last, 0));
    assert_eq!([0, 1, 2, 3, 4, 5, 6, 7, 8, 9].map(seen), expected);
}

/// e2fsck takes them for times before 1970, as old kernels wrote them, and says so; it does not call it an error.
#[test]
fn times_that_e2fsck_wonders_at_are_exact() {
    let times = [10_737_418_240, 11_000_000_000, 12_884_901_887];
    let disk = TestDisk::new();
    let mut builder = disk.builder();
    for sec in times {
        let meta = Meta { mtime: Time { sec, nsec: 7 }, ..Meta::default() };
        builder.mkdir(builder.root(), format!("{sec}").as_bytes(), meta).unwrap();
    }
    builder.finish().unwrap();
    run(Command::new("e2fsck").arg("-fn").arg(disk.path()));
    let mounted = disk.mount("ro,loop");
    for sec in times {
        let seen = fs::metadata(mounted.path().join(format!("{sec}"))).unwrap();
        assert_eq!((seen.mtime(), seen.mtime_nsec()), (sec, 7));
    }
}

#[test]
fn zeros_that_are_written_take_space() {
    let (disk, _) = TestDisk::build(|builder| put(builder, b"zeros", &[0; 40_960]));
    let mounted = disk.mount("ro,loop");
    assert_eq!(fs::metadata(mounted.path().join("zeros")).unwrap().blocks(), 80);
}

#[test]
fn data_steps_over_backup_superblocks() {
    let chunk = noise(1 << 20, 5);
    let (disk, summary) = TestDisk::build(|builder| {
        let mut file = builder.create(builder.root(), b"big", meta(0o600)).unwrap();
        for _ in 0..700 {
            file.append(&chunk).unwrap();
        }
        file.finish().unwrap();
    });
    assert!(summary.size > 700 << 20 && summary.size < 720 << 20);
    let superblock = run(Command::new("dumpe2fs")
        .args(["-o", "superblock=98304", "-o", "blocksize=4096", "-h"])
        .arg(disk.path()));
    assert!(superblock.contains("metadata_csum"), "{superblock}");
    let mounted = disk.mount("ro,loop");
    let data = fs::read(mounted.path().join("big")).unwrap();
    assert!(data.len() == 700 << 20 && data.chunks(1 << 20).all(|piece| piece == chunk));
}

#[test]
fn removed_data_is_reused_and_leaves_no_trace() {
    let (disk, summary) = TestDisk::build(|builder| {
        let dir = builder.mkdir(builder.root(), b"dir", meta(0o755)).unwrap();
        for name in [b"one", b"two"] {
            let mut file = builder.create(dir, name, meta(0o600)).unwrap();
            file.append(&b"secret of the lower layer".repeat(100_000)).unwrap();
            file.finish().unwrap();
        }
        builder.remove(builder.root(), b"dir").unwrap();
        put(builder, b"later", &noise(1 << 20, 2));
        assert_eq!(builder.lookup(builder.root(), b"dir"), None);
    });
    assert_eq!(summary.inodes, 2);
    let bytes = fs::read(disk.path()).unwrap();
    assert!(!bytes.windows(6).any(|window| window == b"secret"));
    // The later file took the place of the first one.
    assert!(summary.size < (5 << 20) + (4 << 20));
}

/// Growing while mounted needs a capability that containers lack; the boot tests do it in a guest.
#[test]
fn both_kinds_of_disks_grow() {
    let image = |disk: &TestDisk| {
        let mut builder = disk.builder();
        put(&mut builder, b"file", &noise(3 << 20, 1));
        builder.finish().unwrap();
    };
    let empty = |disk: &TestDisk| format_empty(&disk.create(), 100 << 20, UUID, false).unwrap();
    for make in [&image as &dyn Fn(&TestDisk), &empty] {
        let disk = TestDisk::new();
        make(&disk);
        // Beyond one block of descriptors.
        for size in [700 << 20, 10 << 30] {
            disk.resize(size);
            disk.check();
        }
        let mounted = disk.mount("loop");
        fs::write(mounted.path().join("after"), noise(1 << 20, 1)).unwrap();
    }
}

#[test]
fn empty_disks_of_all_sizes_are_clean_and_writable() {
    let group = 128 << 20;
    let sizes = [8 << 20, (8 << 20) + 4097, group, group + 4096, 2 * group + (8 << 20), 10 << 30, 1 << 40];
    for size in sizes {
        let disk = TestDisk::new();
        format_empty(&disk.create(), size, UUID, false).unwrap();
        assert_eq!(disk.path().metadata().unwrap().len(), size);
        disk.check();
        {
            let mounted = disk.mount("loop");
            fs::create_dir(mounted.path().join("upper")).unwrap();
            fs::write(mounted.path().join("upper/file"), noise(1 << 20, 1)).unwrap();
        }
        disk.check();
    }
    let disk = TestDisk::new();
    for size in [0, (8 << 20) - 1, (16 << 40) + 1] {
        assert!(matches!(format_empty(&disk.create(), size, UUID, false), Err(Error::Size { .. })));
    }
}

#[test]
fn limits_hold() {
    let disk = TestDisk::new();
    let limits = Limits { max_bytes: 16 << 20, max_inodes: 3 };
    let mut builder = Builder::new(disk.create(), UUID, limits).unwrap();
    let root = builder.root();
    let mut file = builder.create(root, b"big", meta(0o600)).unwrap();
    let error = file.write_all(&noise(17 << 20, 1)).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    assert!(matches!(error.downcast::<Error>(), Ok(Error::Full { .. })));
    drop(file);
    // The unfinished file has given its space back.
    put(&mut builder, b"small", &noise(10 << 20, 1));
    builder.mkdir(root, b"dir", meta(0o755)).unwrap();
    assert!(matches!(builder.mkdir(root, b"dir2", meta(0o755)), Err(Error::TooManyInodes { .. })));
    builder.remove(root, b"dir").unwrap();
    builder.mkdir(root, b"dir2", meta(0o755)).unwrap();
    builder.finish().unwrap();
    disk.check();

    let mut builder = Builder::new(disk.create(), UUID, limits).unwrap();
    put(&mut builder, b"leaves no room for inodes", &noise(15 << 20, 1));
    assert!(matches!(builder.finish(), Err(Error::Full { .. })));

    // Names of one inode are bounded like inodes.
    let limits = Limits { max_inodes: 3, ..LIMITS };
    let mut builder = Builder::new(disk.create(), UUID, limits).unwrap();
    put(&mut builder, b"1", b"");
    let (root, (inode, _)) = (builder.root(), builder.lookup(builder.root(), b"1").unwrap());
    builder.link(root, b"2", inode).unwrap();
    builder.link(root, b"3", inode).unwrap();
    assert!(matches!(builder.link(root, b"4", inode), Err(Error::TooManyInodes { max_inodes: 3 })));
    builder.remove(root, b"1").unwrap();
    builder.link(root, b"4", inode).unwrap();

    let limits = Limits { max_inodes: 10_000, ..LIMITS };
    let mut builder = Builder::new(disk.create(), UUID, limits).unwrap();
    let big = Meta { xattrs: vec![(b"user.x".to_vec(), vec![1; 4000])], ..Meta::default() };
    let mut mkdir = |number| builder.mkdir(builder.root(), format!("{number}").as_bytes(), big.clone());
    let error = (0..10_000).find_map(|number| mkdir(number).err());
    assert!(matches!(error, Some(Error::TooMuchMetadata { max_bytes: 16_777_216 })));
}

#[test]
fn what_ext4_does_not_hold_is_refused() {
    let disk = TestDisk::new();
    let mut builder = disk.builder();
    let root = builder.root();
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0b", &[b'x'; 256]] {
        assert!(matches!(builder.mkdir(root, name, meta(0)), Err(Error::Name { .. })));
    }
    let file = builder.special(root, b"fifo", Special::Fifo, meta(0)).unwrap();
    let dir = builder.mkdir(root, b"dir", meta(0)).unwrap();
    assert!(matches!(builder.mkdir(root, b"fifo", meta(0)), Err(Error::Exists { .. })));
    assert!(matches!(builder.create(root, b"fifo", meta(0)).err(), Some(Error::Exists { .. })));
    assert!(matches!(builder.mkdir(file, b"x", meta(0)), Err(Error::NotADirectory { .. })));
    assert!(matches!(builder.link(root, b"x", dir), Err(Error::LinkToDirectory { .. })));
    assert!(matches!(builder.remove(root, b"x"), Err(Error::NotFound { .. })));
    for target in [&b""[..], b"a\0b", &[b'x'; 4096]] {
        assert!(matches!(builder.symlink(root, b"x", target, meta(0)), Err(Error::Target { .. })));
    }
    for device in [
        Special::Char { major: 4096, minor: 0 },
        Special::Char { major: 0, minor: 1 << 20 },
        Special::Block { major: 4096, minor: 0 },
        Special::Block { major: 0, minor: 1 << 20 },
    ] {
        assert!(matches!(builder.special(root, b"x", device, meta(0)), Err(Error::Device { .. })));
    }
    let last = Special::Block { major: 4095, minor: (1 << 20) - 1 };
    builder.special(root, b"last", last, meta(0)).unwrap();
    let mut huge = builder.create(root, b"huge", meta(0)).unwrap();
    assert!(matches!(huge.seek_hole(1 << 44), Err(Error::FileTooBig)));
    assert!(matches!(huge.seek_hole(u64::MAX), Err(Error::FileTooBig)));
    drop(huge);
    for number in 1..65_000 {
        builder.link(dir, format!("{number}").as_bytes(), file).unwrap();
    }
    assert!(matches!(builder.link(dir, b"x", file), Err(Error::TooManyLinks { .. })));
    builder.remove(root, b"dir").unwrap();
    assert!(matches!(builder.mkdir(dir, b"x", meta(0)), Err(Error::NotADirectory { .. })));
    assert!(matches!(builder.set_meta(dir, meta(0)), Err(Error::Gone)));
    assert_eq!(builder.lookup(root, b"fifo"), Some((file, FileType::Fifo)));
    builder.finish().unwrap();
    disk.check();
}

#[test]
fn attributes_that_ext4_does_not_hold_are_refused() {
    let disk = TestDisk::new();
    let mut builder = disk.builder();
    let long = [&b"user."[..], &[b'n'; 251]].concat();
    let wrong: [(&[u8], Vec<u8>); 10] = [
        (b"user.", vec![]),
        (&long, vec![]),
        (b"nonsense", vec![]),
        (b"system.nfs4_acl", vec![1]),
        (b"user.a\0b", vec![]),
        (b"user.big", vec![0; 65_537]),
        (b"system.posix_acl_access", vec![]),
        (b"system.posix_acl_access", vec![1, 0, 0, 0]),
        (b"system.posix_acl_access", [acl(&[(1, 7, 0)]), vec![0]].concat()),
        (b"system.posix_acl_default", acl(&[(3, 7, 0)])),
    ];
    for (name, value) in wrong {
        let meta = Meta { xattrs: vec![(name.to_vec(), value)], ..Meta::default() };
        let error = builder.mkdir(builder.root(), b"x", meta).unwrap_err();
        assert!(matches!(error, Error::Xattr { .. }), "{error}");
    }
    let both = vec![
        (b"user.a".to_vec(), b"old".to_vec()),
        (b"user.a".to_vec(), b"new".to_vec()),
        (long[..255].to_vec(), b"as long as can be".to_vec()),
        // Without an entry it says nothing, and Linux would not read it.
        (b"system.posix_acl_access".to_vec(), acl(&[])),
    ];
    builder.mkdir(builder.root(), b"x", Meta { xattrs: both, ..Meta::default() }).unwrap();
    builder.finish().unwrap();
    disk.check();
    let mounted = disk.mount("ro,loop");
    let mut value = [0; 8];
    let length = rustix::fs::getxattr(mounted.path().join("x"), "user.a", &mut value[..]).unwrap();
    assert_eq!(&value[..length], b"new");
    let mut names = [0; 1024];
    let length = rustix::fs::listxattr(mounted.path().join("x"), &mut names[..]).unwrap();
    let names: Vec<_> = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
    assert_eq!(names, [b"user.a", &long[..255]]);
}

#[test]
fn deep_trees_are_removed_without_recursion() {
    TestDisk::build(|builder| {
        let mut dir = builder.root();
        for _ in 0..200_000 {
            dir = builder.mkdir(dir, b"d", meta(0o755)).unwrap();
        }
        builder.remove(builder.root(), b"d").unwrap();
    });
}

#[test]
fn hashes_are_those_of_debugfs() {
    for name in ["a", "passwd", "exactly thirty-two bytes of name", &"long".repeat(60)] {
        for seed in [UUID, [0; 16]] {
            let uuid = uuid::Uuid::from_bytes(seed).to_string();
            let request = format!("dx_hash -h half_md4 -s {uuid} \"{name}\"");
            let answer = run(Command::new("debugfs").args(["-R", &request]));
            let (hash, minor) = half_md4(name.as_bytes(), &seed);
            assert!(answer.contains(&format!("{hash:#x} (minor {minor:#x})")), "{name}: {answer} {hash:#x}");
        }
    }
}

#[test]
fn backups_are_in_the_groups_of_sparse_super() {
    let groups: Vec<u64> = (0..130).filter(|&group| has_superblock(group)).collect();
    assert_eq!(groups, [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125]);
}
