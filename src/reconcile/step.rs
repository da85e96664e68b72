//! What tasks of both kinds have in common: a plan, a step that fails, and how that holds it back.

use std::mem::Discriminant;

use tokio::time::Instant;

use super::pulls::PullState;
use crate::boot::KernelError;
use crate::hypervisor::DriverError;
use crate::image::{ImageError, Source};
use crate::network::NetworkError;
use crate::store::{PublishError, ReleaseError, RemoveError, RemoveImageError, ReserveError, StoreError};

/// One step, and what to tell people while it is not done.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plan<Step> {
    pub step: Step,
    /// One word for the status.
    pub phase: &'static str,
    /// Why the object is not Ready, in one CamelCase word.
    pub reason: String,
    /// The same in a sentence.
    pub message: String,
}

/// The steps of a kind, of which one is to wait.
pub(super) trait Steps {
    /// Nothing before a wake-up or this time.
    fn wait(until: Option<Instant>) -> Self;

    /// The step's name in metrics.
    fn name(&self) -> &'static str;
}

impl<Step: Steps> Plan<Step> {
    pub(super) fn new(step: Step) -> Self {
        Plan { step, phase: "", reason: String::new(), message: String::new() }
    }

    pub(super) fn wait(until: Option<Instant>) -> Self {
        Plan::new(Step::wait(until))
    }

    /// With phase, reason and message, whatever they were.
    pub(super) fn told(self, phase: &'static str, reason: &str, message: &str) -> Self {
        Plan { step: self.step, phase, reason: reason.to_owned(), message: message.to_owned() }
    }

    /// The wait for a pull that is under way, or was refused.
    pub(super) fn pulling(source: &Source, pull: &PullState) -> Self {
        match pull {
            PullState::Queued | PullState::Done => {
                let message = format!("{source} waits for other pulls: as many as allowed are under way");
                Plan::wait(None).told("Pulling", "WaitingForPull", &message)
            }
            PullState::Running(progress) => {
                let message = format!("{source} is being pulled ({progress})");
                Plan::wait(None).told("Pulling", "Pulling", &message)
            }
            PullState::Failed { reason, message, attempt, retry } => {
                let message = format!("{message} (attempt {attempt} of this pull)");
                let phase = if retry.is_some() { "Backoff" } else { "Failed" };
                Plan::wait(None).told(phase, reason, &message)
            }
        }
    }
}

/// A step that failed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Failure<Step> {
    pub reason: String,
    pub message: String,
    /// Whether the same step may succeed without a change of the spec.
    pub transient: bool,
    /// Which step it was.
    pub step: Discriminant<Step>,
}

impl<Step: Steps> Failure<Step> {
    /// The panic of a step.
    pub(super) fn of_panic(message: &str, step: Discriminant<Step>) -> Self {
        let message = format!("a step failed unexpectedly: {message}; please report this");
        Failure { reason: "InternalError".to_owned(), message, transient: true, step }
    }

    /// The wait that it asks for: until the backoff's gate opens, or for a change of the spec.
    pub(super) fn wait(&self, closed_until: Option<Instant>) -> Option<Plan<Step>> {
        let Failure { reason, message, transient, .. } = self;
        match (transient, closed_until) {
            (false, _) => Some(Plan::wait(None).told("Failed", reason, message)),
            (true, Some(until)) => Some(Plan::wait(Some(until)).told("Backoff", reason, message)),
            (true, None) => None,
        }
    }
}

/// Why a step did not get done.
pub(super) enum StepError {
    /// What it was based on has changed: decide anew.
    Stale,
    /// It failed.
    Failed { reason: String, message: String, transient: bool },
}

impl StepError {
    fn failed(reason: &str, message: String, transient: bool) -> Self {
        StepError::Failed { reason: reason.to_owned(), message, transient }
    }

    /// The failure of this step; none if it is only to be decided anew.
    pub(super) fn of<Step>(self, step: Discriminant<Step>) -> Option<Failure<Step>> {
        match self {
            StepError::Stale => None,
            StepError::Failed { reason, message, transient } => {
                Some(Failure { reason, message, transient, step })
            }
        }
    }
}

impl From<ImageError> for StepError {
    fn from(error: ImageError) -> Self {
        StepError::failed(error.reason, error.message, error.transient)
    }
}

impl From<KernelError> for StepError {
    fn from(error: KernelError) -> Self {
        StepError::failed(error.reason, error.message, error.transient)
    }
}

impl From<DriverError> for StepError {
    fn from(error: DriverError) -> Self {
        StepError::failed(error.reason, error.message, error.transient)
    }
}

impl From<NetworkError> for StepError {
    fn from(error: NetworkError) -> Self {
        StepError::failed(error.reason, error.message, error.transient)
    }
}

impl From<ReserveError> for StepError {
    fn from(error: ReserveError) -> Self {
        match error {
            ReserveError::Stale | ReserveError::ImageNotReady { .. } => StepError::Stale,
            error => StepError::failed(error.reason(), error.to_string(), error.transient()),
        }
    }
}

impl From<StoreError> for StepError {
    fn from(error: StoreError) -> Self {
        StepError::failed("StoreFailed", error.to_string(), true)
    }
}

impl From<PublishError> for StepError {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Stale => StepError::Stale,
            PublishError::Store(error) => error.into(),
        }
    }
}

impl From<ReleaseError> for StepError {
    fn from(error: ReleaseError) -> Self {
        match error {
            ReleaseError::Store(error) => error.into(),
            error => StepError::failed("NotReleased", error.to_string(), true),
        }
    }
}

impl From<RemoveError> for StepError {
    fn from(error: RemoveError) -> Self {
        match error {
            RemoveError::Stale => StepError::Stale,
            RemoveError::Store(error) => error.into(),
            error => StepError::failed("NotRemoved", error.to_string(), true),
        }
    }
}

impl From<RemoveImageError> for StepError {
    fn from(error: RemoveImageError) -> Self {
        match error {
            RemoveImageError::Stale => StepError::Stale,
            RemoveImageError::Store(error) => error.into(),
            error => StepError::failed("NotRemoved", error.to_string(), true),
        }
    }
}
