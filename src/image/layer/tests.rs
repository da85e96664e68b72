//! The layer pipeline on bytes that no tool would write.

use std::io::Read;

use proptest::prelude::*;
use tokio_util::sync::CancellationToken;

use super::archive::{Archive, Kind};
use super::sparse::{Segment, SparseMap};
use super::*;
use crate::image::ext4::{self, Builder, FileType, Time};
use crate::image::{Digest, ImageError, Limits};
use sha2::Digest as _;

fn limits() -> Limits {
    Limits { entries: 1000, header_bytes: 4096, sparse_segments: 100, ..Limits::default() }
}

fn apply(tar: &[u8], limits: &Limits) -> Result<(), ImageError> {
    tree(&[tar.to_vec()], limits).map(drop)
}

/// The tree of these layers.
fn tree<'a>(layers: &[Vec<u8>], limits: &'a Limits) -> Result<Tree<'a>, ImageError> {
    let bounds = ext4::Limits { max_bytes: 1 << 30, max_inodes: 1000 };
    let builder = Builder::new(tempfile::tempfile().unwrap(), [1; 16], bounds).unwrap();
    let mut tree = Tree::new(builder, limits);
    layers.iter().try_for_each(|layer| tree.apply(&layer[..]))?;
    Ok(tree)
}

/// What is at a path of a tree; links are not followed.
fn at(tree: &Tree<'_>, path: &str) -> Option<FileType> {
    let mut here = (tree.builder.root(), FileType::Directory);
    for name in path.split('/') {
        here = tree.builder.lookup(here.0, name.as_bytes())?;
    }
    Some(here.1)
}

/// A header with a right checksum, and its data.
fn entry(name: &str, flag: u8, data: &[u8], change: impl FnOnce(&mut tar::Header)) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkflag[0] = flag;
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(data.len() as u64);
    change(&mut header);
    header.set_cksum();
    let mut bytes = [header.as_bytes(), data].concat();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn file(name: &str) -> Vec<u8> {
    entry(name, b'0', b"", |_| {})
}

fn dir(name: &str) -> Vec<u8> {
    entry(name, b'5', b"", |_| {})
}

/// A symlink, or a hard link.
fn link(name: &str, flag: u8, target: &str) -> Vec<u8> {
    entry(name, flag, b"", |header| {
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
    })
}

/// A PAX header with these records.
fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut data = Vec::new();
    for (key, value) in records {
        let body = key.len() + value.len() + 3;
        let length = (body..).find(|length| *length == body + length.to_string().len()).unwrap();
        data.extend(format!("{length} {key}=").into_bytes());
        data.extend_from_slice(value);
        data.push(b'\n');
    }
    entry("pax", b'x', &data, |_| {})
}

fn reason(result: Result<(), ImageError>) -> (&'static str, String) {
    let error = result.unwrap_err();
    (error.reason, error.message)
}

#[test]
fn headers_are_read_as_go_reads_them() {
    let limits = limits();
    let tar = [
        entry("old/", b'\0', b"", |_| {}),
        entry("early", b'0', b"", |header| header.as_old_mut().mtime = [0xff; 12]),
        // Links, directories and devices have no data whatever their size says.
        entry("link", b'1', b"", |header| {
            header.set_size(512);
            header.as_old_mut().linkname[0] = b'x';
        }),
        entry("blank", b'6', b"", |header| header.as_old_mut().uid = [0; 8]),
        entry("g", b'g', b"12 path=none\n", |_| {}),
        entry("contiguous", b'7', b"data", |_| {}),
    ]
    .concat();
    let mut archive = Archive::new(tar.as_slice(), &limits);
    let mut next = || archive.next().unwrap().unwrap();
    assert!(matches!(next().kind, Kind::Directory));
    assert_eq!(next().meta.mtime, Time { sec: -1, nsec: 0 });
    assert!(matches!(next().kind, Kind::Hardlink(target) if target == b"x"));
    assert!(matches!(next().kind, Kind::Special(ext4::Special::Fifo)));
    let last = next();
    assert_eq!(last.path, b"contiguous");
    assert!(matches!(last.kind, Kind::File(4)));
    assert!(archive.next().unwrap().is_none());
}

#[test]
fn fields_mean_what_their_writers_meant() {
    let limits = limits();
    // Old tars summed signed bytes.
    let mut signed = entry("n\u{e4}me", b'0', b"", |_| {});
    let sum: i64 = signed
        .iter()
        .enumerate()
        .map(|(at, byte)| match at {
            148..156 => i64::from(b' '),
            _ => i64::from(byte.cast_signed()),
        })
        .sum();
    signed[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    // Go's prefix in a GNU header, which begins like the time that others have there.
    let prefixed = entry("name", b'0', b"", |header| {
        header.as_mut_bytes()[345..364].copy_from_slice(b"123456701234567/abc");
    });
    let timed = entry("name", b'0', b"", |header| {
        header.as_mut_bytes()[345..357].copy_from_slice(b"00000000007\0");
    });
    let tar = [
        // Only a slash makes a directory of the oldest type.
        entry("plain", b'\0', b"data", |_| {}),
        signed,
        prefixed,
        timed,
        // An empty name says nothing.
        entry("long", b'L', b"\0", |_| {}),
        entry("long", b'K', b"\0", |_| {}),
        link("short", b'2', "target"),
    ]
    .concat();
    let mut archive = Archive::new(tar.as_slice(), &limits);
    let mut next = || archive.next().unwrap().unwrap();
    assert!(matches!(next().kind, Kind::File(4)));
    assert_eq!(next().path, "n\u{e4}me".as_bytes());
    let prefixed = next();
    assert_eq!((prefixed.path, prefixed.meta.atime), (b"123456701234567/abc/name".to_vec(), None));
    let timed = next();
    assert_eq!((timed.path, timed.meta.atime), (b"name".to_vec(), Some(Time { sec: 7, nsec: 0 })));
    let short = next();
    assert_eq!(short.path, b"short");
    assert!(matches!(short.kind, Kind::Symlink(target) if target == b"target"));
}

#[test]
fn an_acl_has_one_of_its_spellings() {
    let limits = limits();
    let words: (&str, &[u8]) = ("SCHILY.acl.access", b"user::rwx,group::r-x,other::--x");
    let minimal = [&2u32.to_le_bytes()[..], &acl_entry(1, 6), &acl_entry(4, 4), &acl_entry(32, 0)].concat();
    let binary: (&str, &[u8]) = ("SCHILY.xattr.system.posix_acl_access", &minimal);
    let mode = |records: &[(&str, &[u8])], flag| {
        let tar = [pax(records), entry("a", flag, b"", |_| {})].concat();
        let mut archive = Archive::new(tar.as_slice(), &limits);
        archive.next().unwrap().unwrap().meta.mode
    };
    assert_eq!(mode(&[words], b'0'), 0o751);
    // The attribute itself is what counts; the permissions are in the header, then.
    assert_eq!(mode(&[words, binary], b'0'), 0o644);
    // Another attribute is none of them.
    assert_eq!(mode(&[words, ("SCHILY.xattr.user.a", b"1")], b'0'), 0o751);
    assert_eq!(mode(&[words], b'2'), 0o777, "links have no other");
}

/// An entry of an ACL, of nobody in particular.
fn acl_entry(tag: u16, permissions: u16) -> [u8; 8] {
    let mut entry = [0xff; 8];
    entry[..2].copy_from_slice(&tag.to_le_bytes());
    entry[2..4].copy_from_slice(&permissions.to_le_bytes());
    entry
}

#[test]
fn a_tar_may_begin_like_something_else() {
    // Frames of zstd that are to be skipped begin with bytes from P to underscore.
    for start in ["Path", "_", "(\u{b5}"] {
        let tar = file(start);
        let mut decoded = Vec::new();
        decoder(&tar[..]).unwrap().read_to_end(&mut decoded).unwrap();
        assert!(decoded == tar, "{start}");
    }
    // Whoever is interrupted reads on.
    struct Interrupted<'a>(&'a [u8], bool);
    impl Read for Interrupted<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            self.1 = !self.1;
            if self.1 { Err(std::io::ErrorKind::Interrupted.into()) } else { self.0.read(&mut buffer[..1]) }
        }
    }
    let (tar, limits) = (file("a"), limits());
    let mut budget = Budget::new(&limits, CancellationToken::new());
    let length = tar.len() as u64;
    inflate(Interrupted(&tar, false), length, None, &mut budget, |chunks| {
        let mut read = Vec::new();
        chunks.read_to_end(&mut read).unwrap();
        assert!(read == tar);
        Ok(())
    })
    .unwrap();
}

#[test]
fn entries_are_counted_whatever_becomes_of_them() {
    // One file again and again, in layers, hidden or not: the tree has but one.
    let limits = Limits { entries: 4, ..limits() };
    let two = [file("a"), file("a")].concat();
    assert!(tree(&[two.clone(), two.clone()], &limits).is_ok());
    let hidden = file(".wh.a");
    let (reason, message) = reason(tree(&[two.clone(), two, hidden], &limits).map(drop));
    assert_eq!(reason, "LimitExceeded");
    assert!(message.contains("the number of tar entries") && message.contains("entries"), "{message}");
}

#[test]
fn paths_and_links_are_as_long_and_deep_as_limits_say() {
    let limits = Limits { path_bytes: 20, depth: 3, ..limits() };
    let fits = |tar: &[Vec<u8>]| match apply(&tar.concat(), &limits) {
        Ok(()) => "fits".to_owned(),
        Err(error) => format!("{}: {}", error.reason, error.message),
    };
    let exceeds = |tar: &[Vec<u8>], what: &str, name: &str| {
        let end = fits(tar);
        assert!(end.starts_with("LimitExceeded") && end.contains(what) && end.contains(name), "{end}");
    };
    assert_eq!(fits(&[file(&"n".repeat(20))]), "fits");
    exceeds(&[file(&"n".repeat(21))], "a path", "path_bytes");
    exceeds(&[file("a"), link("b", b'1', &"./".repeat(11))], "a path", "path_bytes");
    assert_eq!(fits(&[link("l", b'2', &"t".repeat(20))]), "fits");
    exceeds(&[link("l", b'2', &"t".repeat(21))], "the target of a symlink", "path_bytes");
    assert_eq!(fits(&[file("a/b/c")]), "fits");
    exceeds(&[file("a/b/c/d")], "depth", "depth");
    // The way there is through a link.
    assert_eq!(fits(&[dir("a/b"), link("l", b'2', "a/b"), file("l/c/d")]), "fits");
    exceeds(&[dir("a/b/c"), link("l", b'2', "a/b/c"), file("l/d/e")], "depth", "depth");
    // Ten bytes each.
    let maze = [dir("d"), link("m", b'2', "././././/d"), link("l", b'2', "././././/m")];
    assert_eq!(fits(&[&maze[..], &[file("l/x")]].concat()), "fits");
    exceeds(&[&maze[..], &[link("k", b'2', "l"), file("k/x")]].concat(), "symlinks on the way", "path_bytes");
}

#[test]
fn forty_links_may_lead_to_a_file() {
    let limits = limits();
    let chain = |length: u32| {
        let mut tar = dir("0");
        (1..=length).for_each(|index| tar.extend(link(&index.to_string(), b'2', &(index - 1).to_string())));
        tar.extend(file(&format!("{length}/x")));
        tree(&[tar], &limits)
    };
    assert_eq!(at(&chain(40).unwrap(), "0/x"), Some(FileType::Regular));
    assert!(chain(41).err().unwrap().message.contains("too many levels of symbolic links"));
}

#[test]
fn links_on_the_way_lead_where_linux_goes() {
    let limits = limits();
    let layer = [
        dir("p/q"),
        dir("q"),
        link("p/near", b'2', "q"),
        link("p/far", b'2', "/q"),
        link("p/back", b'2', "nowhere/../q"),
        file("p/near/a"),
        file("p/far/b"),
        file("p/back/c"),
    ]
    .concat();
    let tree = tree(&[layer], &limits).unwrap();
    for path in ["p/q/a", "q/b", "p/q/c"] {
        assert_eq!(at(&tree, path), Some(FileType::Regular), "{path}");
    }
    for path in ["q/a", "p/q/b", "q/c", "p/nowhere"] {
        assert_eq!(at(&tree, path), None, "{path}");
    }
}

#[test]
fn whatever_a_layer_makes_its_own_whiteouts_spare() {
    let limits = limits();
    let lower = [dir("d"), file("d/lower"), file("d/linked"), dir("d/old/within")].concat();
    let sparse = entry("d/sparse", b'S', b"", |header| header.as_gnu_mut().unwrap().set_real_size(5));
    let made = [
        file("d/file"),
        sparse,
        link("d/symlink", b'2', "x"),
        entry("d/fifo", b'6', b"", |_| {}),
        dir("d/dir"),
        file("d/implied/within"),
        link("d/hard", b'1', "d/linked"),
    ];
    let names = ["file", "sparse", "symlink", "fifo", "dir", "implied", "hard", "implied/within"];
    let hidden: Vec<u8> =
        ["lower", "linked", "old", "file", "sparse", "symlink", "fifo", "dir", "implied", "hard"]
            .iter()
            .flat_map(|name| file(&format!("d/.wh.{name}")))
            .collect();
    for hidden in [hidden, file("d/.wh..wh..opq")] {
        for upper in [[made.concat(), hidden.clone()].concat(), [hidden, made.concat()].concat()] {
            // A hard link needs its target: where that is hidden first, the layer is refused.
            let tree = match tree(&[lower.clone(), upper], &limits) {
                Err(error) => {
                    assert!(error.message.contains("which does not exist"), "{error}");
                    continue;
                }
                Ok(tree) => tree,
            };
            for name in names {
                assert!(at(&tree, &format!("d/{name}")).is_some(), "{name}");
            }
            for name in ["lower", "linked", "old"] {
                assert_eq!(at(&tree, &format!("d/{name}")), None, "{name}");
            }
        }
    }
    // What takes a link's place is a file like any other for the layer above.
    let linked = [link("a", b'1', "d/linked"), file("a")].concat();
    let tree = tree(&[lower, linked, file(".wh.a")], &limits).unwrap();
    assert_eq!(at(&tree, "a"), None);
}

#[test]
fn hard_links_to_themselves_and_over_their_own_way() {
    let limits = limits();
    let tree = |tar: &[Vec<u8>]| tree(&[tar.concat()], &limits);
    let same = tree(&[file("a"), link("a", b'1', "a"), link("b", b'1', "a"), link("b", b'1', "a")]).unwrap();
    assert_eq!((at(&same, "a"), at(&same, "b")), (Some(FileType::Regular), Some(FileType::Regular)));
    // `s` leads through a link in `d`, and elsewhere once `d` is gone.
    let way = [
        dir("d/in/side"),
        file("d/e/f"),
        file("e/f"),
        link("d/k", b'2', "/d/in/side"),
        link("s", b'2', "d/k/../../e"),
        link("d", b'1', "s/f"),
    ];
    let error = tree(&way).err().unwrap();
    assert!(error.message.contains("replaces its own target"), "{error}");
}

#[test]
fn malformed_headers_are_refused() {
    let cut = entry("a", b'0', &[1; 600], |_| {});
    let cases = [
        (cut[..700].to_vec(), "breaks off"),
        (cut[..100].to_vec(), "breaks off"),
        (entry("a", b'V', b"", |_| {}), "type 'V'"),
        (entry("a", b'0', b"", |header| header.as_old_mut().mode = *b"nonsense"), "mode"),
        (
            entry("a", b'0', b"", |header| header.as_old_mut().uid = *b"\xc0\0\0\0\0\0\0\0"),
            "user or group id",
        ),
        (entry("a", b'0', b"", |header| header.set_uid(1 << 40)), "user or group id"),
        (entry("a", b'x', b"99 path=x\n", |_| {}), "PAX"),
        (entry("a", b'S', b"", |header| header.as_gnu_mut().unwrap().set_real_size(5)), ""),
    ];
    for (index, (tar, message)) in cases.into_iter().enumerate() {
        let result = apply(&tar, &limits());
        if message.is_empty() {
            result.unwrap();
            continue;
        }
        let (reason, text) = reason(result);
        assert_eq!(reason, "InvalidImage", "{index}: {text}");
        assert!(text.contains(message), "{index}: {text}");
    }
    let mut wrong = entry("a", b'0', b"", |_| {});
    wrong[0] = b'b';
    assert!(reason(apply(&wrong, &limits())).1.contains("checksum"));
}

#[test]
fn extended_headers_are_bounded_before_they_are_read() {
    for flag in [b'x', b'L', b'K'] {
        let tar = entry("a", flag, b"", |header| header.set_size(1 << 40));
        let (reason, message) = reason(apply(&tar, &limits()));
        assert_eq!(reason, "LimitExceeded");
        assert!(message.contains("header_bytes"), "{message}");
    }
}

#[test]
fn sparse_maps_are_checked() {
    let limits = limits();
    let map = |size, segments: &[(u64, u64)], stored| {
        let segments =
            segments.iter().map(|(offset, length)| Segment { offset: *offset, length: *length }).collect();
        SparseMap::new(size, segments, stored, &limits)
    };
    assert!(map(10, &[(0, 2), (5, 5), (10, 0)], 7).is_ok());
    assert!(map(10, &[(5, 5), (0, 2)], 7).is_err(), "out of order");
    assert!(map(10, &[(0, 3), (2, 2)], 5).is_err(), "overlap");
    assert!(map(10, &[(9, 2)], 2).is_err(), "past the end");
    assert!(map(10, &[(9, 1)], 1).is_ok(), "up to the end");
    assert!(map(u64::MAX, &[(u64::MAX, 2)], 2).is_err(), "overflow");
    assert!(map(10, &[(0, 2)], 3).is_err(), "not all data used");
    assert_eq!(map(u64::MAX, &[(0, 1); 101], 101).unwrap_err().reason, "LimitExceeded");
}

#[test]
fn a_layer_may_not_inflate_for_ever() {
    let limits = Limits { unpacked_bytes: 5 << 30, inflate_ratio: 10, ..Limits::default() };
    let mut budget = Budget::new(&limits, CancellationToken::new());
    let digest = Digest::sha256([0; 32]);
    let bomb = std::io::repeat(0);
    let error = inflate(bomb, 1000, Some(&digest), &mut budget, |_| Ok(())).unwrap_err();
    assert_eq!(error.reason, "LimitExceeded");
    assert!(error.message.contains("inflate_ratio"), "{error}");
}

#[test]
fn a_cancelled_layer_ends() {
    let limits = Limits::default();
    let cancel = CancellationToken::new();
    let mut budget = Budget::new(&limits, cancel.clone());
    let digest = Digest::sha256([0; 32]);
    let error = inflate(std::io::repeat(0), u64::MAX, Some(&digest), &mut budget, |chunks| {
        chunks.read_exact(&mut [0; 100]).unwrap();
        cancel.cancel();
        Ok(())
    });
    assert_eq!(error.unwrap_err().reason, "Cancelled");
}

#[test]
fn a_reader_that_gives_up_ends_the_threads() {
    let limits = Limits::default();
    let mut budget = Budget::new(&limits, CancellationToken::new());
    let digest = Digest::sha256([0; 32]);
    let error = inflate(std::io::repeat(0), u64::MAX, Some(&digest), &mut budget, |_| {
        Err(ImageError::invalid("enough"))
    });
    assert_eq!(error.unwrap_err().message, "enough");
}

#[test]
fn all_bytes_count_for_the_diff_id() {
    let content = [entry("a", b'0', b"data", |_| {}), vec![0; 1024], b"trailing".to_vec()].concat();
    let digest = Digest::sha256(sha2::Sha256::digest(&content).into());
    let limits = limits();
    let run = |content: &[u8]| {
        let mut budget = Budget::new(&limits, CancellationToken::new());
        inflate(content, content.len() as u64, Some(&digest), &mut budget, |chunks| {
            Archive::new(chunks, &limits).next().map(drop)
        })
    };
    run(&content).unwrap();
    assert_eq!(run(&content[..content.len() - 1]).unwrap_err().reason, "InvalidImage");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn damaged_layers_are_applied_or_refused(
        names in prop::collection::vec("[a-c]{1,2}(/[a-c]|/\\.\\.|/\\.wh\\.[a-c]|/\\.wh\\.\\.wh\\.\\.opq){0,3}", 1..12),
        flags in prop::collection::vec(prop::sample::select(b"0123456SxLKg".to_vec()), 12),
        links in prop::collection::vec("(/|\\.\\./)?[a-c](/[a-c])?", 12),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
    ) {
        let mut tar = Vec::new();
        for ((name, flag), link) in names.iter().zip(flags).zip(links) {
            let data: &[u8] = match flag {
                b'0' => b"some data",
                b'L' | b'K' => b"a/b\0",
                b'x' => b"12 path=a/c\n",
                _ => b"",
            };
            tar.extend(entry(name, flag, data, |header| {
                header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
            }));
        }
        for (index, byte) in damage {
            let index = index.index(tar.len());
            tar[index] = byte;
        }
        if let Err(error) = apply(&tar, &limits()) {
            prop_assert!(!error.transient, "{}", error);
        }
    }
}
