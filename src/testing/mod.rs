//! A scripted world for the real engine: images and networks that take a set time, fail on
//! command, and count what overlapped. The scripted driver is [`crate::hypervisor::fake`].
//!
//! Made for a paused tokio clock: nothing here waits for anything real.

mod images;
mod network;

pub use images::{FakeImages, ImageScript};
pub use network::FakeNetwork;
