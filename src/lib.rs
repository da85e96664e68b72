//! vmlet: a kubelet for microVMs.

pub mod doctor;
pub mod hypervisor;
pub mod image;
pub mod manifest;
pub mod network;
pub mod object;
pub mod store;
