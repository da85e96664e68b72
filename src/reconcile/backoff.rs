//! When a failed step may be tried again.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

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
    not_before: Option<Timestamp>,
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

    /// Closes the gate for the next, longer, wait.
    pub(super) fn fail(&mut self, now: Timestamp) -> Timestamp {
        self.failures = self.failures.saturating_add(1);
        let delay = self.policy.delay(self.failures, self.entropy.fraction());
        let until = now.saturating_add(SignedDuration::try_from(delay).unwrap_or(SignedDuration::MAX));
        let until = until.unwrap_or(Timestamp::MAX);
        self.not_before = Some(until);
        until
    }

    /// Opens the gate and forgets the failures.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
        self.not_before = None;
    }

    /// When the gate opens, if it is closed now.
    pub(super) fn closed_until(&self, now: Timestamp) -> Option<Timestamp> {
        self.not_before.filter(|until| *until > now)
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

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn waits_double_up_to_the_longest() {
        let seconds: Vec<u64> =
            [1, 2, 3, 9, 10, 33, u32::MAX].map(|n| POLICY.delay(n, 0.0).as_secs()).to_vec();
        assert_eq!(seconds, [1, 2, 4, 256, 300, 300, 300]);
        assert_eq!(POLICY.delay(1, 1.0), Duration::from_millis(800));
    }

    #[test]
    fn only_time_success_or_a_new_spec_opens_the_gate() {
        let mut backoff = Backoff::new(POLICY, Entropy::Host);
        backoff.observe(Declared { generation: 1, ..Declared::default() });
        let until = backoff.fail(at(100));
        assert!(until > at(100) && until <= at(101));
        backoff.observe(Declared { generation: 1, ..Declared::default() });
        assert_eq!(backoff.closed_until(at(100)), Some(until));
        assert_eq!(backoff.closed_until(at(101)), None);
        backoff.observe(Declared { generation: 2, ..Declared::default() });
        assert_eq!((backoff.closed_until(at(100)), backoff.failures()), (None, 0));
    }
}
