//! The engine under attack: whole daemons in a scripted world, from seeds. See `vmlet::testing`.
//!
//! ```text
//! cargo test --test simulation                                the fixed budget
//! VMLET_SEED=42 cargo test --test simulation chance -- --nocapture    one schedule, with its timeline
//! VMLET_SEEDS=100000 cargo test --test simulation chance      many schedules, and how many an hour
//! ```
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod calm;
mod chance;
mod clock;
mod crash_points;
mod foretold;
mod kernels;
mod model;
mod policies;
mod promotion;
mod pulls;
mod retention;
mod rules;
mod schedule;
mod sources;
mod threads;
