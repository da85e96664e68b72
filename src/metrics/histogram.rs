//! Durations counted in buckets: cheap enough to measure every transaction.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// One, two and five of each power of ten.
const PER_DECADE: usize = 3;
/// From 1 µs to 10,000 s.
const BOUNDS: usize = 10 * PER_DECADE + 1;
/// What bucket `n` counts took at most so many nanoseconds, and more than the bound before. One more
/// bucket takes the rest.
const BOUND_NANOS: [u64; BOUNDS] = bounds();

const fn bounds() -> [u64; BOUNDS] {
    let mut all = [0; BOUNDS];
    let (mut index, mut decade) = (0, 1000);
    while index < BOUNDS {
        all[index] = decade * [1, 2, 5][index % PER_DECADE];
        if index % PER_DECADE == PER_DECADE - 1 {
            decade *= 10;
        }
        index += 1;
    }
    all
}

/// Counts durations, without a guard. Recording costs three additions.
#[derive(Debug)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS + 1],
    sum_nanos: AtomicU64,
    max_nanos: AtomicU64,
}

/// What a histogram held at one moment. Percentiles are upper bounds: the true value is at most
/// this, and at least two fifths of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HistogramSnapshot {
    /// Observations in all.
    pub count: u64,
    /// Half of them took at most this long, in microseconds.
    pub p50_us: u64,
    /// 99 % of them took at most this long, in microseconds.
    pub p99_us: u64,
    /// The longest, in microseconds, rounded up.
    pub max_us: u64,
}

/// The bounds that a histogram is shown with; what lies beyond them is in the first or the last bucket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shown {
    pub(super) from: Duration,
    pub(super) to: Duration,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram {
            buckets: std::array::from_fn(|_| AtomicU64::new(0)),
            sum_nanos: AtomicU64::new(0),
            max_nanos: AtomicU64::new(0),
        }
    }
}

impl Histogram {
    /// Counts a duration.
    pub fn record(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUND_NANOS.partition_point(|bound| *bound < nanos);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum_nanos.fetch_add(nanos, Relaxed);
        self.max_nanos.fetch_max(nanos, Relaxed);
    }

    /// What is in it now.
    pub fn snapshot(&self) -> HistogramSnapshot {
        let counts: Vec<u64> = self.buckets.iter().map(|bucket| bucket.load(Relaxed)).collect();
        let count: u64 = counts.iter().sum();
        let max_us = self.max_nanos.load(Relaxed).div_ceil(1000);
        let percentile = |percent: u64| {
            let wanted = (count * percent).div_ceil(100);
            let mut seen = 0;
            let bucket = counts.iter().position(|count| {
                seen += count;
                seen >= wanted
            });
            let bound = bucket.and_then(|bucket| BOUND_NANOS.get(bucket));
            bound.map_or(max_us, |nanos| (nanos / 1000).min(max_us))
        };
        HistogramSnapshot { count, p50_us: percentile(50), p99_us: percentile(99), max_us }
    }

    /// The sum in seconds, and the buckets: upper bounds in seconds, each with its own count.
    pub(super) fn export(&self, shown: Shown) -> (f64, Vec<(f64, u64)>) {
        let mut buckets = Vec::with_capacity(BOUNDS + 1);
        let mut below = 0;
        for (bound, bucket) in BOUND_NANOS.iter().zip(&self.buckets) {
            let bound = Duration::from_nanos(*bound);
            below += bucket.load(Relaxed);
            if bound >= shown.from && bound <= shown.to {
                buckets.push((bound.as_secs_f64(), std::mem::take(&mut below)));
            }
        }
        let beyond = self.buckets.last().map_or(0, |rest| rest.load(Relaxed));
        buckets.push((f64::INFINITY, below + beyond));
        (Duration::from_nanos(self.sum_nanos.load(Relaxed)).as_secs_f64(), buckets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        let histogram = Histogram::default();
        for nanos in [0, 1000, 1001, 1_000_000, 1_000_001] {
            histogram.record(Duration::from_nanos(nanos));
        }
        let shown = Shown { from: Duration::from_micros(1), to: Duration::from_millis(1) };
        let (sum, buckets) = histogram.export(shown);
        let filled: Vec<(f64, u64)> = buckets.into_iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(filled, [(1e-6, 2), (2e-6, 1), (1e-3, 1), (f64::INFINITY, 1)]);
        assert!((sum - 0.002_002_002).abs() < 1e-9, "{sum}");
    }

    #[test]
    fn what_is_quicker_than_shown_is_in_the_first_bucket_that_is() {
        let histogram = Histogram::default();
        histogram.record(Duration::from_micros(3));
        let shown = Shown { from: Duration::from_millis(1), to: Duration::from_secs(1) };
        assert_eq!(histogram.export(shown).1[0], (1e-3, 1));
    }

    #[test]
    fn percentiles_are_upper_bounds() {
        let histogram = Histogram::default();
        for micros in 1..=100 {
            histogram.record(Duration::from_micros(micros));
        }
        histogram.record(Duration::from_secs(20_000));
        let seen = histogram.snapshot();
        assert_eq!((seen.count, seen.p50_us, seen.p99_us), (101, 100, 100));
        assert_eq!(seen.max_us, 20_000_000_000);
    }
}
