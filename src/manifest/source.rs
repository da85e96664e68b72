//! A folder of manifests as a stream of snapshots.
//!
//! ```text
//!  notify ──wake──▶ walk ──bytes──▶ settling ──settled bytes──▶ decode ──▶ Snapshot ──▶ watch channel
//!  timer  ────────▶
//! ```
//!
//! Guarantees: a snapshot holds nothing half-written, as far as patience can tell; a snapshot that may have
//! missed something says so (`complete`), and then absence means nothing. Change notifications are only a
//! reason to look, and looking is what counts: lost ones cost time, never correctness. Where they name known
//! files and nothing else, a glance at these is enough, however many others there are; whatever else happens
//! costs a walk, and so does every `rescan`.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::decode::{Located, decode};
use super::diagnostic::Diagnostic;
use super::memory::{Glimpse, Memory, Seen};
use super::scan::Limits;
use super::stability::Patience;
use super::watcher::{News, Watcher};

/// What a folder declared at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Whether everything was seen. If not, what is absent may well be there.
    pub complete: bool,
    /// What there is, by path below the folder. A path may also be a folder's, if it is a link that is refused.
    pub files: BTreeMap<PathBuf, FileState>,
    /// Why it is not complete.
    pub trouble: Vec<String>,
}

/// What is known of a file.
#[derive(Clone, Debug)]
pub enum FileState {
    /// Its objects.
    Good(Arc<Vec<Located>>),
    /// It has errors; its objects stay as they last were.
    Broken(Arc<Broken>),
    /// It is being written or cannot be read now; its objects stay as they last were.
    Unsettled,
}

/// Most files of a folder are the very ones of the last look: those need no comparison.
impl PartialEq for FileState {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (FileState::Good(own), FileState::Good(other)) => Arc::ptr_eq(own, other) || own == other,
            (FileState::Broken(own), FileState::Broken(other)) => Arc::ptr_eq(own, other) || own == other,
            (FileState::Unsettled, FileState::Unsettled) => true,
            _ => false,
        }
    }
}

impl FileState {
    /// What a file at `path` with these bytes declares.
    pub fn of(path: &Path, bytes: &[u8]) -> Self {
        let decoded = decode(path, bytes);
        if decoded.diagnostics.is_empty() {
            FileState::Good(Arc::new(decoded.objects))
        } else {
            FileState::Broken(Arc::new(Broken::new(decoded.diagnostics, bytes)))
        }
    }
}

/// A file that is not used.
#[derive(Clone, Debug, PartialEq)]
pub struct Broken {
    /// Why: at least one.
    pub diagnostics: Vec<Diagnostic>,
    /// What could be read of it.
    text: String,
}

impl Broken {
    /// A file with this text.
    pub fn new(diagnostics: Vec<Diagnostic>, text: &[u8]) -> Self {
        Broken { diagnostics, text: String::from_utf8_lossy(text).into_owned() }
    }

    /// Whether the file may mean to declare an object of this name: the name stands in it as a word.
    pub fn mentions(&self, name: &str) -> bool {
        let word = |char: char| char.is_ascii_alphanumeric() || char == '-';
        self.text.split(|char| !word(char)).any(|found| found == name)
    }
}

/// When to look, how long to wait, how much to take in.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Notified changes are looked at once in this time at most, longer if a walk takes that long.
    pub debounce: Duration,
    /// A walk that reads every file anew, notified or not.
    pub rescan: Duration,
    /// When a file is settled.
    pub patience: Patience,
    /// How much to take in.
    pub limits: Limits,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            debounce: Duration::from_millis(200),
            rescan: Duration::from_secs(30),
            patience: Patience::default(),
            limits: Limits::default(),
        }
    }
}

/// A folder of manifests, watched.
#[derive(Debug)]
pub struct DirectorySource {
    root: PathBuf,
    settings: Settings,
}

/// How long a change waits for others to join it.
const GATHER: Duration = Duration::from_millis(20);

impl DirectorySource {
    /// A source; it does nothing before [`run`](Self::run). The folder need not exist yet.
    pub fn new(root: PathBuf, settings: Settings) -> Self {
        DirectorySource { root: std::path::absolute(&root).unwrap_or(root), settings }
    }

    /// What the folder declares now, without patience: for `validate` and `diff`.
    pub fn scan_once(&self) -> Snapshot {
        let patience = Patience { settle: Duration::ZERO, old: Duration::ZERO, empty: Duration::ZERO };
        let mut memory = Memory::new(self.root.clone(), patience);
        memory.look(self.settings.limits, false, &HashSet::new()).snapshot
    }

    /// Sends a snapshot whenever it differs from the one before, until cancelled.
    pub async fn run(self, out: watch::Sender<Arc<Snapshot>>, cancel: CancellationToken) {
        let wake = Arc::new(Notify::new());
        let mut eyes = Eyes {
            memory: Memory::new(self.root.clone(), self.settings.patience),
            watcher: Watcher::new(&self.root, Arc::clone(&wake)),
            glances: false,
            unsettled: HashSet::new(),
        };
        let mut read_all: Option<Instant> = None;
        let mut restless: u32 = 0;
        loop {
            let start = Instant::now();
            let trust = read_all.is_some_and(|at| start.duration_since(at) < self.settings.rescan);
            if !trust {
                read_all = Some(start);
            }
            let (limits, last) = (self.settings.limits, out.borrow().clone());
            let task = tokio::task::spawn_blocking(move || {
                let looked = eyes.look(limits, trust, &last);
                (eyes, looked)
            });
            let looked;
            (eyes, looked) = tokio::select! {
                () = cancel.cancelled() => return,
                done = task => match done {
                    Ok(done) => done,
                    Err(error) => match error.try_into_panic() {
                        Ok(panic) => std::panic::resume_unwind(panic),
                        Err(_) => return, // the runtime is going away
                    },
                },
            };
            publish(&out, looked.snapshot);
            restless = if looked.again == Again::Later { 0 } else { restless.saturating_add(1) };
            let rest = start.elapsed() * if restless == 0 { 4 } else { restless.min(5) - 1 };
            let next = next_look(&self.settings, looked.again, rest, &wake);
            tokio::select! {
                () = cancel.cancelled() => return,
                () = next => {}
            }
        }
    }
}

fn publish(out: &watch::Sender<Arc<Snapshot>>, snapshot: Snapshot) {
    out.send_if_modified(|last| {
        let changed = **last != snapshot;
        if changed {
            if snapshot.complete != last.complete {
                for trouble in &snapshot.trouble {
                    tracing::warn!(%trouble, "manifests are not read completely; nothing is deleted");
                }
            }
            *last = Arc::new(snapshot);
        }
        changed
    });
}

/// Returns when it is time to look again. `rest` is the time since the last look that a folder in constant motion
/// is left alone, so that it costs a bounded share of one core.
async fn next_look(settings: &Settings, again: Again, rest: Duration, wake: &Notify) {
    let pause = match again {
        Again::AtOnce => return sleep(rest).await,
        Again::Soon => settings.patience.settle.max(GATHER).max(rest),
        Again::Later => settings.rescan,
    };
    let spacing = sleep(settings.debounce.max(rest));
    tokio::select! {
        () = sleep(pause) => {}
        () = wake.notified() => {
            tokio::join!(spacing, sleep(GATHER));
        }
    }
}

/// When to look again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Again {
    Later,
    /// Something is not settled.
    Soon,
    /// Something may have changed between the walk and the watch.
    AtOnce,
}

struct Looked {
    snapshot: Snapshot,
    again: Again,
}

/// What the blocking side of a source owns.
struct Eyes {
    memory: Memory,
    watcher: Watcher,
    /// Whether the last look left nothing in doubt: every folder is watched, and no link makes a file of one
    /// place the content of another.
    glances: bool,
    /// The files that the last look did not believe yet.
    unsettled: HashSet<PathBuf>,
}

impl Eyes {
    /// `last` is what the look before this one saw.
    fn look(&mut self, limits: Limits, trust: bool, last: &Snapshot) -> Looked {
        let news = self.watcher.take_news();
        if let Some(looked) = self.glance(trust, &news, last) {
            return looked;
        }
        let Seen { snapshot, walked, unsettled } = self.memory.look(limits, trust, &news.renamed);
        let armed = self.watcher.arm(walked.folders);
        self.glances = snapshot.complete && !walked.links && armed.all && !armed.fresh;
        self.unsettled = unsettled;
        let again = if armed.fresh { Again::AtOnce } else { self.settled() };
        Looked { snapshot, again }
    }

    /// Looks at nothing but what was touched. None if that may not be all there is to see.
    fn glance(&mut self, trust: bool, news: &News, last: &Snapshot) -> Option<Looked> {
        let touched = news.touched.as_ref().filter(|_| trust && self.glances)?;
        let paths: BTreeSet<PathBuf> = touched.union(&self.unsettled).cloned().collect();
        let Glimpse { states, unsettled } = self.memory.glance(&paths, &news.renamed)?;
        self.unsettled = unsettled;
        let mut snapshot = last.clone();
        snapshot.files.extend(states);
        Some(Looked { snapshot, again: self.settled() })
    }

    fn settled(&self) -> Again {
        if self.unsettled.is_empty() { Again::Later } else { Again::Soon }
    }
}
