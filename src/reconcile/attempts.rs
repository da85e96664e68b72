//! What a task remembers of its failures: the last one, how many there were in a row, and when the next try is.
//!
//! In: steps that failed or succeeded, and what the object declares by now. Out: the gate that plans keep to, and
//! for each failure an event, a count and a line in the log.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::backoff::{Backoff, Declared};
use super::clock::Clock;
use super::step::{Failure, Steps};
use super::world::World;
use crate::object::{ObjectKey, ObjectMeta, Uid};
use crate::store::Severity;

/// How far what was told of the next try may be off before it is told anew.
const OFF: Duration = Duration::from_secs(1);

/// One object's failures. They can be lost: then the next try is at once.
pub(super) struct Attempts<Step> {
    backoff: Backoff,
    failure: Option<Failure<Step>>,
    /// When people were told that the next try is.
    told: Timestamp,
}

impl<Step: Steps> Attempts<Step> {
    pub(super) fn new(world: &World) -> Self {
        let backoff = Backoff::new(world.settings.backoff, world.entropy.clone());
        Attempts { backoff, failure: None, told: Timestamp::MIN }
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
    pub(super) fn closed_until(&self) -> Option<Instant> {
        self.backoff.closed_until()
    }

    /// The same for people: as they were told, unless the wall clock was set since.
    pub(super) fn next_try(&self, clock: &Clock) -> Option<Timestamp> {
        let due = clock.after(self.closed_until()?.duration_since(Instant::now()));
        let off = self.told.duration_since(due).unsigned_abs() > OFF;
        Some(if off { due } else { self.told })
    }

    /// A step failed: no other try for a while. People are told.
    pub(super) fn fail(&mut self, world: &World, key: &ObjectKey, uid: Uid, failure: Failure<Step>) {
        let Failure { reason, message, .. } = &failure;
        self.told = world.clock.after(self.backoff.fail());
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
