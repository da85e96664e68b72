//! An image's status: a pure function of the record, what is seen, and the plan.

use jiff::Timestamp;

use super::observe::Observed;
use super::step::Plan;
use crate::object::ImageStatus;
use crate::reconcile::conditions::Conditions;
use crate::reconcile::pulls::PullState;
use crate::store::ImageRecord;

/// Describes.
pub(super) fn status(record: &ImageRecord, seen: &Observed, plan: &Plan, now: Timestamp) -> ImageStatus {
    let generation = record.object.metadata.generation;
    let ready = plan.phase == "Ready";
    let stalled = plan.phase == "Failed";
    let mut conditions = Conditions::over(&record.object.status.conditions, generation, now);
    conditions.set("Ready", ready, &plan.reason, &plan.message);
    conditions.set_if(!ready && !stalled, "Reconciling", &plan.reason, &plan.message);
    conditions.set_if(stalled, "Stalled", &plan.reason, &plan.message);
    conditions.problem(record.problems().next());
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
        next_retry_time: seen.failure.as_ref().and(seen.next_try).or(pull_retry).filter(|_| !ready),
    }
}
