//! Whether what a folder declares is known. In: the snapshots, and whether they were applied. Out: a word for
//! `/readyz`. Pure.

use super::source::{FileState, Snapshot};
use crate::store::StoreError;

/// How far a folder has been read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// What it declares is not known yet, and why.
    Reading(String),
    /// A whole scan of it has been applied.
    Applied,
}

impl Default for Readiness {
    fn default() -> Self {
        Readiness::Reading("the manifests are being read".to_owned())
    }
}

impl Readiness {
    /// Goes on after a scan was applied, or failed to be. Nothing leads back.
    pub(super) fn advance(&mut self, snapshot: &Snapshot, applied: Result<(), &StoreError>) {
        if *self == Readiness::Applied {
            return;
        }
        let unsettled = snapshot.files.iter().find(|(_, state)| **state == FileState::Unsettled);
        *self = match (applied, snapshot.complete, unsettled) {
            (Err(error), ..) => Readiness::Reading(format!("the manifests are not applied yet: {error}")),
            (_, false, _) => {
                let trouble = snapshot.trouble.join("; ");
                Readiness::Reading(format!("the manifests are not read completely yet: {trouble}"))
            }
            (_, _, Some((path, _))) => {
                Readiness::Reading(format!("the manifest {} is still being written", path.display()))
            }
            (Ok(()), true, None) => Readiness::Applied,
        };
    }
}
