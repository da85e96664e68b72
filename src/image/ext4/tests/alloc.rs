//! The allocator against a set of blocks.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::alloc::{Blocks, Run};
use super::super::layout::{BLOCKS_PER_GROUP, descriptor_blocks, has_superblock};

#[derive(Clone, Debug)]
enum Call {
    Alloc(u64),
    AllocRuns(u64, u64),
    Release(usize),
}

fn call() -> impl Strategy<Value = Call> {
    prop_oneof![
        4 => (1..40_000u64).prop_map(Call::Alloc),
        1 => (1..2049u64, 1..20u64).prop_map(|(want, count)| Call::AllocRuns(want, count)),
        3 => any::<usize>().prop_map(Call::Release),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_block_is_used_twice_or_lost(
        limit in 1..12 * BLOCKS_PER_GROUP,
        calls in prop::collection::vec(call(), 1..60),
        trim in any::<bool>(),
    ) {
        let mut blocks = Blocks::new(limit);
        let mut used: Vec<Run> = Vec::new();
        for call in calls {
            match call {
                Call::Alloc(want) => used.extend(blocks.alloc(want)),
                Call::AllocRuns(want, count) => {
                    let mut trial = blocks.clone();
                    if let Some(starts) = trial.alloc_runs(want, count) {
                        prop_assert_eq!(starts.len() as u64, count);
                        used.extend(starts.into_iter().map(|start| Run { start, blocks: want }));
                        blocks = trial;
                    }
                }
                Call::Release(_) if used.is_empty() => {}
                Call::Release(index) => blocks.release(used.swap_remove(index % used.len())),
            }
        }
        if trim {
            blocks.trim();
        }
        let groups = blocks.end().div_ceil(BLOCKS_PER_GROUP) + 1;
        let Some(total) = blocks.least(groups) else { return Ok(()) };
        prop_assert_eq!(total.div_ceil(BLOCKS_PER_GROUP), groups);
        blocks.seal(total);

        let heads = (0..groups).filter(|&group| has_superblock(group)).map(|group| Run {
            start: group * BLOCKS_PER_GROUP,
            blocks: 1 + descriptor_blocks(groups),
        });
        let mut seen = BTreeSet::new();
        for run in used.into_iter().chain(heads) {
            prop_assert!(run.start + run.blocks <= total);
            for block in run.start..run.start + run.blocks {
                prop_assert!(seen.insert(block), "block {} is used twice", block);
            }
        }
        for group in 0..groups {
            let (bitmap, free) = blocks.bitmap(group);
            prop_assert_eq!(free, bitmap.iter().map(|byte| byte.count_zeros()).sum::<u32>());
            for index in 0..BLOCKS_PER_GROUP {
                let marked = bitmap[index as usize / 8] >> (index % 8) & 1 == 1;
                let block = group * BLOCKS_PER_GROUP + index;
                prop_assert_eq!(marked, block >= total || seen.contains(&block), "block {}", block);
            }
        }
    }
}
