//! Base disks by digest: claimed, installed, kept while somebody refers to them, condemned, forgotten.
//!
//! ```text
//!            claim               publish            condemn              forget
//!   (none) ─────────▶ Installing ─────────▶ Ready ───────────▶ Removing ─────────▶ (none)
//!                         │    abandon                            ▲
//!                         └───────────────────────────────────────┘
//! ```
//!
//! An install that failed may have put its disk in place all the same: what was claimed is removed, not
//! forgotten.
//!
//! References are pins and reservations in the records of objects; they are looked up, not counted.
//! A digest is pinned before its disk is claimed, so that no disk is condemned between its
//! installation and its first use.

use std::collections::BTreeSet;
use std::path::PathBuf;

use uuid::Uuid;

use super::Store;
use super::error::{PublishError, StoreError};
use super::record::{DiskRecord, DiskState, PinnedImage, Record};
use super::request::DiskClaim;
use super::state::State;
use crate::image::{Digest, ImageConfig};
use crate::object::Quantity;

impl Store {
    /// Claims the place of a digest's disk. Of any number of concurrent installs exactly one is
    /// granted it. `claim` is random, one for each attempt; it outlives the daemon, so that start-up
    /// abandons the claims that it finds in [`disks`](Store::disks).
    ///
    /// # Errors
    /// The store failed.
    pub async fn claim_disk(&self, digest: &Digest, claim: Uuid) -> Result<DiskClaim, StoreError> {
        self.engine().commit(|state| Ok(state.claim_disk(digest, claim))).await
    }

    /// Makes an installed disk available to VMs.
    ///
    /// # Errors
    /// [`PublishError::Stale`] if the claim is not the one that was granted.
    pub async fn publish_disk(
        &self,
        digest: &Digest,
        claim: Uuid,
        path: PathBuf,
        size: Quantity,
        config: ImageConfig,
    ) -> Result<(), PublishError> {
        let ready = DiskState::Ready { path, size, config };
        self.engine().commit(|state| state.publish_disk(digest, claim, ready)).await
    }

    /// Gives a claim up: whatever was installed for it is to be removed. One that is not granted, or was
    /// published, is left alone.
    ///
    /// # Errors
    /// The store failed.
    pub async fn abandon_disk(&self, digest: &Digest, claim: Uuid) -> Result<(), StoreError> {
        let abandon = |state: &mut State| {
            state.abandon_disk(digest, claim);
            Ok(())
        };
        self.engine().commit(abandon).await
    }

    /// Marks every disk that nobody refers to as being removed: no VM can reserve it from now on.
    /// Returns all disks so marked, the earlier ones included: their files are to be removed, then
    /// [forgotten](Store::forget_disk).
    ///
    /// # Errors
    /// The store failed.
    pub async fn condemn_disks(&self) -> Result<Vec<Digest>, StoreError> {
        self.engine().commit(|state| Ok(state.condemn_disks())).await
    }

    /// Drops the record of a condemned disk whose files are gone. Any other is left alone.
    ///
    /// # Errors
    /// The store failed.
    pub async fn forget_disk(&self, digest: &Digest) -> Result<(), StoreError> {
        let forget = |state: &mut State| {
            state.forget_disk(digest);
            Ok(())
        };
        self.engine().commit(forget).await
    }
}

impl Store {
    /// Drops the record of a disk whose files are found to be gone, so that it is pulled again. One
    /// that is being installed or removed is left alone.
    ///
    /// # Errors
    /// The store failed.
    pub async fn lose_disk(&self, digest: &Digest) -> Result<(), StoreError> {
        let lose = |state: &mut State| {
            state.lose_disk(digest);
            Ok(())
        };
        self.engine().commit(lose).await
    }
}

impl State {
    pub(super) fn claim_disk(&mut self, digest: &Digest, claim: Uuid) -> DiskClaim {
        match self.disks.get(digest).map(|disk| &disk.state) {
            Some(DiskState::Ready { .. }) => DiskClaim::Ready,
            Some(DiskState::Removing) => DiskClaim::Removing,
            Some(DiskState::Installing { claim: held }) if *held != claim => DiskClaim::Taken,
            Some(DiskState::Installing { .. }) => DiskClaim::Granted,
            None => {
                self.put_disk(DiskRecord { digest: digest.clone(), state: DiskState::Installing { claim } });
                DiskClaim::Granted
            }
        }
    }

    pub(super) fn publish_disk(
        &mut self,
        digest: &Digest,
        claim: Uuid,
        ready: DiskState,
    ) -> Result<(), PublishError> {
        if !self.claimed(digest, claim) {
            return Err(PublishError::Stale);
        }
        self.put_disk(DiskRecord { digest: digest.clone(), state: ready });
        Ok(())
    }

    pub(super) fn abandon_disk(&mut self, digest: &Digest, claim: Uuid) {
        if self.claimed(digest, claim) {
            self.put_disk(DiskRecord { digest: digest.clone(), state: DiskState::Removing });
        }
    }

    pub(super) fn condemn_disks(&mut self) -> Vec<Digest> {
        let ready = self.disks.values().filter(|disk| matches!(disk.state, DiskState::Ready { .. }));
        let mut unkept: BTreeSet<Digest> = ready.map(|disk| disk.digest.clone()).collect();
        for digest in self.objects.values().flat_map(references) {
            if unkept.is_empty() {
                break;
            }
            unkept.remove(digest);
        }
        for digest in unkept {
            self.put_disk(DiskRecord { digest, state: DiskState::Removing });
        }
        let condemned = self.disks.values().filter(|disk| disk.state == DiskState::Removing);
        condemned.map(|disk| disk.digest.clone()).collect()
    }

    pub(super) fn forget_disk(&mut self, digest: &Digest) {
        if self.disks.get(digest).is_some_and(|disk| disk.state == DiskState::Removing) {
            self.remove_disk(digest);
        }
    }

    pub(super) fn lose_disk(&mut self, digest: &Digest) {
        if self.disks.get(digest).is_some_and(|disk| disk.is_ready()) {
            self.remove_disk(digest);
        }
    }

    fn claimed(&self, digest: &Digest, claim: Uuid) -> bool {
        let installing = DiskState::Installing { claim };
        self.disks.get(digest).is_some_and(|disk| disk.state == installing)
    }
}

/// The digests that an object keeps.
fn references(record: &Record) -> impl Iterator<Item = &Digest> {
    let pinned = record.pinned().into_iter().flat_map(PinnedImage::disks);
    pinned.chain(record.reservation().map(|held| &held.image))
}
