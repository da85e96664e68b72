//! What an edit does to a VM's process: the rules that the plan follows and `vmlet diff` foretells by.
//! Pure; the effects are those that the fields declare.

use crate::object::{Effect, FieldChange, RunPolicy, VmSpec, vm_changes};

/// Why a VM that was started with one spec has to stop now that it has another.
pub fn due_stop(started: &VmSpec, wanted: &VmSpec) -> Option<String> {
    if wanted.run_policy == RunPolicy::Halted {
        return Some("runPolicy is Halted".to_owned());
    }
    let shown: Vec<String> = restarting(started, wanted).iter().map(ToString::to_string).collect();
    (!shown.is_empty()).then(|| shown.join(", "))
}

/// The changes that need a stop. An image's change is seen by its digest instead.
pub fn restarting(started: &VmSpec, wanted: &VmSpec) -> Vec<FieldChange> {
    let mut changes = vm_changes(started, wanted);
    changes.retain(|change| change.effect >= Effect::Restart && change.top() != "image");
    changes
}

/// Whether a VM whose workload ended with this exit code, if any, is started again.
pub fn reruns(ended: &VmSpec, code: Option<i32>, wanted: &VmSpec) -> bool {
    policy_reruns(wanted.run_policy, code)
        || vm_changes(ended, wanted).iter().any(|change| change.effect >= Effect::Restart)
}

/// The same by the run policy alone.
pub(super) fn policy_reruns(policy: RunPolicy, code: Option<i32>) -> bool {
    match policy {
        RunPolicy::Always => true,
        RunPolicy::RerunOnFailure => code != Some(0),
        RunPolicy::Once | RunPolicy::Halted => false,
    }
}
