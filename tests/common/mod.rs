//! Fixtures that the integration tests share.
// Each test file is a crate of its own and uses a part of this.
#![allow(dead_code)]

pub mod oci;
pub mod registry;
pub mod tree;
