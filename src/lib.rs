//! vmlet: a kubelet for microVMs.

pub mod agent;
pub mod boot;
pub mod guest_image;
pub mod hypervisor;
pub mod image;
pub mod network;
pub mod object;
