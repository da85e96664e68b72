//! Builds an object's list of conditions from what holds now.

use jiff::Timestamp;

use crate::object::{Condition, ConditionStatus, set_condition};
use crate::store::Problem;

/// Collects conditions over the previous ones, so that transition times survive.
pub(super) struct Conditions {
    previous: Vec<Condition>,
    list: Vec<Condition>,
    generation: i64,
    now: Timestamp,
}

impl Conditions {
    pub(super) fn over(previous: &[Condition], generation: i64, now: Timestamp) -> Self {
        // As many as before, nearly always.
        let list = Vec::with_capacity(previous.len());
        Conditions { previous: previous.to_vec(), list, generation, now }
    }

    /// A condition that is always there.
    pub(super) fn set(
        &mut self,
        kind: &str,
        status: impl Into<ConditionStatus>,
        reason: &str,
        message: &str,
    ) {
        let new = Condition {
            kind: kind.to_owned(),
            status: status.into(),
            observed_generation: self.generation,
            last_transition_time: self.now,
            reason: reason.to_owned(),
            message: message.to_owned(),
        };
        set_condition(&mut self.previous, new);
        let kept = self.previous.iter().find(|condition| condition.kind == kind);
        self.list.extend(kept.cloned());
    }

    /// A condition that is there only when true, as kstatus wants it.
    pub(super) fn set_if(&mut self, holds: bool, kind: &str, reason: &str, message: &str) {
        if holds {
            self.set(kind, true, reason, message);
        }
    }

    /// What the object's source says.
    pub(super) fn problem(&mut self, problem: Option<&Problem>) {
        if let Some(Problem { reason, message }) = problem {
            self.set("ManifestProblem", true, reason, message);
        }
    }

    pub(super) fn finish(self) -> Vec<Condition> {
        self.list
    }
}
