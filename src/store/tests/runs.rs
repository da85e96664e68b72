//! Runs of taken numbers against a plain set.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::runs::Runs;

proptest! {
    #[test]
    fn the_lowest_free_number_is_the_first_that_is_not_taken(
        steps in prop::collection::vec((any::<bool>(), 0..24_u32), 0..80),
        from in 0..24_u32,
        length in 0..24_u32,
    ) {
        let (mut runs, mut taken) = (Runs::default(), BTreeSet::new());
        // The ends of what a number can be are among them.
        let place = |number: u32| if number < 12 { number } else { u32::MAX - (number - 12) };
        for (take, number) in steps {
            if take {
                runs.take(place(number));
                taken.insert(place(number));
            } else {
                runs.give_back(place(number));
                taken.remove(&place(number));
            }
            let range = place(from)..=place(from).saturating_add(length);
            let lowest = range.clone().find(|number| !taken.contains(number));
            prop_assert_eq!(runs.lowest_free(range), lowest);
        }
        let mut anew = Runs::default();
        taken.iter().rev().for_each(|number| anew.take(*number));
        prop_assert_eq!(runs, anew, "equal sets are equal runs");
    }
}
