//! What to do next for a VM: a pure function of the record, what is seen, and the time.
//!
//! ```text
//!            ┌────────────────── spec changed, run policy ──────────────────┐
//!            ▼                                                              │
//!  (new) ─▶ Idle ─▶ resolve, pull ─▶ dependencies ─▶ reserve ─▶ permit ─▶ boot ─▶ Up ─▶ (exit) ─▶ Ended
//!            │                                                    │
//!            │ deleted                     edit, delete, halt ─▶ stopping ─▶ kill
//!            ▼                                                    │
//!        tear down ─▶ (record removed) ◀──────────────────────────┘
//! ```

mod image;
mod running;

pub(super) use self::running::links_up;

use std::mem::discriminant;
use std::time::Duration;

use tokio::time::Instant;

use self::image::image;
use self::running::{ended, going_down, running};
use super::rules::reruns;
use super::state::{ImageView, LineView, Observed};
use super::step::{Plan, Step};
use crate::object::{NetworkMode, RunPolicy, VmSpec};
use crate::store::{PinnedImage, Reservation, Run, VmRecord};

/// The settings that decisions depend on.
#[derive(Clone, Copy, Debug)]
pub(in crate::reconcile) struct Rules {
    /// How long a boot may take until the guest is heard of.
    pub boot_timeout: Duration,
    /// How long smaller VMs may pass one that waits in line.
    pub patience: Duration,
}

/// Decides. A step that has just failed is not taken again before its time, whatever asks for it.
pub(in crate::reconcile) fn plan(record: &VmRecord, seen: &Observed, rules: Rules, now: Instant) -> Plan {
    let plan = decide(record, seen, rules, now);
    match (&seen.failure, seen.closed_until) {
        (Some(failure), Some(until)) if failure.step == discriminant(&plan.step) => Plan {
            step: Step::Wait(Some(until)),
            reason: failure.reason.clone(),
            message: failure.message.clone(),
            ..plan
        },
        _ => plan,
    }
}

fn decide(record: &VmRecord, seen: &Observed, rules: Rules, now: Instant) -> Plan {
    let deleted = record.object.metadata.deletion_timestamp.is_some();
    match &record.run {
        Run::Up { .. } if seen.exit.is_some() => ended(record, seen),
        Run::Up { spec, stopping: None, .. } => running(record, seen, rules, spec, now),
        Run::Up { stopping: Some(stopping), .. } => {
            let phase = if deleted { "Terminating" } else { "Stopping" };
            going_down(record, seen, now).told(phase, "Stopping", &stopping.why)
        }
        Run::Idle | Run::Ended { .. } if deleted => {
            let held = record.reservation.is_some();
            let step = if held { Step::TearDown } else { Step::Remove };
            Plan::new(step).told("Terminating", "Deleted", "what the VM held is being removed")
        }
        Run::Ended { spec } if !reruns(spec, exit_code(record), &record.object.spec) => at_rest(record, seen),
        Run::Idle | Run::Ended { .. } => starting(record, seen, rules, now),
    }
}

/// The workload has ended, and is not to run again.
fn at_rest(record: &VmRecord, seen: &Observed) -> Plan {
    let exit = record.last_exit.as_ref();
    let message = exit.map_or_else(|| "the workload ended".to_owned(), |exit| exit.message.clone());
    let reason = exit.map_or("Completed", |exit| exit.reason.as_str());
    rest(record, seen).told("Stopped", reason, &message)
}

fn exit_code(record: &VmRecord) -> Option<i32> {
    record.last_exit.as_ref().and_then(|exit| exit.code)
}

/// The wait that a failed step asks for.
fn gated(seen: &Observed) -> Option<Plan> {
    seen.failure.as_ref()?.wait(seen.closed_until)
}

/// Not to run for now: what others can use meanwhile is given back.
fn rest(record: &VmRecord, seen: &Observed) -> Plan {
    let holds = record.reservation.as_ref().is_some_and(Reservation::can_run);
    if holds || seen.line.is_some() { Plan::new(Step::Relinquish) } else { Plan::wait(None) }
}

/// The wait, once what others can use was given back.
fn resting(record: &VmRecord, seen: &Observed, wait: Plan) -> Plan {
    match rest(record, seen).step {
        Step::Relinquish => Plan { step: Step::Relinquish, ..wait },
        _ => wait,
    }
}

fn starting(record: &VmRecord, seen: &Observed, rules: Rules, now: Instant) -> Plan {
    let spec = &record.object.spec;
    if spec.run_policy == RunPolicy::Halted {
        return rest(record, seen).told("Stopped", "Halted", "runPolicy is Halted");
    }
    if let Some(plan) = gated(seen) {
        // What failed may be tried soon; without an image there is nothing to try.
        let waits = plan.phase == "Failed" || matches!(seen.image, ImageView::Unresolved { .. });
        return if waits { resting(record, seen, plan) } else { plan };
    }
    if record.promotion.is_some() {
        let message = "an image is being made of its disk; it is started afterwards";
        return rest(record, seen).told("Waiting", "BeingPromoted", message);
    }
    let pin = match image(record, seen) {
        Ok(pin) => pin,
        Err(plan) if matches!(plan.step, Step::Wait(_)) => return resting(record, seen, plan),
        Err(plan) => return plan,
    };
    if let Some(message) = &seen.dependency {
        return rest(record, seen).told("Waiting", "DependencyNotReady", message);
    }
    if let Some(plan) = reserving(record, seen, &pin, rules, now) {
        return plan;
    }
    if seen.permit {
        Plan::new(Step::Boot).told("Starting", "Booting", "the VM is being started")
    } else {
        let message = "waiting for a boot permit: as many VMs as allowed are booting";
        Plan::new(Step::Queue).told("Pending", "WaitingForBoot", message)
    }
}

/// The way to a reservation that fits; none if the VM has one.
fn reserving(
    record: &VmRecord,
    seen: &Observed,
    pin: &PinnedImage,
    rules: Rules,
    now: Instant,
) -> Option<Plan> {
    let held = record.reservation.as_ref();
    let misfit = held.map(|held| misfit(held, &record.object.spec, pin, seen.default_network));
    let discard_disk = matches!(misfit, Some(Some(Misfit { disk: true })));
    let reserve = |impatient| Plan::new(Step::Reserve { discard_disk, impatient });
    match &seen.line {
        // Claimed once more even if all fits: then the claim is known to be durable.
        Some(LineView::Called) => Some(reserve(false).told("Pending", "Reserving", "its turn has come")),
        Some(LineView::Waits { standing, since, impatient }) => {
            let plan = match since.checked_add(rules.patience) {
                Some(until) if !impatient && now >= until => reserve(true),
                until => Plan::wait(until.filter(|_| !impatient)),
            };
            Some(plan.told("Waiting", standing.lacks.reason(), &standing.to_string()))
        }
        None if misfit == Some(None) => None,
        None if held.is_some() => Some(reserve(false).told("Pending", "Reserving", "claims change")),
        None => Some(reserve(false).told("Pending", "Reserving", "claims are made")),
    }
}

/// How a reservation does not fit a spec.
#[derive(Debug, PartialEq)]
struct Misfit {
    /// The private disk belongs to another image or has another size.
    disk: bool,
}

fn misfit(held: &Reservation, spec: &VmSpec, pin: &PinnedImage, default: NetworkMode) -> Option<Misfit> {
    let disk = held.image != pin.digest || held.disk != spec.root_disk.size;
    let mode = spec.network.mode.unwrap_or(default);
    let nic = match (&held.nic, mode) {
        (None, mode) => mode == NetworkMode::None,
        (Some(nic), NetworkMode::Bridge) => {
            let fixed = spec.network.address;
            held.address().is_some_and(|address| fixed.is_none_or(|fixed| fixed == address))
                && nic.ports == spec.network.ports
        }
        (Some(nic), NetworkMode::User) => held.address().is_none() && nic.ports == spec.network.ports,
        (Some(_), NetworkMode::None) => false,
    };
    let compute = held.memory == spec.memory && held.cpus == spec.cpus;
    (disk || !nic || !compute).then_some(Misfit { disk })
}
