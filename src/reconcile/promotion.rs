//! From a stopped VM to a new image: its merged root, as a tar, by way of a guest that runs nothing else.
//!
//! In: a VM's name, from a pull of [`Source::Vm`](crate::image::Source). Out: the tar, for as long as the
//! [`Promotion`] is held. The VM's disk may be hostile, so the host's kernel never mounts it: a guest does
//! (`vmlet-guest`'s `export`), in a folder of its own, and what it writes is a layer like any other.
//!
//! Guaranteed: the claim is recorded before the folder or the process exist, and the VM is not started while
//! it holds; when the promotion ends, however it does, the process, the folder and the claim go, in this order.
//! What a dead daemon leaves is found as a folder that is no VM's (`recovery`).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;
use vmlet_wire::{Export, GuestConfig};

use super::backoff::{Backoff, BackoffPolicy};
use super::entropy::Entropy;
use crate::boot::Kernels;
use crate::hypervisor::{Driver, DriverError, EXPORT_FILE, ExportDisks, Launch, VmmExit};
use crate::image::{ImageError, Root};
use crate::object::{ObjectKey, Quantity};
use crate::store::{DiskState, Promotable, PromoteError, Store};

/// The memory of a guest that reads disks, in bytes.
const MEMORY: u64 = 512 << 20;
/// The most that a root may take as a tar, in bytes: what layers may.
const ROOM: u64 = 64 << 30;
/// How long reading a VM's disks may take.
const LIMIT: Duration = Duration::from_secs(2 * 60 * 60);

/// Makes tars of stopped VMs.
#[derive(Clone)]
pub(super) struct Promoter {
    pub(super) store: Store,
    pub(super) driver: Arc<dyn Driver>,
    pub(super) kernels: Arc<dyn Kernels>,
    /// The folder of the VMs' folders.
    pub(super) vms: PathBuf,
    pub(super) backoff: BackoffPolicy,
    pub(super) entropy: Entropy,
}

/// A tar that is there. Dropping it ends the promotion.
pub(super) struct Promotion {
    pub(super) root: Root,
    _end: DropGuard,
}

impl Promoter {
    /// Reads a stopped VM's root. Dropping the future ends the promotion.
    pub(super) async fn promote(&self, vm: &ObjectKey, keys: &[String]) -> Result<Promotion, ImageError> {
        let id = self.entropy.uuid();
        let end = CancellationToken::new();
        let guard = end.clone().drop_guard();
        let (sender, made) = oneshot::channel();
        let (promoter, key, keys) = (self.clone(), vm.clone(), keys.to_vec());
        // A task of its own, which tidies up after whatever happens to this future.
        tokio::spawn(async move {
            let claimed = match promoter.store.claim_promotion(&key, id).await {
                Ok(claimed) => claimed,
                Err(error) => {
                    let _ = sender.send(Err(of_claim(&key, &error)));
                    return;
                }
            };
            let read = tokio::select! {
                biased;
                () = end.cancelled() => Err(ImageError::cancelled()),
                read = promoter.read(&key, id, claimed, keys) => read,
            };
            // If nobody listens any more, the token is cancelled too.
            let _ = sender.send(read);
            end.cancelled().await;
            promoter.tidy(&key, id).await;
        });
        let root = made.await.unwrap_or_else(|_| Err(ImageError::cancelled()))?;
        Ok(Promotion { root, _end: guard })
    }

    async fn read(
        &self,
        vm: &ObjectKey,
        id: Uuid,
        claimed: Promotable,
        keys: Vec<String>,
    ) -> Result<Root, ImageError> {
        let disk = self.store.disk(&claimed.base).map(|disk| disk.state);
        let Some(DiskState::Ready { path, config, .. }) = disk else {
            return Err(failed(vm, "its base disk is gone"));
        };
        let launch = Launch {
            uid: id,
            key: vm.clone(),
            dir: self.vms.join(id.to_string()),
            cpus: 1,
            memory: Quantity::bytes(MEMORY),
            boot: self.kernels.files(None).ok_or_else(|| failed(vm, "the host's kernel is gone"))?,
            command_line: None,
            base_disk: path,
            root_size: claimed.disk,
            nic: None,
            guest: guest(vm, keys),
            export: Some(ExportDisks {
                of: self.vms.join(claimed.uid.to_string()),
                room: Quantity::bytes(ROOM),
            }),
            vmm_user: claimed.vmm_user,
        };
        let exit = tokio::time::timeout(LIMIT, self.run(&launch)).await;
        let exit = exit.map_err(|_| failed(vm, "its disks were not read in time"))??;
        match exit {
            VmmExit { workload: Some(0), .. } => Ok(Root { tar: launch.dir.join(EXPORT_FILE), config }),
            VmmExit { message, .. } if message.is_empty() => Err(failed(vm, "the guest that reads it died")),
            VmmExit { message, .. } => Err(failed(vm, &message)),
        }
    }

    async fn run(&self, launch: &Launch) -> Result<VmmExit, DriverError> {
        self.driver.prepare(launch).await?;
        let gated = self.driver.spawn(launch).await?;
        let process = gated.process().clone();
        gated.release().await?;
        Ok(self.driver.exited(&launch.dir, &process).await)
    }

    /// Tries until it is done: a claim that stays would keep the VM from ever starting.
    async fn tidy(&self, vm: &ObjectKey, id: Uuid) {
        let mut backoff = Backoff::new(self.backoff, self.entropy.clone());
        while let Err(error) = self.remove(vm, id).await {
            tracing::warn!(%vm, error, "what a promotion left was not removed; tried again");
            tokio::time::sleep(backoff.fail()).await;
        }
    }

    async fn remove(&self, vm: &ObjectKey, id: Uuid) -> Result<(), String> {
        let dir = self.vms.join(id.to_string());
        self.driver.evict(&dir).await.map_err(|error| error.to_string())?;
        self.driver.cleanup(&dir).await.map_err(|error| error.to_string())?;
        self.store.release_promotion(vm, id).await.map_err(|error| error.to_string())
    }
}

/// A guest that reads disks and runs nothing.
fn guest(vm: &ObjectKey, authorized_keys: Vec<String>) -> GuestConfig {
    let export = Some(Export { authorized_keys });
    GuestConfig { hostname: vm.name.clone(), export, ..GuestConfig::default() }
}

fn failed(vm: &ObjectKey, why: &str) -> ImageError {
    ImageError { reason: "PromotionFailed", message: format!("{vm}: {why}"), transient: true }
}

/// What cannot be claimed now may be claimed later: the VM may be stopped, or run first.
fn of_claim(vm: &ObjectKey, error: &PromoteError) -> ImageError {
    let reason = match error {
        PromoteError::Store(_) => "StoreFailed",
        PromoteError::Gone | PromoteError::Running | PromoteError::Taken | PromoteError::NeverRan => {
            "WaitingForVM"
        }
    };
    ImageError { reason, message: format!("{vm}: {error}"), transient: true }
}

impl From<DriverError> for ImageError {
    fn from(error: DriverError) -> Self {
        let DriverError { reason, message, transient } = error;
        ImageError { reason, message, transient }
    }
}

#[cfg(test)]
#[test]
fn what_cannot_be_claimed_now_is_tried_again() {
    let key = ObjectKey::new(crate::object::Kind::Vm, "default", "web");
    for error in [PromoteError::Gone, PromoteError::Running, PromoteError::Taken, PromoteError::NeverRan] {
        let error = of_claim(&key, &error);
        assert!(error.transient && error.reason == "WaitingForVM", "{error}");
    }
}
