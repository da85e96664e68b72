//! A mutex whose hold times are measured, and that cannot be held across an await.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::histogram::Histogram;

/// A value behind a guard. Work under the guard is a closure without awaits: there is nothing that
/// could be kept.
#[derive(Debug, Default)]
pub struct Guarded<T> {
    value: Mutex<T>,
    held: Histogram,
}

impl<T> Guarded<T> {
    /// Guards a value.
    pub fn new(value: T) -> Self {
        Guarded { value: Mutex::new(value), held: Histogram::default() }
    }

    /// Does something brief with the value. After a panic under the guard the value is whatever it
    /// was then: see [`Guarded::poisoned`].
    pub fn with<R>(&self, work: impl FnOnce(&mut T) -> R) -> R {
        let mut value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        let since = Instant::now();
        let result = work(&mut value);
        let held = since.elapsed();
        // Counted outside, so that counting makes nobody wait.
        drop(value);
        self.held.record(held);
        result
    }

    /// Whether work under the guard has panicked.
    pub fn poisoned(&self) -> bool {
        self.value.is_poisoned()
    }

    /// How long the guard was held, each time.
    pub fn held(&self) -> &Histogram {
        &self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_hold_is_counted_with_all_of_its_work() {
        let guarded = Guarded::new(1);
        guarded.with(|value| *value += 1);
        let pause = std::time::Duration::from_millis(2);
        guarded.with(|_| std::thread::sleep(pause));
        assert_eq!(guarded.with(|value| *value), 2);
        let seen = guarded.held().snapshot();
        assert!(seen.count == 3 && seen.max_us >= 2000, "{seen:?}");
    }
}
