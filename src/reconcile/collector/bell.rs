//! What the collector is told: that something may be unused by now, that a pull found no room, and what
//! somebody wants removed.

use std::mem;

use tokio::sync::{Notify, oneshot};

use crate::image::Digest;
use crate::metrics::{Guarded, Histogram};
use crate::storage::{RemovalError, Removed};

/// Wakes the collector.
#[derive(Default)]
pub(in crate::reconcile) struct Bell {
    rung: Notify,
    /// Guards the list only: a push, or taking it.
    orders: Guarded<Orders>,
}

/// What there is to do beside collecting.
#[derive(Default)]
pub(super) struct Orders {
    pub(super) starved: bool,
    pub(super) wishes: Vec<Wish>,
}

/// What somebody wants removed, and where the outcome goes.
pub(super) enum Wish {
    /// One disk.
    Disk(Digest, oneshot::Sender<Result<Removed, RemovalError>>),
    /// Every disk that nothing refers to.
    Unused(oneshot::Sender<Result<Vec<Removed>, RemovalError>>),
}

impl Bell {
    /// Something may be unused by now.
    pub(in crate::reconcile) fn notify_one(&self) {
        self.rung.notify_one();
    }

    /// A pull found no room.
    pub(in crate::reconcile) fn starve(&self) {
        self.order(|orders| orders.starved = true);
    }

    /// Removes a disk that nothing refers to, now.
    pub(in crate::reconcile) async fn remove(&self, digest: Digest) -> Result<Removed, RemovalError> {
        let (reply, outcome) = oneshot::channel();
        self.order(|orders| orders.wishes.push(Wish::Disk(digest, reply)));
        outcome.await.unwrap_or(Err(RemovalError::Stopping))
    }

    /// Removes every disk that nothing refers to, now.
    pub(in crate::reconcile) async fn remove_unused(&self) -> Result<Vec<Removed>, RemovalError> {
        let (reply, outcome) = oneshot::channel();
        self.order(|orders| orders.wishes.push(Wish::Unused(reply)));
        outcome.await.unwrap_or(Err(RemovalError::Stopping))
    }

    /// Resolves when there may be something to do. Cancel-safe.
    pub(super) async fn rung(&self) {
        self.rung.notified().await;
    }

    pub(super) fn take(&self) -> Orders {
        self.orders.with(mem::take)
    }

    /// How long the list's guard was held, each time.
    pub(in crate::reconcile) fn guard_times(&self) -> &Histogram {
        self.orders.held()
    }

    fn order(&self, order: impl FnOnce(&mut Orders)) {
        self.orders.with(order);
        self.rung.notify_one();
    }
}
