//! Numbers that are taken, as runs of neighbours: the lowest free one is found at once, however many
//! are taken.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// First and last number of each run. No two runs touch.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Runs(BTreeMap<u32, u32>);

impl Runs {
    /// Takes a number. One that is taken already is fine.
    pub(super) fn take(&mut self, number: u32) {
        if self.run_of(number).is_some() {
            return;
        }
        let before = number.checked_sub(1).and_then(|before| self.run_of(before));
        let first = before.map_or(number, |(first, _)| first);
        let after = number.checked_add(1).and_then(|after| self.0.remove(&after));
        self.0.insert(first, after.unwrap_or(number));
    }

    /// Gives a number back. One that is free already is fine.
    pub(super) fn give_back(&mut self, number: u32) {
        let Some((first, last)) = self.run_of(number) else { return };
        self.0.remove(&first);
        if first < number {
            self.0.insert(first, number - 1);
        }
        if number < last {
            self.0.insert(number + 1, last);
        }
    }

    /// The lowest number of a range that is free.
    pub(super) fn lowest_free(&self, range: RangeInclusive<u32>) -> Option<u32> {
        let candidate = match self.run_of(*range.start()) {
            Some((_, last)) => last.checked_add(1)?,
            None => *range.start(),
        };
        range.contains(&candidate).then_some(candidate)
    }

    fn run_of(&self, number: u32) -> Option<(u32, u32)> {
        let (first, last) = self.0.range(..=number).next_back()?;
        (number <= *last).then_some((*first, *last))
    }
}
