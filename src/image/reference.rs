//! OCI references and digests.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::printable;

/// `registry/repository:tag` or `registry/repository@sha256:…`, with a registry always named.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference(oci_distribution::Reference);

/// Why a text is not a reference.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is not an OCI reference: {message}; write for example registry.example/team/app:1.2")]
pub struct ReferenceError {
    text: String,
    message: String,
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let refuse = |message: String| ReferenceError { text: text.to_owned(), message };
        if text.len() > 1024 {
            return Err(refuse("it is longer than 1024 characters".to_owned()));
        }
        let parse = |text: &str| {
            text.parse::<oci_distribution::Reference>().map_err(|error| refuse(error.to_string()))
        };
        let reference = parse(text)?;
        // Such as upper-case repositories: what is kept is the written form, which must be read again.
        if parse(&reference.to_string()).ok().as_ref() != Some(&reference) {
            return Err(refuse("no registry has such a repository".to_owned()));
        }
        Ok(Reference(reference))
    }
}

impl Reference {
    /// What the registry client takes.
    pub fn inner(&self) -> &oci_distribution::Reference {
        &self.0
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    /// The digest with this SHA-256.
    pub(crate) fn sha256(hash: [u8; 32]) -> Self {
        Digest(format!("sha256:{}", hex::encode(hash)))
    }

    /// The digest of a text that stands for an image before there is one.
    pub(crate) fn of(text: &str) -> Self {
        use sha2::Digest as _;
        Digest::sha256(sha2::Sha256::digest(text).into())
    }

    /// As one path component: `sha256-…`.
    pub fn folder(&self) -> String {
        self.0.replace(':', "-")
    }

    /// The digits alone.
    pub(crate) fn hex(&self) -> &str {
        self.0.trim_start_matches("sha256:")
    }

    /// `sha256:…`
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let hex = text.strip_prefix("sha256:").unwrap_or_default();
        if hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            Ok(Digest(text))
        } else {
            Err(format!("\"{}\" is not a sha256 digest", printable(text.as_bytes())))
        }
    }
}

impl FromStr for Digest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Digest::try_from(text.to_owned())
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
