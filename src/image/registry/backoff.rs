//! When to try again.

use std::time::{Duration, SystemTime};

use rand::Rng;
use reqwest::header::HeaderMap;

use super::{Failure, RETRY_AFTER};
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
    pub(super) fn new(settings: &Settings, attempts: u32) -> Self {
        Backoff {
            left: attempts,
            attempts,
            first: settings.backoff,
            pause: settings.backoff,
            max: settings.backoff_max,
        }
    }

    /// Waits before the next attempt, or gives the failure back if there is none. An attempt that got
    /// somewhere does not count, and those before it neither.
    pub(super) async fn after(&mut self, failure: Failure, progressed: bool) -> Result<(), ImageError> {
        if progressed {
            (self.left, self.pause) = (self.attempts, self.first);
        } else {
            self.left = self.left.saturating_sub(1);
        }
        let Some(asked) = failure.retry.filter(|_| self.left > 0) else { return Err(failure.error) };
        let pause = self.pause.mul_f64(rand::rng().random_range(0.5..1.5)).max(asked.unwrap_or_default());
        let pause = pause.min(self.max);
        self.pause = self.pause.saturating_mul(2).min(self.max);
        tracing::debug!(error = %failure.error, ?pause, "the registry failed, trying again");
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

/// For how long a server does not want to be asked: seconds, or a date (RFC 9110, section 10.2.3).
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => Some(httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_say_when_to_come_back() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        let after = |text: &str| {
            retry_after(&HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())]), now)
                .map(|d| d.as_secs())
        };
        assert_eq!(after("120"), Some(120));
        assert_eq!(after("Sun, 06 Nov 1994 08:50:37 GMT"), Some(60));
        assert_eq!(after("Sun, 06 Nov 1994 08:00:00 GMT"), Some(0));
        assert_eq!(after("soon"), None);
        assert_eq!(after("-1"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_double_up_to_a_bound() {
        let second = Duration::from_secs(1);
        let settings = Settings { backoff: second, backoff_max: 8 * second, ..Settings::default() };
        let mut backoff = Backoff::new(&settings, 100);
        for pause in [1, 2, 4, 8, 8, 8] {
            let began = tokio::time::Instant::now();
            assert!(backoff.after(Failure::broken("broken".to_owned()), false).await.is_ok());
            let (least, most) = (pause * second / 2, (pause * second * 3 / 2).min(8 * second));
            // The clock ticks in milliseconds.
            let waited = began.elapsed();
            assert!(waited >= least && waited <= most + Duration::from_millis(1), "{pause}: {waited:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn progress_starts_the_count_anew() {
        let settings = Settings { attempts: 2, ..Settings::default() };
        let mut backoff = Backoff::new(&settings, 2);
        let broken = || Failure::broken("broken".to_owned());
        assert!(backoff.after(broken(), false).await.is_ok());
        assert!(backoff.after(broken(), true).await.is_ok());
        assert!(backoff.after(broken(), false).await.is_ok());
        assert!(backoff.after(broken(), false).await.is_err());
        let started = tokio::time::Instant::now();
        let day = Failure { retry: Some(Some(Duration::from_secs(86_400))), ..broken() };
        assert!(Backoff::new(&settings, 2).after(day, false).await.is_ok());
        assert_eq!(started.elapsed(), settings.backoff_max, "the wait is capped");
    }
}
