//! vmlet: a kubelet for microVMs.
//!
//! ```text
//!  manifest ─▶ store ─▶ reconcile ─▶ image, hypervisor, network
//!               ▲ │         │
//!               │ └▶ api ◀─ cli
//!               └── reserve, publish
//! ```
//!
//! Start with [`object`] (what is declared), then [`store`] (what is known), then [`reconcile`] (what is
//! done about it); [`daemon`] wires them. `docs/architecture.md` has the code map, the invariants, and
//! for every guard what it covers and what it must never cover.
//!
//! The law of this crate: slow work never holds a guard, and a guard never spans slow work.

pub mod agent;
pub mod api;
pub mod boot;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod diff;
pub mod doctor;
pub mod guest_image;
pub mod hypervisor;
pub mod image;
mod latest;
pub mod manifest;
pub mod memory;
pub mod metrics;
pub mod network;
pub mod object;
pub mod reconcile;
pub mod storage;
pub mod store;
pub mod testing;
pub mod timeline;
