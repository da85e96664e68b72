//! Credit: how much a side may send on a stream before the other has taken it in.
//!
//! Each direction of each stream starts with [`WINDOW`] and is replenished by Credit frames as the
//! data is consumed, so a reader that is stuck stops its own stream and no other, and what it has
//! not read is bounded.

use crate::frame::HEADER;

/// The credit of a new stream's direction.
pub const WINDOW: u32 = 128 << 10;

/// What a data frame costs. The header counts, so that floods of tiny frames are bounded too.
pub fn cost(payload: usize) -> u32 {
    u32::try_from(payload + HEADER).unwrap_or(u32::MAX)
}

/// The peer did what its credit does not cover, or gave credit that was never spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overrun;

/// The sender's side of a window.
#[derive(Debug)]
pub struct Sending {
    left: u32,
}

impl Default for Sending {
    fn default() -> Self {
        Sending { left: WINDOW }
    }
}

impl Sending {
    /// The longest payload that can be sent now.
    pub fn room(&self) -> usize {
        (self.left as usize).saturating_sub(HEADER)
    }

    /// Whether the peer has taken in everything that was sent.
    pub fn settled(&self) -> bool {
        self.left == WINDOW
    }

    /// Pays for a payload of at most [`Sending::room`] bytes.
    pub fn spend(&mut self, payload: usize) {
        self.left = self.left.saturating_sub(cost(payload));
    }

    /// The peer consumed something.
    pub fn credit(&mut self, amount: u32) -> Result<(), Overrun> {
        self.left = self.left.checked_add(amount).filter(|left| *left <= WINDOW).ok_or(Overrun)?;
        Ok(())
    }
}

/// The receiver's side of a window.
#[derive(Debug)]
pub struct Receiving {
    left: u32,
}

impl Default for Receiving {
    fn default() -> Self {
        Receiving { left: WINDOW }
    }
}

impl Receiving {
    /// A payload arrived.
    pub fn take(&mut self, payload: usize) -> Result<(), Overrun> {
        self.left = self.left.checked_sub(cost(payload)).ok_or(Overrun)?;
        Ok(())
    }

    /// Something was consumed, and the sender is about to be told.
    pub fn grant(&mut self, amount: u32) {
        self.left = self.left.saturating_add(amount).min(WINDOW);
    }
    /// Everything was consumed: the credit that is due for it, which is thereby granted.
    pub fn settle(&mut self) -> u32 {
        WINDOW - std::mem::replace(&mut self.left, WINDOW)
    }
}
