//! Fixtures that the integration tests share.
// Each test file is a crate of its own and uses a part of this.
#![allow(dead_code)]

pub(crate) mod oci;
pub(crate) mod registry;
pub(crate) mod tree;
