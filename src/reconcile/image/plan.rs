//! What to do next for an image: a pure function of the record and what is seen.

use jiff::Timestamp;

use crate::image::{Digest, Source};
use crate::object::{DiskStatus, ImageStatus};
use crate::reconcile::conditions::Conditions;
use crate::reconcile::pulls::PullState;
use crate::reconcile::step::{self, Steps};
use crate::store::{ImageRecord, PinnedImage};

/// The observed half of a decision.
#[derive(Clone, Debug)]
pub(in crate::reconcile) struct Observed {
    /// The base disk of the recorded digest, if it is ready.
    pub disk: Option<DiskStatus>,
    /// The pull that this image shares in.
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
    /// Take a share in the digest's pull.
    Pull(PinnedImage),
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
    if let Some(plan) = seen.failure.as_ref().and_then(|failure| failure.wait(seen.closed_until)) {
        let phase = if deleted { "Terminating" } else { plan.phase };
        return Plan { phase, ..plan };
    }
    if deleted {
        return told(Step::Remove, "Terminating", "Deleted", "the image is being removed".to_owned());
    }
    let Some(source) = record.object.spec.source.chosen(&record.object.metadata.namespace) else {
        return told(Step::Wait(None), "Failed", "InvalidSpec", "spec.source names nothing".to_owned());
    };
    let Some(pin) = record.image.as_ref().filter(|pin| pin.source == source) else {
        let message = source.resolving();
        return match &seen.vm {
            None => told(Step::Resolve(source), "Pending", "Resolving", message),
            Some(Ok(digest)) => {
                let pin = PinnedImage { source, digest: digest.clone() };
                told(Step::Pin(pin), "Pending", "Resolving", message)
            }
            Some(Err(why)) => told(Step::Wait(None), "Pending", "WaitingForVM", why.clone()),
        };
    };
    if seen.disk.is_some() {
        let message = format!("{source} is {}", pin.digest);
        return told(Step::Wait(None), "Ready", "Ready", message);
    }
    match &seen.pull {
        None | Some(PullState::Done) => {
            told(Step::Pull(pin.clone()), "Pulling", "Pulling", format!("{source} is about to be pulled"))
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
    conditions.problem(record.problem.as_ref());
    let progress = match &seen.pull {
        Some(PullState::Running(progress)) => Some(progress.to_string()),
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
        progress: progress.filter(|_| !ready),
        next_retry_time: seen.failure.as_ref().and(seen.closed_until).or(pull_retry).filter(|_| !ready),
    }
}
