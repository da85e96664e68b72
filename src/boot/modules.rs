//! Which kernel modules a guest needs, in the order in which they load.
//!
//! In: a module folder, as `depmod` leaves it (modules.dep(5)), or as a kernel package that was only
//! unpacked leaves it: then each module's own `depends=` is read. Out: the files, dependencies first.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::BootError;

/// Drivers of the devices that vmlet gives to VMs, and the file systems of their disks.
const REQUIRED: [&str; 6] = ["virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "ext4", "overlay"];
/// What helps if it is there. ext4 asks for crc32c by an alias, which no dependency names.
const OPTIONAL: [&str; 5] = ["virtio_rng", "crc32c_generic", "libcrc32c", "button", "evdev"];

/// The largest module that is unpacked, in bytes.
const MAX_MODULE: u64 = 64 << 20;
/// How deep folders are searched when there is no modules.dep; real ones are 6 deep.
const MAX_DEPTH: usize = 16;

/// The files of all modules that a guest needs, in load order. Empty if all are built in.
pub(super) fn needed(dir: &Path) -> Result<Vec<PathBuf>, BootError> {
    let mut order = LoadOrder { index: Index::read(dir)?, seen: HashSet::new(), files: Vec::new() };
    for name in OPTIONAL.into_iter().filter(|name| order.index.files.contains_key(*name)).collect::<Vec<_>>()
    {
        order.add(name)?;
    }
    for name in REQUIRED {
        order.add(name)?;
    }
    Ok(order.files)
}

/// A module's bytes, unpacked.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, BootError> {
    let file = fs::File::open(path).map_err(BootError::io(path))?;
    let extension = path.extension().and_then(|extension| extension.to_str());
    let reader: Box<dyn Read> = match extension {
        Some("ko") => Box::new(file),
        Some("gz") => Box::new(flate2::read::MultiGzDecoder::new(file)),
        Some("zst") => Box::new(zstd::Decoder::new(file).map_err(BootError::io(path))?),
        _ => return Err(BootError::Compression { path: path.to_owned(), kind: "xz" }),
    };
    let mut bytes = Vec::new();
    reader.take(MAX_MODULE + 1).read_to_end(&mut bytes).map_err(BootError::io(path))?;
    if bytes.len() as u64 > MAX_MODULE {
        return Err(BootError::Malformed { path: path.to_owned(), problem: "a module over 64 MiB" });
    }
    Ok(bytes)
}

/// `virtio-rng.ko.zst` is the module `virtio_rng`: dashes and underscores are the same (modprobe(8)).
pub(super) fn module_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let stem = [".ko", ".ko.gz", ".ko.zst", ".ko.xz"].iter().find_map(|suffix| name.strip_suffix(suffix))?;
    Some(stem.replace('-', "_"))
}

struct LoadOrder {
    index: Index,
    seen: HashSet<String>,
    files: Vec<PathBuf>,
}

impl LoadOrder {
    /// Depth first; a cycle, which real modules do not have, ends at what was seen.
    fn add(&mut self, name: &str) -> Result<(), BootError> {
        if self.index.built_in.contains(name) || !self.seen.insert(name.to_owned()) {
            return Ok(());
        }
        let missing = || BootError::NoModule { name: name.to_owned(), modules: self.index.dir.clone() };
        let file = self.index.files.get(name).ok_or_else(missing)?.clone();
        for dependency in self.index.dependencies(name, &file)? {
            self.add(&dependency)?;
        }
        self.files.push(file);
        Ok(())
    }
}

/// What a module folder holds, by module name.
struct Index {
    dir: PathBuf,
    built_in: HashSet<String>,
    files: HashMap<String, PathBuf>,
    /// From modules.dep; none if there is no such file.
    dependencies: Option<HashMap<String, Vec<String>>>,
}

impl Index {
    fn read(dir: &Path) -> Result<Index, BootError> {
        let built_in = read_optional(&dir.join("modules.builtin"))?.unwrap_or_default();
        let mut index = Index {
            dir: dir.to_owned(),
            built_in: built_in.lines().filter_map(|line| module_name(Path::new(line))).collect(),
            files: HashMap::new(),
            dependencies: None,
        };
        match read_optional(&dir.join("modules.dep"))? {
            Some(text) if !text.is_empty() => index.add_dep_file(&text),
            _ => index.add_tree(dir, 0)?,
        }
        Ok(index)
    }

    /// Lines of `path: path path …`, relative to the folder.
    fn add_dep_file(&mut self, text: &str) {
        let dependencies = self.dependencies.get_or_insert_default();
        for (file, needs) in text.lines().filter_map(|line| line.split_once(':')) {
            let Some(name) = module_name(Path::new(file)) else { continue };
            self.files.insert(name.clone(), self.dir.join(file));
            let needs = needs.split_ascii_whitespace().filter_map(|path| module_name(Path::new(path)));
            dependencies.insert(name, needs.collect());
        }
    }

    fn add_tree(&mut self, dir: &Path, depth: usize) -> Result<(), BootError> {
        for entry in fs::read_dir(dir).map_err(BootError::io(dir))? {
            let entry = entry.map_err(BootError::io(dir))?;
            let path = entry.path();
            // Not followed: `build` and `source` are links to whole source trees.
            let kind = entry.file_type().map_err(BootError::io(&path))?;
            if kind.is_dir() && depth < MAX_DEPTH {
                self.add_tree(&path, depth + 1)?;
            } else if let (true, Some(name)) = (kind.is_file(), module_name(&path)) {
                self.files.insert(name, path);
            }
        }
        Ok(())
    }

    fn dependencies(&self, name: &str, file: &Path) -> Result<Vec<String>, BootError> {
        match &self.dependencies {
            Some(known) => Ok(known.get(name).cloned().unwrap_or_default()),
            None => depends_field(&read(file)?).ok_or_else(|| BootError::Malformed {
                path: file.to_owned(),
                problem: "no depends= in it: not a kernel module",
            }),
        }
    }
}

/// The `depends=` entry of `.modinfo`, whose strings are NUL-terminated. Found by its text: nothing
/// else in a module holds NUL, these letters, and a list of names.
pub(super) fn depends_field(module: &[u8]) -> Option<Vec<String>> {
    const KEY: &[u8] = b"\0depends=";
    let start = module.windows(KEY.len()).position(|window| window == KEY)? + KEY.len();
    let length = module[start..].iter().position(|byte| *byte == 0)?;
    let names = std::str::from_utf8(&module[start..start + length]).ok()?;
    Some(names.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect())
}

fn read_optional(path: &Path) -> Result<Option<String>, BootError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(BootError::io(path)(error)),
    }
}
