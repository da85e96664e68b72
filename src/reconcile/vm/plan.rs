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

use std::mem::discriminant;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use vmlet_wire::GuestState;

use super::rules::{due_stop, reruns};
use super::state::{Guest, ImageView, LineView, Observed};
use crate::image::Source;
use crate::object::{NetworkMode, PullPolicy, RunPolicy, VmSpec};
use crate::reconcile::pulls::PullState;
use crate::reconcile::step::{self, Steps};
use crate::store::{PinnedImage, Reservation, Run, VmRecord};

/// What a guest gets beyond its grace period: it kills its own workload first, then powers off.
const STOP_MARGIN: SignedDuration = SignedDuration::from_secs(5);
/// How long the link to an adopted guest may take, before its shutdown is asked for without it.
const LINK_UP: SignedDuration = SignedDuration::from_secs(3);
/// How long a guest may take to power off after its workload ended.
const POWER_OFF: SignedDuration = SignedDuration::from_secs(30);

/// A step of a VM, and what to tell people while it is not done.
pub(in crate::reconcile) type Plan = step::Plan<Step>;

/// The steps.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::reconcile) enum Step {
    /// Nothing before a wake-up or this time.
    Wait(Option<Timestamp>),
    /// Ask the registry for the digest of the spec's reference.
    Resolve(Source),
    /// Find the digest of the spec's reference among what is on the host.
    Find(Source),
    /// Record the digest that the VM is to run. It keeps the base disk from now on.
    Pin(PinnedImage),
    /// Take a share in the digest's pull.
    Pull(PinnedImage),
    /// Discard what the present reservation made and the new one does not fit, then claim anew.
    /// `impatient`: no VM of lower rank is to pass this one any more.
    Reserve { discard_disk: bool, impatient: bool },
    /// Give back memory and processors, and the place in line for them.
    Relinquish,
    /// Get in line for a boot permit.
    Queue,
    /// Make the devices, start the VMM.
    Boot,
    /// Record that the VM is stopping, and why.
    Stop { why: String },
    /// Ask the guest to shut down.
    Ask,
    /// Kill the VMM.
    Kill { why: String },
    /// Record the end of the process. `rerun`: whether it is to be started again.
    RecordExit { rerun: bool, failed: bool },
    /// Remove tap, folder and disk, then the reservation.
    TearDown,
    /// Remove the record.
    Remove,
}

/// The settings that decisions depend on.
#[derive(Clone, Copy, Debug)]
pub(in crate::reconcile) struct Rules {
    /// How long a boot may take until the guest is heard of.
    pub boot_timeout: Duration,
    /// How long smaller VMs may pass one that waits in line.
    pub patience: Duration,
}

/// Decides. A step that has just failed is not taken again before its time, whatever asks for it.
pub(in crate::reconcile) fn plan(record: &VmRecord, seen: &Observed, rules: Rules, now: Timestamp) -> Plan {
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

fn decide(record: &VmRecord, seen: &Observed, rules: Rules, now: Timestamp) -> Plan {
    let deleted = record.object.metadata.deletion_timestamp.is_some();
    match &record.run {
        Run::Up { .. } if seen.exit.is_some() => record_exit(record, seen),
        Run::Up { spec, stopping: None, .. } => running(record, seen, rules, spec, now),
        Run::Up { stopping: Some(stopping), .. } => {
            let phase = if deleted { "Terminating" } else { "Stopping" };
            stopping_plan(record, seen, stopping.since, now).told(phase, "Stopping", &stopping.why)
        }
        Run::Idle | Run::Ended { .. } if deleted => {
            let held = record.reservation.is_some();
            let step = if held { Step::TearDown } else { Step::Remove };
            Plan::new(step).named("Terminating", "Deleted", "what the VM held is being removed")
        }
        Run::Ended { spec } if !reruns(spec, exit_code(record), &record.object.spec) => ended(record, seen),
        Run::Idle | Run::Ended { .. } => starting(record, seen, rules, now),
    }
}

impl Steps for Step {
    fn wait(until: Option<Timestamp>) -> Self {
        Step::Wait(until)
    }
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

fn starting(record: &VmRecord, seen: &Observed, rules: Rules, now: Timestamp) -> Plan {
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
    now: Timestamp,
) -> Option<Plan> {
    let held = record.reservation.as_ref();
    let misfit = held.map(|held| misfit(held, &record.object.spec, pin, seen.default_network));
    let discard_disk = matches!(misfit, Some(Some(Misfit { disk: true })));
    let reserve = |impatient| Plan::new(Step::Reserve { discard_disk, impatient });
    match &seen.line {
        // Claimed once more even if all fits: then the claim is known to be durable.
        Some(LineView::Called) => Some(reserve(false).told("Pending", "Reserving", "its turn has come")),
        Some(LineView::Waits { standing, since, impatient }) => {
            let patience = SignedDuration::try_from(rules.patience).unwrap_or(SignedDuration::MAX);
            let until = since.saturating_add(patience).unwrap_or(Timestamp::MAX);
            let plan = match impatient {
                true => Plan::wait(None),
                false if now >= until => reserve(true),
                false => Plan::wait(Some(until)),
            };
            Some(plan.told("Waiting", standing.lacks.reason(), &standing.to_string()))
        }
        None if misfit == Some(None) => None,
        None if held.is_some() => Some(reserve(false).told("Pending", "Reserving", "claims change")),
        None => Some(reserve(false).told("Pending", "Reserving", "claims are made")),
    }
}

/// The pinned image when its disk is ready, else the plan to get it.
#[allow(clippy::result_large_err, reason = "one exists at a time, for one decision")]
fn image(record: &VmRecord, seen: &Observed) -> Result<PinnedImage, Plan> {
    match &seen.image {
        ImageView::Unresolved { source, policy: PullPolicy::Never } => Err(find(source)),
        ImageView::Known { pin, policy: PullPolicy::Never, disk: None, direct: true, .. } => {
            Err(find(&pin.source))
        }
        // A VM that runs is left alone: the next start asks.
        ImageView::Known { pin, policy: PullPolicy::Always, asked: false, direct: true, .. }
            if !matches!(record.run, Run::Up { .. }) =>
        {
            let source = &pin.source;
            Err(Plan::new(Step::Resolve(source.clone())).told("Pending", "Resolving", &source.resolving()))
        }
        ImageView::Unresolved { source, .. } => {
            Err(Plan::new(Step::Resolve(source.clone())).told("Pending", "Resolving", &source.resolving()))
        }
        ImageView::Waiting { reason, message } => {
            let phase = if reason == "Pulling" { "Pulling" } else { "Pending" };
            Err(Plan::wait(None).told(phase, reason, message))
        }
        ImageView::Known { pin, .. } if record.image.as_ref() != Some(pin) => {
            Err(Plan::new(Step::Pin(pin.clone())).told("Pending", "Resolving", "the image's digest is known"))
        }
        ImageView::Known { pin, disk: Some(_), .. } => Ok(pin.clone()),
        ImageView::Known { pin, disk: None, pull: Some(PullState::Done), .. }
        | ImageView::Known { pin, disk: None, pull: None, direct: true, .. } => Err(Plan::new(Step::Pull(
            pin.clone(),
        ))
        .told("Pulling", "Pulling", "the image is about to be pulled")),
        ImageView::Known { pull: None, .. } => {
            let message = "its Image object is being pulled";
            Err(Plan::wait(None).told("Pulling", "Pulling", message))
        }
        ImageView::Known { pin, pull: Some(pull), .. } => Err(pulling(pin, pull)),
    }
}

fn find(source: &Source) -> Plan {
    let message = format!("looking for {source} on this host");
    Plan::new(Step::Find(source.clone())).told("Pending", "Resolving", &message)
}

fn pulling(pin: &PinnedImage, pull: &PullState) -> Plan {
    let source = &pin.source;
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
            let message = format!("{message} (attempt {attempt})");
            let phase = if retry.is_some() { "Backoff" } else { "Failed" };
            Plan::wait(None).told(phase, reason, &message)
        }
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

fn running(record: &VmRecord, seen: &Observed, rules: Rules, started: &VmSpec, now: Timestamp) -> Plan {
    let wanted = &record.object.spec;
    let stop = |why: String| Plan::new(Step::Stop { why: why.clone() }).told("Stopping", "Stopping", &why);
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
            Some(Plan::new(Step::Stop { why: why.clone() }).told("Stopping", "Stopping", &why))
        }
        Err(Plan { step: Step::Wait(_), .. }) => None,
        Err(plan) => {
            gated(seen).is_none().then(|| plan.told("Running", "ImageChanging", "the new image is fetched"))
        }
    }
}

fn guest(seen: &Observed, rules: Rules, now: Timestamp) -> Plan {
    let boot_timeout = SignedDuration::try_from(rules.boot_timeout).unwrap_or(SignedDuration::MAX);
    let retry_image = seen.closed_until;
    match &seen.guest {
        Guest::Silent { ever: false, since } => {
            let until = since.saturating_add(boot_timeout).unwrap_or(Timestamp::MAX);
            if now >= until {
                let why = format!(
                    "the guest was not heard of within {} s of its start",
                    rules.boot_timeout.as_secs()
                );
                return Plan::new(Step::Kill { why: why.clone() }).told("Starting", "BootTimeout", &why);
            }
            Plan::wait(Some(until)).told("Starting", "Booting", "the guest's kernel is starting")
        }
        Guest::Silent { ever: true, since } if links_up(*since, now) => {
            let message = "the link to the guest is being made anew";
            Plan::wait(since.saturating_add(LINK_UP).ok()).told("Running", "Adopting", message)
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

fn power_off(state: &GuestState, since: Timestamp, now: Timestamp) -> Plan {
    let until = since.saturating_add(POWER_OFF).unwrap_or(Timestamp::MAX);
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

fn stopping_plan(record: &VmRecord, seen: &Observed, since: Timestamp, now: Timestamp) -> Plan {
    let grace = record.object.spec.termination_grace_period_seconds;
    let unheard = matches!(seen.guest, Guest::Silent { ever: false, .. });
    if grace == 0 || unheard {
        let why = if unheard { "the guest was never heard of" } else { "the grace period is 0" };
        return Plan::new(Step::Kill { why: why.to_owned() });
    }
    let allowed = SignedDuration::from_secs(i64::from(grace)).saturating_add(STOP_MARGIN);
    let deadline = since.saturating_add(allowed).unwrap_or(Timestamp::MAX);
    if now >= deadline {
        return Plan::new(Step::Kill { why: format!("it did not shut down within {grace} s") });
    }
    match seen.guest {
        _ if seen.asked => Plan::wait(Some(deadline)),
        Guest::Silent { since, .. } if links_up(since, now) => Plan::wait(since.saturating_add(LINK_UP).ok()),
        _ => Plan::new(Step::Ask),
    }
}

/// Whether the link to an adopted guest may still be on its way: what was last said of it holds.
pub(super) fn links_up(since: Timestamp, now: Timestamp) -> bool {
    now < since.saturating_add(LINK_UP).unwrap_or(Timestamp::MAX)
}

fn record_exit(record: &VmRecord, seen: &Observed) -> Plan {
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
    let rerun = stopping.is_some()
        || cut_off
        || !started && code.is_none()
        || match record.object.spec.run_policy {
            RunPolicy::Always | RunPolicy::Halted => true,
            RunPolicy::RerunOnFailure => code != Some(0),
            RunPolicy::Once => false,
        };
    let failed = stopping.is_none() && rerun && !cut_off;
    Plan::new(Step::RecordExit { rerun, failed }).told("Stopping", "Exited", "the VM has stopped")
}

/// The workload's exit code, from the link or else from the guest's last console line.
pub(super) fn workload_code(seen: &Observed) -> Option<i32> {
    match &seen.last {
        Some(GuestState::Exited { code }) => Some(*code),
        _ => seen.exit.as_ref().and_then(|exit| exit.workload),
    }
}

fn exit_code(record: &VmRecord) -> Option<i32> {
    record.last_exit.as_ref().and_then(|exit| exit.code)
}

fn ended(record: &VmRecord, seen: &Observed) -> Plan {
    let exit = record.last_exit.as_ref();
    let message = exit.map_or_else(|| "the workload ended".to_owned(), |exit| exit.message.clone());
    let reason = exit.map_or("Completed", |exit| exit.reason.as_str());
    rest(record, seen).told("Stopped", reason, &message)
}
