//! Runs many simulations, on all cores.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Runs `test` for every number, and returns what failed, in order.
pub(crate) fn each(
    numbers: Range<u64>,
    test: impl Fn(u64) -> Result<(), String> + Sync,
) -> Vec<(u64, String)> {
    let next = AtomicU64::new(numbers.start);
    let failed = Mutex::new(Vec::new());
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= numbers.end {
                        return;
                    }
                    let outcome = catch_unwind(AssertUnwindSafe(|| test(number)));
                    let outcome = outcome.unwrap_or_else(|_| Err("it panicked".to_owned()));
                    if let Err(why) = outcome {
                        failed.lock().unwrap().push((number, why));
                    }
                }
            });
        }
    });
    let mut failed = failed.into_inner().unwrap();
    failed.sort();
    failed
}
