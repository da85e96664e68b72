//! The scripted boot cache: kernels that are entries in the world.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use sha2::{Digest as _, Sha256};

use super::{Effect, Refusal, State, World};
use crate::boot::{BootFiles, KernelError, KernelId, KernelRequest, Kernels};

/// The boot cache of one daemon.
pub(in crate::testing) struct ScriptedKernels(pub(in crate::testing) Arc<World>);

/// What the host's kernel goes by.
const HOST: &str = "host";

impl From<Refusal> for KernelError {
    fn from(refusal: Refusal) -> Self {
        let Refusal { reason, message, transient } = refusal;
        KernelError { reason, message, transient }
    }
}

fn files(name: &str) -> BootFiles {
    let place = std::path::Path::new("/simulated/boot").join(name);
    BootFiles { kernel: place.join("kernel"), initramfs: place.join("initramfs"), release: name.to_owned() }
}

impl State {
    /// Whether these files are those of a kernel that is there.
    pub(super) fn has_kernel(&self, boot: &BootFiles) -> bool {
        boot.release == HOST || self.kernels.iter().any(|kernel| kernel.0 == boot.release)
    }

    /// The kernels that records keep, as far as they are durable.
    fn pinned_kernels(&self) -> BTreeSet<KernelId> {
        let Some(durable) = self.durable() else { return BTreeSet::new() };
        durable.objects().iter().filter_map(|record| record.pinned()?.boot()?.kernel).collect()
    }
}

#[async_trait]
impl Kernels for ScriptedKernels {
    async fn make(&self, request: &KernelRequest) -> Result<KernelId, KernelError> {
        let act = |state: &mut State| {
            if let KernelRequest::Disk { disk, .. } = request
                && !state.disks.iter().any(|digest| super::images::path(digest) == *disk)
            {
                state.violation(format!("a kernel is made of {}, which is not there", disk.display()));
            }
            let name = hex::encode(&Sha256::digest(format!("{request:?}"))[..16]);
            state.kernels.insert(KernelId(name.clone()));
            Ok(KernelId(name))
        };
        Ok(self.0.effect(&Effect { name: "make a kernel", object: None, fate: None }, act).await?)
    }

    fn files(&self, kernel: Option<&KernelId>) -> Option<BootFiles> {
        let Some(kernel) = kernel else { return Some(files(HOST)) };
        self.0.lock().kernels.contains(kernel).then(|| files(&kernel.0))
    }

    async fn keep(&self, kernels: &BTreeSet<KernelId>) -> Result<(), KernelError> {
        if self.0.lock().kernels.is_empty() {
            return Ok(());
        }
        let act = |state: &mut State| {
            let pinned = state.pinned_kernels();
            let lost: Vec<_> = state
                .kernels
                .iter()
                .filter(|id| !kernels.contains(*id) && pinned.contains(*id))
                .cloned()
                .collect();
            for kernel in lost {
                state.violation(format!("kernel {kernel} is removed while a record is pinned to it"));
            }
            state.kernels.retain(|kernel| kernels.contains(kernel));
            Ok(())
        };
        Ok(self.0.effect(&Effect { name: "keep kernels", object: None, fate: None }, act).await?)
    }
}
