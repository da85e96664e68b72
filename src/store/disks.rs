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
//! References are pins and reservations in the records of objects. The transaction that drops a disk's last
//! one notes the time (`uses`); one that takes a reference clears it. Whoever condemns a disk says since
//! when he saw it unused: one that was used meanwhile stays. A digest is pinned before its disk is claimed, so
//! that no disk is condemned between its installation and its first use.

use std::path::PathBuf;

use jiff::Timestamp;
use uuid::Uuid;

use super::Store;
use super::error::{PublishError, RemoveDiskError, StoreError};
use super::record::{DiskRecord, DiskState};
use super::request::DiskClaim;
use super::state::State;
use super::uses::references;
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

    /// Marks disks as being removed that nobody has referred to since the times given: no VM can reserve them
    /// from now on. Returns those that are so marked: their files are to be removed, then
    /// [forgotten](Store::forget_disk).
    ///
    /// # Errors
    /// The store failed.
    pub async fn condemn_disks(&self, unused: &[(Digest, Timestamp)]) -> Result<Vec<Digest>, StoreError> {
        self.engine().commit(|state| Ok(state.condemn_disks(unused))).await
    }

    /// Marks a disk as being removed because somebody asks for it. One that is marked already is fine.
    ///
    /// # Errors
    /// Why not, see [`RemoveDiskError`]. Nothing changed then.
    pub async fn condemn_disk(&self, digest: &Digest) -> Result<(), RemoveDiskError> {
        self.engine().commit(|state| state.condemn_disk(digest)).await
    }

    /// Somebody without a reference wants a disk, as `source`: its time without users begins anew. One that
    /// is not there, or in use, is left alone.
    ///
    /// # Errors
    /// The store failed.
    pub async fn touch_disk(&self, digest: &Digest, source: &str) -> Result<(), StoreError> {
        let touch = |state: &mut State| {
            state.touch_disk(digest, source);
            Ok(())
        };
        self.engine().commit(touch).await
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
                self.put_disk(self.disk_in(digest, DiskState::Installing { claim }));
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
        self.put_disk(self.disk_in(digest, ready));
        Ok(())
    }

    pub(super) fn abandon_disk(&mut self, digest: &Digest, claim: Uuid) {
        if self.claimed(digest, claim) {
            self.put_disk(self.disk_in(digest, DiskState::Removing));
        }
    }

    pub(super) fn condemn_disks(&mut self, unused: &[(Digest, Timestamp)]) -> Vec<Digest> {
        let mut condemned = Vec::new();
        for (digest, since) in unused {
            let Some(disk) = self.disks.get(digest) else { continue };
            let still = disk.unused.as_ref().is_some_and(|unused| unused.since == *since);
            if disk.is_ready() && still {
                self.put_disk(DiskRecord { state: DiskState::Removing, ..DiskRecord::clone(disk) });
                condemned.push(digest.clone());
            }
        }
        condemned
    }

    pub(super) fn condemn_disk(&mut self, digest: &Digest) -> Result<(), RemoveDiskError> {
        let disk = self.disks.get(digest).ok_or(RemoveDiskError::Unknown)?;
        match disk.state {
            DiskState::Removing => return Ok(()),
            DiskState::Installing { .. } => return Err(RemoveDiskError::Installing),
            DiskState::Ready { .. } => {}
        }
        if self.uses.any(digest) {
            let users = self.objects.iter();
            let users = users.filter(|(_, record)| references(record).contains(&Some(digest)));
            return Err(RemoveDiskError::InUse { by: users.map(|(key, _)| key.clone()).collect() });
        }
        self.put_disk(DiskRecord { state: DiskState::Removing, ..DiskRecord::clone(disk) });
        Ok(())
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
