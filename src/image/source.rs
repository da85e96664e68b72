//! Where an image comes from, as one value.
//!
//! Specs flow in ([`ImageSource`](crate::object::ImageSource), a VM's direct reference); pins, pulls and
//! plans carry it, and compare it: another source is resolved anew.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The identity of an image before its digest is known.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    /// A registry: the reference as the spec wrote it.
    Oci(String),
}

impl Source {
    /// What is done to find the digest, for people: `asking the registry for debian:12`.
    pub fn resolving(&self) -> String {
        match self {
            Source::Oci(reference) => format!("asking the registry for {reference}"),
        }
    }
}

/// As people name it: `debian:12`.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Oci(reference) => f.write_str(reference),
        }
    }
}
