//! What an image's task sees before it decides: disks, kernel, pull, and the VM that it is made of.
//!
//! In: the record, and what the task holds on to. Out: an [`Observed`], which is data only. Nothing here waits.

use jiff::Timestamp;
use tokio::time::Instant;

use super::ImageTask;
use super::step::Failure;
use crate::image::{Digest, Source};
use crate::object::{DiskStatus, Kind, ObjectKey, PullPolicy, Uid};
use crate::reconcile::pulls::{PullState, Share};
use crate::store::{DiskState, ImageRecord, PinnedImage, Run, VmRecord};

/// The observed half of a decision; the recorded half is the store's record.
#[derive(Clone, Debug)]
pub(in crate::reconcile) struct Observed {
    /// The base disk of the recorded digest, if it is ready.
    pub disk: Option<DiskStatus>,
    /// Whether the base disk of the recorded kernel's image is ready, if it is in another one.
    pub kernel_disk: bool,
    /// The release of the recorded kernel, if it is ready to boot.
    pub kernel: Option<String>,
    /// The pull that this image shares in: its own, or that of its kernel's image.
    pub pull: Option<PullState>,
    /// The VM that the image is made of, if it is of one: the image's digest once the VM is stopped, else
    /// what is waited for.
    pub vm: Option<Result<Digest, String>>,
    /// The last failed step.
    pub failure: Option<Failure>,
    /// When the gate of the backoff opens, if it is closed.
    pub closed_until: Option<Instant>,
    /// The same for people.
    pub next_try: Option<Timestamp>,
}

impl ImageTask {
    /// Looks at everything that the decision depends on. A share in a pull that is not waited for is let go.
    pub(super) fn observe(&mut self, record: &ImageRecord) -> Observed {
        let deleted = record.object.metadata.deletion_timestamp.is_some();
        let pin = record.image.as_ref();
        let pinned_kernel = pin.and_then(|pin| pin.kernel.as_ref());
        let kernel_digest = pinned_kernel.and_then(|kernel| kernel.disk.as_ref());
        let kernel_disk = kernel_digest.and_then(|digest| self.disk(digest)).is_some();
        let disk = pin.and_then(|pin| self.disk(&pin.digest));
        // One pull at a time: the image's, then that of its kernel's image.
        let awaited = match &disk {
            None => pin.filter(|pin| self.awaits(record, pin)).map(|pin| &pin.digest),
            Some(_) => kernel_digest.filter(|_| {
                !kernel_disk && (record.current().is_some() || self.attempts.failure().is_none())
            }),
        };
        if deleted || self.share.as_ref().is_some_and(|share| Some(share.digest()) != awaited) {
            self.share = None;
        }
        let boot = pinned_kernel.and_then(|kernel| kernel.boot.as_ref());
        let files = boot.and_then(|boot| self.world.kernels.files(boot.kernel.as_ref()));
        Observed {
            disk,
            kernel_disk,
            kernel: files.map(|files| files.release),
            pull: self.share.as_ref().map(Share::state),
            vm: self.vm(record),
            failure: self.attempts.failure().cloned(),
            closed_until: self.attempts.closed_until(),
            next_try: self.attempts.next_try(&self.world.clock),
        }
    }

    /// Whether the image is to be pulled as it is pinned. One that is another by now may be the same digest,
    /// until its registry has answered.
    fn awaits(&self, record: &ImageRecord, pin: &PinnedImage) -> bool {
        let spec = &record.object.spec;
        match spec.source.chosen(&record.object.metadata.namespace) {
            _ if spec.pull_policy() == PullPolicy::Never => false,
            Some(source) if source == pin.source => true,
            Some(Source::Vm(_)) | None => false,
            Some(_) => self.attempts.failure().is_none(),
        }
    }

    fn disk(&self, digest: &Digest) -> Option<DiskStatus> {
        match self.world.store.disk(digest)?.state {
            DiskState::Ready { path, size, .. } => {
                Some(DiskStatus { path: path.display().to_string(), size })
            }
            DiskState::Installing { .. } | DiskState::Removing => None,
        }
    }

    /// The VM that the image is made of.
    fn vm(&self, record: &ImageRecord) -> Option<Result<Digest, String>> {
        let name = &record.object.spec.source.vm.as_ref()?.name;
        let key = ObjectKey::new(Kind::Vm, &self.key.namespace, name);
        let vm = self.world.store.vm(&key);
        Some(promotable(&key, vm.as_deref()).map(|vm| digest_of(vm, self.uid, record)))
    }
}

/// The digest of the image that is made of a stopped VM: of this run of it, for this declaration.
pub(super) fn digest_of(vm: &VmRecord, image: Uid, record: &ImageRecord) -> Digest {
    let of = (vm.object.metadata.uid, vm.starts, image, record.object.metadata.generation);
    Digest::of(&format!("{of:?}"))
}

/// The VM, if an image can be made of it now; else what is waited for.
pub(super) fn promotable<'a>(key: &ObjectKey, vm: Option<&'a VmRecord>) -> Result<&'a VmRecord, String> {
    let Some(vm) = vm else { return Err(format!("{key} does not exist")) };
    let (metadata, status) = (&vm.object.metadata, &vm.object.status);
    if metadata.deletion_timestamp.is_some() {
        return Err(format!("{key} is being deleted"));
    }
    let up = matches!(vm.run, Run::Up { .. });
    if up || status.phase != "Stopped" || status.observed_generation != metadata.generation {
        let phase = if status.phase.is_empty() { "Pending" } else { &status.phase };
        return Err(format!(
            "{key} is {phase}; an image is made of it when it is stopped (runPolicy: Halted)"
        ));
    }
    if vm.reservation.is_none() {
        return Err(format!("{key} has never run: it has no disk of its own yet"));
    }
    Ok(vm)
}
