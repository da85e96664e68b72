//! Which phase a VM is in: a pure function of the record, what is seen, and the plan.

use super::state::{Guest, ImageView, Observed};
use super::step::{Plan, Step};
use crate::object::Timings;
use crate::reconcile::track::{Activity, Left};
use crate::store::{Run, VmRecord};
use crate::timeline::Phase;

/// What the VM does while the plan's step is taken, or waited for.
pub(in crate::reconcile) fn activity(record: &VmRecord, seen: &Observed, plan: &Plan) -> Activity {
    let failed = failed(seen, plan);
    let phase =
        if failed { (plan.phase != "Failed").then_some(Phase::Backoff) } else { phase(record, seen, plan) };
    let (detail, awaits) = match (phase, &seen.image) {
        (Some(Phase::ImageWait), ImageView::Known { pin, .. }) => {
            (pin.source.to_string(), Some(pin.digest.to_string()))
        }
        (Some(Phase::ImageWait | Phase::Blocked | Phase::Stop), _) => (plan.message.clone(), None),
        _ if failed => (plan.message.clone(), None),
        _ => (String::new(), None),
    };
    Activity { phase, failed, detail, awaits }
}

/// Whether the plan is to wait because something has failed.
fn failed(seen: &Observed, plan: &Plan) -> bool {
    let step = matches!(plan.step, Step::Wait(_));
    let gate = seen.failure.as_ref().is_some_and(|failure| failure.reason == plan.reason);
    step && (gate || matches!(plan.phase, "Backoff" | "Failed"))
}

fn phase(record: &VmRecord, seen: &Observed, plan: &Plan) -> Option<Phase> {
    let up = matches!(record.run, Run::Up { .. });
    match &plan.step {
        Step::Stop { .. } | Step::Ask | Step::Kill { .. } | Step::RecordExit { .. } => Some(Phase::Stop),
        Step::TearDown | Step::Remove => Some(Phase::TearDown),
        // In line for room, or behind other VMs.
        _ if plan.phase == "Waiting" => Some(Phase::Blocked),
        // A new image is fetched while the VM runs.
        _ if up && plan.phase == "Running" => running(seen),
        Step::Resolve(_) | Step::Find(_) | Step::Pin(_) => Some(Phase::Resolve),
        Step::Pull(_) => Some(Phase::ImageWait),
        Step::Reserve { .. } => Some(Phase::Reserve),
        Step::Queue => Some(Phase::BootWait),
        Step::Boot => Some(Phase::Prepare),
        Step::Wait(_) | Step::Relinquish => match plan.phase {
            "Pulling" => Some(Phase::ImageWait),
            "Starting" if matches!(seen.guest, Guest::Connected { .. }) => Some(Phase::Workload),
            "Starting" => Some(Phase::Boot),
            "Stopping" => Some(Phase::Stop),
            "Terminating" => Some(if up { Phase::Stop } else { Phase::TearDown }),
            "Pending" if matches!(seen.image, ImageView::Waiting { .. }) => Some(Phase::ImageWait),
            "Pending" => Some(Phase::Blocked),
            _ => None,
        },
    }
}

fn running(seen: &Observed) -> Option<Phase> {
    match &seen.guest {
        Guest::Connected { state: vmlet_wire::GuestState::Ready, .. } => Some(Phase::Ready),
        Guest::Connected { .. } => Some(Phase::Workload),
        Guest::Silent { .. } => None,
    }
}

/// The status' timings, kept from the phases that were left.
#[derive(Debug, Default)]
pub(in crate::reconcile) struct Stopwatch {
    pub timings: Timings,
    /// Waited for the image since the last reservation, in milliseconds.
    image_ms: Option<u64>,
}

impl Stopwatch {
    pub(super) fn new(timings: Timings) -> Self {
        Stopwatch { timings, image_ms: None }
    }

    /// A phase is over, and another has begun. `launched`: whether this daemon started the process.
    pub(super) fn left(&mut self, left: Left, next: Option<Phase>, launched: bool) {
        let millis = u64::try_from(left.took.as_millis()).unwrap_or(u64::MAX);
        let timings = &mut self.timings;
        match (left.phase, next) {
            (Phase::Resolve | Phase::ImageWait, _) => {
                self.image_ms = Some(self.image_ms.unwrap_or(0).saturating_add(millis));
            }
            (Phase::Reserve, _) if !left.failed => {
                let image_ms = self.image_ms.take();
                *timings = Timings { image_ms, reserve_ms: Some(millis), ..Timings::default() };
            }
            (Phase::Prepare, Some(Phase::Boot | Phase::Workload | Phase::Ready)) => {
                timings.prepare_ms = Some(millis);
                (timings.boot_ms, timings.workload_ms) = (None, None);
            }
            (Phase::Boot, Some(Phase::Workload | Phase::Ready)) if launched => {
                timings.boot_ms = Some(millis);
                timings.workload_ms = (next == Some(Phase::Ready)).then_some(0);
            }
            (Phase::Workload, Some(Phase::Ready)) if launched => timings.workload_ms = Some(millis),
            _ => {}
        }
    }
}
