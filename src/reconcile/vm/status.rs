//! A VM's status: a pure function of the record, what is seen, and the plan.

use jiff::Timestamp;
use tokio::time::Instant;
use vmlet_wire::GuestState;

use super::plan::links_up;
use super::state::{Guest, ImageView, Observed};
use super::step::{Plan, Step};
use crate::image::Source;
use crate::object::{PortStatus, PullProgress, Timings, VmImageStatus, VmStatus};
use crate::reconcile::conditions::Conditions;
use crate::reconcile::pulls::PullState;
use crate::store::{Reservation, Run, VmRecord};

/// What the status says besides record, sight and plan.
pub(in crate::reconcile) struct Extras<'a> {
    pub driver: &'a str,
    pub timings: &'a Timings,
    /// The wall time.
    pub now: Timestamp,
}

/// Describes.
pub(in crate::reconcile) fn status(
    record: &VmRecord,
    seen: &Observed,
    plan: &Plan,
    extras: &Extras<'_>,
    now: Instant,
) -> VmStatus {
    let up = match &record.run {
        Run::Up { process, since, stopping, .. } if seen.exit.is_none() => Some((process, *since, stopping)),
        _ => None,
    };
    let connected = matches!(seen.guest, Guest::Connected { .. });
    let guest_ready = match &seen.guest {
        Guest::Connected { state, .. } => *state == GuestState::Ready,
        Guest::Silent { ever, since } => *ever && links_up(*since, now) && was_ready(&record.object.status),
    };
    let ready = up.is_some_and(|(_, _, stopping)| stopping.is_none())
        && guest_ready
        && !matches!(plan.step, Step::Stop { .. });
    VmStatus {
        phase: plan.phase.to_owned(),
        conditions: conditions(record, seen, plan, up.is_some(), ready, extras.now),
        observed_generation: record.object.metadata.generation,
        addresses: record
            .reservation
            .as_ref()
            .and_then(|held| held.address())
            .map(|a| a.to_string())
            .into_iter()
            .collect(),
        ports: ports(record, up.is_some()),
        driver: up.map(|_| extras.driver.to_owned()),
        pid: up.map(|(process, ..)| process.pid),
        image: image(record, seen),
        pull: pull(seen),
        restarts: record.starts.saturating_sub(1),
        last_exit: record.last_exit.clone(),
        next_retry_time: next_retry(seen, connected),
        started_at: up.map(|(_, since, _)| since),
        timings: extras.timings.clone(),
    }
}

fn conditions(
    record: &VmRecord,
    seen: &Observed,
    plan: &Plan,
    up: bool,
    ready: bool,
    now: Timestamp,
) -> Vec<crate::object::Condition> {
    let generation = record.object.metadata.generation;
    let mut list = Conditions::over(&record.object.status.conditions, generation, now);
    let connected = matches!(seen.guest, Guest::Connected { .. });
    let booted = up && !matches!(seen.guest, Guest::Silent { ever: false, .. });
    list.set("Ready", ready, if ready { "Ready" } else { &plan.reason }, &plan.message);
    match &seen.image {
        ImageView::Known { pin, disk: Some(_), .. } => {
            list.set("ImageReady", true, "Ready", &format!("{} is {}", pin.source, pin.digest));
        }
        ImageView::Waiting { reason, message } => list.set("ImageReady", false, reason, message),
        ImageView::Known { pull: Some(PullState::Failed { reason, message, .. }), .. } => {
            list.set("ImageReady", false, reason, message);
        }
        ImageView::Unresolved { .. } if seen.failure.is_some() => {
            let (reason, message) = failure(seen);
            list.set("ImageReady", false, reason, message);
        }
        ImageView::Unresolved { .. } | ImageView::Known { .. } => {
            list.set("ImageReady", false, "Pulling", "the image is not ready yet");
        }
    }
    match &record.reservation {
        Some(held) if held.can_run() => {
            let address =
                held.address().map_or_else(|| "no address".to_owned(), |address| address.to_string());
            list.set("Reserved", true, "Reserved", &reserved(held, &address));
        }
        _ => list.set("Reserved", false, &plan.reason, &plan.message),
    }
    let (reason, message) = match (booted, up) {
        (true, _) => ("Booted", "the guest has been heard of"),
        (false, true) => ("Booting", "the guest has not been heard of yet"),
        (false, false) => ("NotRunning", "no VMM process runs"),
    };
    list.set("Booted", booted, reason, message);
    let reason = if connected { "Connected" } else { "Disconnected" };
    list.set("AgentConnected", up && connected, reason, "");
    let stalled = stalled(seen);
    let settled = ready && matches!(plan.step, Step::Wait(_)) && seen.failure.is_none();
    let resting = matches!(plan.phase, "Stopped" | "Failed");
    // What runs may be as it should be, and what is to come after it fail.
    let (reason, message) = if ready && seen.failure.is_some() {
        failure(seen)
    } else {
        (plan.reason.as_str(), plan.message.as_str())
    };
    list.set_if(!settled && !stalled && !resting, "Reconciling", reason, message);
    list.set_if(stalled, "Stalled", reason, message);
    list.problem(record.problems().next());
    list.finish()
}

fn reserved(held: &Reservation, address: &str) -> String {
    let s = if held.cpus == 1 { "" } else { "s" };
    format!("{address}, {} of memory, {} processor{s}", held.memory, held.cpus)
}

/// What the last status said, perhaps an earlier daemon's.
pub(super) fn was_ready(status: &VmStatus) -> bool {
    status.conditions.iter().any(|condition| condition.kind == "Ready" && condition.status == true.into())
}

fn failure(seen: &Observed) -> (&str, &str) {
    seen.failure.as_ref().map_or(("", ""), |failure| (failure.reason.as_str(), failure.message.as_str()))
}

/// Whether only a change of the spec can help.
fn stalled(seen: &Observed) -> bool {
    let pull =
        matches!(&seen.image, ImageView::Known { pull: Some(PullState::Failed { retry: None, .. }), .. });
    pull || seen.failure.as_ref().is_some_and(|failure| !failure.transient)
}

fn ports(record: &VmRecord, up: bool) -> Vec<PortStatus> {
    let nic = record.reservation.as_ref().and_then(|held| held.nic.as_ref()).filter(|_| up);
    let ports = nic.map(|nic| nic.ports.as_slice()).unwrap_or_default();
    ports
        .iter()
        .map(|port| PortStatus { host: port.host, guest: port.guest, protocol: port.protocol })
        .collect()
}

fn image(record: &VmRecord, seen: &Observed) -> Option<VmImageStatus> {
    let status =
        |source: &Source, digest: Option<String>| VmImageStatus { reference: source.to_string(), digest };
    match &seen.image {
        ImageView::Known { pin, .. } => Some(status(&pin.source, Some(pin.digest.to_string()))),
        ImageView::Unresolved { source, .. } => Some(status(source, None)),
        ImageView::Waiting { .. } => {
            record.image.as_ref().map(|pin| status(&pin.source, Some(pin.digest.to_string())))
        }
    }
}

fn pull(seen: &Observed) -> Option<PullProgress> {
    match &seen.image {
        ImageView::Known { disk: None, pull: Some(PullState::Running(progress)), .. } => {
            Some(progress.clone())
        }
        _ => None,
    }
}

fn next_retry(seen: &Observed, connected: bool) -> Option<Timestamp> {
    match &seen.image {
        ImageView::Known { disk: None, pull: Some(PullState::Failed { retry, .. }), .. } if !connected => {
            *retry
        }
        _ => seen.failure.as_ref().and(seen.next_try),
    }
}
