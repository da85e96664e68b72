//! What start-up does before any task runs: account for every artefact.
//!
//! Processes are adopted by their VMs' tasks, by the recorded identity. Here go the artefacts that
//! no record claims: folders of VMs that are gone, with the VMMs in them, base disks half installed or
//! half removed, kernels that nothing is pinned to, and promotions with their guests.

use std::collections::{BTreeSet, HashSet};

use super::world::World;
use crate::object::Kind;
use crate::store::{DiskState, Record};

/// Why start-up cannot account for what is there.
#[derive(Debug, thiserror::Error)]
#[error("start-up could not clean up {what}: {why}")]
pub struct RecoveryError {
    what: String,
    why: String,
}

impl RecoveryError {
    fn of(what: impl Into<String>, why: impl std::fmt::Display) -> Self {
        RecoveryError { what: what.into(), why: why.to_string() }
    }
}

pub(super) async fn recover(world: &World) -> Result<(), RecoveryError> {
    // First, because a VMM in such a folder may run on a base disk that goes too.
    remove_foreign_folders(world).await?;
    settle_disks(world).await?;
    remove_foreign_disks(world).await?;
    remove_foreign_kernels(world).await?;
    end_promotions(world).await
}

/// Disks that an earlier daemon was installing are adopted if they are whole; records of disks that
/// are not there go, so that they are pulled again.
async fn settle_disks(world: &World) -> Result<(), RecoveryError> {
    for record in world.store.disks() {
        let digest = &record.digest;
        let there = world.images.disk(digest).await;
        let settled = match (record.state, there) {
            (DiskState::Installing { claim }, Some(disk)) => {
                let size = crate::object::Quantity::bytes(disk.size);
                let publish = world.store.publish_disk(digest, claim, disk.path, size, disk.config);
                publish.await.map_err(|error| error.to_string())
            }
            (DiskState::Installing { claim }, None) => {
                world.store.abandon_disk(digest, claim).await.map_err(|error| error.to_string())
            }
            (DiskState::Ready { .. }, None) => {
                tracing::warn!(%digest, "a base disk is gone; it is pulled again when it is needed");
                world.store.lose_disk(digest).await.map_err(|error| error.to_string())
            }
            (DiskState::Ready { .. }, Some(_)) | (DiskState::Removing, _) => Ok(()),
        };
        settled.map_err(|why| RecoveryError::of(format!("base disk {digest}"), why))?;
    }
    Ok(())
}

/// A disk without a record was being installed before its claim was durable, or is left of a store
/// that was replaced.
async fn remove_foreign_disks(world: &World) -> Result<(), RecoveryError> {
    let installed = world.images.installed().await.map_err(|error| RecoveryError::of("base disks", error))?;
    for digest in installed {
        if world.store.disk(&digest).is_none() {
            let removed = world.images.remove(&digest).await;
            removed.map_err(|error| RecoveryError::of(format!("base disk {digest}"), error))?;
        }
    }
    Ok(())
}

/// Kernels of images that have another by now. Those that VMs are pinned to stay.
async fn remove_foreign_kernels(world: &World) -> Result<(), RecoveryError> {
    let mut kept = BTreeSet::new();
    for kind in [Kind::Vm, Kind::Image] {
        let (records, _) = world.store.list(kind, None);
        let boots = records.iter().filter_map(|record| record.pinned()?.boot());
        kept.extend(boots.filter_map(|boot| boot.kernel));
    }
    world.kernels.keep(&kept).await.map_err(|error| RecoveryError::of("kernels", error))
}

/// The folder of VMs holds VMs' folders only, each named by its uid.
async fn remove_foreign_folders(world: &World) -> Result<(), RecoveryError> {
    let (records, _) = world.store.list(Kind::Vm, None);
    let known: HashSet<String> = records.iter().filter_map(uid).collect();
    let root = &world.settings.vms;
    let folders = world.driver.folders(root).await;
    for path in folders.map_err(|error| RecoveryError::of(root.display().to_string(), error))? {
        let name = path.file_name().and_then(|name| name.to_str());
        if name.is_none_or(|name| !known.contains(name)) {
            let failed = |error| RecoveryError::of(path.display().to_string(), error);
            // A store that was restored from an old export knows nothing of younger VMs that run.
            world.driver.evict(&path).await.map_err(failed)?;
            world.driver.cleanup(&path).await.map_err(failed)?;
        }
    }
    Ok(())
}

/// Their folders are gone by now, being no VM's: nothing reads those VMs' disks any more.
async fn end_promotions(world: &World) -> Result<(), RecoveryError> {
    let (records, _) = world.store.list(Kind::Vm, None);
    for record in &records {
        let Record::Vm(vm) = record else { continue };
        if let Some(id) = vm.promotion {
            let released = world.store.release_promotion(&vm.object.key(), id).await;
            released
                .map_err(|error| RecoveryError::of(format!("the promotion of {}", record.key()), error))?;
        }
    }
    Ok(())
}

fn uid(record: &Record) -> Option<String> {
    record.object().metadata().uid.map(|uid| uid.to_string())
}
