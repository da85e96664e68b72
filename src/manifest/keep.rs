//! Keeps the store's declarations equal to a folder's: from snapshots to transactions.
//!
//! In: the folder's snapshots, the store's deletions, the time. Out: declared and undeclared objects,
//! problems, events. Each pass compares everything anew, so nothing is lost by a pass that fails.

use std::collections::HashSet;
use std::mem;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::desired::{Change, Held, MassDeleteGuard, MassDeleteSettings, REDECLARED, changes};
use super::source::Snapshot;
use crate::object::{AnyObject, DependencyError, Kind, ObjectKey, strongest};
use crate::store::{
    ChangeKind, DeclareError, Declared, Expired, Origin, Problem, Severity, Store, StoreError, Watch,
};

/// The wait after a pass that the store refused.
const RETRY: Duration = Duration::from_secs(1);

/// Applies snapshots until cancelled. `root` is the folder that they are of.
pub async fn keep(
    store: Store,
    root: &Path,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    settings: MassDeleteSettings,
    cancel: CancellationToken,
) {
    let source = format!("directory:{}", root.display());
    let mut keeper = Keeper {
        store,
        source,
        guard: MassDeleteGuard::new(settings),
        said: HashSet::new(),
        saying: HashSet::new(),
    };
    // The channel's first value is a placeholder, not a look at the folder.
    let mut seen = false;
    let mut deletions = keeper.watch();
    let mut retry = None;
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = snapshots.changed() => match changed {
                Ok(()) => seen = true,
                Err(_) => return,
            },
            () = deleted(&mut deletions) => {}
            () = until(keeper.guard.due()) => {}
            () = until(retry) => {}
        }
        if !seen {
            continue;
        }
        let snapshot = snapshots.borrow_and_update().clone();
        retry = keeper.apply(&snapshot).await.err().map(|error| {
            tracing::error!(%error, "the manifests could not be applied; tried again");
            Instant::now() + RETRY
        });
    }
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant.into()).await,
        None => std::future::pending().await,
    }
}

/// Resolves when an object is gone: its name may be declared anew.
async fn deleted(changes: &mut Watch) {
    loop {
        match changes.next().await {
            Ok(change) if change.kind != ChangeKind::Deleted => {}
            Ok(_) => return,
            // Missed changes may have been deletions. The next call goes on from now.
            Err(Expired) => return tokio::time::sleep(RETRY).await,
        }
    }
}

struct Keeper {
    store: Store,
    source: String,
    guard: MassDeleteGuard,
    /// Warnings of the last look and of this one, so that lasting trouble is told once.
    said: HashSet<String>,
    saying: HashSet<String>,
}

#[derive(Clone)]
struct Declaration {
    object: Box<AnyObject>,
    origin: Origin,
    take_over: bool,
}

/// A declaration that cannot be in force beside the others.
struct Refused {
    declaration: Declaration,
    error: DependencyError,
}

impl Keeper {
    fn watch(&self) -> Watch {
        self.store.watch(None).expect("a watch from now on has missed nothing")
    }

    async fn apply(&mut self, snapshot: &Snapshot) -> Result<(), StoreError> {
        let records = Kind::ALL.into_iter().flat_map(|kind| self.store.list(kind, None).0);
        let own = records.filter(|record| record.origin().source == self.source);
        let held: Vec<Held> = own.map(|record| Held::from(&record)).collect();
        let (mut refused, mut problems) = (Vec::new(), Vec::new());
        for change in changes(&held, snapshot, &mut self.guard, Instant::now()) {
            match change {
                Change::Declare { object, path, line, take_over } => {
                    let origin = Origin { source: self.source.clone(), path, line };
                    refused.extend(self.declare(Declaration { object, origin, take_over }).await?);
                }
                Change::Undeclare(key) => self.undeclare(&key).await?,
                Change::Problem { key, problem } => problems.push((key, problem)),
                Change::Warning { key, reason, message } => self.warn(key.as_ref(), reason, &message),
            }
        }
        let refused = self.declare_again(refused).await?;
        for (key, problem) in problems {
            if !refused.iter().any(|refused| refused.declaration.object.key() == key) {
                self.problem(&key, problem).await?;
            }
        }
        for refused in refused {
            self.refused(refused).await?;
        }
        self.said = mem::take(&mut self.saying);
        Ok(())
    }

    /// What was refused because of another declaration of this look may be right after it: the order
    /// within a look does not matter.
    async fn declare_again(&mut self, mut refused: Vec<Refused>) -> Result<Vec<Refused>, StoreError> {
        loop {
            let before = refused.len();
            let mut again = Vec::new();
            for Refused { declaration, .. } in refused {
                again.extend(self.declare(declaration).await?);
            }
            if again.len() == before {
                return Ok(again);
            }
            refused = again;
        }
    }

    async fn declare(&mut self, declaration: Declaration) -> Result<Option<Refused>, StoreError> {
        let Declaration { object, origin, take_over } = declaration.clone();
        let key = object.key();
        let place = origin.to_string();
        match self.store.declare(*object, origin, take_over, Timestamp::now()).await {
            Ok(Declared::Created { .. }) => self.event(&key, "Declared", &format!("declared at {place}")),
            Ok(Declared::Updated { changes, .. }) => {
                let shown: Vec<String> = changes.iter().map(ToString::to_string).collect();
                let effect =
                    strongest(&changes).map_or_else(String::new, |effect| format!("; effect: {effect}"));
                self.event(&key, "SpecChanged", &format!("{}{effect}", shown.join(", ")));
            }
            Ok(Declared::MetadataUpdated | Declared::Unchanged) => {}
            Err(error @ DeclareError::Conflict { .. }) => {
                self.warn(Some(&key), "Conflict", &format!("{place}: {error}"));
            }
            // Declared again when it is gone: that is a change this loop waits for.
            Err(DeclareError::Terminating) => {}
            Err(DeclareError::Dependency(error)) => return Ok(Some(Refused { declaration, error })),
            Err(DeclareError::Store(error)) => return Err(error),
        }
        Ok(None)
    }

    /// An object that exists keeps its last good spec, and says so; of another only an event can tell.
    async fn refused(&mut self, refused: Refused) -> Result<(), StoreError> {
        let Refused { declaration: Declaration { object, origin, .. }, error } = refused;
        let key = object.key();
        if self.store.record(&key).is_none() {
            self.warn(Some(&key), error.reason(), &format!("{origin}: {error}; it is not created"));
            return Ok(());
        }
        let message = format!("{origin}: {error}; the last spec stays");
        self.problem(&key, Some(Problem { reason: error.reason().to_owned(), message })).await
    }

    async fn undeclare(&self, key: &ObjectKey) -> Result<(), StoreError> {
        if self.store.undeclare(key, &self.source, Timestamp::now()).await? {
            self.event(key, "Undeclared", "its manifest is gone; it is deleted");
        }
        Ok(())
    }

    async fn problem(&self, key: &ObjectKey, problem: Option<Problem>) -> Result<(), StoreError> {
        let old = self.store.record(key).and_then(|record| record.problem().cloned());
        if !self.store.set_problem(key, problem.clone()).await? {
            return Ok(());
        }
        let is_news = |problem: &Problem| problem.reason == REDECLARED;
        match problem {
            Some(news) if is_news(&news) => self.event(key, REDECLARED, &news.message),
            Some(Problem { reason, message }) => self.record(key, Severity::Warning, &reason, &message),
            None if old.is_some_and(|old| is_news(&old)) => {}
            None => self.event(key, "ManifestGood", "its manifest is good again"),
        }
        Ok(())
    }

    fn warn(&mut self, key: Option<&ObjectKey>, reason: &str, message: &str) {
        let known = self.said.contains(message);
        self.saying.insert(message.to_owned());
        if known {
            return;
        }
        tracing::warn!(reason, "{message}");
        if let Some(key) = key {
            self.record(key, Severity::Warning, reason, message);
        }
    }

    fn event(&self, key: &ObjectKey, reason: &str, message: &str) {
        tracing::info!(object = %key, reason, "{message}");
        self.record(key, Severity::Normal, reason, message);
    }

    fn record(&self, key: &ObjectKey, severity: Severity, reason: &str, message: &str) {
        let uid = self.store.record(key).and_then(|record| record.object().metadata().uid);
        self.store.record_event(key, uid, severity, reason, message, Timestamp::now());
    }
}
