//! What a source saw of each file, so that a look reads no more than it must.
//!
//! In: what a walk, or a glance at some files, finds. Out: each file's state, settled or not. What was
//! believed of a file stays until other content of it has settled.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::diagnostic::Diagnostic;
use super::root::Stamp;
use super::scan::{Limits, Sight, Visitor, Walked, revisit, walk};
use super::source::{Broken, FileState, Snapshot};
use super::stability::{Look, Patience, Settling, Verdict};

/// What a walk saw.
pub(super) struct Seen {
    pub(super) snapshot: Snapshot,
    pub(super) walked: Walked,
    /// The files whose content is not believed yet.
    pub(super) unsettled: HashSet<PathBuf>,
}

/// What a glance saw.
pub(super) struct Glimpse {
    pub(super) files: Vec<(PathBuf, FileState)>,
    /// The files whose content is not believed yet.
    pub(super) unsettled: HashSet<PathBuf>,
}

/// What was seen before, file by file.
pub(super) struct Memory {
    files: HashMap<PathBuf, Remembered>,
    root: PathBuf,
    patience: Patience,
}

#[derive(Default)]
struct Remembered {
    settling: Settling,
    /// Of the settled content.
    state: Option<FileState>,
}

impl Memory {
    pub(super) fn new(root: PathBuf, patience: Patience) -> Self {
        Memory { files: HashMap::new(), root, patience }
    }

    /// One walk. With `trust`, files whose stamps have not changed are not read again. Those in `whole` were
    /// renamed into their places, so that nothing of them is still to come.
    pub(super) fn look(&mut self, limits: Limits, trust: bool, whole: &HashSet<PathBuf>) -> Seen {
        let root = self.root.clone();
        let mut pass = Pass::new(self, trust, whole);
        let mut walked = walk(&root, limits, &mut pass);
        let Pass { seen, unsettled, .. } = pass;
        // Nearly in order: cheaper than one insertion after the other.
        let seen: BTreeMap<PathBuf, FileState> = seen.into_iter().collect();
        let trouble = std::mem::take(&mut walked.trouble);
        let complete = trouble.is_empty();
        if complete && self.files.len() > seen.len() {
            self.files.retain(|path, _| seen.contains_key(path));
        }
        Seen { snapshot: Snapshot { complete, files: seen, trouble }, walked, unsettled }
    }

    /// Reads these files, and no others: their states, and which of them are not settled. None if one of the
    /// paths is anything but a file that was read before, or one that no manifest can be in: then only a walk
    /// tells what became of it. That a file is gone is told by a walk too.
    pub(super) fn glance(&mut self, paths: &BTreeSet<PathBuf>, whole: &HashSet<PathBuf>) -> Option<Glimpse> {
        if paths.is_empty() {
            return None;
        }
        let root = self.root.clone();
        let known: HashSet<PathBuf> =
            paths.iter().filter(|path| self.files.contains_key(*path)).cloned().collect();
        let mut pass = Pass::new(self, false, whole);
        if !revisit(&root, paths, &known, &mut pass) {
            return None;
        }
        let Pass { seen: files, unsettled, .. } = pass;
        Some(Glimpse { files, unsettled })
    }
}

struct Pass<'a> {
    memory: &'a mut Memory,
    trust: bool,
    whole: &'a HashSet<PathBuf>,
    now: Instant,
    seen: Vec<(PathBuf, FileState)>,
    unsettled: HashSet<PathBuf>,
}

impl Visitor for Pass<'_> {
    fn knows(&self, path: &Path, stamp: &Stamp) -> bool {
        let stamp_of = |remembered: &Remembered| remembered.settling.stamp() == Some(stamp);
        self.trust && self.memory.files.get(path).is_some_and(stamp_of)
    }

    fn saw(&mut self, path: PathBuf, sight: Sight) {
        let state = match sight {
            Sight::Content { stamp, digest, bytes } => self.content(&path, stamp, digest, &bytes),
            Sight::Known => self.memory.files.get(&path).and_then(|remembered| remembered.state.clone()),
            Sight::Vanished => {
                self.unsettled.insert(path.clone());
                None
            }
            Sight::Unreadable => None,
            Sight::Refused(message) => {
                self.memory.files.remove(&path);
                let diagnostic = Diagnostic::of_file(self.memory.root.join(&path), &message);
                Some(FileState::Broken(Arc::new(Broken::new(vec![diagnostic], &[]))))
            }
        };
        self.seen.push((path, state.unwrap_or(FileState::Unsettled)));
    }
}

impl<'a> Pass<'a> {
    fn new(memory: &'a mut Memory, trust: bool, whole: &'a HashSet<PathBuf>) -> Self {
        let (seen, unsettled) = (Vec::new(), HashSet::new());
        Pass { memory, trust, whole, now: Instant::now(), seen, unsettled }
    }

    fn content(&mut self, path: &Path, stamp: Stamp, digest: [u8; 32], bytes: &[u8]) -> Option<FileState> {
        let Memory { files, root, patience } = &mut *self.memory;
        let remembered = files.entry(path.to_owned()).or_default();
        let look = Look { stamp, digest, blank: bytes.iter().all(u8::is_ascii_whitespace) };
        let whole = !look.blank && self.whole.contains(path);
        let age = if whole { Duration::MAX } else { stamp.age() };
        match remembered.settling.look(look, age, self.now, patience) {
            Verdict::Wait => {
                self.unsettled.insert(path.to_owned());
                return None;
            }
            Verdict::Same => {}
            Verdict::New => remembered.state = Some(FileState::of(&root.join(path), bytes)),
        }
        remembered.state.clone()
    }
}
