//! An image's reconcile task: observe, plan, publish, act.

mod plan;

#[cfg(test)]
mod tests;

use std::mem::discriminant;
use std::sync::Arc;

use async_trait::async_trait;

use self::plan::{Failure, Observed, Plan, Step, plan, status};
use super::backoff::Backoff;
use super::present::present;
use super::pulls::Share;
use super::step::StepError;
use super::task::{Outcome, Reconciler, Wake};
use super::track::{Activity, Track};
use super::world::World;
use crate::boot::{Boot, KernelChoice, KernelPaths, KernelRequest, KernelSource};
use crate::image::{Digest, ImageError, Source};
use crate::object::{DiskStatus, Kind, ObjectKey, PullPolicy, Uid};
use crate::store::{
    DiskState, ImageRecord, ImageUpdate, PinnedImage, PinnedKernel, RemoveImageError, Run, Severity, VmRecord,
};
use crate::timeline::Phase;

/// What an image's task remembers between looks. All of it can be lost.
pub(super) struct ImageTask {
    world: Arc<World>,
    key: ObjectKey,
    uid: Uid,
    backoff: Backoff,
    failure: Option<Failure>,
    share: Option<Share>,
    track: Track,
}

impl ImageTask {
    pub(super) fn new(world: Arc<World>, key: ObjectKey, uid: Uid) -> Self {
        let backoff = Backoff::new(world.settings.backoff, world.entropy.clone());
        let track = Track::new(world.recorder.clone(), key.clone());
        ImageTask { world, key, uid, backoff, failure: None, share: None, track }
    }

    fn observe(&mut self, record: &ImageRecord) -> Observed {
        let deleted = record.object.metadata.deletion_timestamp.is_some();
        if self.backoff.observe((record.object.metadata.generation, deleted)) {
            self.failure = None;
            if let Some(share) = &self.share {
                share.hurry();
            }
        }
        let disk = |digest: &Digest| match self.world.store.disk(digest)?.state {
            DiskState::Ready { path, size, .. } => {
                Some(DiskStatus { path: path.display().to_string(), size })
            }
            DiskState::Installing { .. } | DiskState::Removing => None,
        };
        let pin = record.image.as_ref();
        let pinned_kernel = pin.and_then(|pin| pin.kernel.as_ref());
        let kernel_digest = pinned_kernel.and_then(|kernel| kernel.disk.as_ref());
        let kernel_disk = kernel_digest.and_then(disk).is_some();
        let disk = pin.and_then(|pin| disk(&pin.digest));
        // One pull at a time: the image's, then that of its kernel's image.
        let awaited = match &disk {
            None => pin.filter(|pin| self.awaits(record, pin)).map(|pin| &pin.digest),
            Some(_) => kernel_digest
                .filter(|_| !kernel_disk && (record.current().is_some() || self.failure.is_none())),
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
            failure: self.failure.clone(),
            closed_until: self.backoff.closed_until(self.world.clock.now()),
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
            Some(_) => self.failure.is_none(),
        }
    }

    /// The VM that the image is made of.
    fn vm(&self, record: &ImageRecord) -> Option<Result<Digest, String>> {
        let name = &record.object.spec.source.vm.as_ref()?.name;
        let key = ObjectKey::new(Kind::Vm, &self.key.namespace, name);
        let vm = self.world.store.vm(&key);
        Some(promotable(&key, vm.as_deref()).map(|vm| digest_of(vm, self.uid, record)))
    }

    /// Announces the change that the new status makes visible.
    fn announce(&self, record: &ImageRecord, plan: &Plan) {
        let before = &record.object.status;
        let said = before.conditions.iter().find(|condition| condition.kind == "Ready");
        let news = said.is_none_or(|said| said.reason != plan.reason) && before.phase != plan.phase;
        let severity = match plan.phase {
            "Ready" | "Pulling" => Severity::Normal,
            "Backoff" | "Failed" => Severity::Warning,
            _ => return,
        };
        if news {
            self.world.event(&self.key, self.uid, severity, &plan.reason, &plan.message);
        }
    }

    async fn resolve(
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
        let update = ImageUpdate {
            generation: Some(record.object.metadata.generation),
            image: Some(Some(pin)),
            status: None,
        };
        self.publish_pin(update).await
    }

    async fn publish_pin(&mut self, update: ImageUpdate) -> Result<(), StepError> {
        self.world.store.publish_image(&self.key, self.uid, update).await?;
        self.failure = None;
        self.backoff.reset();
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
        let update = ImageUpdate {
            generation: Some(record.object.metadata.generation),
            image: Some(Some(PinnedImage { kernel: kernel.map(Box::new), ..pin })),
            status: None,
        };
        self.publish_pin(update).await
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
    async fn remove(&mut self) -> Result<Removal, StepError> {
        match self.world.store.remove_image(&self.key, self.uid).await {
            Ok(()) => {
                let message = "the image is gone, and its base disk unless something else uses it";
                self.world.event(&self.key, self.uid, Severity::Normal, "Deleted", message);
                self.world.collector.notify_one();
                Ok(Removal::Done)
            }
            Err(error @ RemoveImageError::InUse { .. }) => Ok(Removal::InUse(error.to_string())),
            Err(error) => Err(error.into()),
        }
    }

    async fn publish(&self, record: &ImageRecord, seen: &Observed, plan: &Plan) {
        let status = Some(status(record, seen, plan, self.world.clock.now()));
        let update = ImageUpdate { status, ..ImageUpdate::default() };
        if let Err(error) = self.world.store.publish_image(&self.key, self.uid, update).await {
            tracing::debug!(image = %self.key, %error, "status not published");
        }
    }

    fn fail(&mut self, failure: Failure) {
        self.backoff.fail(self.world.clock.now());
        self.world.meters.failure(Kind::Image.singular(), &failure.reason);
        tracing::warn!(image = %self.key, reason = failure.reason, "{}", failure.message);
        self.failure = Some(failure);
    }
}

#[async_trait]
impl Reconciler for ImageTask {
    async fn reconcile(&mut self, wake: &mut Wake) -> Outcome {
        let world = self.world.clone();
        let Some(record) =
            world.store.image(&self.key).filter(|record| record.object.metadata.uid == Some(self.uid))
        else {
            self.track.finish();
            return Outcome::Gone;
        };
        let seen = self.observe(&record);
        let plan = plan(&record, &seen);
        self.track.enter(&activity(&record, &plan));
        self.announce(&record, &plan);
        // What a removal comes to is known after it: a look that changes nothing writes nothing, or the
        // image and its VMs would wake each other for ever.
        if plan.step != Step::Remove {
            self.publish(&record, &seen, &plan).await;
        }
        if let Some(name) = step_name(&plan.step) {
            world.meters.step(Kind::Image, name);
        }
        let kind = discriminant(&plan.step);
        let done = match plan.step {
            Step::Wait(until) => return Outcome::Wait(until),
            Step::Resolve(ref source) => self.resolve(&record, source, wake).await,
            Step::Pin(ref pin) => self.pin(&record, pin.clone()).await,
            Step::Find(ref source) => self.find(&record, source).await,
            Step::Pull { ref source, ref digest } => {
                self.share = Some(self.world.pulls.join(source, digest));
                Ok(())
            }
            Step::ResolveKernel { ref choice, ref source } => {
                self.resolve_kernel(&record, choice, source, wake).await
            }
            Step::MakeKernel(ref kernel) => self.make_kernel(&record, kernel, wake).await,
            Step::PinKernel(ref kernel) => self.pin_kernel(&record, kernel.clone()).await,
            Step::Remove => match self.remove().await {
                Ok(Removal::Done) => {
                    self.track.finish();
                    return Outcome::Gone;
                }
                Ok(Removal::InUse(message)) => {
                    let plan = Plan { reason: "InUse".to_owned(), message, ..plan };
                    self.publish(&record, &seen, &plan).await;
                    return Outcome::Wait(None);
                }
                Err(error) => Err(error),
            },
        };
        if let Some(failure) = done.err().and_then(|error| error.of(kind)) {
            self.fail(failure);
        }
        Outcome::Again
    }

    async fn panicked(&mut self, message: &str) -> Outcome {
        self.share = None;
        // Which step it was says nothing: whatever failed, an image waits.
        let failure = Failure::of_panic(message, discriminant(&Step::Wait(None)));
        self.world.event(&self.key, self.uid, Severity::Warning, &failure.reason, &failure.message);
        self.fail(failure);
        // Not at once, in case that it was the look that panicked.
        Outcome::Wait(self.backoff.closed_until(self.world.clock.now()))
    }

    async fn changed(&mut self) {
        match self.share.as_mut() {
            Some(share) => share.changed().await,
            None => std::future::pending().await,
        }
    }
}

/// What the image does while the plan's step is taken, or waited for.
fn activity(record: &ImageRecord, plan: &Plan) -> Activity {
    let source = || {
        record
            .object
            .spec
            .source
            .chosen(&record.object.metadata.namespace)
            .map_or_else(String::new, |source| source.to_string())
    };
    let failed = matches!(plan.phase, "Backoff" | "Failed");
    let (phase, detail) = match plan.phase {
        "Pending" => (Some(Phase::Resolve), source()),
        "Pulling" => (Some(Phase::ImageWait), source()),
        "Ready" => (Some(Phase::Ready), String::new()),
        "Terminating" => (Some(Phase::TearDown), String::new()),
        "Backoff" => (Some(Phase::Backoff), plan.message.clone()),
        _ => (None, plan.message.clone()),
    };
    let digest = record.image.as_ref().map(|pin| pin.digest.to_string());
    Activity { phase, failed, detail, awaits: digest.filter(|_| phase == Some(Phase::ImageWait)) }
}

/// The step's name in metrics; none for a wait.
fn step_name(step: &Step) -> Option<&'static str> {
    match step {
        Step::Wait(_) => None,
        Step::Resolve(_) => Some("resolve"),
        Step::Pin(_) => Some("pin"),
        Step::Find(_) => Some("find"),
        Step::Pull { .. } => Some("pull"),
        Step::ResolveKernel { .. } => Some("resolve_kernel"),
        Step::MakeKernel(_) => Some("make_kernel"),
        Step::PinKernel(_) => Some("pin_kernel"),
        Step::Remove => Some("remove"),
    }
}

/// The digest of the image that is made of a stopped VM: of this run of it, for this declaration.
fn digest_of(vm: &VmRecord, image: Uid, record: &ImageRecord) -> Digest {
    let of = (vm.object.metadata.uid, vm.starts, image, record.object.metadata.generation);
    Digest::of(&format!("{of:?}"))
}

/// The VM, if an image can be made of it now; else what is waited for.
fn promotable<'a>(key: &ObjectKey, vm: Option<&'a VmRecord>) -> Result<&'a VmRecord, String> {
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

/// What became of a removal.
enum Removal {
    Done,
    /// VMs use the image; says which.
    InUse(String),
}
