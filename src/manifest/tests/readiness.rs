//! When the daemon may say that it knows what is declared.

use std::collections::BTreeMap;

use crate::manifest::{FileState, Readiness, Snapshot};
use crate::store::StoreError;

fn snapshot(complete: bool, state: Option<FileState>) -> Snapshot {
    let files: BTreeMap<_, _> = state.into_iter().map(|state| ("web.yaml".into(), state)).collect();
    let trouble = if complete { Vec::new() } else { vec!["cannot read /m".to_owned()] };
    Snapshot { complete, files, trouble }
}

/// Where readiness gets from the start, by one applied scan.
fn after(snapshot: &Snapshot) -> Readiness {
    let mut readiness = Readiness::default();
    readiness.advance(snapshot, Ok(()));
    readiness
}

#[test]
fn only_a_whole_scan_that_was_applied_is_ready() {
    let good = || Some(FileState::Good(Vec::new().into()));
    assert_eq!(after(&snapshot(true, good())), Readiness::Applied);
    assert_eq!(after(&snapshot(true, None)), Readiness::Applied, "an empty folder is whole");
    let reading = |readiness| matches!(readiness, Readiness::Reading(why) if !why.is_empty());
    assert!(reading(after(&snapshot(false, good()))), "something may have been missed");
    assert!(reading(after(&snapshot(true, Some(FileState::Unsettled)))), "a file is being written");
    let mut refused = Readiness::default();
    refused.advance(&snapshot(true, good()), Err(&StoreError::Closed));
    assert!(reading(refused), "the store did not take it");
}

#[test]
fn later_trouble_takes_nothing_back() {
    let mut readiness = after(&snapshot(true, None));
    readiness.advance(&snapshot(false, None), Ok(()));
    assert_eq!(readiness, Readiness::Applied);
}
