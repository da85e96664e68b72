//! The generic loop: one task an object, one step at a time, woken by what matters to it.
//!
//! In: wake-ups (the object's declaration changed, a thing it waits for changed, a time came).
//! Out: whatever the kind's [`Reconciler`] does. Guaranteed: a wake-up during a step causes another
//! look; the loop never spins without one; a panic is a failed attempt of this object, counted and
//! backed off like any other.

#[cfg(test)]
mod tests;

use std::any::Any;
use std::panic::AssertUnwindSafe;

use async_trait::async_trait;
use futures_util::FutureExt;
use tokio::sync::watch;
use tokio::time::Instant;

/// One kind's way to bring an object nearer to its spec.
#[async_trait]
pub(super) trait Reconciler: Send {
    /// Looks at everything anew, publishes what it sees and takes at most one step.
    /// Infallible: every error ends in the object's status.
    async fn reconcile(&mut self, wake: &mut Wake) -> Outcome;

    /// Resolves when something other than the declaration changed. Cancel-safe.
    async fn changed(&mut self);

    /// A look or a step panicked: forgets all but the count of failures, backs off and says so in the
    /// status.
    async fn panicked(&mut self, message: &str) -> Outcome;
}

/// What follows a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Outcome {
    /// There may be another step to take.
    Again,
    /// Nothing to do before a wake-up, or this time if one is given.
    Wait(Option<Instant>),
    /// The object's record is gone.
    Gone,
}

/// The object's wake-up line. A slow step listens to it to give way to an edit or a deletion.
#[derive(Clone, Debug)]
pub(super) struct Wake(watch::Receiver<u64>);

impl Wake {
    pub(super) fn new(receiver: watch::Receiver<u64>) -> Self {
        Wake(receiver)
    }

    /// Runs a slow step unless a wake-up comes first: then the step is dropped and `None` returned.
    pub(super) async fn unless_woken<F: Future>(&mut self, slow: F) -> Option<F::Output> {
        tokio::select! {
            biased;
            () = self.woken() => None,
            output = slow => Some(output),
        }
    }

    async fn woken(&mut self) {
        if self.0.changed().await.is_err() {
            // The supervisor is gone: it aborts this task, there is nothing left to wake for.
            std::future::pending::<()>().await;
        }
        // Kept unseen, so that the loop looks again too.
        self.0.mark_changed();
    }
}

/// Runs an object's loop until its record is gone.
pub(super) async fn run(mut reconciler: Box<dyn Reconciler>, mut wake: Wake) {
    loop {
        wake.0.mark_unchanged();
        // Sound, here and below: what a panic left half done is forgotten by `panicked`.
        let look = AssertUnwindSafe(reconciler.reconcile(&mut wake)).catch_unwind().await;
        let mut outcome = match look {
            Ok(outcome) => outcome,
            Err(panic) => reconciler.panicked(&message_of(panic.as_ref())).await,
        };
        while let Outcome::Wait(until) = outcome {
            let changed = tokio::select! {
                biased;
                () = wake.woken() => Ok(()),
                changed = AssertUnwindSafe(reconciler.changed()).catch_unwind() => changed,
                () = sleep_until(until) => Ok(()),
            };
            outcome = match changed {
                Ok(()) => break,
                Err(panic) => reconciler.panicked(&message_of(panic.as_ref())).await,
            };
        }
        match outcome {
            Outcome::Again => tokio::task::yield_now().await,
            Outcome::Gone => return,
            Outcome::Wait(_) => {}
        }
    }
}

/// What `panic!` was told.
pub(super) fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

/// Until this time has come; for ever if there is none.
pub(super) async fn sleep_until(until: Option<Instant>) {
    match until {
        None => std::future::pending().await,
        Some(until) => tokio::time::sleep_until(until).await,
    }
}
