//! What a task remembers of its failures: the last one, how many there were in a row, and when the next try is.
//!
//! In: steps that failed or succeeded, and what the object declares by now. Out: the gate that plans keep to, and
//! for each failure an event, a count and a line in the log.

use jiff::Timestamp;

use super::backoff::{Backoff, Declared};
use super::step::{Failure, Steps};
use super::world::World;
use crate::object::{ObjectKey, ObjectMeta, Uid};
use crate::store::Severity;

/// One object's failures. They can be lost: then the next try is at once.
pub(super) struct Attempts<Step> {
    backoff: Backoff,
    failure: Option<Failure<Step>>,
}

impl<Step: Steps> Attempts<Step> {
    pub(super) fn new(world: &World) -> Self {
        Attempts { backoff: Backoff::new(world.settings.backoff, world.entropy.clone()), failure: None }
    }

    /// A new generation forgets the failures of the one before it, and so does a deletion, or an edit of the
    /// `Image` that a VM names. Whether anything is new.
    pub(super) fn observe(&mut self, metadata: &ObjectMeta, image: Option<&ObjectMeta>) -> bool {
        let news = self.backoff.observe(Declared {
            generation: metadata.generation,
            deleted: metadata.deletion_timestamp.is_some(),
            image: image.and_then(|image| Some((image.uid?, image.generation))),
        });
        if news {
            self.failure = None;
        }
        news
    }

    /// The last step that failed, until one succeeds.
    pub(super) fn failure(&self) -> Option<&Failure<Step>> {
        self.failure.as_ref()
    }

    /// When the next try is, if it is not due yet.
    pub(super) fn closed_until(&self, now: Timestamp) -> Option<Timestamp> {
        self.backoff.closed_until(now)
    }

    /// A step failed: no other try for a while. People are told.
    pub(super) fn fail(&mut self, world: &World, key: &ObjectKey, uid: Uid, failure: Failure<Step>) {
        let Failure { reason, message, .. } = &failure;
        self.backoff.fail(world.clock.now());
        world.meters.failure(key.kind.singular(), reason);
        world.event(key, uid, Severity::Warning, reason, message);
        tracing::warn!(object = %key, reason, "{message}");
        self.failure = Some(failure);
    }

    /// A step succeeded that says nothing of those that failed before: the next failure counts on.
    pub(super) fn succeed(&mut self) {
        self.failure = None;
    }

    /// A step succeeded that is no part of a crash loop: the row of failures has ended.
    pub(super) fn advance(&mut self) {
        self.failure = None;
        self.end_row();
    }

    /// The row of failures has ended. The last one is told for as long as its step is not done.
    pub(super) fn end_row(&mut self) {
        self.backoff.reset();
    }

    /// Failures in a row.
    #[cfg(test)]
    pub(super) fn failures(&self) -> u32 {
        self.backoff.failures()
    }
}
