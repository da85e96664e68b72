//! Which blocks are free. Blocks are handed out upwards; freed ones are used again first, the lowest
//! before the others, so the same calls always give the same blocks.

use std::collections::BTreeMap;

use super::layout::{BLOCK, BLOCKS_PER_GROUP, descriptor_blocks, has_superblock};

/// Contiguous blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) start: u64,
    pub(super) blocks: u64,
}

/// The most blocks in one run: what one extent can map.
pub(super) const MAX_RUN: u64 = 32768;

#[derive(Clone)]
pub(super) struct Blocks {
    /// Free runs below `end`: start and length. Neighbours are merged.
    free: BTreeMap<u64, u64>,
    /// From here on no block is used.
    end: u64,
    /// Blocks from here on must not be used.
    limit: u64,
    /// Blocks kept for the superblock and the descriptors, where a group has them. How many groups
    /// there will be is not known before the end; this is enough for `limit`.
    head: u64,
}

impl Blocks {
    pub(super) fn new(limit: u64) -> Self {
        let head = 1 + descriptor_blocks(limit.div_ceil(BLOCKS_PER_GROUP));
        Blocks { free: BTreeMap::new(), end: head, limit, head }
    }

    /// One to `want` contiguous blocks; none if the disk is full.
    pub(super) fn alloc(&mut self, want: u64) -> Option<Run> {
        if let Some((start, blocks)) = self.free.pop_first() {
            let taken = want.min(blocks).min(MAX_RUN);
            if taken < blocks {
                self.free.insert(start + taken, blocks - taken);
            }
            return Some(Run { start, blocks: taken });
        }
        let start = self.after_head(self.end);
        let room = self.limit.min(next_head(start)).checked_sub(start).filter(|&room| room > 0)?;
        let blocks = want.min(MAX_RUN).min(room);
        self.end = start + blocks;
        Some(Run { start, blocks })
    }

    /// `count` runs of exactly `want` blocks each (fewer than a group has); none if the disk is full.
    pub(super) fn alloc_runs(&mut self, want: u64, count: u64) -> Option<Vec<u64>> {
        let mut starts = Vec::new();
        let fitting: Vec<Run> = self.free_runs().filter(|run| run.blocks >= want).collect();
        for Run { start, blocks } in fitting {
            let taken = (blocks / want).min(count - starts.len() as u64);
            starts.extend((0..taken).map(|index| start + index * want));
            self.free.remove(&start);
            self.release(Run { start: start + taken * want, blocks: blocks - taken * want });
        }
        while (starts.len() as u64) < count {
            starts.push(self.alloc_run_at_end(want)?);
        }
        Some(starts)
    }

    fn alloc_run_at_end(&mut self, want: u64) -> Option<u64> {
        let mut start = self.after_head(self.end);
        let barrier = next_head(start);
        if start + want > barrier {
            self.release(Run { start, blocks: barrier - start });
            start = self.after_head(barrier);
        }
        if start + want > self.limit {
            return None;
        }
        self.end = start + want;
        Some(start)
    }

    /// Gives blocks back.
    pub(super) fn release(&mut self, run: Run) {
        let Run { mut start, mut blocks } = run;
        if blocks == 0 {
            return;
        }
        if let Some((&before, &len)) = self.free.range(..start).next_back()
            && before + len == start
        {
            self.free.remove(&before);
            start = before;
            blocks += len;
        }
        if let Some(len) = self.free.remove(&(start + blocks)) {
            blocks += len;
        }
        self.free.insert(start, blocks);
    }

    /// Forgets that blocks at the end were ever used, so that the disk can be shorter.
    pub(super) fn trim(&mut self) {
        if let Some((&start, &blocks)) = self.free.last_key_value()
            && start + blocks == self.end
        {
            self.free.remove(&start);
            self.end = start;
        }
    }

    /// The number of blocks from the disk's start to the last one that is used.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// The least number of blocks that a disk of so many groups has; none if that is too many.
    pub(super) fn least(&self, groups: u64) -> Option<u64> {
        let total = self.end.max(self.after_head((groups - 1) * BLOCKS_PER_GROUP) + 1);
        (total <= self.limit).then_some(total)
    }

    /// Ends allocation on a disk of `total` blocks: what was kept for descriptors and is not needed,
    /// and what lies between the last used block and the disk's end, is free.
    pub(super) fn seal(&mut self, total: u64) {
        let groups = total.div_ceil(BLOCKS_PER_GROUP);
        let used_head = 1 + descriptor_blocks(groups);
        while self.end < total {
            let start = self.after_head(self.end);
            self.end = next_head(start).min(total);
            self.release(Run { start, blocks: self.end - start });
        }
        for group in (0..groups).filter(|&group| has_superblock(group)) {
            let start = group * BLOCKS_PER_GROUP;
            self.release(Run { start: start + used_head, blocks: self.head - used_head });
        }
    }

    /// All free runs below the end.
    pub(super) fn free_runs(&self) -> impl Iterator<Item = Run> {
        self.free.iter().map(|(&start, &blocks)| Run { start, blocks })
    }

    /// The bitmap of a group, once sealed, and how many blocks of the group are free.
    pub(super) fn bitmap(&self, group: u64) -> (Vec<u8>, u32) {
        let first = group * BLOCKS_PER_GROUP;
        let next = first + BLOCKS_PER_GROUP;
        let mut bitmap = vec![0xff; BLOCK];
        let mut free = 0;
        // Runs do not overlap, so the first that ends before the group ends the search.
        let runs = self.free.range(..next).rev().take_while(|&(&start, &blocks)| start + blocks > first);
        for (&start, &blocks) in runs {
            for block in start.max(first)..(start + blocks).min(next) {
                let bit = (block - first) as usize;
                bitmap[bit / 8] &= !(1 << (bit % 8));
                free += 1;
            }
        }
        (bitmap, free)
    }

    fn after_head(&self, block: u64) -> u64 {
        let at_head = block.is_multiple_of(BLOCKS_PER_GROUP) && has_superblock(block / BLOCKS_PER_GROUP);
        if at_head { block + self.head } else { block }
    }
}

/// The start of the next group that has a superblock; or, when that is farther than any run can
/// reach, the start of a group before it.
fn next_head(block: u64) -> u64 {
    let next = block / BLOCKS_PER_GROUP + 1;
    let head = if has_superblock(next) { next } else { next + 1 };
    head * BLOCKS_PER_GROUP
}
