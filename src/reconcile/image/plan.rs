//! What to do next for an image: a pure function of the record and what is seen.

use jiff::Timestamp;

use crate::boot::{Boot, KernelChoice, KernelSource};
use crate::image::{Digest, Source};
use crate::object::{DiskStatus, ImageStatus, PullPolicy};
use crate::reconcile::conditions::Conditions;
use crate::reconcile::pulls::PullState;
use crate::reconcile::step::{self, Steps};
use crate::store::{ImageRecord, PinnedImage, PinnedKernel};

/// The observed half of a decision.
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
    pub closed_until: Option<Timestamp>,
}

/// A step of an image, and what to tell people while it is not done.
pub(in crate::reconcile) type Plan = step::Plan<Step>;
/// A step that failed.
pub(in crate::reconcile) type Failure = step::Failure<Step>;

/// The steps.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::reconcile) enum Step {
    /// Nothing before a wake-up or this time.
    Wait(Option<Timestamp>),
    /// Find the source's digest.
    Resolve(Source),
    /// Record the digest of an image that is to be made. It keeps the disk from now on.
    Pin(PinnedImage),
    /// Find the source's digest among what is on the host.
    Find(Source),
    /// Take a share in the digest's pull.
    Pull { source: Source, digest: Digest },
    /// Find the digest of the image that the kernel is in.
    ResolveKernel { choice: KernelChoice, source: Source },
    /// Make boot files of the kernel.
    MakeKernel(PinnedKernel),
    /// Record a kernel that needs nothing.
    PinKernel(Option<PinnedKernel>),
    /// Remove the record unless a VM uses the image.
    Remove,
}

impl Steps for Step {
    fn wait(until: Option<Timestamp>) -> Self {
        Step::Wait(until)
    }
}

/// Decides.
pub(in crate::reconcile) fn plan(record: &ImageRecord, seen: &Observed) -> Plan {
    let deleted = record.object.metadata.deletion_timestamp.is_some();
    let told =
        |step, phase, reason: &str, message: String| Plan { step, phase, reason: reason.to_owned(), message };
    if deleted {
        // Retried for ever, whatever the failure says of itself.
        return match (&seen.failure, seen.closed_until) {
            (Some(failure), Some(until)) => {
                told(Step::Wait(Some(until)), "Terminating", &failure.reason, failure.message.clone())
            }
            _ => told(Step::Remove, "Terminating", "Deleted", "the image is being removed".to_owned()),
        };
    }
    if let Some(plan) = seen.failure.as_ref().and_then(|failure| failure.wait(seen.closed_until)) {
        return plan;
    }
    let Some(source) = record.object.spec.source.chosen(&record.object.metadata.namespace) else {
        return told(Step::Wait(None), "Failed", "InvalidSpec", "spec.source names nothing".to_owned());
    };
    let never = record.object.spec.pull_policy() == PullPolicy::Never;
    let pin = record.image.as_ref().filter(|pin| pin.source == source);
    if never && (pin.is_none() || seen.disk.is_none()) {
        let message = format!("looking for {source} on this host");
        return told(Step::Find(source), "Pending", "Resolving", message);
    }
    let Some(pin) = pin else {
        let message = source.resolving();
        return match &seen.vm {
            None => told(Step::Resolve(source), "Pending", "Resolving", message),
            Some(Ok(digest)) => {
                let pin = PinnedImage { source, digest: digest.clone(), kernel: None };
                told(Step::Pin(pin), "Pending", "Resolving", message)
            }
            Some(Err(why)) => told(Step::Wait(None), "Pending", "WaitingForVM", why.clone()),
        };
    };
    if seen.disk.is_none() {
        return pulling(&source, &pin.digest, seen);
    }
    kernel(record.object.spec.kernel(), pin, seen).unwrap_or_else(|| {
        let message = format!("{source} is {}", pin.digest);
        told(Step::Wait(None), "Ready", "Ready", message)
    })
}

/// What is to be done until VMs can boot; none if they can.
fn kernel(wanted: Option<KernelChoice>, pin: &PinnedImage, seen: &Observed) -> Option<Plan> {
    let told = |step, message: &str| Some(Plan::new(step).told("Pending", "PreparingKernel", message));
    let Some(choice) = wanted else {
        let step = Step::PinKernel(None);
        return pin.kernel.is_some().then(|| told(step, "VMs boot the host's kernel from now on"))?;
    };
    let held = pin.kernel.as_ref().filter(|kernel| kernel.choice == choice);
    if held.is_some_and(|kernel| kernel.boot.is_some()) && seen.kernel.is_some() {
        return None;
    }
    let digest = held.and_then(|kernel| kernel.disk.as_ref());
    match (&choice.source, digest) {
        (Some(KernelSource::Host), _) => {
            let boot = Some(Boot { kernel: None, command_line: choice.command_line.clone() });
            let kernel = PinnedKernel { choice, disk: None, boot };
            told(Step::PinKernel(Some(kernel)), "the kernel's command line changes")
        }
        (Some(KernelSource::Oci(reference)), None) => {
            let source = Source::Oci(reference.clone());
            let message = source.resolving();
            told(Step::ResolveKernel { choice, source }, &message)
        }
        (Some(KernelSource::Oci(reference)), Some(digest)) if !seen.kernel_disk => {
            Some(pulling(&Source::Oci(reference.clone()), digest, seen))
        }
        (source, _) => {
            let source =
                source.as_ref().map_or_else(|| "the image's own kernel".to_owned(), ToString::to_string);
            let new = || PinnedKernel { choice: choice.clone(), disk: None, boot: None };
            let kernel = held.map(|held| (**held).clone()).unwrap_or_else(new);
            told(Step::MakeKernel(kernel), &format!("{source} is made ready to boot"))
        }
    }
}

fn pulling(source: &Source, digest: &Digest, seen: &Observed) -> Plan {
    let told =
        |step, phase, reason: &str, message: String| Plan { step, phase, reason: reason.to_owned(), message };
    match &seen.pull {
        None | Some(PullState::Done) => {
            let step = Step::Pull { source: source.clone(), digest: digest.clone() };
            told(step, "Pulling", "Pulling", format!("{source} is about to be pulled"))
        }
        Some(PullState::Queued) => {
            let message = format!("{source} waits for other pulls: as many as allowed are under way");
            told(Step::Wait(None), "Pulling", "WaitingForPull", message)
        }
        Some(PullState::Running(progress)) => {
            told(Step::Wait(None), "Pulling", "Pulling", format!("{source} is being pulled ({progress})"))
        }
        Some(PullState::Failed { reason, message, attempt, retry }) => {
            let phase = if retry.is_some() { "Backoff" } else { "Failed" };
            told(Step::Wait(None), phase, reason, format!("{message} (attempt {attempt})"))
        }
    }
}

/// Describes.
pub(in crate::reconcile) fn status(
    record: &ImageRecord,
    seen: &Observed,
    plan: &Plan,
    now: Timestamp,
) -> ImageStatus {
    let generation = record.object.metadata.generation;
    let ready = plan.phase == "Ready";
    let stalled = plan.phase == "Failed";
    let mut conditions = Conditions::over(&record.object.status.conditions, generation, now);
    conditions.set("Ready", ready, &plan.reason, &plan.message);
    conditions.set_if(!ready && !stalled, "Reconciling", &plan.reason, &plan.message);
    conditions.set_if(stalled, "Stalled", &plan.reason, &plan.message);
    conditions.problem(record.problem());
    let pull = match &seen.pull {
        Some(PullState::Running(progress)) if !ready => Some(progress.clone()),
        _ => None,
    };
    let pull_retry = match &seen.pull {
        Some(PullState::Failed { retry, .. }) => *retry,
        _ => None,
    };
    ImageStatus {
        phase: plan.phase.to_owned(),
        conditions: conditions.finish(),
        observed_generation: generation,
        digest: record.image.as_ref().map(|pin| pin.digest.to_string()),
        disk: seen.disk.clone(),
        kernel: record.image.as_ref().and(seen.kernel.clone()),
        progress: pull.as_ref().map(ToString::to_string),
        pull,
        next_retry_time: seen.failure.as_ref().and(seen.closed_until).or(pull_retry).filter(|_| !ready),
    }
}
