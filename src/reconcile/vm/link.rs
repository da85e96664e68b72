//! Keeps the link to a guest up, for as long as its process lives.
//!
//! One background task a VM: connects, shakes hands, forwards the guest's state, and connects anew
//! when the link breaks. Out: a [`LinkState`] to watch.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use vmlet_wire::GuestState;

use crate::agent::{Agent, LogSink};
use crate::hypervisor::Driver;

/// The wait between two attempts to connect: the VMM makes its socket within this order of time.
const RETRY: Duration = Duration::from_millis(20);
/// The longest wait between two attempts.
const RETRY_LONGEST: Duration = Duration::from_secs(1);

/// The link as it is now.
#[derive(Clone, Default)]
pub(super) struct LinkState {
    /// The connection, the guest's last reported state, and since when.
    pub up: Option<(Agent, GuestState, Instant)>,
    /// The last reported state, link or not.
    pub last: Option<GuestState>,
}

/// The task and its state. Dropping it closes the link.
pub(super) struct Link {
    state: watch::Receiver<LinkState>,
    task: AbortHandle,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Link {
    /// Starts connecting.
    pub(super) fn start(driver: Arc<dyn Driver>, dir: PathBuf, logs: LogSink) -> Self {
        let (sender, state) = watch::channel(LinkState::default());
        let task = tokio::spawn(async move {
            let mut wait = RETRY;
            loop {
                match connect(driver.as_ref(), &dir, logs.clone()).await {
                    Ok(agent) => {
                        wait = RETRY;
                        follow(&agent, &sender).await;
                        sender.send_modify(|state| state.up = None);
                    }
                    Err(message) => tracing::debug!(dir = %dir.display(), message, "guest link not up yet"),
                }
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(RETRY_LONGEST);
            }
        });
        Link { state, task: task.abort_handle() }
    }

    /// The state, marked as seen.
    pub(super) fn look(&mut self) -> LinkState {
        self.state.borrow_and_update().clone()
    }

    /// Resolves when the state changed since the last look. Cancel-safe.
    pub(super) async fn changed(&mut self) {
        if self.state.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

async fn connect(driver: &dyn Driver, dir: &std::path::Path, logs: LogSink) -> Result<Agent, String> {
    let stream = driver.connect(dir).await.map_err(|error| error.to_string())?;
    Agent::connect(stream, logs).await.map_err(|error| error.to_string())
}

/// Forwards the guest's state until the link is gone.
async fn follow(agent: &Agent, sender: &watch::Sender<LinkState>) {
    let mut guest = agent.guest();
    loop {
        let state = guest.borrow_and_update().clone();
        let up = Some((agent.clone(), state.clone(), Instant::now()));
        sender.send_replace(LinkState { up, last: Some(state) });
        tokio::select! {
            biased;
            // First: the last state is told even if the link ends right after it.
            changed = guest.changed() => if changed.is_err() { return },
            () = agent.closed() => return,
        }
    }
}
