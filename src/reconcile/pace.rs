//! How fast a pull is: over the last seconds, so that a stall shows and a hiccup does not.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::image::Progress;
use crate::object::PullProgress;

/// What counts for the rate.
const WINDOW: Duration = Duration::from_secs(5);
/// Less says nothing.
const LEAST: Duration = Duration::from_secs(1);

/// How many bytes had arrived when.
#[derive(Debug, Default)]
pub(super) struct Pace {
    seen: VecDeque<(Instant, u64)>,
}

impl Pace {
    /// Takes in how far a pull is now.
    pub(super) fn observe(&mut self, now: Instant, progress: &Progress) -> PullProgress {
        self.seen.push_back((now, progress.bytes_done));
        // One that is older is kept: the window begins there.
        while self.seen.get(1).is_some_and(|(at, _)| now - *at >= WINDOW) {
            self.seen.pop_front();
        }
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        PullProgress {
            layers: count(progress.layers),
            layers_done: count(progress.layers_done),
            bytes: progress.bytes,
            bytes_done: progress.bytes_done,
            bytes_per_second: self.rate(now, progress.bytes_done),
        }
    }

    fn rate(&self, now: Instant, done: u64) -> Option<u64> {
        let (began, before) = self.seen.front()?;
        let passed = now - *began;
        (passed >= LEAST).then(|| (done.saturating_sub(*before) as f64 / passed.as_secs_f64()) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_of_the_last_seconds() {
        let (start, mut pace) = (Instant::now(), Pace::default());
        let mut rate = |seconds: u64, bytes_done| {
            let progress = Progress { layers: 1, layers_done: 0, bytes: 1000, bytes_done };
            pace.observe(start + Duration::from_secs(seconds), &progress).bytes_per_second
        };
        assert_eq!(rate(0, 0), None, "nothing is known yet");
        assert_eq!(rate(1, 100), Some(100));
        assert_eq!(rate(2, 400), Some(200));
        assert_eq!(rate(7, 400), Some(0), "it stands still");
        assert_eq!(rate(8, 500), Some(16), "since second 2");
        assert_eq!(rate(12, 0), Some(0), "it began anew");
    }
}
