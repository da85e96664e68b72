//! From a compressed layer to changes of the base disk.
//!
//! ```text
//! blob ─▶ inflate (thread) ─┬─▶ archive: tar entries ─▶ apply: tree of the disk ─▶ ext4 writer
//!                           └─▶ diff_id (thread)
//! ```
//!
//! Bytes stream through in chunks, so memory does not depend on the layer's size; what is kept is
//! the tree. Guarantees: nothing is believed that the diff_id does not cover, every size that
//! the layer claims is bounded by [`Limits`](super::Limits), and no path leads out of the disk.

mod apply;
mod archive;
mod header;
mod inflate;
mod pax;
mod sparse;
#[cfg(test)]
mod tests;
mod whiteout;
mod xattrs;

pub(crate) use apply::{Tree, on_disk};
pub(crate) use archive::{Archive, Kind};
pub(crate) use inflate::{Budget, decoder, inflate, is_compressed};
