//! Stacks of layers by chance, the same ones for the same seed: every kind of entry, names that collide
//! across and within layers, whiteouts, replaced directories, ways through symlinks.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::common::oci::{Item, Sparse, noise};

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    Directory,
    Other,
    /// To a directory, by its path from the root.
    Link(Vec<u8>),
}

/// What the layers so far make, as far as it is needed to say something sensible next.
struct World {
    random: StdRng,
    /// Kind, and the layer that made or described it last.
    files: BTreeMap<Vec<u8>, (Kind, usize)>,
    layer: usize,
}

/// The layers of a seed, bottom to top.
pub(crate) fn stack(seed: u64) -> Vec<Vec<Item>> {
    let random = StdRng::seed_from_u64(seed);
    let mut world = World { random, files: BTreeMap::new(), layer: 0 };
    let layers = world.random.random_range(1..5);
    (0..layers)
        .map(|layer| {
            world.layer = layer;
            let root = world.dress(Item::dir("./"));
            let count = world.random.random_range(0..60);
            let mut items: Vec<Item> = std::iter::once(root).collect();
            (0..count).for_each(|_| items.extend(world.entry()));
            items
        })
        .collect()
}

impl World {
    fn entry(&mut self) -> Option<Item> {
        let (said, real) = self.place();
        let item = match self.random.random_range(0..24) {
            0..6 => self.directory(said, real),
            6..12 => {
                let size = *[0, 1, 511, 4095, 4096, 4097, 70_000].choose(&mut self.random).unwrap();
                let content = noise(self.random.random(), size);
                self.put(real, Kind::Other).then(|| Item::file(said, content))?
            }
            12..15 => self.symlink(said, real)?,
            15..18 => {
                let target = self.known(|kind| *kind != Kind::Directory)?;
                // A link may not replace what it points to, or a directory that holds it.
                let inside = [real.as_slice(), b"/"].concat();
                let own = target == real || target.starts_with(&inside);
                return (!own && self.put(real, Kind::Other)).then(|| Item::hardlink(said, target));
            }
            18 => {
                let (major, minor) =
                    (self.random.random_range(0..4096), self.random.random_range(0..1 << 20));
                let char = self.random.random();
                let new = if char { Item::char_device } else { Item::block_device };
                self.put(real, Kind::Other).then(|| new(said, major, minor))?
            }
            19 => self.put(real, Kind::Other).then(|| Item::fifo(said))?,
            20 => self.sparse(said, real)?,
            21..23 => return self.whiteout(),
            _ => return self.opaque(),
        };
        Some(self.dress(item))
    }

    /// A path as a layer says it, and what it means.
    fn place(&mut self) -> (Vec<u8>, Vec<u8>) {
        let folder = self.known(|kind| *kind != Kind::Other).unwrap_or_default();
        let real = match self.files.get(&folder) {
            Some((Kind::Link(target), _)) => target.clone(),
            _ => folder.clone(),
        };
        let name: Vec<u8> = match self.random.random_range(0..14) {
            0 => vec![b'n'; *[99, 100, 101, 155, 255].choose(&mut self.random).unwrap()],
            1 => b"\xff\xfe not UTF-8".to_vec(),
            2 => "grüße 🐧".into(),
            3 => b".hidden".to_vec(),
            4 => b"back\\slash \"quoted\" 100%".to_vec(),
            _ => vec![b"abcdef"[self.random.random_range(0..6)]],
        };
        let prefix = *[&b""[..], b"", b"./", b"/", b"x/../"].choose(&mut self.random).unwrap();
        ([prefix, &join(&folder, &name)].concat(), join(&real, &name))
    }

    /// One of the paths of some kind.
    fn known(&mut self, kind: impl Fn(&Kind) -> bool) -> Option<Vec<u8>> {
        let paths: Vec<_> =
            self.files.iter().filter(|(_, (have, _))| kind(have)).map(|(path, _)| path).collect();
        paths.choose(&mut self.random).map(|path| path.to_vec())
    }

    /// Puts what is no directory; false if that would be the root or if a link to it would dangle.
    fn put(&mut self, path: Vec<u8>, kind: Kind) -> bool {
        self.forget(&path);
        self.files.insert(path, (kind, self.layer));
        true
    }

    /// A path, what is below it and links to that are no more.
    fn forget(&mut self, path: &[u8]) {
        let below = [path, b"/"].concat();
        let gone = |candidate: &[u8]| candidate == path || candidate.starts_with(&below);
        self.files.retain(|candidate, (kind, _)| {
            !gone(candidate) && !matches!(kind, Kind::Link(target) if gone(target))
        });
    }

    fn directory(&mut self, said: Vec<u8>, real: Vec<u8>) -> Item {
        if self.files.get(&real).is_none_or(|(kind, _)| *kind != Kind::Directory) {
            self.forget(&real);
        }
        self.files.insert(real, (Kind::Directory, self.layer));
        let slash: &[u8] = if self.random.random() { b"/" } else { b"" };
        Item::dir([&said, slash].concat())
    }

    fn symlink(&mut self, said: Vec<u8>, real: Vec<u8>) -> Option<Item> {
        let folder = self.known(|kind| *kind == Kind::Directory);
        let inside = [real.as_slice(), b"/"].concat();
        if let Some(folder) = folder.filter(|folder| *folder != real && !folder.starts_with(&inside))
            && self.random.random()
        {
            let target = [b"/", folder.as_slice()].concat();
            return self.put(real, Kind::Link(folder)).then(|| Item::symlink(said, target));
        }
        let length = *[1, 59, 60, 61, 100, 101, 4000].choose(&mut self.random).unwrap();
        self.put(real, Kind::Other).then(|| Item::symlink(said, vec![b't'; length]))
    }

    fn sparse(&mut self, said: Vec<u8>, real: Vec<u8>) -> Option<Item> {
        // umoci knows no old form, and takes one without data for no sparse file.
        let form = *[Sparse::Pax00, Sparse::Pax01, Sparse::Pax10].choose(&mut self.random).unwrap();
        let mut at = 0;
        let segments: Vec<(u64, Vec<u8>)> = (0..self.random.random_range(1..30))
            .map(|seed| {
                let offset = at + self.random.random_range(1..200_000);
                let data = noise(seed, self.random.random_range(1..9000));
                at = offset + data.len() as u64;
                (offset, data)
            })
            .collect();
        let segments: Vec<(u64, &[u8])> =
            segments.iter().map(|(offset, data)| (*offset, data.as_slice())).collect();
        let size = at + self.random.random_range(0..100_000);
        self.put(real, Kind::Other).then(|| Item::sparse(said, form, size, &segments))
    }

    fn whiteout(&mut self) -> Option<Item> {
        let path = self.known(|_| true)?;
        let layer = self.files[&path].1;
        if self.keeps_lower_directories(&path) {
            return None;
        }
        self.hide(&path);
        if layer < self.layer {
            self.forget(&path);
        }
        let (folder, name) = split(&path);
        Some(Item::file(join(folder, &[b".wh.", name].concat()), ""))
    }

    fn opaque(&mut self) -> Option<Item> {
        let path = self.known(|kind| *kind == Kind::Directory)?;
        if self.keeps_lower_directories(&path) {
            return None;
        }
        self.hide(&path);
        Some(Item::file(join(&path, b".wh..wh..opq"), ""))
    }

    /// Whether directories of lower layers, at a path or below it, would be kept by nothing but this layer's
    /// files in them. Unpackers differ in what such a directory is then; tests/image.rs has vmlet's rule.
    fn keeps_lower_directories(&self, path: &[u8]) -> bool {
        let below = [path, b"/"].concat();
        self.files
            .iter()
            .filter(|(other, _)| other.as_slice() == path || other.starts_with(&below))
            .filter(|(_, (kind, layer))| *kind == Kind::Directory && *layer < self.layer)
            .any(|(folder, _)| self.is_of_this_layer(folder))
    }

    /// Whether this layer put something below.
    fn is_of_this_layer(&self, folder: &[u8]) -> bool {
        let below = [folder, b"/"].concat();
        self.files.iter().any(|(path, (_, layer))| path.starts_with(&below) && *layer == self.layer)
    }

    /// Forgets what lower layers put below a path.
    fn hide(&mut self, path: &[u8]) {
        let below = [path, b"/"].concat();
        let lower: Vec<Vec<u8>> = self
            .files
            .iter()
            .filter(|(other, (_, layer))| other.starts_with(&below) && *layer < self.layer)
            .map(|(other, _)| other.clone())
            .collect();
        for path in lower {
            self.forget(&path);
        }
    }

    /// Gives an entry an owner, a mode, times and attributes.
    fn dress(&mut self, mut item: Item) -> Item {
        let random = &mut self.random;
        item = item
            .mode(random.random_range(0..0o10000))
            .owner(
                *[0, 1000, 65_535, 65_536, 2_097_152, 4_000_000_000].choose(random).unwrap(),
                random.random_range(0..3_000_000),
            )
            .mtime(
                *[0, -1, -2_147_483_648, 1_700_000_000, 2_147_483_648, 4_294_967_296].choose(random).unwrap(),
                *[0, 1, 500_000_000, 999_999_999].choose(random).unwrap(),
            );
        if random.random_range(0..4) == 0 {
            item = item.record("atime", "1234567890.123456789");
        }
        if random.random_range(0..5) == 0 {
            item = item.xattr("trusted.binary", noise(7, random.random_range(1..300)));
        }
        if random.random_range(0..9) == 0 {
            item = item.xattr("security.capability", crate::values::CAP_NET_RAW);
        }
        item
    }
}

fn join(folder: &[u8], name: &[u8]) -> Vec<u8> {
    if folder.is_empty() { name.to_vec() } else { [folder, b"/", name].concat() }
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}
