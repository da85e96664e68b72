//! Random stacks against umoci's unpacker, and against themselves.

use std::io::{self, BufRead, Cursor, Read};
use std::time::{SystemTime, UNIX_EPOCH};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use vmlet::image::{Limits, probe};

use crate::common::oci::{Image, Item, Layer, noise, tar};
use crate::common::tree::{Tree, assert_same, read, run};
use crate::{Disk, grow, random};

/// How many stacks; `VMLET_STACKS` says another number.
fn seeds() -> std::ops::Range<u64> {
    let count = std::env::var("VMLET_STACKS").ok().and_then(|count| count.parse().ok()).unwrap_or(16);
    let first = std::env::var("VMLET_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    first..first + count
}

fn layers(seed: u64) -> Vec<Vec<u8>> {
    random::stack(seed).iter().map(|items| tar(items)).collect()
}

fn umoci(layers: &[Vec<u8>]) -> Tree {
    let folder = tempfile::tempdir().unwrap();
    let layout = folder.path().join("layout");
    Image::new(layers.iter().map(|layer| Layer::gzip(layer)).collect()).write_layout(&layout, "1");
    let rootfs = folder.path().join("rootfs");
    let source = format!("{}:1", layout.display());
    run("umoci", "umoci", &["raw", "unpack", "--image", &source, rootfs.to_str().unwrap()]);
    read(&rootfs)
}

#[test]
fn random_stacks_are_what_umoci_makes_of_them() {
    for seed in seeds() {
        println!("VMLET_SEED={seed}");
        let layers = layers(seed);
        compare_with_umoci(&layers);
        if seed % 8 == 0 {
            grow(&Disk::build(&layers).unwrap().path());
        }
    }
}

fn compare_with_umoci(layers: &[Vec<u8>]) {
    let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    let (mut ours, mut theirs) = (Disk::build(layers).unwrap().tree(), umoci(layers));
    for node in ours.values_mut().chain(theirs.values_mut()).filter(|node| node.kind == "symlink") {
        // umoci reads links on its way.
        node.atime = (0, 0);
    }
    for (name, node) in &mut theirs {
        // Nor does it put back the times of directories below a hidden one that it removed files from.
        if let Some(own) = ours.get(name)
            && node.kind == "directory"
            && node.mtime.0 >= started
        {
            node.mtime = own.mtime;
        }
    }
    assert_same(&ours, &theirs);
}

/// A part of this machine, and another on top of it; or the tars that `VMLET_LAYERS` names, split by colons.
#[test]
fn layers_of_a_real_system_are_what_umoci_makes_of_them() {
    if let Ok(files) = std::env::var("VMLET_LAYERS") {
        let layers: Vec<Vec<u8>> = files.split(':').map(|file| std::fs::read(file).unwrap()).collect();
        return compare_with_umoci(&layers);
    }
    let pack = |folders: &[&str]| {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        let options =
            ["--create", "--format=posix", "--xattrs", "--numeric-owner", "--directory=/", "--file", path];
        run("tar", "tar", &[&options[..], folders].concat());
        std::fs::read(path).unwrap()
    };
    let hiding = [Item::file("usr/.wh.share", ""), Item::file("etc/.wh..wh..opq", "")];
    compare_with_umoci(&[pack(&["etc", "usr/sbin", "usr/share/zoneinfo"]), tar(&hiding), pack(&["etc/ssl"])]);
}

/// Gives out what it has in pieces of chance, as a network does.
struct Trickle<'a> {
    bytes: Cursor<&'a [u8]>,
    random: StdRng,
    piece: usize,
}

impl<'a> Trickle<'a> {
    fn new(bytes: &'a [u8], seed: u64) -> Self {
        Trickle { bytes: Cursor::new(bytes), random: StdRng::seed_from_u64(seed), piece: 0 }
    }
}

impl BufRead for Trickle<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.piece == 0 {
            self.piece = match self.random.random_range(0..3) {
                0 => self.random.random_range(1..20),
                1 => self.random.random_range(1..5000),
                _ => self.random.random_range(1..2_000_000),
            };
        }
        let rest = self.bytes.fill_buf()?;
        Ok(&rest[..self.piece.min(rest.len())])
    }

    fn consume(&mut self, count: usize) {
        self.bytes.consume(count);
        self.piece -= count;
    }
}

impl Read for Trickle<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}

#[test]
fn the_pieces_in_which_layers_arrive_do_not_matter() {
    let mut stacks: Vec<Vec<Vec<u8>>> = (100..104).map(layers).collect();
    // Holes in the free space that another file fills.
    let below: Vec<Item> =
        (0..40).map(|index| Item::file(format!("{index}"), noise(index, 9000 * index as usize))).collect();
    let holes: Vec<Item> = (0..40).step_by(2).map(|index| Item::file(format!(".wh.{index}"), "")).collect();
    let large = [Item::file("large", vec![7; (8 << 20) + 4097])];
    stacks.push(vec![tar(&below), tar(&holes), tar(&large)]);
    for layers in stacks {
        let whole = std::fs::read(Disk::build(&layers).unwrap().path()).unwrap();
        for seed in 0..3 {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("disk.ext4");
            let file = std::fs::File::options().read(true).write(true).create_new(true).open(&path).unwrap();
            let pieces = layers.iter().map(|layer| Trickle::new(layer, seed));
            probe::build_disk(file, pieces, &Limits::default()).unwrap();
            assert!(std::fs::read(&path).unwrap() == whole, "other pieces, other bytes");
        }
    }
}
