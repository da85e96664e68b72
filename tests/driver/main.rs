//! The QEMU driver with real processes and real VMs.
//!
//! Needs root, and Debian's qemu-system-x86, linux-image-cloud-amd64, busybox-static, iproute2, iputils-ping and
//! e2fsprogs.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod confined;
mod gate;
mod guest;
mod kvm;
mod support;
mod vms;
