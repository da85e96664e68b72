//! When a failed step may be tried again.

use std::time::Duration;

use tokio::time::Instant;

use super::entropy::Entropy;
use crate::object::Uid;

/// How waits grow.
#[derive(Clone, Copy, Debug)]
pub struct BackoffPolicy {
    /// The first wait.
    pub first: Duration,
    /// The longest wait.
    pub longest: Duration,
}

impl BackoffPolicy {
    /// The wait after `failures` failures in a row (from 1 on), doubled each time, less up to a
    /// fifth by `jitter` (0 to 1) so that things that failed together do not return together.
    pub fn delay(&self, failures: u32, jitter: f64) -> Duration {
        let doubled =
            self.first.saturating_mul(1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX));
        doubled.min(self.longest).mul_f64(1.0 - 0.2 * jitter.clamp(0.0, 1.0))
    }
}

/// What a row of failures belongs to: another declaration is no part of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Declared {
    pub generation: i64,
    pub deleted: bool,
    /// The `Image` that a VM names, and its generation.
    pub image: Option<(Uid, i64)>,
}

/// An object's gate: closed for a while after each failure, opened by success or a new spec.
/// Status noise does not open it.
#[derive(Debug)]
pub(super) struct Backoff {
    policy: BackoffPolicy,
    entropy: Entropy,
    failures: u32,
    /// The declaration that the failures belong to.
    declared: Declared,
    /// On the clock that nobody sets.
    not_before: Option<Instant>,
}

impl Backoff {
    pub(super) fn new(policy: BackoffPolicy, entropy: Entropy) -> Self {
        Backoff { policy, entropy, failures: 0, declared: Declared::default(), not_before: None }
    }

    /// Opens the gate if the declaration is another than that of the last failure, and says so.
    pub(super) fn observe(&mut self, declared: Declared) -> bool {
        let new = self.declared != declared;
        if new {
            self.reset();
            self.declared = declared;
        }
        new
    }

    /// Closes the gate for the next, longer, wait, and tells how long that is.
    pub(super) fn fail(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let delay = self.policy.delay(self.failures, self.entropy.fraction());
        self.not_before = Instant::now().checked_add(delay);
        delay
    }

    /// Opens the gate and forgets the failures.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
        self.not_before = None;
    }

    /// When the gate opens, if it is closed now.
    pub(super) fn closed_until(&self) -> Option<Instant> {
        self.not_before.filter(|until| *until > Instant::now())
    }

    /// Failures in a row.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: BackoffPolicy =
        BackoffPolicy { first: Duration::from_secs(1), longest: Duration::from_secs(300) };

    #[test]
    fn waits_double_up_to_the_longest() {
        let seconds: Vec<u64> =
            [1, 2, 3, 9, 10, 33, u32::MAX].map(|n| POLICY.delay(n, 0.0).as_secs()).to_vec();
        assert_eq!(seconds, [1, 2, 4, 256, 300, 300, 300]);
        assert_eq!(POLICY.delay(1, 1.0), Duration::from_millis(800));
    }

    #[tokio::test(start_paused = true)]
    async fn only_time_success_or_a_new_spec_opens_the_gate() {
        let mut backoff = Backoff::new(POLICY, Entropy::Host);
        let declared = |generation| Declared { generation, ..Declared::default() };
        backoff.observe(declared(1));
        let wait = backoff.fail();
        assert!(wait > Duration::from_millis(799) && wait <= Duration::from_secs(1));
        backoff.observe(declared(1));
        assert_eq!(backoff.closed_until(), Some(Instant::now() + wait));
        tokio::time::sleep(wait).await;
        assert_eq!(backoff.closed_until(), None);
        backoff.fail();
        backoff.observe(declared(2));
        assert_eq!((backoff.closed_until(), backoff.failures()), (None, 0));
    }
}
