//! One pull a digest, shared by everyone who waits for it.
//!
//! In: [`Pulls::join`] with a source and its digest. Out: a base disk, installed and published in
//! the store, and meanwhile a [`PullState`] for everyone's conditions. Guaranteed: pulls of different
//! digests overlap up to the configured limit; a digest has one pull and one retry, however many
//! wait and by whatever `sources`; a pull that nobody waits for any more is cancelled and leaves nothing.

mod sources;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::FutureExt;
use jiff::Timestamp;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use uuid::Uuid;

use self::sources::Sources;
use super::backoff::{Backoff, BackoffPolicy};
use super::clock::Clock;
use super::collector::Bell;
use super::entropy::Entropy;
use super::meters::Meters;
use super::pace::Pace;
use super::promotion::Promoter;
use super::task::message_of;
use crate::image::{BaseDisk, Digest, ImageError, Images, Progress, Source, StagedDisk};
use crate::latest;
use crate::metrics::{Guarded, Histogram};
use crate::object::{Kind, ObjectKey, PullProgress, Quantity};
use crate::store::{DiskClaim, PublishError, Store, StoreError};
use crate::timeline::{OpenSpan, Outcome, Phase, Recorder, Subject};

/// How often an installing or removing rival is looked at again.
const RIVAL_POLL: Duration = Duration::from_millis(50);
/// How often waiting objects hear of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// How far a pull is.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum PullState {
    /// It waits for one of the permits.
    Queued,
    /// It runs.
    Running(PullProgress),
    /// It failed; it is tried again at the time given, if trying can help. Attempts count from the pull's
    /// begin: who asks after everybody has gone, and the next daemon, begin anew.
    Failed { reason: &'static str, message: String, attempt: u32, retry: Option<Timestamp> },
    /// The base disk is there.
    Done,
}

/// All pulls under way.
pub(super) struct Pulls {
    shop: Arc<Shop>,
    /// Guards the map only: look-up and insertion, never a pull.
    under_way: Guarded<HashMap<Digest, Weak<Pull>>>,
}

/// What a pull works with.
pub(super) struct Shop {
    pub(super) images: Arc<dyn Images>,
    pub(super) promoter: Promoter,
    pub(super) store: Store,
    /// One for each pull at a time.
    pub(super) permits: Semaphore,
    pub(super) backoff: BackoffPolicy,
    pub(super) clock: Clock,
    pub(super) entropy: Entropy,
    /// Told after each install, because a disk may be nobody's by now, and when there was no room for one.
    pub(super) collector: Arc<Bell>,
    pub(super) recorder: Recorder,
    pub(super) meters: Arc<Meters>,
}

struct Pull {
    /// What it was first wanted as.
    source: Source,
    common: Arc<Common>,
    task: AbortHandle,
}

/// What a pull's task and its shares have in common.
struct Common {
    state: latest::Sender<PullState>,
    /// The guard covers a look at the list, or a change of it.
    sources: Guarded<Sources>,
    /// Ends the wait after a failed attempt.
    hurry: Notify,
}

impl Common {
    /// The next attempt is made as soon as can be.
    fn hurry(&self) {
        self.hurry.notify_one();
        if matches!(*self.state.borrow(), PullState::Failed { .. }) {
            self.state.send_replace(PullState::Queued);
        }
    }
}

impl Drop for Pull {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A share in a pull. The pull lives as long as one of its shares.
pub(super) struct Share {
    digest: Digest,
    source: Source,
    state: latest::Receiver<PullState>,
    pull: Arc<Pull>,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.pull.common.sources.with(|sources| sources.leave(&self.source));
    }
}

impl Share {
    pub(super) fn digest(&self) -> &Digest {
        &self.digest
    }

    pub(super) fn state(&self) -> PullState {
        self.state.borrow().clone()
    }

    /// Ends the wait for the next attempt, if there is one, even if its source refused for good: somebody
    /// asks for it now.
    pub(super) fn hurry(&self) {
        if matches!(self.state(), PullState::Failed { .. }) {
            self.pull.common.sources.with(|sources| sources.ask(&self.source));
            self.pull.common.hurry();
        }
    }

    /// Resolves when the state changed. Cancel-safe.
    pub(super) async fn changed(&mut self) {
        self.state.changed().await.expect("the sender is in the pull");
    }
}

impl Pulls {
    pub(super) fn new(shop: Shop) -> Self {
        Pulls { shop: Arc::new(shop), under_way: Guarded::default() }
    }

    /// A share in the digest's pull, which starts if there is none. A source that is new to one that failed is
    /// tried at once.
    pub(super) fn join(&self, source: &Source, digest: &Digest) -> Share {
        let (pull, fresh) = self.under_way.with(|under_way| {
            under_way.retain(|_, pull| pull.strong_count() > 0);
            let running =
                under_way.get(digest).and_then(Weak::upgrade).filter(|pull| !pull.task.is_finished());
            running.map(|pull| (pull, false)).unwrap_or_else(|| {
                let pull = Arc::new(self.shop.clone().start(source.clone(), digest.clone()));
                under_way.insert(digest.clone(), Arc::downgrade(&pull));
                (pull, true)
            })
        });
        if !fresh && pull.common.sources.with(|sources| sources.join(source)) {
            pull.common.hurry();
        }
        let state = pull.common.state.subscribe();
        Share { digest: digest.clone(), source: source.clone(), state, pull }
    }

    /// The pulls under way, by digest: what each was first wanted as, and how far it is.
    pub(super) fn running(&self) -> Vec<(Digest, Source, PullState)> {
        let pulls: Vec<(Digest, Arc<Pull>)> = self.under_way.with(|under_way| {
            let alive = under_way.iter().filter_map(|(digest, pull)| Some((digest.clone(), pull.upgrade()?)));
            alive.collect()
        });
        let state = |pull: &Pull| (pull.source.clone(), pull.common.state.borrow().clone());
        let mut running: Vec<_> = pulls
            .iter()
            .map(|(digest, pull)| (digest.clone(), state(pull)))
            .filter(|(_, (_, state))| *state != PullState::Done)
            .map(|(digest, (source, state))| (digest, source, state))
            .collect();
        running.sort_by(|a, b| a.0.cmp(&b.0));
        running
    }

    /// How long the map's guard was held, each time.
    pub(super) fn guard_times(&self) -> &Histogram {
        self.under_way.held()
    }

    /// Pulls that could begin now.
    pub(super) fn free_permits(&self) -> usize {
        self.shop.permits.available_permits()
    }
}

impl Shop {
    fn start(self: Arc<Self>, source: Source, digest: Digest) -> Pull {
        let mut sources = Sources::default();
        sources.join(&source);
        let state = latest::Sender::new(PullState::Queued);
        let common = Arc::new(Common { state, sources: Guarded::new(sources), hurry: Notify::new() });
        let shared = common.clone();
        let task = tokio::spawn(async move { self.pull(&digest, &shared).await });
        Pull { source, common, task: task.abort_handle() }
    }

    /// Tries until it is done. When all sources refused for good it waits for another.
    async fn pull(&self, digest: &Digest, common: &Common) {
        let Common { state, hurry, .. } = common;
        let mut backoff = Backoff::new(self.backoff, self.entropy.clone());
        let mut refusal = PullState::Queued;
        loop {
            let next = common.sources.with(|sources| sources.next());
            let Some(source) = next else {
                state.send_replace(refusal.clone());
                hurry.notified().await;
                continue;
            };
            state.send_replace(PullState::Queued);
            let error = match self.attempt(&source, digest, state).await {
                Ok(()) => {
                    self.meters.pull("done");
                    state.send_replace(PullState::Done);
                    return;
                }
                Err(error) => error,
            };
            self.count(&error);
            tracing::warn!(image = %source, %digest, %error, "pull failed");
            common.sources.with(|sources| sources.failed(&source, !error.transient()));
            let wait = error.transient().then(|| backoff.fail());
            let failed = PullState::Failed {
                reason: error.reason(),
                message: error.to_string(),
                attempt: backoff.failures().max(1),
                retry: wait.map(|wait| self.clock.after(wait)),
            };
            let Some(wait) = wait else {
                refusal = failed;
                continue;
            };
            state.send_replace(failed);
            let backing_off = self.span(&source, digest, Phase::Backoff);
            tokio::select! {
                biased;
                () = hurry.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
            backing_off.end(Outcome::Done);
        }
    }

    fn count(&self, error: &PullError) {
        self.meters.pull("failed");
        self.meters.failure("pull", error.reason());
        if error.reason() == ImageError::NO_SPACE {
            self.collector.starve();
        }
    }

    /// Stage, claim, install, publish. Only the claim and the publication are transactions; both
    /// are over before and after anything slow.
    async fn attempt(
        &self,
        source: &Source,
        digest: &Digest,
        state: &latest::Sender<PullState>,
    ) -> Result<(), PullError> {
        if self.ready(digest) {
            return Ok(());
        }
        let waiting = self.span(source, digest, Phase::PullWait);
        let _permit = self.permits.acquire().await.expect("the permits are never closed");
        waiting.end(Outcome::Done);
        let pulling = self.span(source, digest, Phase::Pull);
        // Sound: a pull that panicked is begun anew, in a staging folder of its own.
        let staged = AssertUnwindSafe(self.stage(source, digest, state)).catch_unwind().await;
        let staged = staged.map_err(|panic| PullError::Panic(message_of(panic.as_ref())));
        let staged = ended(pulling, staged.and_then(|staged| Ok(staged?)))?;
        let installing = self.span(source, digest, Phase::Install);
        // From here on the steps are few and quick, and run to their end even if everybody who
        // waited has gone: a living daemon never leaves a claim behind.
        let (images, store, collector) = (self.images.clone(), self.store.clone(), self.collector.clone());
        let claim = self.entropy.uuid();
        let install = tokio::spawn(async move {
            let installed = install(images, store, staged, claim).await;
            // Here, where it is told even if nobody waits any more: then the disk is nobody's.
            collector.notify_one();
            installed
        });
        let installed = install.await.unwrap_or_else(|panic| Err(PullError::Panic(panic.to_string())));
        ended(installing, installed)
    }

    fn span(&self, source: &Source, digest: &Digest, phase: Phase) -> OpenSpan {
        let pull = Subject::Pull { reference: source.to_string(), digest: digest.to_string() };
        self.recorder.open(pull, phase, "", None)
    }

    fn ready(&self, digest: &Digest) -> bool {
        self.store.disk(digest).is_some_and(|disk| disk.is_ready())
    }

    async fn stage(
        &self,
        source: &Source,
        digest: &Digest,
        state: &latest::Sender<PullState>,
    ) -> Result<StagedDisk, ImageError> {
        let (sender, progress) = watch::channel(Progress::default());
        let (mut pace, mut told) = (Pace::default(), PullProgress::default());
        state.send_replace(PullState::Running(told.clone()));
        let stage = async {
            match source {
                Source::Vm(vm) => {
                    let key = ObjectKey::new(Kind::Vm, &vm.namespace, &vm.name);
                    let promotion = self.promoter.promote(&key, &vm.authorized_keys).await?;
                    self.images.stage_root(promotion.root.clone(), digest, &sender).await
                }
                _ => self.images.stage(source, digest, &sender).await,
            }
        };
        tokio::pin!(stage);
        let mut tick = tokio::time::interval(PROGRESS_INTERVAL);
        loop {
            tokio::select! {
                biased;
                staged = &mut stage => {
                    self.meters.pulled(progress.borrow().bytes_done);
                    return staged;
                }
                _ = tick.tick() => {
                    let now = pace.observe(Instant::now(), &progress.borrow());
                    if now != told {
                        told = now;
                        state.send_replace(PullState::Running(told.clone()));
                    }
                }
            }
        }
    }
}

/// The result, after its span was ended by it.
fn ended<T, E: std::fmt::Display>(span: OpenSpan, result: Result<T, E>) -> Result<T, E> {
    match &result {
        Ok(_) => span.end(Outcome::Done),
        Err(error) => span.fail(&error.to_string()),
    };
    result
}

/// Claim, rename, publish. Of two that install one digest, one is granted the claim; the other's
/// staged disk goes with its folder.
async fn install(
    images: Arc<dyn Images>,
    store: Store,
    staged: StagedDisk,
    claim: Uuid,
) -> Result<(), PullError> {
    let digest = staged.digest.clone();
    loop {
        match store.claim_disk(&digest, claim).await? {
            DiskClaim::Granted => break,
            DiskClaim::Ready => return Ok(()),
            DiskClaim::Taken | DiskClaim::Removing => tokio::time::sleep(RIVAL_POLL).await,
        }
    }
    // Sound: what a panic left half done goes with the abandoned disk.
    let installed = AssertUnwindSafe(images.install(staged)).catch_unwind().await;
    let error = match installed {
        Ok(Ok(BaseDisk { path, size, config, .. })) => {
            store.publish_disk(&digest, claim, path, Quantity::bytes(size), config).await?;
            return Ok(());
        }
        Ok(Err(error)) => error.into(),
        Err(panic) => PullError::Panic(message_of(panic.as_ref())),
    };
    store.abandon_disk(&digest, claim).await?;
    Err(error)
}

/// Why an attempt failed.
#[derive(Debug, thiserror::Error)]
enum PullError {
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Publish(#[from] PublishError),
    #[error("the pull failed unexpectedly: {0}; please report this")]
    Panic(String),
}

impl PullError {
    fn reason(&self) -> &'static str {
        match self {
            PullError::Image(error) => error.reason,
            PullError::Store(_) | PullError::Publish(_) => "StoreFailed",
            PullError::Panic(_) => "InternalError",
        }
    }

    fn transient(&self) -> bool {
        match self {
            PullError::Image(error) => error.transient,
            PullError::Store(_) | PullError::Publish(_) | PullError::Panic(_) => true,
        }
    }
}
