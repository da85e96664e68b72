//! vmlet: a kubelet for microVMs.

pub mod agent;
pub mod guest_image;
pub mod hypervisor;
pub mod image;
pub mod network;
pub mod object;
