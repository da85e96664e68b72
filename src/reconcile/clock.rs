//! The time, injected: the host's, or one that follows tokio's paused clock in simulations.

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

/// Tells the time.
#[derive(Clone, Copy, Debug, Default)]
pub enum Clock {
    /// The host's clock.
    #[default]
    Host,
    /// A start time plus what has passed on tokio's clock.
    Tokio {
        /// The time at `at`.
        start: Timestamp,
        /// The instant that `start` belongs to.
        at: Instant,
    },
}

impl Clock {
    /// Now.
    pub fn now(&self) -> Timestamp {
        match self {
            Clock::Host => Timestamp::now(),
            Clock::Tokio { start, at } => {
                let passed = SignedDuration::try_from(at.elapsed()).unwrap_or(SignedDuration::MAX);
                start.saturating_add(passed).unwrap_or(Timestamp::MAX)
            }
        }
    }
}
