//! The host-guest protocol: what a guest is told at boot, and what travels over the byte stream.
//!
//! ```text
//!   host                                                       guest
//!   PREAMBLE(nonce) Hello{version} ───────────────────────────▶
//!        ◀─────────────────── PREAMBLE(nonce) HelloAck{version, boot id, state}
//!   Exec / Logs / Stats / Shutdown, each on a new stream ─────▶
//!        ◀───────────────────────── the stream's answer, data; State on stream 0
//! ```
//!
//! The byte stream outlives both ends' connections to it: a daemon that was killed leaves half a
//! frame in either direction, and its successor starts in the middle. So a connection begins with a
//! preamble that neither side can mistake: the guest takes one at any frame boundary, and hunts for
//! one after a hang-up or a malformed frame; the host discards everything up to the preamble with
//! its own random nonce. A Hello that was swallowed as the rest of an old frame is repeated behind
//! [`padding`], which no frame can outlast and which is malformed itself. Streams of earlier
//! connections end with the new nonce.
//!
//! Everything here is pure: buffers in, buffers out. Nothing trusts the peer: lengths are capped
//! before anything is stored, and a frame that breaks a rule is an error, after which the
//! connection is worth nothing.

mod config;
mod flow;
mod frame;
mod message;
#[cfg(test)]
mod tests;

pub use config::{EXIT_LINE, Export, GuestConfig, GuestNetwork, Workload};
pub use flow::{Overrun, Receiving, Sending, WINDOW, cost};
pub use frame::{
    Decoder, Frame, HEADER, Item, Kind, MAX_PAYLOAD, NONCE, Nonce, Side, WireError, encode, encode_message,
    encode_preamble, padding,
};
pub use message::{ExecRequest, GuestMessage, GuestState, GuestStats, HostMessage, TtySize};

/// The protocol's version. A guest and its daemon are built together, but a guest that an older
/// daemon started may still run when a newer one connects.
pub const VERSION: u32 = 1;

/// The stream of everything that belongs to the connection itself.
pub const CONTROL: u32 = 0;

/// How many streams a host may have open at a time.
pub const MAX_STREAMS: usize = 64;

/// How much of the workload's latest output a guest keeps, in bytes.
pub const LOG_RING: usize = 1 << 20;
