//! The time, injected: the host's, or one that follows tokio's paused clock in simulations.
//!
//! There are two times. What people are told, and what outlives the daemon, is *wall time*: a [`Timestamp`].
//! It can be set, forwards and back, while VMs run. So whatever is waited for stands on tokio's [`Instant`],
//! which nobody sets; what an earlier daemon recorded is brought over once ([`Clock::instant_of`]).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

/// Tells wall time.
#[derive(Clone, Default)]
pub enum Clock {
    /// The host's clock.
    #[default]
    Host,
    /// Another's.
    Told(Arc<dyn Fn() -> Timestamp + Send + Sync>),
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if matches!(self, Clock::Host) { "Host" } else { "Told" })
    }
}

impl Clock {
    /// A clock that shows this time now, and goes as tokio's does.
    pub fn simulated(now: Timestamp) -> Self {
        let begun = Instant::now();
        Clock::Told(Arc::new(move || after(now, begun.elapsed())))
    }

    /// Now.
    pub fn now(&self) -> Timestamp {
        match self {
            Clock::Host => Timestamp::now(),
            Clock::Told(tell) => tell(),
        }
    }

    /// The wall time after a wait, as things are.
    pub(super) fn after(&self, wait: Duration) -> Timestamp {
        after(self.now(), wait)
    }

    /// Where a wall time is on tokio's clock, as things are.
    pub(super) fn instant_of(&self, time: Timestamp) -> Instant {
        let (now, left) = (Instant::now(), time.duration_since(self.now()));
        let moved = match left.is_negative() {
            true => now.checked_sub(left.unsigned_abs()),
            false => now.checked_add(left.unsigned_abs()),
        };
        moved.unwrap_or(now)
    }
}

fn after(time: Timestamp, wait: Duration) -> Timestamp {
    let wait = SignedDuration::try_from(wait).unwrap_or(SignedDuration::MAX);
    time.saturating_add(wait).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn wall_times_are_found_on_the_clock_that_nobody_sets() {
        let clock = Clock::simulated(Timestamp::from_second(1_000).unwrap());
        tokio::time::sleep(Duration::from_secs(5)).await;
        let now = Instant::now();
        assert_eq!(clock.now().as_second(), 1_005);
        assert_eq!(clock.instant_of(clock.now()), now);
        assert_eq!(clock.instant_of(clock.after(Duration::from_secs(7))), now + Duration::from_secs(7));
        assert_eq!(clock.instant_of(Timestamp::from_second(1_002).unwrap()), now - Duration::from_secs(3));
    }
}
