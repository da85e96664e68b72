//! The host-guest protocol: what a guest is told at boot, and what travels over the byte stream.

mod config;

pub use config::{EXIT_LINE, GuestConfig, GuestNetwork, Workload};
