//! Keeps the store's declarations equal to a folder's: from snapshots to transactions.
//!
//! In: the folder's snapshots, the store's deletions, the time. Out: declared and undeclared objects,
//! problems, events. Each pass compares everything anew, so nothing is lost by a pass that fails.

mod note;

use std::collections::BTreeMap;
use std::mem;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::change::{About, CONFLICT, Change, Held};
use super::desired::{changes, edited};
use super::mass_delete::{MassDeleteGuard, MassDeleteSettings};
use super::readiness::Readiness;
use super::recorder::Recorder;
use super::source::{FileState, Snapshot};
use crate::object::{AnyObject, DependencyError, Kind, ObjectKey, strongest};
use crate::reconcile::Clock;
use crate::store::{
    ChangeKind, DeclareError, Declared, Expired, Origin, Problem, Record, Store, StoreError, Watch,
};

/// Transactions that wait for one flush, at most.
const AT_ONCE: usize = 256;
/// The wait after missed changes, which may have been deletions.
const MISSED: Duration = Duration::from_secs(1);

/// Applies snapshots until cancelled. `root` is the folder that they are of: a source that is at work from this
/// call on.
pub fn keep(
    store: Store,
    root: &Path,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    settings: MassDeleteSettings,
    readiness: watch::Sender<Readiness>,
    clock: Clock,
    cancel: CancellationToken,
) -> impl Future<Output = ()> + use<> {
    let source = Origin::source_of(root);
    store.attend(&source);
    let keeper = Keeper {
        recorder: Recorder::new(store.clone(), root, clock.clone()),
        store,
        source,
        guard: MassDeleteGuard::new(settings),
        applied: None,
        awaits: false,
        contested: BTreeMap::new(),
        clock,
    };
    keeper.run(snapshots, readiness, cancel)
}

/// Runs transactions in order, many at once: each waits for its own flush, and one flush serves many.
async fn together<T>(
    transactions: impl IntoIterator<Item = impl Future<Output = Result<T, StoreError>>>,
) -> Result<Vec<T>, StoreError> {
    stream::iter(transactions).buffered(AT_ONCE).try_collect().await
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// Resolves when an object is gone, and its name may be declared anew; or when one that is declared here as
/// well is about to go: that another follows it is to be said.
async fn freed(changes: &mut Watch, contested: &BTreeMap<ObjectKey, Problem>) {
    let goes = |record: &Record| {
        let said = contested.get(&record.key());
        record.metadata().deletion_timestamp.is_some() && said.is_some_and(|said| !said.is_redeclared())
    };
    loop {
        match changes.next().await {
            Ok(change) if change.kind == ChangeKind::Deleted || goes(&change.record) => return,
            Ok(_) => {}
            // Missed changes may have been deletions. The next call goes on from now.
            Err(Expired) => return tokio::time::sleep(MISSED).await,
        }
    }
}

struct Keeper {
    store: Store,
    source: String,
    recorder: Recorder,
    guard: MassDeleteGuard,
    /// The last snapshot, if all that it declares is in the store and nothing else, and nothing is wrong with it.
    applied: Option<Snapshot>,
    /// Whether a name is declared that an object still has which is being deleted, or another source's.
    awaits: bool,
    /// What the last look found declared that is another source's.
    contested: BTreeMap<ObjectKey, Problem>,
    clock: Clock,
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
    async fn run(
        mut self,
        mut snapshots: watch::Receiver<Arc<Snapshot>>,
        readiness: watch::Sender<Readiness>,
        cancel: CancellationToken,
    ) {
        let mut deletions = self.watch();
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                // The first of them: the channel's first value is a placeholder, not a look at the folder.
                changed = snapshots.changed() => if changed.is_err() { return },
                () = freed(&mut deletions, &self.contested), if self.awaits => {}
                () = until(self.guard.due().map(Instant::from_std)) => {}
            }
            // From before the pass on: what it waits for may be gone before it ends.
            deletions = self.watch();
            let snapshot = snapshots.borrow_and_update().clone();
            let applied = self.apply(&snapshot).await;
            readiness.send_modify(|ready| ready.advance(&snapshot, applied.as_ref().copied()));
            if let Err(error) = applied {
                // The store takes no more changes: the next daemon applies them.
                tracing::error!(%error, "the manifests could not be applied");
            }
        }
    }

    fn watch(&self) -> Watch {
        self.store.watch(None).expect("a watch from now on has missed nothing")
    }

    /// An edit costs no more for all that is not edited: that is left out.
    async fn apply(&mut self, snapshot: &Snapshot) -> Result<(), StoreError> {
        let Some(mut applied) = self.applied.take() else { return self.apply_all(snapshot).await };
        let Some(edited) = edited(&applied, snapshot) else { return self.apply_all(snapshot).await };
        let declared = edited.files.values().filter_map(|state| match state {
            FileState::Good(objects) => Some(objects.iter().map(|located| located.object.key())),
            _ => None,
        });
        let records = declared.flatten().filter_map(|key| self.store.record(&key));
        let held: Vec<Held> = records.map(|record| Held::from(&record)).collect();
        let quiet = self.compare(&held, &edited).await?;
        applied.files.extend(edited.files);
        self.applied = quiet.then_some(applied);
        Ok(())
    }

    async fn apply_all(&mut self, snapshot: &Snapshot) -> Result<(), StoreError> {
        let records = Kind::ALL.into_iter().flat_map(|kind| self.store.list(kind, None).0);
        let (own, others): (Vec<_>, Vec<_>) =
            records.partition(|record| record.origin().source == self.source);
        let held: Vec<Held> = own.iter().map(Held::from).collect();
        let settled = snapshot.files.values().all(|state| matches!(state, FileState::Good(_)));
        let quiet = self.compare(&held, snapshot).await? && snapshot.complete && settled;
        if snapshot.complete {
            self.inherit(others).await?;
        }
        self.applied = quiet.then(|| snapshot.clone());
        Ok(())
    }

    /// Makes the store agree. False if there is something wrong, or something to be done again.
    async fn compare(&mut self, held: &[Held], snapshot: &Snapshot) -> Result<bool, StoreError> {
        self.awaits = held.iter().any(|held| held.terminating);
        let before = mem::take(&mut self.contested);
        let (mut declarations, mut undeclared, mut problems) = (Vec::new(), Vec::new(), Vec::new());
        for change in changes(held, snapshot, &mut self.guard, Instant::now().into_std()) {
            match change {
                Change::Declare { object, path, line, take_over } => {
                    let origin = Origin { source: self.source.clone(), path, line };
                    declarations.push(Declaration { object, origin, take_over });
                }
                Change::Undeclare(key) => undeclared.push(key),
                Change::Problem { key, problem } => problems.push((key, problem)),
                Change::Warning { about, reason, message } => {
                    self.recorder.warn(about, reason, &message);
                }
            }
        }
        let refused = self.declare_all(declarations).await?;
        let mut quiet = refused.is_empty() && undeclared.is_empty() && problems.is_empty();
        self.undeclare(undeclared).await?;
        self.note(problems, refused).await?;
        self.contest(before, snapshot.complete).await?;
        quiet &= self.recorder.end_look(snapshot.complete) && !self.awaits;
        Ok(quiet)
    }

    /// Declares, in order. What is refused because of another declaration of this look may be right after
    /// it: the order within a look does not matter.
    async fn declare_all(&mut self, mut declarations: Vec<Declaration>) -> Result<Vec<Refused>, StoreError> {
        loop {
            let before = declarations.len();
            let refused = self.declare(declarations).await?;
            if refused.is_empty() || refused.len() == before {
                return Ok(refused);
            }
            declarations = refused.into_iter().map(|refused| refused.declaration).collect();
        }
    }

    /// One transaction each, in order.
    async fn declare(&mut self, declarations: Vec<Declaration>) -> Result<Vec<Refused>, StoreError> {
        let (store, now) = (self.store.clone(), self.clock.now());
        let declare = |declaration: Declaration| {
            let (store, Declaration { object, origin, take_over }) = (store.clone(), declaration.clone());
            async move { Ok((declaration, store.declare(*object, origin, take_over, now).await)) }
        };
        let mut refused = Vec::new();
        for (declaration, result) in together(declarations.into_iter().map(declare)).await? {
            refused.extend(self.declared(declaration, result)?);
        }
        Ok(refused)
    }

    /// Tells people what became of a declaration.
    fn declared(
        &mut self,
        declaration: Declaration,
        result: Result<Declared, DeclareError>,
    ) -> Result<Option<Refused>, StoreError> {
        let (key, place) = (declaration.object.key(), declaration.origin.to_string());
        match result {
            Ok(Declared::Created { .. }) => {
                self.recorder.event((&key).into(), "Declared", &format!("declared at {place}"))
            }
            Ok(Declared::Updated { changes, .. }) => {
                let shown: Vec<String> = changes.iter().map(ToString::to_string).collect();
                let effect =
                    strongest(&changes).map_or_else(String::new, |effect| format!("; effect: {effect}"));
                self.recorder.event((&key).into(), "SpecChanged", &format!("{}{effect}", shown.join(", ")));
            }
            Ok(Declared::MetadataUpdated | Declared::Unchanged) => {}
            // Declared again when it is gone: that is a change this loop waits for.
            Err(error @ DeclareError::Conflict { .. }) => {
                self.awaits = true;
                self.recorder.warn(About::Object(key.clone()), CONFLICT, &format!("{place}: {error}"));
                let message = format!(
                    "declared at {place} too, which is not in force: rename or remove one of the two"
                );
                self.contested.insert(key, Problem { reason: CONFLICT.to_owned(), message });
            }
            Err(DeclareError::Terminating) => {
                self.awaits = true;
                // The folder itself says so of what is its own.
                if !self.owns(&key) {
                    self.contested.insert(key, Problem::redeclared(&place));
                }
            }
            Err(DeclareError::Dependency(error)) => return Ok(Some(Refused { declaration, error })),
            Err(DeclareError::Store(error)) => return Err(error),
        }
        Ok(None)
    }
}
