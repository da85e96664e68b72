//! A VM's reconcile task: observe, plan, publish, act.
//!
//! ```text
//!  record, world ─▶ observe ─▶ Observed ─▶ plan ─▶ Step, words ─▶ status ─▶ store
//!       ▲          (process,   (state)    (pure)       │
//!       └─────────  link, image)                       └─▶ act ─▶ driver, network, images, store
//! ```
//!
//! One step a look. What takes long (a pull, a permit, a place in line, the process' life) is held in
//! [`VmTask`] and wakes it; it is never inside a step.

mod act;
mod activity;
mod exit;
mod guest_config;
mod image;
mod link;
mod observe;
mod plan;
mod process;
mod rules;
mod state;
mod status;
mod step;

#[cfg(test)]
mod tests;

pub use self::rules::{due_stop, reruns, restarting};

use std::mem::{self, Discriminant, discriminant};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Instant;

use self::activity::{Stopwatch, activity};
use self::plan::Rules;
use self::process::Process;
use self::state::Observed;
use self::step::{Failure, Plan, Step};
use super::attempts::Attempts;
use super::pulls::Share;
use super::step::Steps;
use super::task::{Outcome, Reconciler, Wake};
use super::track::{Activity, Track};
use super::world::World;
use crate::object::{Condition, Kind, ObjectKey, ObjectMeta, Uid, VmStatus, set_condition};
use crate::store::{Run, Severity, Standing, VmRecord, VmUpdate};
use crate::timeline::Phase;

/// How long a run must have lasted before it counts as a success.
const STEADY: Duration = Duration::from_secs(600);

/// What a VM's task remembers between looks. All of it can be lost: a new task finds its way by
/// the record alone.
pub(super) struct VmTask {
    world: Arc<World>,
    key: ObjectKey,
    uid: Uid,
    attempts: Attempts<Step>,
    share: Option<Share>,
    permit: Option<OwnedSemaphorePermit>,
    queue: Option<BoxFuture<'static, OwnedSemaphorePermit>>,
    line: Option<InLine>,
    /// The step that is being taken.
    acting: Option<Discriminant<Step>>,
    /// A look panicked: no other before the backoff's gate opens.
    held_off: bool,
    process: Option<Process>,
    asked: bool,
    ready: bool,
    /// Whether the registry was asked what the image is, since the VM ran last.
    registry_asked: bool,
    /// Whether this task has started a process: from then on each that is recorded is its own.
    launched: bool,
    track: Track,
    stopwatch: Stopwatch,
}

/// The place in line for memory, processors and disk space.
enum InLine {
    Waits {
        standing: watch::Receiver<Option<Standing>>,
        since: Instant,
        impatient: bool,
    },
    /// The line is left, perhaps with a reservation: to be claimed once more.
    Called,
}

impl VmTask {
    pub(super) fn new(world: Arc<World>, key: ObjectKey, uid: Uid) -> Self {
        let status = world.store.vm(&key).map(|record| record.object.status.clone()).unwrap_or_default();
        VmTask {
            attempts: Attempts::new(&world),
            track: Track::new(world.recorder.clone(), key.clone()),
            world,
            key,
            uid,
            share: None,
            permit: None,
            queue: None,
            line: None,
            acting: None,
            held_off: false,
            process: None,
            asked: false,
            ready: status::was_ready(&status),
            registry_asked: false,
            launched: false,
            stopwatch: Stopwatch::new(status.timings.clone()),
        }
    }

    /// Takes down what the VM does now, and how long it took to get there.
    fn record_activity(&mut self, record: &VmRecord, seen: &Observed, plan: &Plan) {
        let mut now = activity(record, seen, plan);
        if now.phase == Some(Phase::ImageWait) && now.awaits.is_none() {
            now.awaits = self.awaited_digest(record);
        }
        let Activity { phase, .. } = now;
        if let Some(left) = self.track.enter(&now) {
            self.stopwatch.left(left, phase, self.launched);
        }
    }

    /// Takes a boot permit if one is free and nobody waits for it: then there is no need to queue.
    fn permit_at_once(&mut self) -> bool {
        let Ok(permit) = self.world.boots.clone().try_acquire_owned() else { return false };
        // The queue may have one too by now.
        (self.permit, self.queue) = (Some(permit), None);
        true
    }

    /// A boot permit is for who boots. A VM that waits for something else (an image, its next try) gives
    /// it back, or others would wait for it in vain.
    fn release_permit(&mut self, record: &VmRecord, step: &Step) {
        if !matches!(record.run, Run::Up { .. }) && !matches!(step, Step::Queue | Step::Boot) {
            (self.permit, self.queue) = (None, None);
        }
    }

    /// Announces what people wait for.
    fn announce(&mut self, ready: bool) {
        if ready && !self.ready {
            self.world.event(&self.key, self.uid, Severity::Normal, "Ready", "the workload runs");
        }
        self.ready = ready;
    }

    fn fail(&mut self, failure: Failure) {
        self.attempts.fail(&self.world, &self.key, self.uid, failure);
    }

    /// Says what failed over the last status, where no new one can be had.
    async fn publish_failure(&mut self) {
        let (Some(record), Some(failure)) = (self.world.store.vm(&self.key), self.attempts.failure()) else {
            return;
        };
        let now = self.world.clock.now();
        let mut status = VmStatus::clone(&record.object.status);
        status.next_retry_time = self.attempts.next_try(&self.world.clock);
        set_condition(&mut status.conditions, failure_condition(failure, &record.object.metadata, now));
        let update = VmUpdate { status: Some(status), ..VmUpdate::default() };
        if let Err(error) = self.world.store.publish_vm(&self.key, self.uid, update).await {
            tracing::debug!(vm = %self.key, %error, "status not published");
        }
    }

    /// A run that lasted forgets the failures before it.
    fn steady(&mut self) {
        if self.process.as_ref().is_some_and(|process| process.age() >= STEADY) {
            self.attempts.end_row();
        }
    }
}

#[async_trait]
impl Reconciler for VmTask {
    async fn reconcile(&mut self, wake: &mut Wake) -> Outcome {
        let world = self.world.clone();
        let Some(record) =
            world.store.vm(&self.key).filter(|record| record.object.metadata.uid == Some(self.uid))
        else {
            world.set_agent(self.uid, None);
            self.track.finish();
            return Outcome::Gone;
        };
        let image = self.named(&record);
        if self.attempts.observe(&record.object.metadata, image.as_ref().map(|image| &image.object.metadata))
            && let Some(share) = &self.share
        {
            share.hurry();
        }
        if let Some(until) = self.attempts.closed_until().filter(|_| self.held_off) {
            return Outcome::Wait(Some(until));
        }
        self.held_off = false;
        self.steady();
        let now = Instant::now();
        let mut seen = self.observe(&record, now);
        let rules = Rules { boot_timeout: world.settings.boot_timeout, patience: world.settings.patience };
        let mut plan = plan::plan(&record, &seen, rules, now);
        if plan.step == Step::Queue && self.permit_at_once() {
            seen.permit = true;
            plan = plan::plan(&record, &seen, rules, now);
        }
        self.record_activity(&record, &seen, &plan);
        let told = status::Extras {
            driver: world.driver.name(),
            timings: &self.stopwatch.timings,
            now: world.clock.now(),
        };
        let status = status::status(&record, &seen, &plan, &told, now);
        self.release_permit(&record, &plan.step);
        self.announce(status::was_ready(&status));
        let update = VmUpdate { status: Some(status), ..VmUpdate::default() };
        if let Err(error) = world.store.publish_vm(&self.key, self.uid, update).await {
            tracing::debug!(vm = %self.key, %error, "status not published");
        }
        match plan.step {
            Step::Wait(until) => Outcome::Wait(until),
            step => {
                world.meters.step(Kind::Vm, step.name());
                self.act(&record, &seen, step, wake).await;
                Outcome::Again
            }
        }
    }

    async fn changed(&mut self) {
        let VmTask { process, share, queue, permit, line, .. } = self;
        let line = match line {
            Some(InLine::Waits { standing, .. }) => Some(standing.changed()),
            Some(InLine::Called) | None => None,
        };
        tokio::select! {
            biased;
            // First, as it comes once: a guest that never rests cannot keep the permit away.
            granted = or_never(queue.as_mut()) => {
                *queue = None;
                *permit = Some(granted);
            }
            _ = or_never(line) => {}
            () = or_never(share.as_mut().map(Share::changed)) => {}
            () = or_never(process.as_mut().map(Process::changed)) => {}
        }
    }

    async fn panicked(&mut self, message: &str) -> Outcome {
        let acting = self.acting;
        let fresh = VmTask::new(self.world.clone(), self.key.clone(), self.uid);
        let forgotten = mem::replace(self, fresh);
        let VmTask { attempts, line, .. } = forgotten;
        (self.attempts, self.line) = (attempts, line);
        let step = acting.unwrap_or(discriminant(&Step::Wait(None)));
        self.fail(Failure::of_panic(message, step));
        if acting.is_some() {
            return Outcome::Again;
        }
        self.held_off = true;
        self.publish_failure().await;
        Outcome::Wait(self.attempts.closed_until())
    }
}

fn failure_condition(failure: &Failure, metadata: &ObjectMeta, now: Timestamp) -> Condition {
    Condition {
        kind: "Reconciling".to_owned(),
        status: true.into(),
        observed_generation: metadata.generation,
        last_transition_time: now,
        reason: failure.reason.clone(),
        message: failure.message.clone(),
    }
}

/// The future's output, or never if there is none.
async fn or_never<F: Future>(future: Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
