//! Which phase an image is in: a pure function of the record and the plan.

use super::step::Plan;
use crate::reconcile::track::Activity;
use crate::store::ImageRecord;
use crate::timeline::Phase;

/// What the image does while the plan's step is taken, or waited for.
pub(super) fn activity(record: &ImageRecord, plan: &Plan) -> Activity {
    let source = || {
        let source = record.object.spec.source.chosen(&record.object.metadata.namespace);
        source.map_or_else(String::new, |source| source.to_string())
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
