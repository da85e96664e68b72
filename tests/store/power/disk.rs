//! The disk as POSIX promises it, and no better. A file's bytes are safe once a sync of that file
//! began after they were written; a name is safe once its folder was synced. `sync_file_range`
//! promises nothing (sync_file_range(2), "Warning"). Of what is not safe a power loss keeps what it
//! likes: of each sector any of its versions; of a folder's changes the first few, because every
//! journalling filesystem keeps their order.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use rand::Rng as _;
use rand::rngs::StdRng;

use super::trace::Call;

/// What a disk writes at once, or not at all.
const SECTOR: usize = 512;

/// What becomes of what was not synced.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Luck {
    AllLost,
    AllKept,
    /// Some of it is there.
    Mixed,
}

/// A disk and what is open on it.
pub(super) struct Disk {
    root: PathBuf,
    nodes: Vec<Node>,
    /// The offsets of open files.
    offsets: HashMap<i32, u64>,
    /// What each thread is about: a write, or a sync of what was written before it.
    busy: HashMap<u32, Busy>,
    writes: u64,
}

enum Node {
    File(File),
    Folder(Folder),
}

#[derive(Default)]
struct File {
    synced: Vec<u8>,
    unsynced: Vec<Write>,
}

struct Write {
    number: u64,
    /// Whether the call has returned: only then does a sync cover it.
    done: bool,
    what: What,
}

enum What {
    Bytes(u64, Vec<u8>),
    Length(u64),
}

#[derive(Default)]
struct Folder {
    names: BTreeMap<String, usize>,
    synced: BTreeMap<String, usize>,
    unsynced: Vec<Naming>,
}

#[derive(Clone)]
enum Naming {
    Made(String, usize),
    Renamed(String, String),
    Exchanged(String, String),
    Removed(String),
}

enum Busy {
    Write { node: usize, number: u64 },
    SyncFile { node: usize, covered: Vec<u64> },
    SyncFolder { node: usize, covered: usize },
}

impl Disk {
    /// An empty folder, itself safe.
    pub(super) fn new(root: &Path) -> Disk {
        let nodes = vec![Node::Folder(Folder::default())];
        let root = root.to_owned();
        Disk { root, nodes, offsets: HashMap::new(), busy: HashMap::new(), writes: 0 }
    }

    /// Takes the begin or the end of a call.
    pub(super) fn take(&mut self, call: &Call) {
        if !call.args.mention(&self.root) {
            return;
        }
        match (call.name.as_str(), call.result) {
            ("write", None) => {
                let (descriptor, path) = call.args.file(0);
                let offset = self.offsets.get(&descriptor).copied().unwrap_or(0);
                self.begin_write(call, &path, What::Bytes(offset, call.args.bytes(1)));
            }
            ("pwrite64", None) => {
                let bytes = What::Bytes(call.args.number(3), call.args.bytes(1));
                self.begin_write(call, &call.args.file(0).1, bytes);
            }
            ("ftruncate", None) => {
                self.begin_write(call, &call.args.file(0).1, What::Length(call.args.number(1)));
            }
            ("write", Some(wrote)) => {
                *self.offsets.entry(call.args.file(0).0).or_default() += wrote.unsigned_abs();
                self.end_write(call, wrote == call.args.bytes(1).len() as i64);
            }
            ("pwrite64", Some(wrote)) => self.end_write(call, wrote == call.args.bytes(1).len() as i64),
            ("ftruncate", Some(result)) => self.end_write(call, result == 0),
            ("fsync" | "fdatasync", None) => self.begin_sync(call),
            ("fsync" | "fdatasync", Some(result)) => self.end_sync(call, result),
            ("lseek", Some(offset)) => drop(self.offsets.insert(call.args.file(0).0, offset.unsigned_abs())),
            ("openat", Some(descriptor)) if descriptor >= 0 => self.open(call, descriptor),
            ("mkdir", Some(0)) => self.make(&call.args.path(0), Node::Folder(Folder::default())),
            ("rename", Some(0)) => {
                self.rename(&call.args.path(0), &call.args.path(1), Naming::Renamed);
            }
            ("renameat2", Some(0)) => {
                let naming = match call.args.text(4) {
                    "RENAME_EXCHANGE" => Naming::Exchanged,
                    "RENAME_NOREPLACE" => Naming::Renamed,
                    flags => panic!("this model does not know {flags}"),
                };
                self.rename(&call.args.path(1), &call.args.path(3), naming);
            }
            ("linkat", Some(0)) => self.link(&call.args.path(1), &call.args.path(3)),
            ("unlink", Some(0)) => self.remove(&call.args.path(0)),
            ("unlinkat" | "rmdir", Some(-1)) | ("sync_file_range", _) => {}
            (_, None | Some(-1)) => {}
            (name, _) => panic!("{name} is not understood: teach this model what it does"),
        }
    }

    /// The node of a path; none for one that is not, or no more, below the root.
    fn find(&self, path: &Path) -> Option<usize> {
        let mut node = 0;
        for name in path.strip_prefix(&self.root).ok()?.components() {
            let Node::Folder(folder) = &self.nodes[node] else { return None };
            node = *folder.names.get(name.as_os_str().to_str()?)?;
        }
        Some(node)
    }

    fn file(&mut self, node: usize) -> &mut File {
        let Node::File(file) = &mut self.nodes[node] else { panic!("a folder is not written to") };
        file
    }

    fn begin_write(&mut self, call: &Call, path: &Path, what: What) {
        // Who writes to a file that is removed already writes to nothing that is ever seen again.
        let Some(node) = self.find(path) else { return };
        self.writes += 1;
        let number = self.writes;
        self.file(node).unsynced.push(Write { number, done: false, what });
        self.busy.insert(call.thread, Busy::Write { node, number });
    }

    fn end_write(&mut self, call: &Call, whole: bool) {
        assert!(whole, "a write fell short: this model knows whole ones only");
        let Some(Busy::Write { node, number }) = self.busy.remove(&call.thread) else { return };
        let unsynced = &mut self.file(node).unsynced;
        let write = unsynced.iter_mut().find(|write| write.number == number);
        if let Some(write) = write {
            write.done = true;
        }
    }

    fn begin_sync(&mut self, call: &Call) {
        let Some(node) = self.find(&call.args.file(0).1) else { return };
        let busy = match &self.nodes[node] {
            Node::File(file) => {
                let done = file.unsynced.iter().filter(|write| write.done);
                Busy::SyncFile { node, covered: done.map(|write| write.number).collect() }
            }
            Node::Folder(folder) => Busy::SyncFolder { node, covered: folder.unsynced.len() },
        };
        self.busy.insert(call.thread, busy);
    }

    fn end_sync(&mut self, call: &Call, result: i64) {
        assert_eq!(result, 0, "a sync failed");
        match self.busy.remove(&call.thread) {
            Some(Busy::SyncFile { node, covered }) => {
                let file = self.file(node);
                for write in file.unsynced.extract_if(.., |write| covered.contains(&write.number)) {
                    write.what.apply(&mut file.synced);
                }
            }
            Some(Busy::SyncFolder { node, covered }) => {
                let Node::Folder(folder) = &mut self.nodes[node] else { panic!("it was a folder") };
                // Two syncs of one folder may overlap.
                let covered = covered.min(folder.unsynced.len());
                for naming in folder.unsynced.drain(..covered) {
                    naming.apply(&mut folder.synced);
                }
            }
            Some(Busy::Write { .. }) => panic!("a thread does one thing at a time"),
            None => {}
        }
    }

    fn open(&mut self, call: &Call, descriptor: i64) {
        let (path, flags) = (call.args.path(1), call.args.text(2));
        self.offsets.insert(i32::try_from(descriptor).unwrap(), 0);
        assert!(!flags.contains("O_APPEND"), "this model knows no O_APPEND");
        match self.find(&path) {
            None if flags.contains("O_CREAT") => self.make(&path, Node::File(File::default())),
            Some(node) if flags.contains("O_TRUNC") => {
                self.writes += 1;
                let number = self.writes;
                self.file(node).unsynced.push(Write { number, done: true, what: What::Length(0) });
            }
            _ => {}
        }
    }

    fn make(&mut self, path: &Path, node: Node) {
        self.nodes.push(node);
        let made = self.nodes.len() - 1;
        self.naming(path, |name| Naming::Made(name, made));
    }

    fn rename(&mut self, from: &Path, to: &Path, naming: fn(String, String) -> Naming) {
        assert_eq!(from.parent(), to.parent(), "this model knows renames inside a folder only");
        let to = to.file_name().unwrap().to_str().unwrap().to_owned();
        self.naming(from, |from| naming(from, to));
    }

    fn link(&mut self, from: &Path, to: &Path) {
        let node = self.find(from).expect("the file is there");
        self.naming(to, |name| Naming::Made(name, node));
    }

    fn remove(&mut self, path: &Path) {
        self.naming(path, Naming::Removed);
    }

    fn naming(&mut self, path: &Path, naming: impl FnOnce(String) -> Naming) {
        let node = self.find(path.parent().unwrap()).expect("the folder is there");
        let Node::Folder(folder) = &mut self.nodes[node] else { panic!("it is a folder") };
        let naming = naming(path.file_name().unwrap().to_str().unwrap().to_owned());
        naming.clone().apply(&mut folder.names);
        folder.unsynced.push(naming);
    }

    /// Puts into `target` what the disk holds when the power comes back.
    pub(super) fn after_power_loss(&self, luck: Luck, random: &mut StdRng, target: &Path) {
        self.put(0, luck, random, target);
    }

    fn put(&self, node: usize, luck: Luck, random: &mut StdRng, target: &Path) {
        match &self.nodes[node] {
            Node::File(file) => fs::write(target, file.after_power_loss(luck, random)).unwrap(),
            Node::Folder(folder) => {
                let mut names = folder.synced.clone();
                let kept = luck.some(folder.unsynced.len(), random);
                for naming in &folder.unsynced[..kept] {
                    naming.clone().apply(&mut names);
                }
                fs::create_dir_all(target).unwrap();
                for (name, node) in names {
                    self.put(node, luck, random, &target.join(name));
                }
            }
        }
    }
}

impl Luck {
    /// How many of so many happened to reach the disk.
    fn some(self, of: usize, random: &mut StdRng) -> usize {
        match self {
            Luck::AllLost => 0,
            Luck::AllKept => of,
            Luck::Mixed => random.random_range(0..=of),
        }
    }
}

impl File {
    fn after_power_loss(&self, luck: Luck, random: &mut StdRng) -> Vec<u8> {
        let mut content = self.synced.clone();
        // Of each sector all of its versions, in order.
        let mut sectors: BTreeMap<usize, Vec<Vec<u8>>> = BTreeMap::new();
        let mut newest = self.synced.clone();
        let lengths = self.unsynced.iter().filter(|write| matches!(write.what, What::Length(_))).count();
        let mut kept_lengths = luck.some(lengths, random);
        for write in &self.unsynced {
            match &write.what {
                // What follows a change of length that was lost is lost, too.
                What::Length(_) if kept_lengths == 0 => break,
                What::Length(length) => {
                    kept_lengths -= 1;
                    newest.resize(*length as usize, 0);
                    content.resize(*length as usize, 0);
                    sectors.retain(|sector, _| sector * SECTOR < *length as usize);
                }
                What::Bytes(offset, bytes) => {
                    write.what.apply(&mut newest);
                    let (from, to) = (*offset as usize, *offset as usize + bytes.len());
                    for sector in from / SECTOR..to.div_ceil(SECTOR) {
                        let end = newest.len().min((sector + 1) * SECTOR);
                        sectors.entry(sector).or_default().push(newest[sector * SECTOR..end].to_vec());
                    }
                }
            }
        }
        for (sector, versions) in sectors {
            if let Some(version) = luck.some(versions.len(), random).checked_sub(1) {
                What::Bytes((sector * SECTOR) as u64, versions[version].clone()).apply(&mut content);
            }
        }
        content
    }
}

impl What {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            What::Length(length) => content.resize(*length as usize, 0),
            What::Bytes(offset, bytes) => {
                let (from, to) = (*offset as usize, *offset as usize + bytes.len());
                content.resize(content.len().max(to), 0);
                content[from..to].copy_from_slice(bytes);
            }
        }
    }
}

impl Naming {
    fn apply(self, names: &mut BTreeMap<String, usize>) {
        match self {
            Naming::Made(name, node) => drop(names.insert(name, node)),
            Naming::Removed(name) => drop(names.remove(&name)),
            Naming::Exchanged(one, other) => {
                let (a, b) = (names.remove(&one), names.remove(&other));
                names.extend(a.map(|node| (other, node)).into_iter().chain(b.map(|node| (one, node))));
            }
            // What was renamed without being there was removed already.
            Naming::Renamed(from, to) => {
                if let Some(node) = names.remove(&from) {
                    names.insert(to, node);
                }
            }
        }
    }
}
