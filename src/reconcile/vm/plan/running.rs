//! While a VM's process is up: why it is stopped, how, and what its end comes to.

use std::time::Duration;

use tokio::time::Instant;
use vmlet_wire::GuestState;

use super::image::image;
use super::{Rules, gated};
use crate::object::{RunPolicy, VmSpec};
use crate::reconcile::vm::exit::workload_code;
use crate::reconcile::vm::rules::{due_stop, policy_reruns};
use crate::reconcile::vm::state::{Guest, ImageView, Observed};
use crate::reconcile::vm::step::{Plan, Step};
use crate::store::{Run, VmRecord};

/// What a guest gets beyond its grace period: it kills its own workload first, then powers off.
const STOP_MARGIN: Duration = Duration::from_secs(5);
/// How long the link to an adopted guest may take, before its shutdown is asked for without it.
const LINK_UP: Duration = Duration::from_secs(3);
/// How long a guest may take to power off after its workload ended.
const POWER_OFF: Duration = Duration::from_secs(30);

/// The process runs, and nothing was done to stop it.
pub(super) fn running(
    record: &VmRecord,
    seen: &Observed,
    rules: Rules,
    started: &VmSpec,
    now: Instant,
) -> Plan {
    let wanted = &record.object.spec;
    if record.object.metadata.deletion_timestamp.is_some() {
        return Plan { phase: "Terminating", ..stop("the VM is deleted".to_owned()) };
    }
    if let Some(why) = due_stop(started, wanted) {
        return stop(why);
    }
    if let Some(plan) = new_image(record, seen) {
        return plan;
    }
    guest(seen, rules, now)
}

fn stop(why: String) -> Plan {
    Plan::new(Step::Stop { why: why.clone() }).told("Stopping", "Stopping", &why)
}

/// An image of another digest, or with another kernel, is fetched while the VM runs; the VM moves when it is
/// ready.
fn new_image(record: &VmRecord, seen: &Observed) -> Option<Plan> {
    if matches!(seen.image, ImageView::Waiting { .. }) {
        return None;
    }
    match image(record, seen) {
        Ok(pin) => {
            let held = &record.reservation.as_ref()?.image;
            let Run::Up { boot, .. } = &record.run else { return None };
            let why = if *held != pin.digest {
                format!("image changed to {} ({})", pin.source, pin.digest)
            } else if pin.boot().as_ref() != Some(boot) {
                "the kernel of its image changed".to_owned()
            } else {
                return None;
            };
            Some(stop(why))
        }
        Err(Plan { step: Step::Wait(_), .. }) => None,
        Err(plan) => {
            gated(seen).is_none().then(|| plan.told("Running", "ImageChanging", "the new image is fetched"))
        }
    }
}

fn guest(seen: &Observed, rules: Rules, now: Instant) -> Plan {
    let retry_image = seen.closed_until;
    match &seen.guest {
        Guest::Silent { ever: false, since } => {
            let until = since.checked_add(rules.boot_timeout);
            if until.is_some_and(|until| now >= until) {
                let why = format!(
                    "the guest was not heard of within {} s of its start",
                    rules.boot_timeout.as_secs()
                );
                return Plan::new(Step::Kill { why: why.clone() }).told("Starting", "BootTimeout", &why);
            }
            Plan::wait(until).told("Starting", "Booting", "the guest's kernel is starting")
        }
        Guest::Silent { ever: true, since } if links_up(*since, now) => {
            let message = "the link to the guest is being made anew";
            Plan::wait(Some(*since + LINK_UP)).told("Running", "Adopting", message)
        }
        Guest::Silent { ever: true, .. } => Plan::wait(retry_image).told(
            "Running",
            "AgentLost",
            "the link to the guest is down; it is tried again",
        ),
        Guest::Connected { state, since } => match state {
            GuestState::Starting => Plan::wait(retry_image).told(
                "Starting",
                "WorkloadStarting",
                "the guest prepares its workload",
            ),
            GuestState::Running { .. } => Plan::wait(retry_image).told(
                "Running",
                "InitStarting",
                "the init system has not reached its default target yet",
            ),
            GuestState::Ready => Plan::wait(retry_image).told("Running", "Ready", "the workload runs"),
            GuestState::Exited { .. } | GuestState::Failed { .. } => power_off(state, *since, now),
        },
    }
}

fn power_off(state: &GuestState, since: Instant, now: Instant) -> Plan {
    let until = since + POWER_OFF;
    let step = if now >= until {
        Step::Kill { why: "the guest did not power off after its workload ended".to_owned() }
    } else {
        Step::Wait(Some(until))
    };
    let message = match state {
        GuestState::Failed { message } => format!("the workload could not be started: {message}"),
        GuestState::Exited { code } => format!("the workload ended with exit code {code}"),
        _ => "the workload ended".to_owned(),
    };
    Plan::new(step).told("Stopping", "WorkloadEnded", &message)
}

/// The process is on its way down.
pub(super) fn going_down(record: &VmRecord, seen: &Observed, now: Instant) -> Plan {
    let grace = record.object.spec.termination_grace_period_seconds;
    let unheard = matches!(seen.guest, Guest::Silent { ever: false, .. });
    if grace == 0 || unheard {
        let why = if unheard { "the guest was never heard of" } else { "the grace period is 0" };
        return Plan::new(Step::Kill { why: why.to_owned() });
    }
    let since = seen.stopping.unwrap_or(now);
    let deadline = since + Duration::from_secs(u64::from(grace)) + STOP_MARGIN;
    if now >= deadline {
        return Plan::new(Step::Kill { why: format!("it did not shut down within {grace} s") });
    }
    match seen.guest {
        _ if seen.asked => Plan::wait(Some(deadline)),
        Guest::Silent { since, .. } if links_up(since, now) => Plan::wait(Some(since + LINK_UP)),
        _ => Plan::new(Step::Ask),
    }
}

/// Whether the link to an adopted guest may still be on its way: what was last said of it holds.
pub(in crate::reconcile::vm) fn links_up(since: Instant, now: Instant) -> bool {
    now < since + LINK_UP
}

/// The process has ended.
pub(super) fn ended(record: &VmRecord, seen: &Observed) -> Plan {
    let Run::Up { stopping, .. } = &record.run else {
        return Plan::wait(None);
    };
    let code = workload_code(seen);
    // A workload that was never seen to start was not run: its run policy does not apply yet.
    let started = match &seen.last {
        Some(state) => *state != GuestState::Starting,
        None => matches!(seen.guest, Guest::Silent { ever: true, .. }),
    };
    // Nor did it end if the host went down under it.
    let cut_off = seen.rebooted && code.is_none();
    let policy = record.object.spec.run_policy;
    // One that is halted is started when it is not any more, whatever its policy is by then.
    let halted = policy == RunPolicy::Halted;
    let again = cut_off || !started && code.is_none() || policy_reruns(policy, code);
    let rerun = stopping.is_some() || halted || again;
    let failed = stopping.is_none() && !halted && again && !cut_off;
    Plan::new(Step::RecordExit { rerun, failed }).told("Stopping", "Exited", "the VM has stopped")
}
