//! The steps of an image's plan. No policy here: each step does what the plan said and records what came of it.

use std::mem::discriminant;

use super::ImageTask;
use super::observe::Observed;
use super::step::{Plan, Step};
use crate::boot::{Boot, KernelChoice, KernelPaths, KernelRequest, KernelSource};
use crate::image::{ImageError, Source};
use crate::reconcile::present::present;
use crate::reconcile::step::StepError;
use crate::reconcile::task::{Outcome, Wake};
use crate::store::{ImageRecord, ImageUpdate, PinnedImage, PinnedKernel, RemoveImageError, Severity};

impl ImageTask {
    /// Takes one step. A failure closes the backoff's gate and stays in the status until a digest or a kernel
    /// is recorded.
    pub(super) async fn act(
        &mut self,
        record: &ImageRecord,
        seen: &Observed,
        plan: &Plan,
        wake: &mut Wake,
    ) -> Outcome {
        match self.take(record, seen, plan, wake).await {
            Ok(outcome) => outcome,
            Err(error) => {
                if let Some(failure) = error.of(discriminant(&plan.step)) {
                    self.fail(failure);
                }
                Outcome::Again
            }
        }
    }

    async fn take(
        &mut self,
        record: &ImageRecord,
        seen: &Observed,
        plan: &Plan,
        wake: &mut Wake,
    ) -> Result<Outcome, StepError> {
        match &plan.step {
            Step::Wait(until) => return Ok(Outcome::Wait(*until)),
            Step::Resolve(source) => self.resolve(record, source, wake).await?,
            Step::Pin(pin) => self.pin(record, pin.clone()).await?,
            Step::Find(source) => self.find(record, source).await?,
            Step::Pull { source, digest } => self.share = Some(self.world.pulls.join(source, digest)),
            Step::ResolveKernel { choice, source } => {
                self.resolve_kernel(record, choice, source, wake).await?;
            }
            Step::MakeKernel(kernel) => self.make_kernel(record, kernel, wake).await?,
            Step::PinKernel(kernel) => self.pin_kernel(record, kernel.clone()).await?,
            Step::Remove => return self.remove(record, seen, plan).await,
        }
        Ok(Outcome::Again)
    }

    pub(super) async fn resolve(
        &mut self,
        record: &ImageRecord,
        source: &Source,
        wake: &mut Wake,
    ) -> Result<(), StepError> {
        let images = self.world.images.clone();
        let Some(resolved) = wake.unless_woken(images.resolve(source)).await else {
            return Ok(());
        };
        self.pin(record, PinnedImage { source: source.clone(), digest: resolved?, kernel: None }).await
    }

    async fn find(&mut self, record: &ImageRecord, source: &Source) -> Result<(), StepError> {
        let found = present(&self.world.store, source).ok_or_else(|| ImageError::not_present(source))?;
        self.pin(record, found).await
    }

    async fn pin(&mut self, record: &ImageRecord, pin: PinnedImage) -> Result<(), StepError> {
        let generation = Some(record.object.metadata.generation);
        let update = ImageUpdate { generation, image: Some(Some(pin)), status: None };
        self.world.store.publish_image(&self.key, self.uid, update).await?;
        self.attempts.advance();
        // What was pinned before may be nobody's now.
        self.world.collector.notify_one();
        Ok(())
    }

    /// The image as it is pinned, with this kernel from now on.
    async fn pin_kernel(
        &mut self,
        record: &ImageRecord,
        kernel: Option<PinnedKernel>,
    ) -> Result<(), StepError> {
        let pin = record.image.clone().ok_or(StepError::Stale)?;
        self.pin(record, PinnedImage { kernel: kernel.map(Box::new), ..pin }).await
    }

    /// The digest is recorded before the disk is pulled: so nobody removes it under the kernel that is made of it.
    async fn resolve_kernel(
        &mut self,
        record: &ImageRecord,
        choice: &KernelChoice,
        source: &Source,
        wake: &mut Wake,
    ) -> Result<(), StepError> {
        let images = self.world.images.clone();
        let Some(resolved) = wake.unless_woken(images.resolve(source)).await else {
            return Ok(());
        };
        let kernel = PinnedKernel { choice: choice.clone(), disk: Some(resolved?), boot: None };
        self.pin_kernel(record, Some(kernel)).await
    }

    async fn make_kernel(
        &mut self,
        record: &ImageRecord,
        kernel: &PinnedKernel,
        wake: &mut Wake,
    ) -> Result<(), StepError> {
        let pin = record.image.as_ref().ok_or(StepError::Stale)?;
        let made = match self.request(pin, kernel).await? {
            Some(request) => {
                let kernels = self.world.kernels.clone();
                let Some(made) = wake.unless_woken(kernels.make(&request)).await else { return Ok(()) };
                Some(made?)
            }
            None => None,
        };
        let boot = Some(Boot { kernel: made, command_line: kernel.choice.command_line.clone() });
        self.pin_kernel(record, Some(PinnedKernel { boot, ..kernel.clone() })).await
    }

    /// Where the kernel is; none is the host's.
    async fn request(
        &self,
        pin: &PinnedImage,
        kernel: &PinnedKernel,
    ) -> Result<Option<KernelRequest>, StepError> {
        let images = &self.world.images;
        Ok(match &kernel.choice.source {
            Some(KernelSource::Host) => None,
            Some(KernelSource::File(files)) => Some(KernelRequest::Files(files.clone())),
            Some(KernelSource::Image(paths)) => {
                let disk = images.disk(&pin.digest).await.ok_or(StepError::Stale)?.path;
                Some(KernelRequest::Disk { disk, paths: paths.clone() })
            }
            Some(KernelSource::Oci(_)) => {
                let digest = kernel.disk.as_ref().ok_or(StepError::Stale)?;
                let disk = images.disk(digest).await.ok_or(StepError::Stale)?.path;
                Some(KernelRequest::Disk { disk, paths: KernelPaths::default() })
            }
            None => images.disk(&pin.digest).await.ok_or(StepError::Stale)?.kernel.map(KernelRequest::Files),
        })
    }

    /// One brief transaction looks up, checks the references and removes the record; the collector
    /// removes the files. An image in use is left, and looked at again when one of its VMs changes.
    async fn remove(
        &mut self,
        record: &ImageRecord,
        seen: &Observed,
        plan: &Plan,
    ) -> Result<Outcome, StepError> {
        match self.world.store.remove_image(&self.key, self.uid).await {
            Ok(()) => {
                let message = "the image is gone, and its base disk unless something else uses it";
                self.world.event(&self.key, self.uid, Severity::Normal, "Deleted", message);
                self.world.collector.notify_one();
                self.track.finish();
                Ok(Outcome::Gone)
            }
            Err(error @ RemoveImageError::InUse { .. }) => {
                let plan = Plan { reason: "InUse".to_owned(), message: error.to_string(), ..plan.clone() };
                self.publish(record, seen, &plan).await;
                Ok(Outcome::Wait(None))
            }
            Err(error) => Err(error.into()),
        }
    }
}
