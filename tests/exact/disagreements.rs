//! Where unpackers disagree: docs/images.md ("What the disk holds") tells users what these tests hold.

use crate::common::oci::{Item, record, tar};
use crate::values::{put, raw};
use crate::{Disk, assert_names, tree_of};

fn build(entries: &[Vec<u8>]) -> Result<crate::common::tree::Tree, String> {
    let disk = Disk::build(&[entries.concat()]).map_err(|error| error.message)?;
    Ok(disk.tree())
}

fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let records: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value.as_bytes())).collect();
    raw(b'x', &records, |_| {})
}

fn file(name: &str) -> Vec<u8> {
    raw(b'0', b"", |header| put(header, 0, &[name.as_bytes(), &[0; 4]].concat()))
}

/// As chown(2) takes them: macOS' nobody is -2, and -1 leaves the owner, who is root.
#[test]
fn owners_below_zero_count_down() {
    let owned = |uid: [u8; 8], gid: [u8; 8]| {
        raw(b'0', b"", |header| {
            put(header, 108, &uid);
            put(header, 116, &gid);
        })
    };
    let below = |number: i64| number.to_be_bytes();
    let owner =
        |entries: &[Vec<u8>]| build(entries).map(|tree| (tree[&b"name"[..]].uid, tree[&b"name"[..]].gid));
    assert_eq!(owner(&[owned(below(-2), below(-1))]), Ok((4_294_967_294, 0)));
    assert_eq!(owner(&[pax(&[("uid", "-2"), ("gid", "-1")]), file("name")]), Ok((4_294_967_294, 0)));
    assert_eq!(
        owner(&[pax(&[("uid", "4294967295"), ("gid", "-2147483648")]), file("name")]),
        Ok((0, 1 << 31))
    );
    for beyond in ["4294967296", "-2147483649"] {
        let error = owner(&[pax(&[("gid", beyond)]), file("name")]).unwrap_err();
        assert!(error.contains("is no user or group id"), "{error}");
    }
}

/// One block of zeros and then something: readers see different archives, so nobody is given this one.
#[test]
fn half_an_end_mark_is_the_end_or_damage() {
    let zeros = |count: usize| vec![0; count];
    for rest in [file("g"), vec![7; 512], vec![0, 7]] {
        let error = build(&[file("f"), zeros(512), rest]).unwrap_err();
        assert!(error.contains("half an end mark"), "{error}");
    }
    for end in [512, 700, 1024, 10_240] {
        assert_names(&build(&[file("f"), zeros(end)]).unwrap(), &["f"]);
    }
    assert_names(&build(&[file("f"), zeros(1024), file("g")]).unwrap(), &["f"]);
}

/// Go, which docker, containerd and umoci read with, takes a global header for an entry of its own.
#[test]
fn what_stands_before_a_global_header_is_lost() {
    let global = raw(b'g', &record("comment", b"git"), |_| {});
    let long = raw(b'L', b"long\0", |_| {});
    let entries = [pax(&[("path", "pax")]), global.clone(), file("f"), long, global, file("g")];
    assert_names(&build(&entries).unwrap(), &["f", "g"]);
}

#[test]
fn an_empty_pax_value_takes_back_what_was_said() {
    let said = [("path", "x"), ("uid", "7"), ("mtime", "5"), ("path", ""), ("uid", ""), ("mtime", "")];
    let tree = build(&[pax(&said), file("f")]).unwrap();
    assert_names(&tree, &["f"]);
    assert_eq!((tree[&b"f"[..]].uid, tree[&b"f"[..]].mtime), (0, (0, 0)));
}

/// Of containerd and docker an entry for a hard link changes the file's owner, mode and times; GNU tar, bsdtar
/// and umoci leave it alone, as such entries often say nothing right.
#[test]
fn a_hard_link_changes_nothing_of_its_file() {
    let tree = tree_of(&[&[
        Item::file("f", "x").mode(0o4755).owner(7, 8).mtime(5, 6),
        Item::hardlink("h", "f").mode(0o600).owner(1, 1).mtime(9, 9).xattr("user.a", "b"),
    ]]);
    let node = &tree[&b"h"[..]];
    assert_eq!((node.mode, node.uid, node.gid, node.mtime), (0o4755, 7, 8, (5, 6)));
    assert!(node.xattrs.is_empty());
}

/// containerd makes the folders that a whiteout would be in.
#[test]
fn whiteouts_make_no_folders() {
    let hidden = [Item::file("no/such/.wh.x", ""), Item::file("nor/.wh..wh..opq", "")];
    assert_names(&tree_of(&[&[Item::file("f", "")], &hidden]), &["f"]);
}

/// containerd takes away what the layer itself put there before.
#[test]
fn whiteouts_spare_their_own_layer() {
    let lower = [Item::dir("d"), Item::file("d/old", "")];
    let upper = [Item::dir("d"), Item::file("d/new", ""), Item::file(".wh.d", "")];
    assert_names(&tree_of(&[&lower, &upper]), &["d", "d/new"]);
    assert_names(&tree_of(&[&[Item::file("f", ""), Item::file(".wh.f", "")]]), &["f"]);
}

/// Words that are no ACL say nothing, as for all that do not read them.
#[test]
fn an_acl_of_words_that_linux_would_refuse_is_none() {
    let words = "user::--x,group::r--,other::-w-,user:user77:r--:77";
    let layer = tar(&[Item::file("f", "").mode(0o640).record("SCHILY.acl.access", words)]);
    let tree = Disk::build(&[layer]).unwrap().tree();
    let node = &tree[&b"f"[..]];
    assert_eq!((node.mode, node.xattrs.len()), (0o640, 0));
}
