//! What reconcile tasks do: publish what they observed, and remove the records of what is gone.

use std::sync::Arc;

use super::Store;
use super::declaration::Problem;
use super::error::{PublishError, RemoveError, RemoveImageError};
use super::record::{Record, Reservation, Run};
use super::request::{ImageUpdate, VmUpdate};
use super::state::State;
use crate::object::{Kind, ObjectKey, Shared, Uid};

impl Store {
    /// Writes what was observed of a VM: the fields that are given and no others. An update that
    /// changes nothing writes nothing. Durable when this returns, unless only a status was given:
    /// that is observed anew after a crash and is not waited for.
    ///
    /// # Errors
    /// [`PublishError::Stale`] if the VM or its generation is another one by now, or if a new process is
    /// published of a VM that is being deleted, holds nothing to run on, or is being promoted.
    pub async fn publish_vm(&self, key: &ObjectKey, uid: Uid, update: VmUpdate) -> Result<(), PublishError> {
        let durable = update.image.is_some()
            || update.run.is_some()
            || update.starts.is_some()
            || update.last_exit.is_some();
        self.publish(durable, |state| state.publish_vm(key, uid, update)).await
    }

    /// Writes what was observed of an image, as [`publish_vm`](Store::publish_vm) does.
    ///
    /// # Errors
    /// [`PublishError::Stale`] if the image or its generation is another one by now.
    pub async fn publish_image(
        &self,
        key: &ObjectKey,
        uid: Uid,
        update: ImageUpdate,
    ) -> Result<(), PublishError> {
        let durable = update.image.is_some();
        self.publish(durable, |state| state.publish_image(key, uid, update)).await
    }

    async fn publish(
        &self,
        durable: bool,
        run: impl FnOnce(&mut State) -> Result<(), PublishError>,
    ) -> Result<(), PublishError> {
        if durable { self.engine().commit(run).await } else { self.engine().transact(run)?.0 }
    }

    /// Removes a deleted VM's record: the last step, when nothing is left of the VM.
    ///
    /// # Errors
    /// Why not, see [`RemoveError`].
    pub async fn remove_vm(&self, key: &ObjectKey, uid: Uid) -> Result<(), RemoveError> {
        self.engine().commit(|state| state.remove_vm(key, uid)).await
    }

    /// Removes a deleted image's record unless a VM of its namespace names it and no other image is
    /// declared in its place. The disk is another
    /// matter: see [`condemn_disks`](Store::condemn_disks).
    ///
    /// # Errors
    /// Why not, see [`RemoveImageError`].
    pub async fn remove_image(&self, key: &ObjectKey, uid: Uid) -> Result<(), RemoveImageError> {
        self.engine().commit(|state| state.remove_image(key, uid)).await
    }
}

impl State {
    pub(super) fn publish_vm(
        &mut self,
        key: &ObjectKey,
        uid: Uid,
        update: VmUpdate,
    ) -> Result<(), PublishError> {
        let old = self.vm_of(key, uid).ok_or(PublishError::Stale)?;
        let metadata = &old.object.metadata;
        let starts = matches!(update.run, Some(Run::Up { .. })) && !matches!(old.run, Run::Up { .. });
        let may_run = old.promotion.is_none() && old.reservation.as_ref().is_some_and(Reservation::can_run);
        if update.generation.is_some_and(|generation| generation != metadata.generation)
            || starts && (metadata.deletion_timestamp.is_some() || !may_run)
        {
            return Err(PublishError::Stale);
        }
        let mut new = Arc::clone(old);
        let vm = Arc::make_mut(&mut new);
        assign(&mut vm.object.status, update.status.map(Shared::from));
        assign(&mut vm.image, update.image);
        assign(&mut vm.run, update.run);
        assign(&mut vm.starts, update.starts);
        assign(&mut vm.last_exit, update.last_exit);
        if new != *old {
            self.put(Record::Vm(new));
        }
        Ok(())
    }

    pub(super) fn publish_image(
        &mut self,
        key: &ObjectKey,
        uid: Uid,
        update: ImageUpdate,
    ) -> Result<(), PublishError> {
        let old = self.image_of(key, uid).ok_or(PublishError::Stale)?;
        if update.generation.is_some_and(|generation| generation != old.object.metadata.generation) {
            return Err(PublishError::Stale);
        }
        let mut new = Arc::clone(old);
        let image = Arc::make_mut(&mut new);
        assign(&mut image.object.status, update.status.map(Shared::from));
        assign(&mut image.image, update.image);
        if new != *old {
            self.put(Record::Image(new));
        }
        Ok(())
    }

    pub(super) fn remove_vm(&mut self, key: &ObjectKey, uid: Uid) -> Result<(), RemoveError> {
        let vm = self.vm_of(key, uid).ok_or(RemoveError::Stale)?;
        if vm.object.metadata.deletion_timestamp.is_none() {
            return Err(RemoveError::NotDeleted);
        }
        if matches!(vm.run, Run::Up { .. }) {
            return Err(RemoveError::Held { what: "a process" });
        }
        if vm.reservation.is_some() {
            return Err(RemoveError::Held { what: "a reservation" });
        }
        self.remove(key);
        Ok(())
    }

    pub(super) fn remove_image(&mut self, key: &ObjectKey, uid: Uid) -> Result<(), RemoveImageError> {
        let image = self.image_of(key, uid).ok_or(RemoveImageError::Stale)?;
        if image.object.metadata.deletion_timestamp.is_none() {
            return Err(RemoveImageError::NotDeleted);
        }
        // One that is declared again makes way even if VMs name it: they name its successor, too, and
        // what they run on is kept by their pins.
        let follows = image.problems().any(Problem::is_redeclared);
        let by = self.users_of(key);
        if !by.is_empty() && !follows {
            return Err(RemoveImageError::InUse { by });
        }
        self.remove(key);
        Ok(())
    }

    /// The VMs that name an image, those that are being deleted included.
    fn users_of(&self, image: &ObjectKey) -> Vec<ObjectKey> {
        let vms = self.of_kind(Kind::Vm, Some(&image.namespace));
        let names_it = |record: &Record| match record {
            Record::Vm(vm) => vm.object.spec.image.name.as_ref() == Some(&image.name),
            Record::Image(_) => false,
        };
        vms.filter(|(_, record)| names_it(record)).map(|(key, _)| key.clone()).collect()
    }
}

fn assign<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}
