//! Changes stored inputs by chance and hands them to the targets. A run is made again by its seed:
//! `VMLET_FUZZ_SEED=5 VMLET_FUZZ=1 cargo test --test fuzz layers` is the fifth input.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::{alone, corpus, targets};

/// Inputs for each target where nobody says another number.
const INPUTS: u64 = 1500;
/// One in so many is looked at closely.
const CLOSELY: u64 = 40;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Every stored input, the files in the order of their names.
fn inputs(kinds: &[&str]) -> Vec<Vec<u8>> {
    let mut files: Vec<_> = kinds
        .iter()
        .flat_map(|kind| std::fs::read_dir(corpus(kind)).unwrap())
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    let inputs = files.iter().map(|file| std::fs::read(file).unwrap());
    inputs.filter(|bytes| bytes.len() <= 256 << 10).collect()
}

fn run(kinds: &[&str], weight: u64, target: impl Fn(&[u8], bool), mend: impl Fn(&mut StdRng, &mut [u8])) {
    let _alone = alone();
    let inputs = inputs(kinds);
    assert!(!inputs.is_empty());
    let first = number("VMLET_FUZZ_SEED");
    let count = number("VMLET_FUZZ").unwrap_or(INPUTS) * weight;
    for seed in first.unwrap_or(0)..first.unwrap_or(0) + count.max(1) {
        let mut random = StdRng::seed_from_u64(seed);
        let mut bytes = inputs.choose(&mut random).unwrap().clone();
        for _ in 0..random.random_range(0..6) {
            change(&mut random, &mut bytes, &inputs);
        }
        mend(&mut random, &mut bytes);
        let closely = first.is_some() || seed % CLOSELY == 0;
        // What breaks the target says how to see it again.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(&bytes, closely))) {
            let file = std::env::temp_dir().join(format!("vmlet-fuzz-{seed}"));
            let _ = std::fs::write(&file, &bytes);
            eprintln!("VMLET_FUZZ_SEED={seed} VMLET_FUZZ=1; the input is in {}", file.display());
            resume_unwind(panic);
        }
    }
}

/// One change: a byte, a number, a piece removed, repeated, moved, or taken from another input.
fn change(random: &mut StdRng, bytes: &mut Vec<u8>, inputs: &[Vec<u8>]) {
    let length = bytes.len();
    if length == 0 {
        return bytes.push(random.random());
    }
    let at = random.random_range(0..length);
    let end = (at + random.random_range(1..64)).min(length);
    // Tars are made of blocks.
    let block = at / 512 * 512;
    let block_end = (block + 512).min(length);
    match random.random_range(0..10) {
        0 => bytes[at] ^= 1 << random.random_range(0..8),
        1 => bytes[at] = *[0, 0xff, 0x80, b'/', b'.', b'0', b'7', b'9', b' '].choose(random).unwrap(),
        2 => bytes[at] = random.random(),
        3 => drop(bytes.drain(at..end)),
        4 => {
            let piece = bytes[at..end].to_vec();
            bytes.splice(at..at, piece);
        }
        5 => bytes.truncate(at),
        6 => {
            let piece = bytes[block..block_end].to_vec();
            let to = random.random_range(0..=length) / 512 * 512;
            bytes.splice(to..to, piece);
        }
        7 => drop(bytes.drain(block..block_end)),
        8 => {
            // The flag of a header.
            if let Some(flag) = bytes.get_mut(block + 156) {
                *flag = *b"01234567SxgLKV\0".choose(random).unwrap();
            }
        }
        _ => {
            let other = inputs.choose(random).unwrap();
            let from = random.random_range(0..=other.len()) / 512 * 512;
            let count = random.random_range(0..2048).min(other.len() - from);
            bytes.splice(block..block, other[from..from + count].iter().copied());
        }
    }
}

/// Mostly puts right checksums into what look like headers, so that more than checksums is tested.
fn mend_checksums(random: &mut StdRng, bytes: &mut [u8]) {
    if random.random_range(0..8) == 0 {
        return;
    }
    for block in bytes.as_chunks_mut::<512>().0 {
        let looks_like_one = block[..148].iter().any(|byte| *byte != 0) && block[154..156] == *b"\0 ";
        if looks_like_one {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
}

fn leave(_: &mut StdRng, _: &mut [u8]) {}

#[test]
fn layers() {
    run(&["layers"], 1, targets::layer, mend_checksums);
}

#[test]
fn blobs() {
    run(&["blobs", "hostile"], 1, targets::blob, leave);
}

#[test]
fn bundles() {
    run(&["bundles"], 1, targets::bundle, mend_checksums);
}

#[test]
fn manifests() {
    run(&["manifests"], 10, targets::manifest, leave);
}

#[test]
fn configs() {
    run(&["configs"], 10, targets::config, leave);
}

#[test]
fn references() {
    run(&["references"], 10, targets::reference, leave);
}
