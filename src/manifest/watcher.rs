//! Wakes a source when something changes in or above its folder.
//!
//! Notifications lose events where folders come and go, so every folder of interest is watched by itself, is
//! watched anew when another folder has taken its place, and the folders above the root are watched for the
//! root's own comings and goings.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use notify::event::{ModifyKind, RenameMode};
use notify::{Config, Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;

/// Renamed files that are remembered between two looks; further ones are looked at twice, as all others.
const MAX_RENAMED: usize = 10_000;

/// Device and inode.
type Identity = (u64, u64);

/// The watches of a source.
pub(super) struct Watcher {
    root: PathBuf,
    /// None where the system gives no watches: then the source lives by its timer.
    watcher: Option<RecommendedWatcher>,
    armed: BTreeMap<PathBuf, Identity>,
    scope: Arc<Mutex<Scope>>,
    /// Files that were renamed into their places and not written to since, absolute.
    renamed: Arc<Mutex<HashSet<PathBuf>>>,
    /// Whether the lack of watches was said.
    warned: bool,
}

/// Which events matter.
#[derive(Default)]
struct Scope {
    /// Everything directly in these matters.
    folders: BTreeSet<PathBuf>,
    /// The root and everything above it, with and without links.
    spine: BTreeSet<PathBuf>,
}

impl Scope {
    fn holds(&self, path: &Path) -> bool {
        let inside = path.parent().is_some_and(|parent| self.folders.contains(parent));
        inside || self.folders.contains(path) || self.spine.contains(path)
    }
}

impl Watcher {
    pub(super) fn new(root: &Path, wake: Arc<Notify>) -> Self {
        let scope = Arc::new(Mutex::new(Scope::default()));
        let renamed = Arc::new(Mutex::new(HashSet::new()));
        let (seen, whole) = (Arc::clone(&scope), Arc::clone(&renamed));
        let handler = move |event: notify::Result<Event>| {
            if matters(&event, &seen) {
                if let Ok(event) = event {
                    note_renamed(&event, &mut whole.lock().unwrap_or_else(PoisonError::into_inner));
                }
                wake.notify_one();
            }
        };
        let watcher = RecommendedWatcher::new(handler, Config::default().with_follow_symlinks(false));
        let watcher = watcher.map_err(|error| warn(&error)).ok();
        let warned = watcher.is_none();
        Watcher { root: root.to_owned(), watcher, armed: BTreeMap::new(), scope, renamed, warned }
    }

    /// The files that were renamed into their places since the last call, by their paths below the root.
    /// Those who write so (editors, most tools) never leave a file half written under its own name.
    pub(super) fn take_renamed(&mut self) -> HashSet<PathBuf> {
        let renamed = std::mem::take(&mut *self.renamed.lock().unwrap_or_else(PoisonError::into_inner));
        if renamed.is_empty() {
            return renamed;
        }
        let real = std::fs::canonicalize(&self.root).unwrap_or_else(|_| self.root.clone());
        renamed.iter().filter_map(|path| path.strip_prefix(&real).ok()).map(Path::to_owned).collect()
    }

    /// Watches these folders and those above the root, and no others. True if a folder is watched now that
    /// was not before: what happened in it until now may be unseen.
    pub(super) fn arm(&mut self, folders: BTreeMap<PathBuf, Identity>) -> bool {
        let spine = spine(&self.root);
        let scope = Scope { folders: folders.keys().cloned().collect(), spine };
        let mut wanted = folders;
        for parent in scope.spine.iter().filter_map(|path| path.parent()) {
            if let Ok(metadata) = std::fs::metadata(parent) {
                wanted.insert(parent.to_owned(), (metadata.dev(), metadata.ino()));
            }
        }
        *self.scope.lock().unwrap_or_else(PoisonError::into_inner) = scope;
        let Some(watcher) = &mut self.watcher else { return false };
        self.armed.retain(|path, identity| {
            let keep = wanted.get(path) == Some(identity);
            if !keep {
                // A folder that is gone has taken its watch along.
                let _ = watcher.unwatch(path);
            }
            keep
        });
        let mut fresh = false;
        for (path, identity) in wanted {
            if self.armed.contains_key(&path) {
                continue;
            }
            match watcher.watch(&path, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.armed.insert(path, identity);
                    fresh = true;
                }
                Err(error) if !self.warned => {
                    self.warned = true;
                    warn(&error);
                }
                Err(_) => {}
            }
        }
        fresh
    }
}

fn warn(error: &notify::Error) {
    tracing::warn!(%error, "cannot watch all manifest folders; changes are seen by the timer, see fs.inotify");
}

fn matters(event: &notify::Result<Event>, scope: &Mutex<Scope>) -> bool {
    let Ok(event) = event else { return true };
    if matches!(event.kind, EventKind::Access(_)) {
        return false; // the walk's own reads
    }
    let scope = scope.lock().unwrap_or_else(PoisonError::into_inner);
    event.need_rescan() || event.paths.is_empty() || event.paths.iter().any(|path| scope.holds(path))
}

/// Keeps book of files that were renamed into their places and not touched since.
pub(super) fn note_renamed(event: &Event, renamed: &mut HashSet<PathBuf>) {
    match event.kind {
        // From another place that is not watched, or from one that is: the second path is the new one.
        EventKind::Modify(ModifyKind::Name(RenameMode::To | RenameMode::Both))
            if renamed.len() < MAX_RENAMED =>
        {
            renamed.extend(event.paths.last().cloned());
        }
        EventKind::Create(_) | EventKind::Modify(ModifyKind::Data(_) | ModifyKind::Any) | EventKind::Any => {
            for path in &event.paths {
                renamed.remove(path);
            }
        }
        _ => {}
    }
}

/// The root and everything above it: as given, and without links.
fn spine(root: &Path) -> BTreeSet<PathBuf> {
    let real = std::fs::canonicalize(root).unwrap_or_else(|_| root.to_owned());
    root.ancestors().chain(real.ancestors()).map(Path::to_owned).collect()
}
