//! Fixtures that the integration tests share.
// Each test file is a crate of its own, exports nothing, and uses a part of this.
#![allow(dead_code, unreachable_pub)]

pub mod oci;
pub mod registry;
pub mod tree;
