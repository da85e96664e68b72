//! Fixtures that the integration tests share.
// Each test file is a crate of its own, exports nothing, and uses a part of this.
#![allow(dead_code, unreachable_pub)]

pub(crate) mod oci;
pub(crate) mod registry;
pub(crate) mod tree;
