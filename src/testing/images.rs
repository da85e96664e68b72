//! How images behave.

use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::image::{Digest, Reference, Source};

/// How one reference behaves.
#[derive(Clone, Debug)]
pub struct ImageScript {
    /// What it resolves to; none is not found.
    pub digest: Option<Digest>,
    /// How long a pull takes.
    pub pull: Duration,
    /// So many pulls fail before one succeeds.
    pub failures: u32,
    /// So many pulls panic before one does not.
    pub panics: u32,
    /// Its files are not what they were: VMs do not start on it.
    pub changed: bool,
}

impl ImageScript {
    /// An image whose digest repeats one hexadecimal digit, pulled in the given time.
    ///
    /// # Panics
    /// If `digit` is not a lower-case hexadecimal digit.
    pub fn new(digit: char, pull: Duration) -> Self {
        let digest = format!("sha256:{}", digit.to_string().repeat(64));
        let digest = digest.parse().expect("64 hexadecimal digits are a digest");
        ImageScript { digest: Some(digest), pull, failures: 0, panics: 0, changed: false }
    }

    /// A source that is there, with a digest of its own, and pulled in three seconds.
    pub fn of(source: &str) -> Self {
        let digest = Digest::sha256(Sha256::digest(canonical(source).as_bytes()).into());
        ImageScript {
            digest: Some(digest),
            pull: Duration::from_secs(3),
            failures: 0,
            panics: 0,
            changed: false,
        }
    }
}

/// The one name of a source: references get their registry and tag, others stay as they are.
pub(super) fn canonical(source: &str) -> String {
    source.parse::<Reference>().map_or_else(|_| source.to_owned(), |reference| reference.to_string())
}

/// What scripts and fates of a source go by.
pub(super) fn name(source: &Source) -> String {
    canonical(&source.to_string())
}
