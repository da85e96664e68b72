//! Random calls against a model: whatever is called, e2fsck is content and the kernel reads back what
//! the model holds.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::{Builder, Error, Inode, Meta, Special, Time};
use super::support::{Content, Seen, TestDisk, acl, noise, survey};

/// One call. Numbers choose among the directories or names that are there.
#[derive(Clone, Debug)]
enum Call {
    Mkdir(usize, Vec<u8>, Meta),
    File(usize, Vec<u8>, Vec<Piece>, Meta),
    Symlink(usize, Vec<u8>, Vec<u8>, Meta),
    Special(usize, Vec<u8>, Special, Meta),
    Link(usize, Vec<u8>, usize),
    SetMeta(usize, Meta),
    Remove(usize),
    /// A file that is never finished.
    Abandon(usize, Vec<u8>, Vec<u8>),
}

#[derive(Clone, Debug)]
enum Piece {
    Data(usize, u8),
    Hole(u64),
}

const LONG: usize = 65_537;

/// One attribute is shorter than this.
fn meta(longest: usize) -> impl Strategy<Value = Meta> {
    let xattr = prop_oneof![
        (1..40usize, 0..200usize).prop_map(|(name, value)| {
            ([b"trusted.".to_vec(), vec![b'x'; name]].concat(), noise(value, 3))
        }),
        Just((b"security.capability".to_vec(), capability())),
        (0..1500usize).prop_map(|length| (b"security.vmlet".to_vec(), noise(length, 9))),
        (0..longest).prop_map(|length| (b"trusted.long".to_vec(), noise(length, 5))),
    ];
    let time = (1 - (1i64 << 31)..(3 << 32) - (1 << 31), 0..1_000_000_000u32);
    let xattrs = prop::collection::btree_map(0..3u8, xattr, 0..4);
    (0..0o10000u16, any::<u32>(), any::<u32>(), time, xattrs).prop_map(|(mode, uid, gid, time, xattrs)| {
        // uid and gid -1 mean "none" to the kernel.
        let (uid, gid) = (uid.min(u32::MAX - 1), gid.min(u32::MAX - 1));
        let by_name: BTreeMap<_, _> = xattrs.into_values().collect();
        let mtime = Time { sec: time.0, nsec: time.1 };
        Meta { mode, uid, gid, mtime, atime: None, xattrs: by_name.into_iter().collect() }
    })
}

fn capability() -> Vec<u8> {
    [0x0200_0001u32, 1 << 10, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_map(|byte| if matches!(byte, 0 | b'/' | b'.') { b'a' } else { byte });
    prop_oneof![
        4 => prop::collection::vec(prop::sample::select(&b"abc"[..]), 1..3),
        1 => prop::collection::vec(byte, 1..256),
    ]
}

fn call() -> impl Strategy<Value = Call> {
    let piece = prop_oneof![
        (0..20_000usize, any::<u8>()).prop_map(|(length, seed)| Piece::Data(length, seed)),
        (0..50_000u64).prop_map(Piece::Hole),
    ];
    let special = prop_oneof![
        Just(Special::Fifo),
        Just(Special::Socket),
        (0..4096u32, 0..1u32 << 20).prop_map(|(major, minor)| Special::Char { major, minor }),
        (0..300u32, 0..300u32).prop_map(|(major, minor)| Special::Block { major, minor }),
    ];
    let pieces = prop::collection::vec(piece, 0..12);
    let target = prop::collection::vec(1..=255u8, 1..200);
    let number = any::<usize>;
    prop_oneof![
        3 => (number(), name(), meta(LONG)).prop_map(|(dir, name, meta)| Call::Mkdir(dir, name, meta)),
        6 => (number(), name(), pieces, meta(LONG))
            .prop_map(|(dir, name, pieces, meta)| Call::File(dir, name, pieces, meta)),
        1 => (number(), name(), target, meta(500))
            .prop_map(|(dir, name, target, meta)| Call::Symlink(dir, name, target, meta)),
        1 => (number(), name(), special, meta(LONG))
            .prop_map(|(dir, name, special, meta)| Call::Special(dir, name, special, meta)),
        2 => (number(), name(), number()).prop_map(|(dir, name, target)| Call::Link(dir, name, target)),
        1 => (number(), meta(LONG)).prop_map(|(target, meta)| Call::SetMeta(target, meta)),
        2 => number().prop_map(Call::Remove),
        1 => (number(), name(), prop::collection::vec(any::<u8>(), 0..10_000))
            .prop_map(|(dir, name, data)| Call::Abandon(dir, name, data)),
    ]
}

/// Names by path, and what they stand for.
#[derive(Default)]
struct Model {
    names: BTreeMap<Vec<u8>, usize>,
    objects: Vec<(Inode, Content, Meta)>,
}

impl Model {
    fn directories(&self) -> Vec<(&[u8], Inode)> {
        let all = self.names.iter().map(|(path, &object)| (path.as_slice(), &self.objects[object]));
        all.filter(|(_, object)| object.1 == Content::Directory)
            .map(|(path, object)| (path, object.0))
            .collect()
    }

    fn children(&self, dir: &[u8]) -> impl Iterator<Item = (&Vec<u8>, &usize)> {
        let depth = |path: &[u8]| path.iter().filter(|&&byte| byte == b'/').count();
        let prefix = [dir, b"/"].concat();
        let want = depth(&prefix);
        self.names.iter().filter(move |(path, _)| path.starts_with(&prefix) && depth(path) == want)
    }

    fn expected(&self) -> BTreeMap<Vec<u8>, Seen> {
        let strip = |path: &[u8]| path.strip_prefix(b"/").unwrap_or(path).to_vec();
        let seen = |(path, &object): (&Vec<u8>, &usize)| {
            let (_, content, meta) = &self.objects[object];
            let mut same = self.names.iter().filter(|&(_, &other)| other == object);
            let links = if *content == Content::Directory {
                let subdirectory = |child: &usize| self.objects[*child].1 == Content::Directory;
                2 + self.children(path).filter(|(_, child)| subdirectory(child)).count()
            } else {
                same.clone().count()
            };
            let group = strip(same.next().unwrap().0);
            let (content, meta) = (content.clone(), meta.clone());
            (strip(path), Seen { group, content, meta, links: links as u64 })
        };
        self.names.iter().map(seen).collect()
    }

    /// Makes the call on both. Calls that must fail must fail.
    fn apply(&mut self, builder: &mut Builder, call: Call) {
        let pick_dir = |number: usize, name: &[u8]| {
            let directories = self.directories();
            let (path, inode) = directories[number % directories.len()];
            let path = [path, b"/", name].concat();
            let taken = self.names.contains_key(&path);
            assert_eq!(builder.lookup(inode, name).is_some(), taken);
            (inode, path, taken)
        };
        let (path, made) = match call {
            Call::Mkdir(dir, name, meta) => {
                let (dir, path, _) = pick_dir(dir, &name);
                (path, builder.mkdir(dir, &name, meta.clone()).map(|inode| (inode, Content::Directory, meta)))
            }
            Call::File(dir, name, pieces, meta) => {
                let (dir, path, _) = pick_dir(dir, &name);
                let made = write_file(builder, dir, &name, &pieces, &meta);
                (path, made.map(|(inode, data)| (inode, Content::Regular(data), meta)))
            }
            Call::Symlink(dir, name, target, meta) => {
                let (dir, path, _) = pick_dir(dir, &name);
                let made = builder.symlink(dir, &name, &target, meta.clone());
                (path, made.map(|inode| (inode, Content::Symlink(target), meta)))
            }
            Call::Special(dir, name, special, meta) => {
                let (dir, path, _) = pick_dir(dir, &name);
                let content = match special {
                    Special::Fifo => Content::Fifo,
                    Special::Socket => Content::Socket,
                    Special::Char { major, minor } => Content::Char(major, minor),
                    Special::Block { major, minor } => Content::Block(major, minor),
                };
                (path, builder.special(dir, &name, special, meta.clone()).map(|inode| (inode, content, meta)))
            }
            Call::Link(dir, name, target) => {
                let (dir, path, taken) = pick_dir(dir, &name);
                let object = *self.names.values().nth(target % self.names.len()).unwrap();
                let (inode, content, _) = &self.objects[object];
                let made = builder.link(dir, &name, *inode);
                assert_eq!(made.is_ok(), !taken && *content != Content::Directory);
                if made.is_ok() {
                    self.names.insert(path, object);
                }
                return;
            }
            Call::SetMeta(target, meta) => {
                let object = *self.names.values().nth(target % self.names.len()).unwrap();
                if let Err(error) = builder.set_meta(self.objects[object].0, meta.clone()) {
                    let short =
                        matches!(&self.objects[object].1, Content::Symlink(target) if target.len() < 60);
                    assert!(short && matches!(error, Error::SymlinkXattrs), "{error}");
                    return;
                }
                self.objects[object].2 = meta;
                return;
            }
            Call::Remove(target) => return self.remove(builder, target),
            Call::Abandon(dir, name, data) => {
                let (dir, _, taken) = pick_dir(dir, &name);
                let file = builder.create(dir, &name, Meta::default());
                assert_eq!(file.is_ok(), !taken);
                if let Ok(mut file) = file {
                    file.append(&data).unwrap();
                }
                return;
            }
        };
        assert_eq!(made.is_ok(), !self.names.contains_key(&path));
        if let Ok(object) = made {
            self.names.insert(path, self.objects.len());
            self.objects.push(object);
        }
    }

    fn remove(&mut self, builder: &mut Builder, target: usize) {
        let path = self.names.keys().nth(target % self.names.len()).unwrap().clone();
        let Some(slash) = path.iter().rposition(|&byte| byte == b'/') else { return };
        let parent = self.objects[self.names[&path[..slash]]].0;
        builder.remove(parent, &path[slash + 1..]).unwrap();
        let below = [&path[..], b"/"].concat();
        self.names.retain(|name, _| *name != path && !name.starts_with(&below));
    }
}

fn write_file(
    builder: &mut Builder,
    dir: Inode,
    name: &[u8],
    pieces: &[Piece],
    meta: &Meta,
) -> Result<(Inode, Vec<u8>), super::super::Error> {
    let mut file = builder.create(dir, name, meta.clone())?;
    let mut expected = Vec::new();
    for piece in pieces {
        match *piece {
            Piece::Data(length, seed) => {
                let data = noise(length, seed);
                file.append(&data)?;
                expected.extend(data);
            }
            Piece::Hole(length) => {
                file.seek_hole(length)?;
                expected.resize(expected.len() + length as usize, 0);
            }
        }
    }
    Ok((file.finish()?, expected))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn reads_back_as_the_model(calls in prop::collection::vec(call(), 1..120)) {
        let mut model = Model::default();
        let root = Meta { mode: 0o755, ..Meta::default() };
        let (disk, _) = TestDisk::build(|builder| {
            model.objects.push((builder.root(), Content::Directory, root));
            model.names.insert(Vec::new(), 0);
            calls.into_iter().for_each(|call| model.apply(builder, call));
        });
        let mounted = disk.mount("ro,loop");
        prop_assert_eq!(survey(mounted.path()), model.expected());
    }
}

/// User attributes and ACLs are for files and directories only, so they are not in the model.
#[test]
fn acls_and_user_attributes_read_back() {
    let none = u32::MAX;
    let access =
        acl(&[(1, 6, none), (2, 4, 70_000), (4, 4, none), (8, 5, 7), (0x10, 5, none), (0x20, 0, none)]);
    let default = acl(&[(1, 7, none), (4, 5, none), (0x20, 0, none)]);
    let xattrs = vec![
        (b"system.posix_acl_access".to_vec(), access),
        (b"system.posix_acl_default".to_vec(), default),
        (b"user.empty".to_vec(), Vec::new()),
        (b"user.\xff\xfe".to_vec(), noise(2000, 1)),
        (b"user.other".to_vec(), noise(1701, 1)),
    ];
    let meta = Meta { mode: 0o750, xattrs, ..Meta::default() };
    let (disk, _) = TestDisk::build(|builder| {
        builder.mkdir(builder.root(), b"d", meta.clone()).unwrap();
    });
    let mounted = disk.mount("ro,loop");
    let mut seen = survey(mounted.path()).remove(&b"d"[..]).unwrap();
    seen.meta.xattrs.sort();
    let mut expected = meta.clone();
    expected.xattrs.sort();
    assert_eq!(seen.meta, expected);
}
