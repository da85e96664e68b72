//! Counters by labels, bounded.

use std::collections::BTreeMap;

use super::Guarded;

/// The most combinations of labels. The code's reasons are far fewer; this holds even if one of them
/// should come from outside.
const MAX_SERIES: usize = 256;
/// What further ones are counted as.
const OTHER: &str = "other";

/// How often something happened, by `N` labels.
#[derive(Debug, Default)]
pub struct Counts<const N: usize> {
    counts: Guarded<BTreeMap<[String; N], u64>>,
}

impl<const N: usize> Counts<N> {
    /// Counts it so many times more.
    pub fn add(&self, labels: [&str; N], times: u64) {
        let labels = labels.map(str::to_owned);
        self.counts.with(|counts| {
            let full = counts.len() >= MAX_SERIES && !counts.contains_key(&labels);
            let labels = if full { std::array::from_fn(|_| OTHER.to_owned()) } else { labels };
            *counts.entry(labels).or_default() += times;
        });
    }

    /// What was counted, by the labels' values.
    pub fn all(&self) -> Vec<([String; N], u64)> {
        self.counts.with(|counts| counts.iter().map(|(labels, count)| (labels.clone(), *count)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_series_is_bounded() {
        let counts = Counts::default();
        for number in 0..2 * MAX_SERIES {
            counts.add(["vm", &number.to_string()], 1);
        }
        let all = counts.all();
        assert_eq!(all.len(), MAX_SERIES + 1);
        assert_eq!(all.iter().map(|(_, count)| count).sum::<u64>(), 2 * MAX_SERIES as u64);
    }
}
