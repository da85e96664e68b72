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

/// Files that are remembered as touched between two looks; more cost a walk.
const MAX_TOUCHED: usize = 100;

/// Device and inode.
type Identity = (u64, u64);

/// The watches of a source.
pub(super) struct Watcher {
    root: PathBuf,
    /// None where the system gives no watches: then the source lives by its timer.
    watcher: Option<RecommendedWatcher>,
    armed: BTreeMap<PathBuf, Identity>,
    scope: Arc<Mutex<Scope>>,
    /// Since the last look; its paths are absolute.
    news: Arc<Mutex<News>>,
    /// Whether the lack of watches was said.
    warned: bool,
}

/// What is known of the time between two looks.
#[derive(Debug, PartialEq)]
pub(super) struct News {
    /// Files that were renamed into their places and not written to since.
    pub(super) renamed: HashSet<PathBuf>,
    /// All that changed, if it is some entries of watched folders and no folder. None: anything may have.
    pub(super) touched: Option<HashSet<PathBuf>>,
}

impl Default for News {
    fn default() -> Self {
        News { renamed: HashSet::new(), touched: Some(HashSet::new()) }
    }
}

impl News {
    /// Takes in what an event, or the failure to get one, says of what is in scope.
    pub(super) fn note(&mut self, event: &notify::Result<Event>, scope: &Scope) {
        let Ok(event) = event else { return self.touched = None };
        note_renamed(event, &mut self.renamed);
        if event.need_rescan() || event.paths.is_empty() {
            self.touched = None;
        }
        for path in event.paths.iter().filter(|path| scope.holds(path)) {
            let Some(touched) = &mut self.touched else { return };
            if !scope.is_entry(path) || touched.len() >= MAX_TOUCHED {
                self.touched = None;
            } else {
                touched.insert(path.clone());
            }
        }
    }

    /// The same with paths below `root`.
    pub(super) fn below(self, root: &Path) -> News {
        let below = |path: &PathBuf| path.strip_prefix(root).map(Path::to_owned).ok();
        let touched = self.touched.and_then(|touched| touched.iter().map(below).collect());
        News { renamed: self.renamed.iter().filter_map(below).collect(), touched }
    }
}

/// What became of the watches.
pub(super) struct Armed {
    /// A folder is watched now that was not before: what happened in it until now may be unseen.
    pub(super) fresh: bool,
    /// Every folder is watched.
    pub(super) all: bool,
}

/// Which events matter.
#[derive(Default)]
pub(super) struct Scope {
    /// Everything directly in these matters.
    pub(super) folders: BTreeSet<PathBuf>,
    /// The root and everything above it, with and without links.
    pub(super) spine: BTreeSet<PathBuf>,
}

impl Scope {
    fn holds(&self, path: &Path) -> bool {
        self.is_inside(path) || self.folders.contains(path) || self.spine.contains(path)
    }

    fn is_inside(&self, path: &Path) -> bool {
        path.parent().is_some_and(|parent| self.folders.contains(parent))
    }

    /// Whether it is in a folder of interest and is none itself.
    fn is_entry(&self, path: &Path) -> bool {
        self.is_inside(path) && !self.folders.contains(path) && !self.spine.contains(path)
    }
}

impl Watcher {
    pub(super) fn new(root: &Path, wake: Arc<Notify>) -> Self {
        let scope = Arc::new(Mutex::new(Scope::default()));
        let news = Arc::new(Mutex::new(News::default()));
        let (seen, noted) = (Arc::clone(&scope), Arc::clone(&news));
        let handler = move |event: notify::Result<Event>| {
            let scope = seen.lock().unwrap_or_else(PoisonError::into_inner);
            if matters(&event, &scope) {
                noted.lock().unwrap_or_else(PoisonError::into_inner).note(&event, &scope);
                wake.notify_one();
            }
        };
        let watcher = RecommendedWatcher::new(handler, Config::default().with_follow_symlinks(false));
        let watcher = watcher.map_err(|error| warn(&error)).ok();
        let warned = watcher.is_none();
        Watcher { root: root.to_owned(), watcher, armed: BTreeMap::new(), scope, news, warned }
    }

    /// What happened since the last call, by paths below the root. Those who write by renaming (editors, most
    /// tools) never leave a file half written under its own name.
    pub(super) fn take_news(&mut self) -> News {
        let news = std::mem::take(&mut *self.news.lock().unwrap_or_else(PoisonError::into_inner));
        if news == News::default() {
            return news;
        }
        let real = std::fs::canonicalize(&self.root).unwrap_or_else(|_| self.root.clone());
        news.below(&real)
    }

    /// Watches these folders and those above the root, and no others.
    pub(super) fn arm(&mut self, folders: BTreeMap<PathBuf, Identity>) -> Armed {
        let spine = spine(&self.root);
        let scope = Scope { folders: folders.keys().cloned().collect(), spine };
        let mut wanted = folders;
        for parent in scope.spine.iter().filter_map(|path| path.parent()) {
            if let Ok(metadata) = std::fs::metadata(parent) {
                wanted.insert(parent.to_owned(), (metadata.dev(), metadata.ino()));
            }
        }
        *self.scope.lock().unwrap_or_else(PoisonError::into_inner) = scope;
        let Some(watcher) = &mut self.watcher else {
            return Armed { fresh: false, all: false };
        };
        self.armed.retain(|path, identity| {
            let keep = wanted.get(path) == Some(identity);
            if !keep {
                // A folder that is gone has taken its watch along.
                let _ = watcher.unwatch(path);
            }
            keep
        });
        let mut armed = Armed { fresh: false, all: true };
        for (path, identity) in wanted {
            if self.armed.contains_key(&path) {
                continue;
            }
            match watcher.watch(&path, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.armed.insert(path, identity);
                    armed.fresh = true;
                }
                Err(error) => {
                    armed.all = false;
                    if !self.warned {
                        self.warned = true;
                        warn(&error);
                    }
                }
            }
        }
        armed
    }
}

fn warn(error: &notify::Error) {
    tracing::warn!(%error, "cannot watch all manifest folders; changes are seen by the timer, see fs.inotify");
}

fn matters(event: &notify::Result<Event>, scope: &Scope) -> bool {
    let Ok(event) = event else { return true };
    if matches!(event.kind, EventKind::Access(_)) {
        return false; // the walk's own reads
    }
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
