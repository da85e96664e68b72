//! Images made by hand, so that they can hold anything: odd names, whiteouts, lies.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// One tar entry.
#[derive(Clone)]
pub(crate) struct Item {
    path: Vec<u8>,
    kind: Kind,
    mode: u32,
    uid: u64,
    gid: u64,
    mtime: (i64, u32),
    xattrs: Vec<(String, Vec<u8>)>,
    records: Vec<(String, Vec<u8>)>,
    gnu_names: bool,
}

#[derive(Clone)]
enum Kind {
    File(Vec<u8>),
    Sparse(Sparse, u64, Vec<(u64, Vec<u8>)>),
    Directory,
    Symlink(Vec<u8>),
    Hardlink(Vec<u8>),
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
}

/// How tars spell a sparse file.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Sparse {
    Old,
    Pax00,
    Pax01,
    Pax10,
}

impl Item {
    fn new(path: impl AsRef<[u8]>, kind: Kind, mode: u32) -> Self {
        Item {
            path: path.as_ref().to_vec(),
            kind,
            mode,
            uid: 0,
            gid: 0,
            mtime: (1_700_000_000, 0),
            xattrs: Vec::new(),
            records: Vec::new(),
            gnu_names: false,
        }
    }
    pub(crate) fn file(path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Self {
        Item::new(path, Kind::File(content.as_ref().to_vec()), 0o644)
    }
    pub(crate) fn sparse(path: impl AsRef<[u8]>, form: Sparse, size: u64, data: &[(u64, &[u8])]) -> Self {
        let data = data.iter().map(|(offset, bytes)| (*offset, bytes.to_vec())).collect();
        Item::new(path, Kind::Sparse(form, size, data), 0o644)
    }
    pub(crate) fn dir(path: impl AsRef<[u8]>) -> Self {
        Item::new(path, Kind::Directory, 0o755)
    }
    pub(crate) fn symlink(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Item::new(path, Kind::Symlink(target.as_ref().to_vec()), 0o777)
    }
    pub(crate) fn hardlink(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Item::new(path, Kind::Hardlink(target.as_ref().to_vec()), 0o644)
    }
    pub(crate) fn char_device(path: impl AsRef<[u8]>, major: u32, minor: u32) -> Self {
        Item::new(path, Kind::Char(major, minor), 0o620)
    }
    pub(crate) fn block_device(path: impl AsRef<[u8]>, major: u32, minor: u32) -> Self {
        Item::new(path, Kind::Block(major, minor), 0o660)
    }
    pub(crate) fn fifo(path: impl AsRef<[u8]>) -> Self {
        Item::new(path, Kind::Fifo, 0o600)
    }
    pub(crate) fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }
    pub(crate) fn owner(mut self, uid: u64, gid: u64) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }
    pub(crate) fn mtime(mut self, seconds: i64, nanoseconds: u32) -> Self {
        self.mtime = (seconds, nanoseconds);
        self
    }
    pub(crate) fn xattr(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.xattrs.push((name.to_owned(), value.as_ref().to_vec()));
        self
    }
    /// Any PAX record.
    pub(crate) fn record(mut self, key: &str, value: impl AsRef<[u8]>) -> Self {
        self.records.push((key.to_owned(), value.as_ref().to_vec()));
        self
    }
    /// Long names as GNU tar writes them, not as PAX says.
    pub(crate) fn gnu_names(mut self) -> Self {
        self.gnu_names = true;
        self
    }

    fn write(&self, tar: &mut Vec<u8>) {
        let mut header = tar::Header::new_gnu();
        let mut pax: Vec<(String, Vec<u8>)> = Vec::new();
        let (mut flag, mut data, mut link, mut extra) = (b'0', Vec::new(), Vec::new(), Vec::new());
        let mut path = self.path.clone();
        match &self.kind {
            Kind::File(content) => data = content.clone(),
            Kind::Directory => flag = b'5',
            Kind::Symlink(target) => (flag, link) = (b'2', target.clone()),
            Kind::Hardlink(target) => (flag, link) = (b'1', target.clone()),
            Kind::Char(major, minor) | Kind::Block(major, minor) => {
                flag = if matches!(self.kind, Kind::Char(..)) { b'3' } else { b'4' };
                header.as_gnu_mut().unwrap().dev_major = octal(*major);
                header.as_gnu_mut().unwrap().dev_minor = octal(*minor);
            }
            Kind::Fifo => flag = b'6',
            Kind::Sparse(form, size, segments) => {
                data = segments.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
                match form {
                    Sparse::Old => (flag, extra) = (b'S', old_sparse(&mut header, *size, segments)),
                    _ => {
                        let map = pax_sparse(*form, *size, segments, &mut pax);
                        data.splice(0..0, map);
                        if *form != Sparse::Pax00 {
                            pax.push(("GNU.sparse.name".into(), path.clone()));
                            path = b"GNUSparseFile.0/made-up".to_vec();
                        }
                    }
                }
            }
        }
        let names = header.as_old_mut();
        for (name, key, flag, field) in
            [(&path, "path", b'L', &mut names.name), (&link, "linkpath", b'K', &mut names.linkname)]
        {
            if name.len() < 100 {
                field[..name.len()].copy_from_slice(name);
            } else if self.gnu_names {
                let mut long = tar::Header::new_gnu();
                long.as_old_mut().name[..13].copy_from_slice(b"././@LongLink");
                let name = [name.as_slice(), b"\0"].concat();
                append(tar, &mut long, flag, &[], &name);
            } else {
                pax.push((key.into(), name.clone()));
            }
        }
        for (key, id) in [("uid", self.uid), ("gid", self.gid)] {
            if id > 0o7_777_777 {
                pax.push((key.into(), id.to_string().into()));
            }
        }
        header.set_uid(self.uid.min(0o7_777_777));
        header.set_gid(self.gid.min(0o7_777_777));
        header.set_mode(self.mode);
        match self.mtime {
            (seconds @ 0.., 0) => header.set_mtime(seconds as u64),
            (seconds @ 0.., nanoseconds) => {
                pax.push(("mtime".into(), format!("{seconds}.{nanoseconds:09}").into()))
            }
            (seconds, 0) => pax.push(("mtime".into(), seconds.to_string().into())),
            (seconds, nanoseconds) => {
                let (whole, rest) = (-seconds - 1, 1_000_000_000 - nanoseconds);
                pax.push(("mtime".into(), format!("-{whole}.{rest:09}").into()));
            }
        }
        pax.extend(self.xattrs.iter().map(|(name, value)| (format!("SCHILY.xattr.{name}"), value.clone())));
        pax.extend(self.records.clone());
        if !pax.is_empty() {
            let records: Vec<u8> = pax.iter().flat_map(|(key, value)| record(key, value)).collect();
            append(tar, &mut tar::Header::new_ustar(), b'x', &[], &records);
        }
        append(tar, &mut header, flag, &extra, &data);
    }
}

/// Seven digits and a NUL.
fn octal(number: u32) -> [u8; 8] {
    format!("{number:07o}\0").into_bytes().try_into().unwrap()
}

fn append(tar: &mut Vec<u8>, header: &mut tar::Header, flag: u8, extra: &[u8], data: &[u8]) {
    header.as_old_mut().linkflag[0] = flag;
    header.set_size(data.len() as u64);
    header.set_cksum();
    tar.extend_from_slice(header.as_bytes());
    tar.extend_from_slice(extra);
    tar.extend_from_slice(data);
    tar.resize(tar.len().next_multiple_of(512), 0);
}

/// One PAX record, which begins with its own length.
pub(crate) fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let body = key.len() + value.len() + 3;
    let mut length = body + 1;
    while length != body + length.to_string().len() {
        length = body + length.to_string().len();
    }
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

/// Fills the header's four segments, ended by the file's size, and returns the blocks for the rest.
fn old_sparse(header: &mut tar::Header, size: u64, segments: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let mut segments: Vec<(u64, u64)> =
        segments.iter().map(|(offset, bytes)| (*offset, bytes.len() as u64)).collect();
    segments.push((size, 0));
    let gnu = header.as_gnu_mut().unwrap();
    gnu.set_real_size(size);
    for (slot, (offset, length)) in gnu.sparse.iter_mut().zip(&segments) {
        slot.set_offset(*offset);
        slot.set_length(*length);
    }
    let rest = segments.get(4..).unwrap_or_default();
    gnu.set_is_extended(!rest.is_empty());
    let blocks = rest.len().div_ceil(21);
    let mut extra = Vec::new();
    for (index, part) in rest.chunks(21).enumerate() {
        let mut block = tar::GnuExtSparseHeader::new();
        for (slot, (offset, length)) in block.sparse_mut().iter_mut().zip(part) {
            slot.set_offset(*offset);
            slot.set_length(*length);
        }
        block.set_is_extended(index + 1 < blocks);
        extra.extend_from_slice(block.as_bytes());
    }
    extra
}

/// Adds the PAX records of a sparse file and returns what goes before its data.
fn pax_sparse(
    form: Sparse,
    size: u64,
    segments: &[(u64, Vec<u8>)],
    pax: &mut Vec<(String, Vec<u8>)>,
) -> Vec<u8> {
    let numbers: Vec<String> =
        segments.iter().flat_map(|(offset, bytes)| [offset.to_string(), bytes.len().to_string()]).collect();
    let mut add = |key: &str, value: String| pax.push((format!("GNU.sparse.{key}"), value.into_bytes()));
    let mut map = Vec::new();
    match form {
        Sparse::Old => unreachable!("not a PAX form"),
        Sparse::Pax00 => {
            add("size", size.to_string());
            add("numblocks", segments.len().to_string());
            for pair in numbers.chunks(2) {
                add("offset", pair[0].clone());
                add("numbytes", pair[1].clone());
            }
        }
        Sparse::Pax01 => {
            add("size", size.to_string());
            add("numblocks", segments.len().to_string());
            add("map", numbers.join(","));
        }
        Sparse::Pax10 => {
            add("major", "1".into());
            add("minor", "0".into());
            add("realsize", size.to_string());
            map = format!("{}\n{}\n", segments.len(), numbers.join("\n")).into_bytes();
            map.resize(map.len().next_multiple_of(512), 0);
        }
    }
    map
}

/// A tar of these entries.
pub(crate) fn tar(items: &[Item]) -> Vec<u8> {
    let mut tar = Vec::new();
    items.iter().for_each(|item| item.write(&mut tar));
    tar.resize(tar.len() + 1024, 0);
    tar
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// Bytes that do not compress, the same ones for the same seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    use rand::{RngCore, SeedableRng};
    let mut bytes = vec![0; length];
    rand::rngs::StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

/// One layer as a registry serves it.
pub(crate) struct Layer {
    pub(crate) blob: Vec<u8>,
    pub(crate) media_type: &'static str,
    pub(crate) diff_id: String,
    /// What the manifest says.
    pub(crate) size: u64,
}

impl Layer {
    fn new(tar: &[u8], blob: Vec<u8>, media_type: &'static str) -> Self {
        Layer { size: blob.len() as u64, diff_id: digest(tar), blob, media_type }
    }
    pub(crate) fn plain(tar: &[u8]) -> Self {
        Layer::new(tar, tar.to_vec(), "application/vnd.oci.image.layer.v1.tar")
    }
    pub(crate) fn gzip(tar: &[u8]) -> Self {
        Layer::new(tar, gzip(tar), "application/vnd.oci.image.layer.v1.tar+gzip")
    }
    /// As pigz and eStargz write it: many members in one file.
    pub(crate) fn gzip_members(tar: &[u8], members: usize) -> Self {
        let blob = tar.chunks(tar.len().div_ceil(members)).flat_map(gzip).collect();
        Layer::new(tar, blob, "application/vnd.docker.image.rootfs.diff.tar.gzip")
    }
    pub(crate) fn zstd(tar: &[u8]) -> Self {
        let blob = zstd::encode_all(tar, 3).unwrap();
        Layer::new(tar, blob, "application/vnd.oci.image.layer.v1.tar+zstd")
    }
}

/// An image: its manifest and everything that it names.
#[derive(Clone)]
pub(crate) struct Image {
    pub(crate) manifest: Vec<u8>,
    pub(crate) blobs: BTreeMap<String, Vec<u8>>,
}

impl Image {
    pub(crate) fn new(layers: Vec<Layer>) -> Self {
        let config = json!({"Entrypoint": ["/bin/sh"], "Cmd": null, "Env": ["A=1"], "User": "7"});
        Image::with_config(layers, config)
    }

    pub(crate) fn with_config(layers: Vec<Layer>, config: Value) -> Self {
        let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
        let config = serde_json::to_vec(&json!({
            "os": "linux", "architecture": "amd64", "config": config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }))
        .unwrap();
        let described: Vec<Value> = layers
            .iter()
            .map(|layer| json!({"mediaType": layer.media_type, "digest": digest(&layer.blob), "size": layer.size}))
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": digest(&config), "size": config.len(),
            },
            "layers": described,
        });
        let mut blobs: BTreeMap<_, _> =
            layers.into_iter().map(|layer| (digest(&layer.blob), layer.blob)).collect();
        blobs.insert(digest(&config), config);
        Image { manifest: serde_json::to_vec(&manifest).unwrap(), blobs }
    }

    pub(crate) fn digest(&self) -> String {
        digest(&self.manifest)
    }

    /// An index that offers this image to amd64, and nothing real to arm64.
    pub(crate) fn index(&self) -> Vec<u8> {
        let entry = |architecture: &str, digest: String| {
            json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest,
                   "size": self.manifest.len(), "platform": {"os": "linux", "architecture": architecture}})
        };
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [entry("arm64", digest(b"nothing")), entry("amd64", self.digest())],
        });
        serde_json::to_vec(&index).unwrap()
    }

    /// Writes an OCI image layout with this image as `tag`.
    pub(crate) fn write_layout(&self, folder: &Path, tag: &str) {
        let blobs = folder.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        let name = |digest: &str| blobs.join(digest.trim_start_matches("sha256:"));
        for (digest, blob) in &self.blobs {
            std::fs::write(name(digest), blob).unwrap();
        }
        std::fs::write(name(&self.digest()), &self.manifest).unwrap();
        std::fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
        let index = json!({"schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": self.digest(),
            "size": self.manifest.len(), "annotations": {"org.opencontainers.image.ref.name": tag},
        }]});
        std::fs::write(folder.join("index.json"), index.to_string()).unwrap();
    }
}
