//! An image's reconcile task: observe, plan, publish, act.

mod plan;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use async_trait::async_trait;

use self::plan::{Failure, Observed, Plan, Step, plan, status};
use super::backoff::Backoff;
use super::pulls::Share;
use super::task::{Outcome, Reconciler, Wake};
use super::world::World;
use crate::image::Reference;
use crate::object::{DiskStatus, ObjectKey, Uid};
use crate::store::{
    DiskState, ImageRecord, ImageUpdate, PinnedImage, PublishError, RemoveImageError, Severity,
};

/// What an image's task remembers between looks. All of it can be lost.
pub(super) struct ImageTask {
    world: Arc<World>,
    key: ObjectKey,
    uid: Uid,
    backoff: Backoff,
    failure: Option<Failure>,
    share: Option<Share>,
}

impl ImageTask {
    pub(super) fn new(world: Arc<World>, key: ObjectKey, uid: Uid) -> Self {
        let backoff = Backoff::new(world.settings.backoff, world.entropy.clone());
        ImageTask { world, key, uid, backoff, failure: None, share: None }
    }

    fn observe(&mut self, record: &ImageRecord) -> Observed {
        let deleted = record.object.metadata.deletion_timestamp.is_some();
        if self.backoff.observe((record.object.metadata.generation, deleted)) {
            self.failure = None;
        }
        let digest = record.image.as_ref().map(|pin| &pin.digest);
        let disk = digest.and_then(|digest| match self.world.store.disk(digest)?.state {
            DiskState::Ready { path, size, .. } => {
                Some(DiskStatus { path: path.display().to_string(), size })
            }
            DiskState::Installing { .. } | DiskState::Removing => None,
        });
        let foreign = self.share.as_ref().is_some_and(|share| Some(share.digest()) != digest);
        if disk.is_some() || foreign || deleted {
            self.share = None;
        }
        Observed {
            disk,
            pull: self.share.as_ref().map(Share::state),
            failure: self.failure.clone(),
            closed_until: self.backoff.closed_until(self.world.clock.now()),
        }
    }

    /// Announces the change that the new status makes visible.
    fn announce(&self, record: &ImageRecord, plan: &Plan) {
        let before = &record.object.status;
        let said = before.conditions.iter().find(|condition| condition.kind == "Ready");
        let news = said.is_none_or(|said| said.reason != plan.reason) && before.phase != plan.phase;
        let severity = match plan.phase {
            "Ready" | "Pulling" => Severity::Normal,
            "Backoff" | "Failed" => Severity::Warning,
            _ => return,
        };
        if news {
            self.world.event(&self.key, self.uid, severity, &plan.reason, &plan.message);
        }
    }

    fn pull(&mut self, pin: &PinnedImage) -> Result<(), StepError> {
        let reference = parse(&pin.reference)?;
        self.share = Some(self.world.pulls.join(&reference, &pin.digest));
        Ok(())
    }

    async fn resolve(&mut self, record: &ImageRecord, wake: &mut Wake) -> Result<(), StepError> {
        let text = record.object.spec.source.oci.reference.clone();
        let reference = parse(&text)?;
        let images = self.world.images.clone();
        let Some(resolved) = wake.unless_woken(images.resolve(&reference)).await else {
            return Ok(());
        };
        let digest = resolved.map_err(|error| {
            StepError::Failed(Failure {
                reason: error.reason.to_owned(),
                message: error.message,
                transient: error.transient,
            })
        })?;
        let update = ImageUpdate {
            generation: Some(record.object.metadata.generation),
            image: Some(Some(PinnedImage { reference: text, digest })),
            status: None,
        };
        self.world.store.publish_image(&self.key, self.uid, update).await?;
        self.failure = None;
        self.backoff.reset();
        self.world.collector.notify_one();
        Ok(())
    }

    /// One brief transaction looks up, checks the references and removes the record; the collector
    /// removes the files. An image in use is left, and looked at again when one of its VMs changes.
    async fn remove(&mut self) -> Result<Removal, StepError> {
        match self.world.store.remove_image(&self.key, self.uid).await {
            Ok(()) => {
                let message = "the image is gone, and its base disk unless something else uses it";
                self.world.event(&self.key, self.uid, Severity::Normal, "Deleted", message);
                self.world.collector.notify_one();
                Ok(Removal::Done)
            }
            Err(RemoveImageError::Stale) => Err(StepError::Stale),
            Err(error @ RemoveImageError::InUse { .. }) => Ok(Removal::InUse(error.to_string())),
            Err(error) => Err(StepError::store(&error)),
        }
    }

    async fn publish(&self, record: &ImageRecord, seen: &Observed, plan: &Plan) {
        let status = Some(status(record, seen, plan, self.world.clock.now()));
        let update = ImageUpdate { status, ..ImageUpdate::default() };
        if let Err(error) = self.world.store.publish_image(&self.key, self.uid, update).await {
            tracing::debug!(image = %self.key, %error, "status not published");
        }
    }

    fn fail(&mut self, failure: Failure) {
        self.backoff.fail(self.world.clock.now());
        tracing::warn!(image = %self.key, reason = failure.reason, "{}", failure.message);
        self.failure = Some(failure);
    }
}

#[async_trait]
impl Reconciler for ImageTask {
    async fn reconcile(&mut self, wake: &mut Wake) -> Outcome {
        let world = self.world.clone();
        let Some(record) =
            world.store.image(&self.key).filter(|record| record.object.metadata.uid == Some(self.uid))
        else {
            return Outcome::Gone;
        };
        let seen = self.observe(&record);
        let plan = plan(&record, &seen);
        self.announce(&record, &plan);
        self.publish(&record, &seen, &plan).await;
        let done = match plan.step {
            Step::Wait(until) => return Outcome::Wait(until),
            Step::Resolve => self.resolve(&record, wake).await,
            Step::Pull(ref pin) => self.pull(pin),
            Step::Remove => match self.remove().await {
                Ok(Removal::Done) => return Outcome::Gone,
                Ok(Removal::InUse(message)) => {
                    let plan = Plan { reason: "InUse".to_owned(), message, ..plan };
                    self.publish(&record, &seen, &plan).await;
                    return Outcome::Wait(None);
                }
                Err(error) => Err(error),
            },
        };
        if let Err(StepError::Failed(failure)) = done {
            self.fail(failure);
        }
        Outcome::Again
    }

    async fn panicked(&mut self, message: &str) -> Outcome {
        self.share = None;
        let message = format!("a step failed unexpectedly: {message}; please report this");
        self.fail(Failure { reason: "InternalError".to_owned(), message, transient: true });
        Outcome::Again
    }

    async fn changed(&mut self) {
        match self.share.as_mut() {
            Some(share) => share.changed().await,
            None => std::future::pending().await,
        }
    }
}

fn parse(text: &str) -> Result<Reference, StepError> {
    text.parse().map_err(|error: crate::image::ReferenceError| {
        StepError::Failed(Failure {
            reason: "InvalidReference".to_owned(),
            message: error.to_string(),
            transient: false,
        })
    })
}

/// What became of a removal.
enum Removal {
    Done,
    /// VMs use the image; says which.
    InUse(String),
}

/// Why a step did not get done.
enum StepError {
    /// What it was based on has changed: decide anew.
    Stale,
    /// It failed.
    Failed(Failure),
}

impl StepError {
    fn store(error: &dyn std::error::Error) -> Self {
        let reason = "StoreFailed".to_owned();
        StepError::Failed(Failure { reason, message: error.to_string(), transient: true })
    }
}

impl From<PublishError> for StepError {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Stale => StepError::Stale,
            PublishError::Store(error) => StepError::store(&error),
        }
    }
}
