//! Layers that look like software: text, machine code and things that are compressed already, in many
//! small files and a few large ones. The same seed gives the same bytes.

use std::io::{self, Write};

use flate2::Compression;
use flate2::write::GzEncoder;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use sha2::{Digest, Sha256};

/// What a layer is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layer {
    pub(crate) seed: u64,
    /// Of all files together.
    pub(crate) bytes: u64,
    pub(crate) files: u64,
}

/// A layer as a registry keeps it.
pub(crate) struct Blob {
    pub(crate) gzip: Vec<u8>,
    pub(crate) diff_id: String,
    /// Length of the tar.
    pub(crate) unpacked: u64,
}

impl Layer {
    pub(crate) fn build(self) -> Blob {
        let out =
            Hashed { out: GzEncoder::new(Vec::new(), Compression::new(6)), hash: Sha256::new(), length: 0 };
        let mut tar = tar::Builder::new(out);
        self.append(&mut tar).expect("memory takes it");
        let Hashed { out, hash, length } = tar.into_inner().expect("memory takes it");
        let gzip = out.finish().expect("memory takes it");
        Blob { gzip, diff_id: digest(hash), unpacked: length }
    }

    fn append(self, tar: &mut tar::Builder<impl Write>) -> io::Result<()> {
        let mut random = StdRng::seed_from_u64(self.seed);
        let words = words(&mut random);
        let mean = self.bytes as f64 / self.files as f64;
        for file in 0..self.files {
            let folder = format!("usr/lib/part{}/{}", self.seed, file / 64);
            if file % 64 == 0 {
                tar.append_data(
                    &mut header(tar::EntryType::Directory, 0, 0o755),
                    format!("{folder}/"),
                    io::empty(),
                )?;
            }
            // Squared and more: most files are far smaller than the mean, a few far larger.
            let share: f64 = random.random();
            let length = (share.powi(8) * 9.0 * mean) as usize;
            let content = content(&mut random, &words, length);
            let path = format!("{folder}/{}-{file}", words[random.random_range(0..words.len())]);
            tar.append_data(&mut header(tar::EntryType::Regular, length, 0o644), &path, content.as_slice())?;
            if file % 16 == 0 {
                let mut link = header(tar::EntryType::Symlink, 0, 0o777);
                tar.append_link(
                    &mut link,
                    format!("{path}.so"),
                    &path[path.rfind('/').map_or(0, |at| at + 1)..],
                )?;
            }
        }
        tar.finish()
    }
}

fn header(kind: tar::EntryType, length: usize, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(length as u64);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
    header
}

fn words(random: &mut StdRng) -> Vec<String> {
    let word = |random: &mut StdRng| {
        let length = random.random_range(2..11);
        (0..length).map(|_| char::from(b"etaoinshrdlucmfwypvbgk"[skewed(random, 22)])).collect()
    };
    (0..20_000).map(|_| word(random)).collect()
}

/// Below `end`, small numbers more often.
fn skewed(random: &mut StdRng, end: usize) -> usize {
    let share: f64 = random.random();
    ((share * share * share) * end as f64) as usize
}

fn content(random: &mut StdRng, words: &[String], length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 64);
    match random.random_range(0..100) {
        0..45 => {
            while bytes.len() < length {
                repeat(random, &mut bytes);
                bytes.extend_from_slice(words[skewed(random, words.len())].as_bytes());
                bytes.push(b" \n.,"[skewed(random, 4)]);
            }
        }
        45..95 => {
            // Instructions: some that come often, with operands that do not.
            let mut codes = [[0; 6]; 400];
            random.fill_bytes(codes.as_flattened_mut());
            while bytes.len() < length {
                repeat(random, &mut bytes);
                let code = skewed(random, codes.len());
                bytes.extend_from_slice(&codes[code][..2 + code % 5]);
                if code.is_multiple_of(3) {
                    bytes.extend_from_slice(&random.random::<u32>().to_le_bytes()[..1 + code % 4]);
                }
            }
        }
        _ => {
            bytes.resize(length, 0);
            random.fill_bytes(&mut bytes);
        }
    }
    bytes.truncate(length);
    bytes
}

/// Now and then says something again that was said not long ago.
fn repeat(random: &mut StdRng, bytes: &mut Vec<u8>) {
    if bytes.len() > 256 && random.random_range(0..11) == 0 {
        let back = random.random_range(64..bytes.len().min(16 << 10));
        let start = bytes.len() - back;
        let length = 6 + skewed(random, 120);
        bytes.extend_from_within(start..start + length.min(back));
    }
}

pub(crate) fn digest(hash: Sha256) -> String {
    format!("sha256:{}", hex::encode(hash.finalize()))
}

/// Hashes what passes.
struct Hashed<W> {
    out: W,
    hash: Sha256,
    length: u64,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let length = self.out.write(data)?;
        self.hash.update(&data[..length]);
        self.length += length as u64;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
