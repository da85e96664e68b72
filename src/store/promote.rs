//! Promotions: the claim on a stopped VM's private disk, from which an image is made.

use std::sync::Arc;

use uuid::Uuid;

use super::Store;
use super::error::{PromoteError, StoreError};
use super::record::{Record, Run};
use super::state::State;
use crate::image::Digest;
use crate::object::{ObjectKey, Quantity, Uid};

/// What a promotion reads.
#[derive(Clone, Debug, PartialEq)]
pub struct Promotable {
    /// The VM.
    pub uid: Uid,
    /// The base disk that its private disk belongs to.
    pub base: Digest,
    /// The private disk's full length.
    pub disk: Quantity,
    /// The user that owns the private disk.
    pub vmm_user: Option<u32>,
}

impl Store {
    /// Claims a stopped VM's private disk for a promotion, whose folder is called `id`: the VM is not started
    /// before it is released. Durable when this returns.
    ///
    /// # Errors
    /// Why not, see [`PromoteError`].
    pub async fn claim_promotion(&self, vm: &ObjectKey, id: Uuid) -> Result<Promotable, PromoteError> {
        self.engine().commit(|state| state.claim_promotion(vm, id)).await
    }

    /// Ends a promotion, when nothing reads the disk any more. One that has ended is fine.
    ///
    /// # Errors
    /// If the store failed.
    pub async fn release_promotion(&self, vm: &ObjectKey, id: Uuid) -> Result<(), StoreError> {
        self.engine()
            .commit(|state| {
                state.release_promotion(vm, id);
                Ok(())
            })
            .await
    }
}

impl State {
    pub(super) fn claim_promotion(&mut self, key: &ObjectKey, id: Uuid) -> Result<Promotable, PromoteError> {
        let old = self.vm(key).ok_or(PromoteError::Gone)?;
        if old.object.metadata.deletion_timestamp.is_some() {
            return Err(PromoteError::Gone);
        }
        if matches!(old.run, Run::Up { .. }) {
            return Err(PromoteError::Running);
        }
        if old.promotion.is_some() {
            return Err(PromoteError::Taken);
        }
        let (Some(uid), Some(held)) = (old.object.metadata.uid, &old.reservation) else {
            return Err(PromoteError::NeverRan);
        };
        let (base, disk, vmm_user) = (held.image.clone(), held.disk, held.vmm_user);
        let mut new = Arc::clone(old);
        Arc::make_mut(&mut new).promotion = Some(id);
        self.put(Record::Vm(new));
        Ok(Promotable { uid, base, disk, vmm_user })
    }

    pub(super) fn release_promotion(&mut self, key: &ObjectKey, id: Uuid) {
        let Some(old) = self.vm(key).filter(|vm| vm.promotion == Some(id)) else { return };
        let mut new = Arc::clone(old);
        Arc::make_mut(&mut new).promotion = None;
        self.put(Record::Vm(new));
    }
}
