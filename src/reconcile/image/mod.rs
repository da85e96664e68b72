//! An image's reconcile task: observe, plan, publish, act.
//!
//! ```text
//!  record, world ─▶ observe ─▶ Observed ─▶ plan ─▶ Step, words ─▶ status ─▶ store
//!       ▲       (disks, pull)             (pure)       │
//!       └──────────────────────────────────────────────┴─▶ act ─▶ images, kernels, store
//! ```
//!
//! One step a look. A pull is held as a share in it, and wakes the task; it is never inside a step.

mod act;
mod activity;
mod observe;
mod plan;
mod status;
mod step;

#[cfg(test)]
mod tests;

use std::mem::discriminant;
use std::sync::Arc;

use async_trait::async_trait;

use self::activity::activity;
use self::observe::Observed;
use self::plan::plan;
use self::status::status;
use self::step::{Failure, Plan, Step};
use super::attempts::Attempts;
use super::pulls::Share;
use super::step::Steps;
use super::task::{Outcome, Reconciler, Wake};
use super::track::Track;
use super::world::World;
use crate::object::{Kind, ObjectKey, Uid};
use crate::store::{ImageRecord, ImageUpdate, Severity};

/// What an image's task remembers between looks. All of it can be lost.
pub(super) struct ImageTask {
    world: Arc<World>,
    key: ObjectKey,
    uid: Uid,
    attempts: Attempts<Step>,
    share: Option<Share>,
    track: Track,
}

impl ImageTask {
    pub(super) fn new(world: Arc<World>, key: ObjectKey, uid: Uid) -> Self {
        let attempts = Attempts::new(&world);
        let track = Track::new(world.recorder.clone(), key.clone());
        ImageTask { world, key, uid, attempts, share: None, track }
    }

    /// Announces the change that the new status makes visible.
    fn announce(&self, record: &ImageRecord, seen: &Observed, plan: &Plan) {
        let before = &record.object.status;
        let said = before.conditions.iter().find(|condition| condition.kind == "Ready");
        let news = said.is_none_or(|said| said.reason != plan.reason) && before.phase != plan.phase;
        // A step that failed was told of when it did.
        let told = seen.failure.as_ref().is_some_and(|failure| failure.message == plan.message);
        let severity = match plan.phase {
            "Ready" | "Pulling" => Severity::Normal,
            "Backoff" | "Failed" if !told => Severity::Warning,
            _ => return,
        };
        if news {
            self.world.event(&self.key, self.uid, severity, &plan.reason, &plan.message);
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
        self.attempts.fail(&self.world, &self.key, self.uid, failure);
    }
}

#[async_trait]
impl Reconciler for ImageTask {
    async fn reconcile(&mut self, wake: &mut Wake) -> Outcome {
        let record = self.world.store.image(&self.key);
        let Some(record) = record.filter(|record| record.object.metadata.uid == Some(self.uid)) else {
            self.track.finish();
            return Outcome::Gone;
        };
        if self.attempts.observe(&record.object.metadata, None)
            && let Some(share) = &self.share
        {
            share.hurry();
        }
        let seen = self.observe(&record);
        let plan = plan(&record, &seen);
        self.track.enter(&activity(&record, &plan));
        self.announce(&record, &seen, &plan);
        // What a removal comes to is known after it: a look that changes nothing writes nothing, or the
        // image and its VMs would wake each other for ever.
        if plan.step != Step::Remove {
            self.publish(&record, &seen, &plan).await;
        }
        if let Step::Wait(until) = plan.step {
            return Outcome::Wait(until);
        }
        self.world.meters.step(Kind::Image, plan.step.name());
        self.act(&record, &seen, &plan, wake).await
    }

    async fn panicked(&mut self, message: &str) -> Outcome {
        self.share = None;
        // Which step it was says nothing: whatever failed, an image waits.
        self.fail(Failure::of_panic(message, discriminant(&Step::Wait(None))));
        // Not at once, in case that it was the look that panicked.
        Outcome::Wait(self.attempts.closed_until())
    }

    async fn changed(&mut self) {
        match self.share.as_mut() {
            Some(share) => share.changed().await,
            None => std::future::pending().await,
        }
    }
}
