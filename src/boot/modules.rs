//! Which kernel modules a guest needs, in the order in which they load.
//!
//! In: a module folder, as `depmod` leaves it (modules.dep(5)), or as a kernel package that was only
//! unpacked leaves it: then each module's own `depends=` is read. Out: the modules, dependencies first.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use memchr::memmem;

use super::files::{Files, Kind};
use super::{BootError, unpack};

/// Drivers of the devices that vmlet gives to VMs, and the file systems of their disks.
const REQUIRED: [&str; 6] = ["virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "ext4", "overlay"];
/// What helps if it is there. ext4 asks for crc32c by an alias, which no dependency names.
const OPTIONAL: [&str; 5] = ["virtio_rng", "crc32c_generic", "libcrc32c", "button", "evdev"];

/// The largest module, packed or unpacked, in bytes.
const MAX_MODULE: u64 = 64 << 20;
/// The largest index of a module folder, in bytes; real ones have one.
const MAX_INDEX: u64 = 32 << 20;
/// How deep folders are searched when there is no modules.dep; real ones are 6 deep.
const MAX_DEPTH: usize = 16;
/// The most folders and files that are searched; real kernels have 5,000 modules.
const MAX_SEARCHED: usize = 100_000;
/// The most modules that a guest loads; some 15 in practice.
const MAX_NEEDED: usize = 128;

/// A module, unpacked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Module {
    /// `virtio_rng.ko`
    pub(super) file_name: String,
    pub(super) bytes: Vec<u8>,
}

/// All modules that a guest needs, in load order. Empty if all are built in.
pub(super) fn needed(files: &Files, dir: &Path) -> Result<Vec<Module>, BootError> {
    let index = Index::read(files, dir)?;
    let mut order = LoadOrder { index, seen: HashSet::new(), modules: Vec::new() };
    for name in
        OPTIONAL.into_iter().filter(|name| order.index.by_name.contains_key(*name)).collect::<Vec<_>>()
    {
        order.add(name)?;
    }
    for name in REQUIRED {
        order.add(name)?;
    }
    Ok(order.modules)
}

/// The required drivers that an unpacked kernel does not seem to have built in: each that is names itself.
pub(super) fn not_built_in(elf: &[u8]) -> Option<&'static str> {
    REQUIRED.into_iter().find(|name| {
        // The driver of virtio_pci calls itself by another name.
        let text = if *name == "virtio_pci" { "virtio-pci" } else { *name };
        memmem::find(elf, &[text.as_bytes(), b"\0"].concat()).is_none()
    })
}

/// `virtio-rng.ko.zst` is the module `virtio_rng`: dashes and underscores are the same (modprobe(8)).
pub(super) fn module_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let stem = [".ko", ".ko.gz", ".ko.zst", ".ko.xz"].iter().find_map(|suffix| name.strip_suffix(suffix))?;
    Some(stem.replace('-', "_"))
}

struct LoadOrder<'a> {
    index: Index<'a>,
    seen: HashSet<String>,
    modules: Vec<Module>,
}

impl LoadOrder<'_> {
    /// Depth first; a cycle, which real modules do not have, ends at what was seen.
    fn add(&mut self, name: &str) -> Result<(), BootError> {
        if self.index.has_built_in(name) || !self.seen.insert(name.to_owned()) {
            return Ok(());
        }
        if self.seen.len() > MAX_NEEDED {
            let problem = "its modules depend on over 128 others";
            return Err(BootError::Malformed { path: self.index.dir.to_owned(), problem });
        }
        let missing = || BootError::NoModule { name: name.to_owned(), modules: self.index.dir.to_owned() };
        let file = self.index.by_name.get(name).ok_or_else(missing)?.clone();
        let bytes = self.index.module(&file)?;
        for dependency in self.index.dependencies(name, &file, &bytes)? {
            self.add(&dependency)?;
        }
        self.modules.push(Module { file_name: format!("{name}.ko"), bytes });
        Ok(())
    }
}

/// What a module folder holds, by module name.
struct Index<'a> {
    files: &'a Files,
    dir: &'a Path,
    /// None if nothing says what is built in: what is not there as a module then passes for it.
    built_in: Option<HashSet<String>>,
    /// Below the folder.
    by_name: HashMap<String, PathBuf>,
    /// From modules.dep; none if there is no such file.
    dependencies: Option<HashMap<String, Vec<String>>>,
}

impl<'a> Index<'a> {
    fn read(files: &'a Files, dir: &'a Path) -> Result<Self, BootError> {
        let mut index = Index {
            files,
            dir,
            built_in: built_in(files, dir)?,
            by_name: HashMap::new(),
            dependencies: None,
        };
        match files.read_optional(dir, "modules.dep", MAX_INDEX)? {
            Some(text) if !text.is_empty() => index.add_dep_file(&String::from_utf8_lossy(&text)),
            _ => index.add_tree()?,
        }
        if index.by_name.is_empty() && index.built_in.is_none() {
            return Err(BootError::Malformed { path: dir.to_owned(), problem: "no modules in it" });
        }
        Ok(index)
    }

    /// Lines of `path: path path …`, relative to the folder.
    fn add_dep_file(&mut self, text: &str) {
        let dependencies = self.dependencies.get_or_insert_default();
        for (file, needs) in text.lines().filter_map(|line| line.split_once(':')) {
            let Some(name) = module_name(Path::new(file)) else { continue };
            self.by_name.insert(name.clone(), PathBuf::from(file));
            let needs = needs.split_ascii_whitespace().filter_map(|path| module_name(Path::new(path)));
            dependencies.insert(name, needs.collect());
        }
    }

    fn add_tree(&mut self) -> Result<(), BootError> {
        let (mut folders, mut searched) = (vec![(self.dir.to_owned(), 0)], 0);
        while let Some((folder, depth)) = folders.pop() {
            for entry in self.files.list(&folder)? {
                searched += 1;
                if searched > MAX_SEARCHED {
                    let problem = "over 100,000 files in it";
                    return Err(BootError::Malformed { path: self.dir.to_owned(), problem });
                }
                // Links are not followed: `build` and `source` lead to whole source trees.
                if entry.kind == Kind::Folder && depth < MAX_DEPTH {
                    folders.push((entry.path, depth + 1));
                } else if let (Kind::File, Some(name)) = (entry.kind, module_name(&entry.path)) {
                    let file = entry.path.strip_prefix(self.dir).unwrap_or(&entry.path);
                    self.by_name.insert(name, file.to_owned());
                }
            }
        }
        Ok(())
    }

    fn has_built_in(&self, name: &str) -> bool {
        match &self.built_in {
            Some(built_in) => built_in.contains(name),
            None => !self.by_name.contains_key(name),
        }
    }

    fn module(&self, file: &Path) -> Result<Vec<u8>, BootError> {
        let packed = self.files.read_below(self.dir, file, MAX_MODULE)?;
        let extension = file.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        unpack::module(packed, extension, MAX_MODULE)
            .map_err(|error| BootError::Packed { path: self.dir.join(file), why: error.to_string() })
    }

    fn dependencies(&self, name: &str, file: &Path, bytes: &[u8]) -> Result<Vec<String>, BootError> {
        match &self.dependencies {
            Some(known) => Ok(known.get(name).cloned().unwrap_or_default()),
            None => depends_field(bytes).ok_or_else(|| BootError::Malformed {
                path: self.dir.join(file),
                problem: "no depends= in it: not a kernel module",
            }),
        }
    }
}

/// The modules that are no files, by modules.builtin, or else by modules.builtin.modinfo, whose entries are
/// `name.key=value`, each with a NUL behind it.
fn built_in(files: &Files, dir: &Path) -> Result<Option<HashSet<String>>, BootError> {
    if let Some(text) = files.read_optional(dir, "modules.builtin", MAX_INDEX)? {
        let text = String::from_utf8_lossy(&text);
        return Ok(Some(text.lines().filter_map(|line| module_name(Path::new(line))).collect()));
    }
    let Some(text) = files.read_optional(dir, "modules.builtin.modinfo", MAX_INDEX)? else { return Ok(None) };
    let names = text.split(|byte| *byte == 0).filter_map(|entry| {
        let name = entry.split(|byte| *byte == b'.').next()?;
        Some(std::str::from_utf8(name).ok()?.replace('-', "_"))
    });
    Ok(Some(names.collect()))
}

/// The `depends=` entry of `.modinfo`, whose strings are NUL-terminated. Found by its text: nothing
/// else in a module holds NUL, these letters, and a list of names.
pub(super) fn depends_field(module: &[u8]) -> Option<Vec<String>> {
    const KEY: &[u8] = b"\0depends=";
    let start = memmem::find(module, KEY)? + KEY.len();
    let length = module[start..].iter().position(|byte| *byte == 0)?;
    let names = std::str::from_utf8(&module[start..start + length]).ok()?;
    Some(names.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect())
}
