//! Archives that mean harm, each with what must become of it.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use vmlet::image::{ImageError, Limits, probe};

use crate::common::oci::{Item, Sparse, gzip, noise, record, tar};
use crate::common::tree::run;
use crate::{alone, check_corpus};

/// Memory that one image may take above what the process had: chunks on their way, a zstd window, the tree.
const MEMORY: u64 = 300 << 20;
/// Of the processor, all threads together: it does not depend on what else the machine does.
const TIME: Duration = Duration::from_secs(20);
/// Larger ones are made when they are needed.
const STORED: usize = 48 << 10;

struct Case {
    name: &'static str,
    blob: Vec<u8>,
    /// A part of the error; none for what does no harm.
    error: Option<&'static str>,
    limits: Limits,
}

fn case(name: &'static str, blob: Vec<u8>, error: impl Into<Option<&'static str>>) -> Case {
    Case { name, blob, error: error.into(), limits: Limits::default() }
}

fn items(name: &'static str, items: &[Item], error: impl Into<Option<&'static str>>) -> Case {
    case(name, tar(items), error)
}

/// A header with these fields and a right checksum, and its data.
fn raw(flag: u8, data: &[u8], fields: &[(usize, &[u8])]) -> Vec<u8> {
    let mut header = [0; 512];
    header[..4].copy_from_slice(b"name");
    header[100..108].copy_from_slice(b"0000644\0");
    header[124..136].copy_from_slice(format!("{:011o}\0", data.len()).as_bytes());
    header[156] = flag;
    header[257..265].copy_from_slice(b"ustar  \0");
    for (at, text) in fields {
        header[*at..at + text.len()].copy_from_slice(text);
    }
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut bytes = [&header, data].concat();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn pax(key: &str, value: &[u8]) -> Vec<u8> {
    [raw(b'x', &record(key, value), &[]), raw(b'0', b"", &[])].concat()
}

/// A file with attributes whose names fit no block.
fn many_names() -> Vec<u8> {
    let records = (0..60).flat_map(|number| record(&format!("SCHILY.xattr.user.{number:0>200}"), b"1"));
    [raw(b'x', &records.collect::<Vec<u8>>(), &[]), raw(b'0', b"", &[])].concat()
}

fn zst(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).unwrap()
}

fn names() -> Vec<Case> {
    let far: Vec<Item> = ["../../../../../../tmp/out", "/../../tmp/out", "a/../../../tmp/out"]
        .map(|path| Item::file(path, "x"))
        .into();
    let deep_link: Vec<Item> = (0..30)
        .map(|index| Item::symlink(format!("l{index}"), format!("{}l{}", "./".repeat(1900), index + 1)))
        .chain([Item::dir("l30"), Item::file("l0/x", "")])
        .collect();
    vec![
        items("climbing-names", &far, None),
        items("link-to-host-then-through", &[Item::symlink("e", "/etc"), Item::file("e/passwd", "x")], None),
        items("hardlink-to-host", &[Item::hardlink("h", "../../../etc/passwd")], "does not exist"),
        items(
            "hardlink-through-link",
            &[Item::symlink("e", "/etc"), Item::hardlink("h", "e/passwd")],
            "does not exist",
        ),
        items("depth", &[Item::file("d/".repeat(300) + "f", "")], "depth"),
        items("long-path", &[Item::file("d".repeat(5000), "")], "path_bytes"),
        items("long-name", &[Item::file("n".repeat(256), "")], "1 to 255 bytes"),
        items("long-target", &[Item::symlink("s", "t".repeat(5000))], "path_bytes"),
        items("empty-target", &[Item::symlink("s", "")], "1 to 4095 bytes"),
        items(
            "link-loop",
            &[Item::symlink("a", "b"), Item::symlink("b", "a"), Item::file("a/x", "")],
            "symbolic links",
        ),
        items("link-maze", &deep_link, "path_bytes"),
        items("root-is-a-link", &[Item::symlink("./", "/etc")], "the root is not a directory"),
        items("root-is-a-file", &[Item::file("/", "")], "the root is not a directory"),
        items("no-name", &[Item::file("", "")], "the root is not a directory"),
        items("file-for-a-parent", &[Item::file("a", ""), Item::file("a/x", "")], "not a directory"),
        items(
            "hardlink-to-directory",
            &[Item::dir("d"), Item::hardlink("h", "d")],
            "hard link to a directory",
        ),
        items("hardlink-to-root", &[Item::hardlink("h", "/")], "does not exist"),
        items(
            "hardlink-over-its-target",
            &[Item::file("d/f", ""), Item::hardlink("d", "d/f")],
            "does not exist",
        ),
        items("whiteout-of-nothing", &[Item::file(".wh.", "")], "no name"),
        items("whiteout-of-dots", &[Item::file("d/.wh...", "")], "no name"),
        items("whiteout-outside", &[Item::symlink("e", "../../.."), Item::file("e/.wh.tmp", "")], None),
        case("nul-in-name", pax("path", b"a\0b"), "path"),
        case(
            "nul-in-target",
            [raw(b'x', &record("linkpath", b"a\0b"), &[]), raw(b'2', b"", &[])].concat(),
            "linkpath",
        ),
    ]
}

fn headers() -> Vec<Case> {
    let file = tar(&[Item::file("f", noise(1, 2000))]);
    let mut wrong_sum = file.clone();
    wrong_sum[0] ^= 1;
    vec![
        case("wrong-checksum", wrong_sum, "checksum"),
        case("garbage", noise(2, 2048), "checksum"),
        case("half-a-header", file[..100].to_vec(), "breaks off"),
        case("half-a-file", file[..1500].to_vec(), "breaks off"),
        case(
            "size-2-to-62",
            raw(b'0', b"", &[(124, &[0x80, 0, 0, 0, 0x40, 0, 0, 0, 0, 0, 0, 0])]),
            "breaks off",
        ),
        case("size-1-tib", raw(b'0', b"", &[(124, &[0x80, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0])]), "breaks off"),
        case("size-negative", raw(b'0', b"", &[(124, &[0xff; 12])]), "negative"),
        case(
            "size-beyond-64-bits",
            raw(b'0', b"", &[(124, &[0x80, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])]),
            "no number",
        ),
        case(
            "uid-beyond-32-bits",
            raw(b'0', b"", &[(108, &[0x80, 0, 0, 1, 0, 0, 0, 0])]),
            "user or group id",
        ),
        case(
            "uid-far-below-zero",
            raw(b'0', b"", &[(108, &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0])]),
            "user or group id",
        ),
        case(
            "half-an-end-mark",
            [raw(b'0', b"", &[]), vec![0; 512], raw(b'0', b"", &[])].concat(),
            "end mark",
        ),
        case(
            "time-beyond-64-bits",
            raw(b'0', b"", &[(136, &[0x80, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])]),
            "no number",
        ),
        case("time-far-away", pax("mtime", b"9223372036854775807.999999999"), None),
        case("device-too-large", raw(b'3', b"", &[(329, b"7777777\0")]), "beyond 4095"),
        case("unknown-type", raw(b'Z', b"", &[]), "type 'Z'"),
        case("volume", raw(b'M', b"", &[]), "type 'M'"),
        case(
            "long-name-1-tib",
            raw(b'L', b"", &[(124, &[0x80, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0])]),
            "header_bytes",
        ),
        case("pax-1-tib", raw(b'x', b"", &[(124, &[0x80, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0])]), "header_bytes"),
        case("pax-no-length", raw(b'x', b"path=x\n", &[]), "PAX"),
        case("pax-length-0", raw(b'x', b"0 path=x\n", &[]), "PAX"),
        case("pax-length-too-long", raw(b'x', b"99 path=x\n", &[]), "PAX"),
        case("pax-length-huge", raw(b'x', b"99999999999999999999999 path=x\n", &[]), "PAX"),
        case("pax-no-key", raw(b'x', b"5 =x\n", &[]), "PAX"),
        case("pax-size-negative", pax("size", b"-1"), "size"),
        case("pax-time-of-letters", pax("mtime", b"soon"), "mtime"),
        case("xattrs-too-many", pax("SCHILY.xattr.user.x", &[7; 70_000]), "xattr_bytes"),
        case("xattr-long", pax("SCHILY.xattr.user.x", &[7; 60_000]), None),
        case("xattr-many-names", many_names(), "must fit 4 KiB"),
        case(
            "xattr-name-too-long",
            pax(&format!("SCHILY.xattr.user.{}", "x".repeat(300)), b"v"),
            "255 bytes",
        ),
        case("acl-of-garbage", pax("SCHILY.xattr.system.posix_acl_access", &noise(3, 44)), "ACL"),
        case("libarchive-not-base64", pax("LIBARCHIVE.xattr.user.x", b"!!!"), "LIBARCHIVE"),
    ]
}

fn sparse_maps() -> Vec<Case> {
    let old = |offset: &[u8], length: &[u8], size: &[u8], data: &[u8]| {
        raw(b'S', data, &[(386, offset), (398, length), (483, size)])
    };
    let pax_map = |key: &str, value: &[u8]| {
        let records = [record("GNU.sparse.size", b"1000"), record(key, value)].concat();
        [raw(b'x', &records, &[]), raw(b'0', b"data", &[])].concat()
    };
    let in_data = |map: &[u8]| {
        let records = [record("GNU.sparse.major", b"1"), record("GNU.sparse.realsize", b"1000")].concat();
        [raw(b'x', &records, &[]), raw(b'0', map, &[])].concat()
    };
    // Blocks that say "and one more" and hold no segments.
    let mut endless = raw(b'S', b"", &[(482, b"\x01"), (483, b"00000000000\0")]);
    let mut more = [0; 512];
    more[504] = 1;
    (0..200_000).for_each(|_| endless.extend(more));
    let huge = b"00000000000\0";
    vec![
        case("sparse-overlap", pax_map("GNU.sparse.map", b"0,3,2,1"), "overlap"),
        case("sparse-odd-map", pax_map("GNU.sparse.map", b"0,3,2"), "GNU.sparse.map"),
        case("sparse-past-the-end", pax_map("GNU.sparse.map", b"999,4"), "passes the file's end"),
        case(
            "sparse-overflow",
            pax_map("GNU.sparse.map", b"18446744073709551615,4"),
            "passes the file's end",
        ),
        case("sparse-too-little-data", pax_map("GNU.sparse.map", b"0,9"), "does not fit"),
        case("sparse-count-1e18", in_data(b"1000000000000000000\n"), "sparse_segments"),
        case("sparse-count-without-end", in_data(&[b'9'; 600]), "malformed"),
        case("sparse-map-of-letters", in_data(b"one\n"), "malformed"),
        case("sparse-map-too-short", in_data(b"2\n0\n1\n"), "malformed"),
        case(
            "sparse-old-lies",
            old(huge, b"00000000005\0", b"00000000001\0", b"data"),
            "passes the file's end",
        ),
        case("sparse-old-endless", zst(&endless), "breaks off"),
        case("sparse-without-gnu", raw(b'S', b"", &[(257, b"ustar\x0000")]), "GNU header"),
        items(
            "sparse-16-tib",
            &[Item::sparse("s", Sparse::Pax01, (1 << 44) - 4096, &[(1 << 43, b"x")])],
            None,
        ),
        items("sparse-32-tib", &[Item::sparse("s", Sparse::Pax01, 1 << 45, &[(0, b"x")])], "16 TiB"),
    ]
}

fn streams() -> Vec<Case> {
    let small = tar(&[Item::file("f", "data")]);
    let packed = gzip(&small);
    let mut wrong_crc = packed.clone();
    let at = wrong_crc.len() - 6;
    wrong_crc[at] ^= 1;
    let frame = zst(&small);
    let endless_name = [&[0x1f, 0x8b, 8, 8, 0, 0, 0, 0, 0, 3][..], &vec![b'n'; 8 << 20]].concat();
    let skippable =
        |length: u32, data: &[u8]| [&[0x50, 0x2a, 0x4d, 0x18][..], &length.to_le_bytes(), data].concat();
    // A window of 2^41 bytes, and one byte of raw data.
    let window = [0x28, 0xb5, 0x2f, 0xfd, 0, 31 << 3, 0x09, 0, 0, b'x'];
    let dictionary = [0x28, 0xb5, 0x2f, 0xfd, 0x21, 7, 1, 0x09, 0, 0, b'x'];
    let zeros = |mebibytes: usize| {
        let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
        let block = vec![0; 1 << 20];
        (0..mebibytes).for_each(|_| std::io::Write::write_all(&mut encoder, &block).unwrap());
        encoder.finish().unwrap()
    };
    let tight = |name, blob, error, limits| Case { name, blob, error: Some(error), limits };
    vec![
        case("empty", Vec::new(), None),
        case("one-byte", vec![0x1f], "breaks off"),
        case("gzip-magic-only", vec![0x1f, 0x8b], "decompressed"),
        case("gzip-cut", packed[..packed.len() - 9].to_vec(), "decompressed"),
        case("gzip-wrong-crc", wrong_crc, "matching checksum"),
        case("gzip-then-garbage", [&packed[..], b"garbage behind"].concat(), "gzip"),
        case("gzip-in-gzip", gzip(&gzip(&small)), "breaks off"),
        case("gzip-endless-name", endless_name, "decompressed"),
        case("zstd-cut", frame[..frame.len() - 5].to_vec(), "decompressed"),
        case("zstd-window-2-to-41", window.to_vec(), "decompressed"),
        case("zstd-dictionary", dictionary.to_vec(), "decompressed"),
        case("zstd-skippable-first", [skippable(3, b"abc"), frame.clone()].concat(), None),
        case("zstd-skippable-lies", skippable(u32::MAX, b"abc"), "decompressed"),
        case("xz", [&b"\xfd7zXZ\0"[..], &noise(4, 100)].concat(), "compressed with xz"),
        case("bomb", zeros(1100), "inflate_ratio"),
        tight(
            "bomb-of-size",
            zeros(100),
            "unpacked_bytes",
            Limits { unpacked_bytes: 50 << 20, ..Limits::default() },
        ),
        tight(
            "bomb-of-files",
            zst(&many(20_000)),
            "entries",
            Limits { entries: 10_000, ..Limits::default() },
        ),
        tight(
            "bomb-of-data",
            tar(&[Item::file("f", noise(5, 40_000))]),
            "disk_bytes",
            Limits { disk_bytes: 32 << 10, ..Limits::default() },
        ),
        case("links-65001", zst(&links(65_001)), "65000"),
        case("files-50000", zst(&many(50_000)), None),
    ]
}

/// So many empty files in one directory.
fn many(count: usize) -> Vec<u8> {
    (0..count)
        .flat_map(|index| raw(b'0', b"", &[(0, format!("file number {index:08}").as_bytes())]))
        .collect()
}

/// A file with so many names.
fn links(count: usize) -> Vec<u8> {
    let mut tar = raw(b'0', b"", &[]);
    for index in 1..count {
        tar.extend(raw(b'1', b"", &[(0, format!("link number {index:08}").as_bytes()), (157, b"name")]));
    }
    tar
}

/// The process' memory in bytes: a line of /proc/self/status.
fn memory(line: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let kibibytes = status.lines().find_map(|found| found.strip_prefix(line)).unwrap();
    kibibytes.trim_matches([':', '\t', ' ', 'k', 'B']).parse::<u64>().unwrap() << 10
}

/// The processor time that this process has taken.
fn processor() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    Duration::from_micros((usage.user_time() + usage.system_time()).num_microseconds().try_into().unwrap())
}

#[test]
fn hostile_archives_end_in_errors_or_in_disks_that_are_fine() {
    let _alone = alone();
    let cases: Vec<Case> = [names(), headers(), sparse_maps(), streams()].into_iter().flatten().collect();
    let stored: Vec<_> = cases.iter().filter(|case| case.blob.len() <= STORED).collect();
    let files: Vec<_> = stored.iter().map(|case| (case.name.to_owned(), case.blob.clone())).collect();
    check_corpus("hostile", &files);
    let mut wrong = Vec::new();
    for Case { name, blob, error, limits } in cases {
        println!("{name}");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.ext4");
        let disk = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        // From now on the peak is this case's.
        std::fs::write("/proc/self/clear_refs", "5").unwrap();
        let (before, started) = (memory("VmRSS"), processor());
        let result = probe::build_disk_of_blobs(disk, &[&blob], &limits);
        let (took, took_memory) = (processor() - started, memory("VmHWM").saturating_sub(before));
        println!("  {took:?}, {} MiB", took_memory >> 20);
        assert!(took < TIME, "{name} took {took:?}");
        assert!(took_memory < MEMORY, "{name} took {} MiB", took_memory >> 20);
        let end = judge(error, result.map(drop), &path);
        wrong.extend(end.err().map(|how| format!("{name}: {how}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Compares the end with what was expected.
fn judge(expected: Option<&str>, result: Result<(), ImageError>, disk: &Path) -> Result<(), String> {
    match (expected, result) {
        (None, Ok(())) => {
            run("e2fsck", "e2fsprogs", &["-fn", disk.to_str().unwrap()]);
            Ok(())
        }
        (None, Err(error)) => Err(format!("is refused: {error}")),
        (Some(words), Ok(())) => Err(format!("is let in, not refused for its {words}")),
        (Some(words), Err(error)) => {
            let advice =
                !Limits::NAMES.contains(&words) || error.message.contains(&format!("--image-limit {words}="));
            let right = error.message.contains(words) && !error.transient && advice;
            if right { Ok(()) } else { Err(format!("is refused otherwise than for its {words}: {error}")) }
        }
    }
}
