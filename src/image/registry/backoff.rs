//! When to try again.

use std::time::Duration;

use rand::Rng;

use super::Failure;
use crate::image::{ImageError, Settings};

/// Counts the failed attempts of one request and waits between them.
pub(super) struct Backoff {
    left: u32,
    attempts: u32,
    first: Duration,
    pause: Duration,
    max: Duration,
}

impl Backoff {
    pub(super) fn new(settings: &Settings) -> Self {
        Backoff {
            left: settings.attempts,
            attempts: settings.attempts,
            first: settings.backoff,
            pause: settings.backoff,
            max: settings.backoff_max,
        }
    }

    /// The last attempt got somewhere: start counting anew.
    pub(super) fn reset(&mut self) {
        self.left = self.attempts;
        self.pause = self.first;
    }

    /// Waits before the next attempt, or gives the failure back if there is none.
    pub(super) async fn after(&mut self, failure: Failure) -> Result<(), ImageError> {
        self.left = self.left.saturating_sub(1);
        let Some(asked) = failure.retry.filter(|_| self.left > 0) else { return Err(failure.error) };
        let pause = self.pause.mul_f64(rand::rng().random_range(0.5..1.5)).max(asked.unwrap_or_default());
        let pause = pause.min(self.max);
        self.pause = self.pause.saturating_mul(2).min(self.max);
        tracing::debug!(error = %failure.error, ?pause, "the registry failed, trying again");
        tokio::time::sleep(pause).await;
        Ok(())
    }
}
