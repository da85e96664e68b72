//! The layer pipeline on bytes that no tool would write.

use std::io::Read;

use proptest::prelude::*;
use tokio_util::sync::CancellationToken;

use super::archive::{Archive, Kind};
use super::sparse::{Segment, SparseMap};
use super::*;
use crate::image::ext4::{self, Builder, Time};
use crate::image::{Digest, ImageError, Limits};
use sha2::Digest as _;

fn limits() -> Limits {
    Limits { entries: 1000, header_bytes: 4096, sparse_segments: 100, ..Limits::default() }
}

fn apply(tar: &[u8], limits: &Limits) -> Result<(), ImageError> {
    let bounds = ext4::Limits { max_bytes: 1 << 30, max_inodes: 1000 };
    let builder = Builder::new(tempfile::tempfile().unwrap(), [1; 16], bounds).unwrap();
    Tree::new(builder, limits)?.apply(tar)
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
