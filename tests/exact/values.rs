//! Item by item: what an entry says, and what the kernel then shows. Many are cases of other unpackers' own
//! tests (containerd, umoci, containers/storage, Go's archive/tar, tar-rs, libarchive), told anew.

use crate::common::oci::{Item, noise, tar};
use crate::common::tree::Tree;
use crate::{Disk, assert_names, error_of, tree_of};

/// `security.capability` for cap_net_raw+ep, revision 2 (linux/capability.h).
pub(crate) const CAP_NET_RAW: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Kind, permissions and id of entries, as setxattr takes an ACL (linux/posix_acl_xattr.h).
pub(crate) fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        value.extend([tag.to_le_bytes(), permissions.to_le_bytes()].concat());
        value.extend(id.to_le_bytes());
    }
    value
}

/// One header block with whatever in it, and its data.
pub(crate) fn raw(flag: u8, data: &[u8], change: impl FnOnce(&mut [u8; 512])) -> Vec<u8> {
    let mut header = [0; 512];
    header[..4].copy_from_slice(b"name");
    header[100..108].copy_from_slice(b"0000644\0");
    header[124..136].copy_from_slice(format!("{:011o}\0", data.len()).as_bytes());
    header[156] = flag;
    change(&mut header);
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut bytes = [&header, data].concat();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

pub(crate) fn put(header: &mut [u8; 512], at: usize, text: &[u8]) {
    header[at..at + text.len()].copy_from_slice(text);
}

fn raw_tree(entries: &[Vec<u8>]) -> Tree {
    Disk::build(&[entries.concat()]).unwrap().tree()
}

fn same_file(tree: &Tree, one: &str, two: &str) -> bool {
    tree[one.as_bytes()].first_name == tree[two.as_bytes()].first_name
}

#[test]
fn links_have_one_mode() {
    let tree = tree_of(&[&[Item::symlink("s", "t").mode(0o644), Item::symlink("u", "t").mode(0o7000)]]);
    assert_eq!((tree[&b"s"[..]].mode, tree[&b"u"[..]].mode), (0o777, 0o777));
}

#[test]
fn links_of_every_length() {
    let lengths = [1, 58, 59, 60, 61, 99, 100, 101, 255, 256, 4095];
    let items: Vec<Item> =
        lengths.iter().map(|length| Item::symlink(format!("{length}"), "x".repeat(*length))).collect();
    let tree = tree_of(&[&items]);
    for length in lengths {
        assert_eq!(tree[format!("{length}").as_bytes()].content.len(), length);
    }
    assert!(error_of(&[Item::symlink("s", "x".repeat(4096))]).message.contains("1 to 4095 bytes"));
}

#[test]
fn attributes_fit_their_files() {
    let extended =
        acl(&[(1, 6, u32::MAX), (2, 7, 1000), (4, 4, u32::MAX), (16, 7, u32::MAX), (32, 4, u32::MAX)]);
    let minimal = acl(&[(1, 6, u32::MAX), (4, 4, u32::MAX), (32, 4, u32::MAX)]);
    let with = |item: Item| {
        item.xattr("user.a", "1")
            .xattr("trusted.a", "2")
            .xattr("system.posix_acl_access", &extended)
            .xattr("system.posix_acl_default", &extended)
    };
    let tree = tree_of(&[&[
        with(Item::file("file", "").mode(0o674)),
        with(Item::dir("dir").mode(0o674)),
        with(Item::symlink("link", "t")),
        with(Item::fifo("fifo").mode(0o674)),
        Item::file("minimal", "").mode(0o644).xattr("system.posix_acl_access", &minimal),
        Item::file("binary", "").xattr("user.b", b"a=b\n\0\xff"),
        Item::file("foreign", "").xattr("user.gr\u{fc}\u{df}e", noise(8, 2000)),
        Item::file("long", "").xattr("user.a", noise(9, 60_000)).xattr("user.b", noise(8, 1000)),
        Item::file("cleared", "").record("SCHILY.xattr.user.=", "odd"),
    ]]);
    let names = |name: &str| tree[name.as_bytes()].xattrs.keys().cloned().collect::<Vec<_>>();
    let [access, default] = ["system.posix_acl_access", "system.posix_acl_default"];
    assert_eq!(names("file"), [access, "trusted.a", "user.a"]);
    assert_eq!(names("dir"), [access, default, "trusted.a", "user.a"]);
    assert_eq!(names("link"), ["trusted.a"]);
    assert_eq!(names("fifo"), [access, "trusted.a"]);
    assert_eq!(names("minimal"), [""; 0]);
    assert_eq!(tree[&b"file"[..]].xattrs[access], extended);
    assert_eq!(tree[&b"foreign"[..]].xattrs["user.gr\u{fc}\u{df}e"], noise(8, 2000));
    assert_eq!(tree[&b"long"[..]].xattrs["user.a"], noise(9, 60_000));
    assert_eq!(tree[&b"binary"[..]].xattrs["user.b"], b"a=b\n\0\xff");
    let bad = Item::file("f", "").xattr("system.posix_acl_access", acl(&[(1, 7, u32::MAX)]));
    assert!(error_of(&[bad]).message.contains("POSIX ACL"));
}

#[test]
fn later_descriptions_replace_earlier_ones() {
    let first = Item::dir("d").xattr("user.old", "1").owner(1, 1).record("atime", "5.5");
    let tree = tree_of(&[
        &[first, Item::file("d/kept", ""), Item::file("f", "one").mode(0o4755)],
        &[Item::dir("d").mode(0o700).xattr("user.new", "2"), Item::file("f", "two")],
    ]);
    let dir = &tree[&b"d"[..]];
    assert_eq!(
        (dir.mode, dir.uid, dir.xattrs.keys().cloned().collect::<Vec<_>>()),
        (0o700, 0, vec!["user.new".to_owned()])
    );
    assert_eq!(tree[&b"f"[..]].mode, 0o644);
    assert_names(&tree, &["d", "d/kept", "f"]);
}

#[test]
fn the_root_is_described_like_any_directory() {
    let root = Item::dir("./").mode(0o711).owner(5, 6).mtime(7, 8).xattr("user.root", "r");
    for name in ["./", ".", "/", "a/..", "../.."] {
        let tree =
            tree_of(&[&[Item::dir("./").mode(0o700), Item::file("a", "")], &[Item::dir(name).mode(0o711)]]);
        assert_eq!(tree[&b""[..]].mode, 0o711, "{name}");
    }
    let tree = tree_of(&[&[root]]);
    let node = &tree[&b""[..]];
    assert_eq!((node.mode, node.uid, node.gid, node.mtime), (0o711, 5, 6, (7, 8)));
    assert_eq!(node.xattrs["user.root"], b"r");
    assert_eq!(tree_of(&[]), tree_of(&[&[], &[]]), "layers without entries");
}

#[test]
fn hard_links_share_what_layers_replace() {
    let lower = [
        Item::file("a", "old").mode(0o4711).owner(7, 8).xattr("user.x", "y"),
        Item::hardlink("b", "a"),
        Item::hardlink("c", "./b"),
        Item::symlink("s", "a"),
        Item::hardlink("t", "s"),
        Item::fifo("p"),
        Item::hardlink("q", "p"),
        Item::file("gone", "g"),
        Item::hardlink("stays", "gone"),
    ];
    let upper = [
        Item::file("a", "new"),
        Item::hardlink("d", "b"),
        Item::file(".wh.b", ""),
        Item::file(".wh.gone", ""),
        Item::hardlink("a2", "a"),
    ];
    let tree = tree_of(&[&lower, &upper]);
    assert_names(&tree, &["a", "a2", "c", "d", "p", "q", "s", "stays", "t"]);
    assert!(same_file(&tree, "c", "d") && same_file(&tree, "a", "a2") && !same_file(&tree, "a", "c"));
    assert!(same_file(&tree, "s", "t") && same_file(&tree, "p", "q"));
    assert_eq!((tree[&b"c"[..]].links, tree[&b"a"[..]].links, tree[&b"stays"[..]].links), (2, 2, 1));
    assert_eq!((tree[&b"c"[..]].mode, tree[&b"c"[..]].uid), (0o4711, 7));
    assert_eq!(tree[&b"t"[..]].kind, "symlink");
}

#[test]
fn directories_and_files_replace_each_other() {
    let lower = [
        Item::dir("d"),
        Item::file("d/x", ""),
        Item::file("f", ""),
        Item::symlink("l", "d"),
        Item::dir("e"),
        Item::file("e/x", ""),
    ];
    let upper = [
        Item::file("d", "now a file"),
        Item::dir("f"),
        Item::file("f/x", ""),
        Item::dir("l"),
        Item::file("l/own", ""),
        Item::symlink("e", "f"),
        Item::file("e/y", "through it"),
    ];
    let tree = tree_of(&[&lower, &upper]);
    assert_names(&tree, &["d", "e", "f", "f/x", "f/y", "l", "l/own"]);
    assert!(error_of(&[Item::file("a", ""), Item::file("a/b", "")]).message.contains("not a directory"));
}

#[test]
fn ways_through_links_stay_inside() {
    // containerd's breakouts: each ends in the disk's own /etc.
    let cases: [(&[Item], &str); 9] = [
        (&[Item::symlink("localetc", "/etc")], "/localetc/file"),
        (&[Item::dir("dummy"), Item::symlink("localetc", "/dummy/../etc")], "localetc/file"),
        (&[Item::symlink("one", "/etc"), Item::symlink("two", "./one")], "two/file"),
        (&[Item::dir("b"), Item::symlink("b/d1", "../../etc")], "b/d1/file"),
        (&[Item::dir("b"), Item::dir("out"), Item::symlink("b/d1", "../out/../../etc")], "b/d1/file"),
        (&[Item::symlink("l", "../../../../../../../etc")], "l/file"),
        (&[Item::symlink("l", "upandout/../../../etc")], "l/file"),
        (&[], "../../../../etc/file"),
        (&[], "/../etc/./file"),
    ];
    for (before, path) in cases {
        let victim = [Item::dir("etc"), Item::file("etc/old", "inside")];
        let entries = [&victim[..], before, &[Item::file(path, "unbroken")]].concat();
        let tree = tree_of(&[&entries]);
        assert_eq!(tree[&b"etc/file"[..]].size, 8, "{path}");
        let linked = [&entries[..], &[Item::hardlink("link", path)]].concat();
        assert!(same_file(&tree_of(&[&linked]), "link", "etc/file"), "{path}");
        let folder = path.trim_end_matches("file");
        let hidden = [before, &[Item::file(format!("{folder}.wh.old"), "")]].concat();
        assert!(!tree_of(&[&victim, &hidden]).contains_key(&b"etc/old"[..]), "{path}");
    }
    // What a way only seems to lead through is not made.
    let tree =
        tree_of(&[&[Item::symlink("l", "no/../where"), Item::file("l/x", ""), Item::file("l/../y", "")]]);
    assert_names(&tree, &["l", "where", "where/x", "y"]);
    let loops = [
        Item::symlink("a", "b"),
        Item::symlink("b", "a"),
        Item::file(".wh.x", ""),
        Item::file("a/.wh.x", ""),
    ];
    assert!(error_of(&loops).message.contains("levels of symbolic links"));
}

#[test]
fn opaque_directories_hide_lower_layers_only() {
    // umoci's and the image-spec's examples: before, after and between the layer's own files.
    let lower = [
        Item::dir("a").mode(0o700),
        Item::dir("a/b"),
        Item::file("a/b/c", ""),
        Item::file("a/bar", "lower"),
        Item::symlink("a/l", "/etc"),
        Item::dir("etc"),
        Item::file("etc/safe", ""),
    ];
    let opaque = Item::file("a/.wh..wh..opq", "");
    let own = [Item::dir("a").mode(0o711), Item::dir("a/b").mode(0o750), Item::file("a/b/foo", "")];
    for at in 0..=own.len() {
        let mut upper = own.to_vec();
        upper.insert(at, opaque.clone());
        let tree = tree_of(&[&lower, &upper]);
        assert_names(&tree, &["a", "a/b", "a/b/foo", "etc", "etc/safe"]);
        assert_eq!((tree[&b"a"[..]].mode, tree[&b"a/b"[..]].mode), (0o711, 0o750));
    }
    let tree = tree_of(&[&lower, std::slice::from_ref(&opaque)]);
    assert_names(&tree, &["a", "etc", "etc/safe"]);
    assert_eq!(tree[&b"a"[..]].mode, 0o700, "it keeps what lower layers say of it");
    let all = [Item::file(".wh..wh..opq", ""), Item::file("new", "")];
    assert_names(&tree_of(&[&lower, &all]), &["new"]);
    let through = [Item::symlink("s", "a"), Item::file("s/.wh..wh..opq", ""), Item::file("s/new", "")];
    assert_names(&tree_of(&[&lower, &through]), &["a", "a/new", "etc", "etc/safe", "s"]);
    // In a later layer the whiteout's own traces are gone.
    let again = [Item::file("a/bar", "upper")];
    assert_names(&tree_of(&[&lower, &[opaque], &again]), &["a", "a/bar", "etc", "etc/safe"]);
}

#[test]
fn missing_parents_are_made_where_they_belong() {
    let tree = tree_of(&[&[
        Item::dir("etc"),
        Item::symlink("l", "new/etc"),
        Item::file("no/etc/x", ""),
        Item::file("l/y", ""),
    ]]);
    assert_names(&tree, &["etc", "l", "new", "new/etc", "new/etc/y", "no", "no/etc", "no/etc/x"]);
}

#[test]
fn aufs_leaves_nothing_behind() {
    let lower = [
        Item::dir(".wh..wh.plnk"),
        Item::file(".wh..wh.plnk/12.34", "shared").mode(0o751),
        Item::hardlink("one", ".wh..wh.plnk/12.34"),
        Item::hardlink("two", "/.wh..wh.plnk/12.34"),
        Item::dir(".wh..wh.orph"),
        Item::file(".wh..wh.orph/.wh.x", ""),
        Item::file("/.wh..wh.aufs", ""),
    ];
    let upper = [Item::file(".wh..wh.plnk/12.34", "other"), Item::hardlink("three", ".wh..wh.plnk/12.34")];
    let tree = tree_of(&[&lower, &upper]);
    assert_names(&tree, &["one", "three", "two"]);
    assert!(same_file(&tree, "one", "two") && !same_file(&tree, "one", "three"));
    assert_eq!((tree[&b"one"[..]].links, tree[&b"one"[..]].mode), (2, 0o751));
}

#[test]
fn overlay_devices_are_devices() {
    let tree = tree_of(&[&[Item::file("a", "")], &[Item::char_device("a", 0, 0)]]);
    assert_eq!((tree[&b"a"[..]].kind, tree[&b"a"[..]].rdev), ("char", 0));
}

#[test]
fn numbers_of_every_size() {
    let tree = tree_of(&[&[
        Item::file("small", "").owner(2_097_151, 0),
        Item::file("big", "").owner(2_097_152, 4_294_967_294),
        Item::char_device("char", 255, 255),
        Item::block_device("block", 4095, 1_048_575),
    ]]);
    assert_eq!((tree[&b"big"[..]].uid, tree[&b"big"[..]].gid), (2_097_152, 4_294_967_294));
    assert_eq!(tree[&b"block"[..]].rdev, rustix::fs::makedev(4095, 1_048_575));
    assert_eq!(tree[&b"char"[..]].rdev, rustix::fs::makedev(255, 255));
    assert!(error_of(&[Item::char_device("c", 4096, 0)]).message.contains("4096:0"));
    // GNU's base 256.
    let tree = raw_tree(&[raw(b'0', b"", |header| {
        put(header, 108, &[0x80, 0, 0, 0, 0xfe, 0xdc, 0xba, 0x98]);
        put(header, 116, &[0x80, 0, 0, 0, 0, 0x20, 0, 0]);
        put(header, 136, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe]);
    })]);
    let node = &tree[&b"name"[..]];
    assert_eq!((node.uid, node.gid, node.mtime), (0xfedc_ba98, 0x20_0000, (-2, 0)));
}

#[test]
fn times_to_the_nanosecond() {
    let times = [
        ("-2147483648", (-2_147_483_648, 0)),
        ("-0.000000001", (-1, 999_999_999)),
        ("0.999999999", (0, 999_999_999)),
        ("2147483647.5", (2_147_483_647, 500_000_000)),
        ("2147483648.000000001", (2_147_483_648, 1)),
        ("4294967296", (4_294_967_296, 0)),
        ("10737418239.123456789123", (10_737_418_239, 123_456_789)),
        ("11000000000.5", (11_000_000_000, 500_000_000)),
        ("15032385534.25", (15_032_385_534, 250_000_000)),
    ];
    let items: Vec<Item> = times
        .iter()
        .map(|(text, _)| Item::file(text, "").record("mtime", text).record("atime", "1.5"))
        .collect();
    let tree = tree_of(&[&items]);
    for (text, expected) in times {
        assert_eq!(tree[text.as_bytes()].mtime, expected, "{text}");
        assert_eq!(tree[text.as_bytes()].atime, (1, 500_000_000));
    }
    let plain = &tree_of(&[&[Item::file("f", "").mtime(5, 6)]])[&b"f"[..]];
    assert_eq!(plain.atime, (5, 6), "without one, it is the last change's");
}

#[test]
fn names_of_every_kind() {
    let names: Vec<Vec<u8>> = [
        vec![b'n'; 255],
        b"\xff\xfe\x80".to_vec(),
        b"new\nline\ttab".to_vec(),
        "é\u{301}🐧".into(),
        b"...".to_vec(),
        b" ".to_vec(),
        b"wh.not".to_vec(),
        b".w".to_vec(),
        b"a\\b".to_vec(),
        b"%41".to_vec(),
    ]
    .to_vec();
    for gnu in [true, false] {
        let items: Vec<Item> = names
            .iter()
            .map(|name| if gnu { Item::file(name, "").gnu_names() } else { Item::file(name, "") })
            .collect();
        let tree = tree_of(&[&items]);
        assert_eq!(tree.len(), names.len() + 1);
        assert!(names.iter().all(|name| tree.contains_key(name)));
    }
    assert!(error_of(&[Item::file("n".repeat(256), "")]).message.contains("1 to 255 bytes"));
    assert!(error_of(&[Item::file("short", "").record("path", "a\0b")]).message.contains("path"));
}

#[test]
fn headers_say_what_they_say_in_go() {
    // A long name in two ways: GNU's counts. Of two PAX headers, the later.
    let pax = |text: &str| {
        let record = crate::common::oci::record("path", text.as_bytes());
        raw(b'x', &record, |_| {})
    };
    let tree = raw_tree(&[
        pax("pax"),
        raw(b'L', b"gnu\0", |_| {}),
        raw(b'0', b"", |_| {}),
        pax("first"),
        pax("second"),
        raw(b'0', b"", |_| {}),
        // Global headers are heard by none of the tools that images are run with.
        raw(b'g', &crate::common::oci::record("path", b"global"), |_| {}),
        raw(b'0', b"data", |header| put(header, 0, b"plain")),
        // Nothing follows a link, whatever its size says.
        raw(b'2', b"", |header| {
            put(header, 0, b"link");
            put(header, 157, b"t");
            put(header, 124, b"00000001000\0");
        }),
        raw(b'7', b"contiguous", |header| put(header, 0, b"seven")),
        raw(b'\0', b"", |header| put(header, 0, b"olddir/")),
        raw(b'\0', b"skipped data", |header| put(header, 0, b"otherdir/")),
        raw(b'0', b"", |header| {
            put(header, 257, b"ustar\0\0\0");
            put(header, 345, b"prefix/of");
        }),
        raw(b'5', b"", |header| {
            put(header, 257, b"ustar  \0");
            put(header, 345, b"00000000005\0");
            put(header, 0, b"gnu\0");
        }),
    ]);
    let expected = [
        "gnu",
        "link",
        "olddir",
        "otherdir",
        "plain",
        "prefix",
        "prefix/of",
        "prefix/of/name",
        "second",
        "seven",
    ];
    assert_names(&tree, &expected);
    let kind = |name: &str| (tree[name.as_bytes()].kind, tree[name.as_bytes()].size);
    assert_eq!((kind("olddir"), kind("otherdir")), (("directory", 0), ("directory", 0)));
    assert_eq!((kind("plain"), kind("seven")), (("file", 4), ("file", 10)));
    assert_eq!(kind("gnu").0, "directory", "the later entry of two");
}

#[test]
fn archives_end_in_many_ways() {
    let file = tar(&[Item::file("f", "data")]);
    let entry = &file[..1024];
    let other = tar(&[Item::file("g", "")]);
    let named = |bytes: Vec<u8>| {
        Disk::build(&[bytes]).map(|disk| disk.tree().into_keys().skip(1).collect::<Vec<_>>())
    };
    let f = vec![b"f".to_vec()];
    assert_eq!(named(entry.to_vec()).unwrap(), f, "no end mark");
    assert_eq!(named(entry[..516].to_vec()).unwrap(), f, "the last padding is missing");
    assert_eq!(named([entry, &[0; 512]].concat()).unwrap(), f, "half an end mark");
    assert_eq!(named([&file[..], b"garbage"].concat()).unwrap(), f, "garbage behind the end mark");
    assert_eq!(named([&file[..], &other].concat()).unwrap(), f, "an archive behind an archive");
    assert_eq!(named([entry, &other].concat()).unwrap(), [b"f".to_vec(), b"g".to_vec()]);
    assert_eq!(named(Vec::new()).unwrap(), Vec::<Vec<u8>>::new());
    assert!(named(entry[..515].to_vec()).is_err(), "the data breaks off");
    assert!(named(entry[..300].to_vec()).is_err(), "the header breaks off");
    assert!(named([entry, b"garbage".as_slice()].concat()).is_err(), "garbage for a header");
}

#[test]
fn sizes_in_pax_headers_count() {
    let data = noise(1, 700);
    let record = crate::common::oci::record("size", b"700");
    let entry = raw(b'0', &data, |header| put(header, 124, b"00000000000\0"));
    let tree =
        raw_tree(&[raw(b'x', &record, |_| {}), entry, raw(b'0', b"", |header| put(header, 0, b"next"))]);
    assert_names(&tree, &["name", "next"]);
    assert_eq!(tree[&b"name"[..]].size, 700);
    // A symlink has no data whatever PAX says: what follows cannot be smuggled past one reader or another.
    let link = raw(b'2', b"", |header| put(header, 157, b"t"));
    let tree =
        raw_tree(&[raw(b'x', &record, |_| {}), link, raw(b'0', b"", |header| put(header, 0, b"next"))]);
    assert_names(&tree, &["name", "next"]);
}
