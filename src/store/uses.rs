//! Which base disks are referred to, and since when one is not: counted, so that the transaction that drops
//! a disk's last reference can tell. Derived from the records of objects; it cannot leak.

use std::collections::BTreeMap;

use super::record::{DiskRecord, DiskState, PinnedImage, Record, Unused};
use super::state::State;
use crate::image::Digest;

/// How often each digest is referred to, by pins and reservations.
#[derive(Debug, Default)]
pub(super) struct Uses(BTreeMap<Digest, Use>);

#[derive(Debug, Default)]
struct Use {
    references: usize,
    /// What the last pin of it named.
    source: Option<String>,
}

impl Uses {
    /// Takes in that a record is another one by now. Returns the digests that are referred to from now
    /// on, or not any more.
    pub(super) fn replace(&mut self, old: Option<&Record>, new: Option<&Record>) -> Vec<(Digest, Turn)> {
        let before = old.map(references).unwrap_or_default();
        let after = new.map(references).unwrap_or_default();
        let named = |record: Option<&Record>| record.and_then(Record::pinned).map(|pin| pin.source.clone());
        if before == after && named(old) == named(new) {
            return Vec::new();
        }
        let mut turns = Vec::new();
        // What stays is counted up before it is counted down.
        for digest in after.into_iter().flatten() {
            let held = self.0.entry(digest.clone()).or_default();
            held.references += 1;
            if held.references == 1 {
                turns.push((digest.clone(), Turn::Used));
            }
            if let Some(pin) = new.and_then(Record::pinned).filter(|pin| pin.digest == *digest) {
                held.source = Some(pin.source.to_string());
            }
        }
        for digest in before.into_iter().flatten() {
            let Some(held) = self.0.get_mut(digest) else { continue };
            held.references -= 1;
            if held.references == 0 {
                let source = self.0.remove(digest).and_then(|held| held.source);
                turns.push((digest.clone(), Turn::Unused(source)));
            }
        }
        turns
    }

    /// Whether anything refers to a digest.
    pub(super) fn any(&self, digest: &Digest) -> bool {
        self.0.contains_key(digest)
    }
}

/// A digest's first reference has come, or its last one gone.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Turn {
    Used,
    /// With what the last pin named.
    Unused(Option<String>),
}

/// The digests that an object keeps: its pin's, its kernel's and its reservation's.
pub(super) fn references(record: &Record) -> [Option<&Digest>; 3] {
    let mut pinned = record.pinned().into_iter().flat_map(PinnedImage::disks);
    [pinned.next(), pinned.next(), record.reservation().map(|held| &held.image)]
}

impl State {
    /// Notes on the disks' records who is used from now on, and who is not.
    pub(super) fn note(&mut self, turns: Vec<(Digest, Turn)>) {
        for (digest, turn) in turns {
            let unused = match turn {
                Turn::Used => None,
                Turn::Unused(source) => Some(Unused { since: self.now, source }),
            };
            self.set_unused(&digest, unused);
        }
    }

    /// Makes the records agree with the references, whatever wrote them.
    pub(super) fn note_all(&mut self) {
        let disks: Vec<_> = self.disks.values().cloned().collect();
        for disk in disks {
            match (self.uses.any(&disk.digest), &disk.unused) {
                (true, Some(_)) => self.set_unused(&disk.digest, None),
                (false, None) => {
                    self.set_unused(&disk.digest, Some(Unused { since: self.now, source: None }));
                }
                _ => {}
            }
        }
    }

    /// Begins a disk's time without users anew, if it has none.
    pub(super) fn touch_disk(&mut self, digest: &Digest, source: &str) {
        if !self.uses.any(digest) {
            self.set_unused(digest, Some(Unused { since: self.now, source: Some(source.to_owned()) }));
        }
    }

    /// Only of a disk that is there: others have not been used yet, or never will be.
    fn set_unused(&mut self, digest: &Digest, unused: Option<Unused>) {
        let Some(disk) = self.disks.get(digest).filter(|disk| disk.is_ready()) else { return };
        if disk.unused != unused {
            self.put_disk(DiskRecord { unused, ..DiskRecord::clone(disk) });
        }
    }

    /// The record of a disk that gets into a state.
    pub(super) fn disk_in(&self, digest: &Digest, state: DiskState) -> DiskRecord {
        let nobodys = matches!(state, DiskState::Ready { .. }) && !self.uses.any(digest);
        let unused = nobodys.then_some(Unused { since: self.now, source: None });
        DiskRecord { digest: digest.clone(), state, unused }
    }
}
