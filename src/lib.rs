//! vmlet: a kubelet for microVMs.

pub mod boot;
pub mod hypervisor;
pub mod image;
pub mod network;
pub mod object;
