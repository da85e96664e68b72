//! vmlet: a kubelet for microVMs.

pub mod agent;
pub mod api;
pub mod boot;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod doctor;
pub mod guest_image;
pub mod hypervisor;
pub mod image;
pub mod manifest;
pub mod network;
pub mod object;
pub mod reconcile;
pub mod store;
pub mod testing;
