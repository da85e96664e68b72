//! The workload's latest output, by absolute offsets.

use std::collections::VecDeque;

/// Keeps the last `capacity` bytes. Offsets count all output since boot.
pub(crate) struct LogRing {
    bytes: VecDeque<u8>,
    capacity: usize,
    end: u64,
}

impl LogRing {
    pub(crate) fn new(capacity: usize) -> Self {
        LogRing { bytes: VecDeque::new(), capacity, end: 0 }
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.end += bytes.len() as u64;
        let kept = &bytes[bytes.len().saturating_sub(self.capacity)..];
        let overflow = (self.bytes.len() + kept.len()).saturating_sub(self.capacity);
        self.bytes.drain(..overflow.min(self.bytes.len()));
        self.bytes.extend(kept);
    }

    /// The offset of the oldest byte that is left.
    pub(crate) fn start(&self) -> u64 {
        self.end - self.bytes.len() as u64
    }

    /// The offset of the next byte to come.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// Up to `limit` bytes from `offset` on, which is moved into the ring first.
    pub(crate) fn read(&self, offset: u64, limit: usize) -> Vec<u8> {
        let skip = usize::try_from(offset.clamp(self.start(), self.end) - self.start())
            .expect("less than the capacity");
        self.bytes.range(skip..).take(limit).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_stay_true_when_the_ring_overflows() {
        let mut ring = LogRing::new(8);
        ring.push(b"hello ");
        assert_eq!((ring.start(), ring.end(), ring.read(2, 3)), (0, 6, b"llo".to_vec()));
        ring.push(b"world");
        assert_eq!((ring.start(), ring.end(), ring.read(0, 100)), (3, 11, b"lo world".to_vec()));
        ring.push(b"0123456789abcdef");
        assert_eq!((ring.start(), ring.end(), ring.read(20, 100)), (19, 27, b"9abcdef".to_vec()));
        assert_eq!(ring.read(27, 5), b"");
        assert_eq!(ring.read(u64::MAX, 5), b"");
    }
}
