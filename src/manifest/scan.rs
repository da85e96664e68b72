//! One walk through a manifests folder.
//!
//! Guarantees: nothing outside of the root is opened, and nothing but regular files is read (`root`); depth,
//! number and size of what is read are bounded; every folder and file is visited once however many links lead
//! to it.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::ffi::OsStr;
use std::io;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::root::{Root, Stamp};

/// How much a walk may take in.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Manifest files.
    pub files: usize,
    /// Folders in folders; the root's own files are at depth 0.
    pub depth: usize,
    /// Directory entries, manifests or not.
    pub entries: usize,
    /// Bytes that are read.
    pub bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { files: 50_000, depth: 16, entries: 200_000, bytes: 256 << 20 }
    }
}

/// What a walk finds at a path.
#[derive(Debug)]
pub(super) enum Sight {
    /// A regular file's content, its stamp after reading, and its digest.
    Content { stamp: Stamp, digest: [u8; 32], bytes: Vec<u8> },
    /// A file that the visitor knows already.
    Known,
    /// It was there and is not any more, or is being replaced.
    Vanished,
    /// It cannot be read now; the walk's trouble says why.
    Unreadable,
    /// It must not be read, and why.
    Refused(String),
}

/// Takes what a walk finds.
pub(super) trait Visitor {
    /// Whether the file need not be read again.
    fn knows(&self, path: &Path, stamp: &Stamp) -> bool;
    /// Something that may be a manifest, by its path below the root.
    fn saw(&mut self, path: PathBuf, sight: Sight);
}

/// What a walk says of itself.
#[derive(Debug, Default)]
pub(super) struct Walked {
    /// The folders that hold something of interest, absolute, with device and inode.
    pub folders: BTreeMap<PathBuf, (u64, u64)>,
    /// Whether there are links.
    pub links: bool,
    /// Why something may have been missed; empty after a whole walk.
    pub trouble: Vec<String>,
}

/// Walks through the root. Links are followed after everything else, so that a file is known by its own name
/// rather than by a link's.
pub(super) fn walk(root: &Path, limits: Limits, visitor: &mut dyn Visitor) -> Walked {
    match Walk::new(root, limits, visitor) {
        Ok(mut walk) => {
            walk.run();
            walk.walked
        }
        Err(error) => {
            let trouble = vec![format!("cannot read {}: {error}", root.display())];
            Walked { trouble, ..Walked::default() }
        }
    }
}

/// Reads `paths` again, which have no links in them. False if a walk must tell what became of them: one that is
/// not `known`, or is no regular file any more, may be, or lead to, more than itself.
pub(super) fn revisit(
    root: &Path,
    paths: &BTreeSet<PathBuf>,
    known: &HashSet<PathBuf>,
    visitor: &mut dyn Visitor,
) -> bool {
    let Ok(mut walk) = Walk::new(root, Limits::default(), visitor) else { return false };
    paths.iter().all(|path| walk.again(path, known.contains(path)))
}

/// A folder to visit: the path by which it was reached, and the one without links, both below the root.
struct Folder {
    name: PathBuf,
    real: PathBuf,
    depth: usize,
}

struct Walk<'a> {
    root: Root,
    limits: Limits,
    visitor: &'a mut dyn Visitor,
    walked: Walked,
    /// Files and folders, without links.
    visited: HashSet<PathBuf>,
    folders: VecDeque<Folder>,
    links: VecDeque<(PathBuf, usize)>,
    entries: usize,
    files: usize,
    bytes: u64,
}

impl<'a> Walk<'a> {
    fn new(root: &Path, limits: Limits, visitor: &'a mut dyn Visitor) -> io::Result<Self> {
        Ok(Walk {
            root: Root::open(root)?,
            limits,
            visitor,
            walked: Walked::default(),
            visited: HashSet::new(),
            folders: VecDeque::from([Folder { name: PathBuf::new(), real: PathBuf::new(), depth: 0 }]),
            links: VecDeque::new(),
            entries: 0,
            files: 0,
            bytes: 0,
        })
    }

    /// True if that says all of this path. What was no manifest and is a plain file, or is gone, is none now.
    fn again(&mut self, path: &Path, known: bool) -> bool {
        let manifest = path.file_name().is_some_and(|name| is_manifest(Path::new(name)));
        if !manifest {
            return match self.root.stat(path) {
                Ok(stat) => type_of(&stat) == FileType::RegularFile,
                Err(error) => error == Errno::NOENT,
            };
        }
        let content = known.then(|| self.read(path)).and_then(Result::ok);
        let Some(sight @ Sight::Content { .. }) = content else { return false };
        self.visitor.saw(path.to_owned(), sight);
        self.bytes <= self.limits.bytes
    }

    fn run(&mut self) {
        loop {
            let step = if let Some(folder) = self.folders.pop_front() {
                self.folder(&folder)
            } else if let Some((link, depth)) = self.links.pop_front() {
                self.link(link, depth)
            } else {
                return;
            };
            if let Err(trouble) = step {
                self.walked.trouble.push(trouble);
                return;
            }
        }
    }

    fn trouble(&mut self, path: &Path, error: impl std::fmt::Display) {
        if self.walked.trouble.len() < 10 {
            self.walked
                .trouble
                .push(format!("cannot read {}: {error}", self.root.real().join(path).display()));
        }
    }

    /// # Errors
    /// A limit was reached: the walk ends.
    fn folder(&mut self, folder: &Folder) -> Result<(), String> {
        if !self.visited.insert(folder.real.clone()) {
            return Ok(());
        }
        if folder.depth > self.limits.depth {
            let error = format!("deeper than {} folders", self.limits.depth);
            self.trouble(&folder.real, error);
            return Ok(());
        }
        let names = match self.root.names(&folder.real, self.limits.entries) {
            Ok((names, stat)) => {
                self.remember(&folder.real, &stat);
                names
            }
            Err(error) => {
                self.trouble(&folder.real, error);
                return Ok(());
            }
        };
        for name in names {
            self.entries += 1;
            if self.entries > self.limits.entries {
                return Err(format!(
                    "more than {} entries in {}",
                    self.limits.entries,
                    self.root.real().display()
                ));
            }
            self.entry(folder, &name)?;
        }
        Ok(())
    }

    fn entry(&mut self, folder: &Folder, name: &Path) -> Result<(), String> {
        let (path, real) = (folder.name.join(name), folder.real.join(name));
        let stat = match self.root.stat(&real) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => {
                if is_manifest(name) {
                    self.visitor.saw(path, Sight::Vanished);
                }
                return Ok(());
            }
            Err(error) => {
                self.trouble(&real, error);
                return Ok(());
            }
        };
        match type_of(&stat) {
            FileType::Directory => {
                self.folders.push_back(Folder { name: path, real, depth: folder.depth + 1 });
                Ok(())
            }
            FileType::Symlink => {
                self.walked.links = true;
                self.links.push_back((path, folder.depth));
                Ok(())
            }
            _ if is_manifest(name) => self.manifest(path, real, &stat),
            _ => Ok(()),
        }
    }

    /// Follows a link, if it stays inside the root.
    fn link(&mut self, link: PathBuf, depth: usize) -> Result<(), String> {
        let target = match std::fs::canonicalize(self.root.real().join(&link)) {
            Ok(target) => target,
            Err(error) => {
                self.visitor.saw(link, Sight::Refused(format!("the link cannot be followed: {error}")));
                return Ok(());
            }
        };
        let Ok(real) = target.strip_prefix(self.root.real()).map(Path::to_owned) else {
            if is_manifest(&link) || target.is_dir() {
                let message = format!("the link leads out of the manifests folder, to {}", target.display());
                self.visitor.saw(link, Sight::Refused(message));
            }
            return Ok(());
        };
        // A link may be replaced without a change in its own folder's other entries, and its target too.
        if let Some(parent) = real.parent()
            && let Ok(stat) = self.root.stat(parent)
        {
            self.remember(parent, &stat);
        }
        match self.root.stat(&real) {
            Ok(stat) => match type_of(&stat) {
                FileType::Directory => {
                    self.folders.push_back(Folder { name: link, real, depth: depth + 1 });
                    Ok(())
                }
                _ if is_manifest(&link) => self.manifest(link, real, &stat),
                _ => Ok(()),
            },
            Err(_) => {
                self.visitor.saw(link, Sight::Vanished);
                Ok(())
            }
        }
    }

    fn remember(&mut self, folder: &Path, stat: &Stat) {
        self.walked.folders.insert(self.root.real().join(folder), (stat.st_dev, stat.st_ino));
    }

    fn manifest(&mut self, path: PathBuf, real: PathBuf, stat: &Stat) -> Result<(), String> {
        if !self.visited.insert(real.clone()) {
            return Ok(());
        }
        self.files += 1;
        if self.files > self.limits.files {
            return Err(format!(
                "more than {} manifests in {}",
                self.limits.files,
                self.root.real().display()
            ));
        }
        let sight = if type_of(stat) != FileType::RegularFile {
            Sight::Refused("not a regular file".to_owned())
        } else if self.visitor.knows(&path, &Stamp::new(stat)) {
            Sight::Known
        } else {
            self.read(&real).unwrap_or_else(|error| self.unread(&real, error))
        };
        self.visitor.saw(path, sight);
        if self.bytes > self.limits.bytes {
            return Err(format!(
                "more than {} MiB of manifests in {}",
                self.limits.bytes >> 20,
                self.root.real().display()
            ));
        }
        Ok(())
    }

    fn unread(&mut self, real: &Path, error: Errno) -> Sight {
        match error {
            Errno::NOENT | Errno::LOOP | Errno::AGAIN | Errno::NOTDIR | Errno::XDEV => Sight::Vanished,
            error => {
                self.trouble(real, error);
                Sight::Unreadable
            }
        }
    }

    fn read(&mut self, real: &Path) -> Result<Sight, Errno> {
        let Some((stamp, bytes)) = self.root.read(real)? else { return Ok(Sight::Vanished) };
        self.bytes += bytes.len() as u64;
        Ok(Sight::Content { stamp, digest: Sha256::digest(&bytes).into(), bytes })
    }
}

fn type_of(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// By its extension. What editors and `sed -i` leave behind has others (`web.yaml~`, `4913`, `x.tmp`).
fn is_manifest(path: &Path) -> bool {
    let named = matches!(path.components().next_back(), Some(Component::Normal(_)));
    named && matches!(path.extension().and_then(OsStr::to_str), Some("yaml" | "yml" | "json"))
}
