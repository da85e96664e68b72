//! Watching: durable changes in the order of their versions, complete or [`Expired`].

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::broadcast;

use super::Store;
use super::engine::{Engine, Progress};
use super::error::Expired;
use super::events::Event;
use super::request::Change;
use crate::latest;

/// Changes taken from the history at a time: enough to be quick, few enough to hold the guard briefly.
const CHUNK: usize = 128;

impl Store {
    /// Watches changes after the version `from`, for example a [list](Store::list)'s; by default
    /// those from now on.
    ///
    /// # Errors
    /// [`Expired`] if changes since then are no longer kept, or if the version was never reached.
    pub fn watch(&self, from: Option<u64>) -> Result<Watch, Expired> {
        let cursor = self.engine().read(|state| {
            let from = from.unwrap_or(state.version());
            if from > state.version() {
                return Err(Expired);
            }
            state.history.check(from)?;
            Ok(from)
        })?;
        let engine = Arc::clone(self.engine());
        Ok(Watch { progress: engine.progress(), engine, cursor, taken: VecDeque::new() })
    }

    /// Watches events that are recorded from now on, repeated ones included.
    pub fn watch_events(&self) -> EventWatch {
        EventWatch { events: self.engine().listen() }
    }
}

/// Changes of objects, each once, in the order of their versions, after they became durable.
pub struct Watch {
    engine: Arc<Engine>,
    progress: latest::Receiver<Progress>,
    /// The version of the last change taken from the history.
    cursor: u64,
    taken: VecDeque<Change>,
}

impl Watch {
    /// The next change. Cancel-safe. Waits for ever once the store is closed.
    ///
    /// # Errors
    /// [`Expired`] if the watcher lags so far behind that changes were dropped; it stays so.
    pub async fn next(&mut self) -> Result<Change, Expired> {
        loop {
            if let Some(change) = self.taken.pop_front() {
                return Ok(change);
            }
            let durable = self.progress.borrow_and_update().version;
            let changes = self.engine.read(|state| state.history.between(self.cursor, durable, CHUNK))?;
            if let Some(last) = changes.last() {
                self.cursor = last.version;
                self.taken = changes.into();
            } else {
                self.progress.changed().await.expect("the sender is in the engine");
            }
        }
    }
}

/// New and repeated events, in the order in which they are recorded.
pub struct EventWatch {
    events: broadcast::Receiver<Arc<Event>>,
}

impl EventWatch {
    /// The next event. Cancel-safe. Waits for ever once the store is gone.
    ///
    /// # Errors
    /// [`Expired`] if the watcher lagged so far behind that events were dropped; the next call goes
    /// on with the oldest that is still kept.
    pub async fn next(&mut self) -> Result<Event, Expired> {
        match self.events.recv().await {
            Ok(event) => Ok(Arc::unwrap_or_clone(event)),
            Err(broadcast::error::RecvError::Lagged(_)) => Err(Expired),
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}
