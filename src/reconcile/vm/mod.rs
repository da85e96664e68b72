//! A VM's reconcile task: observe, plan, publish, act.

mod act;
mod activity;
mod exit;
mod guest_config;
mod link;
mod plan;
mod rules;
mod state;
mod status;

#[cfg(test)]
mod tests;

pub use self::rules::{due_stop, reruns, restarting};

use std::mem::{self, Discriminant, discriminant};
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, watch};
use vmlet_wire::GuestState;

use self::activity::{Stopwatch, activity};
use self::link::Link;
use self::plan::{Rules, Step};
use self::state::{Failure, Guest, ImageView, LineView, Observed};
use super::backoff::Backoff;
use super::dependents::blocker;
use super::pulls::Share;
use super::task::{Outcome, Reconciler, Wake};
use super::track::{Activity, Track};
use super::world::World;
use crate::agent::LogSink;
use crate::hypervisor::VmmExit;
use crate::image::Source;
use crate::object::{
    Condition, ImageRef, Kind, ObjectKey, ObjectMeta, PullPolicy, Uid, VmStatus, set_condition,
};
use crate::store::{DiskState, PinnedImage, PinnedKernel, Run, Severity, Standing, VmRecord, VmUpdate};
use crate::timeline::Phase;

/// How long the gate must have stayed unused before a run counts as a success.
const STEADY_SECONDS: i64 = 600;

/// The signal that kills (signal(7)).
const SIGKILL: i32 = 9;

/// What a VM's task remembers between looks. All of it can be lost: a new task finds its way by
/// the record alone.
pub(super) struct VmTask {
    world: Arc<World>,
    key: ObjectKey,
    uid: Uid,
    backoff: Backoff,
    failure: Option<Failure>,
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
    /// Whether this task started the process that is recorded.
    launched: bool,
    track: Track,
    stopwatch: Stopwatch,
}

/// The place in line for memory, processors and disk space.
enum InLine {
    Waits {
        standing: watch::Receiver<Option<Standing>>,
        since: Timestamp,
        impatient: bool,
    },
    /// The line is left, perhaps with a reservation: to be claimed once more.
    Called,
}

/// The watch over a recorded process.
struct Process {
    link: Link,
    waiting: BoxFuture<'static, VmmExit>,
    exit: Option<VmmExit>,
    /// Why this task killed it, if it did.
    killed: Option<String>,
    /// Whether the guest has ever been heard of.
    ever: bool,
    /// When the watch began.
    since: Timestamp,
}

impl VmTask {
    pub(super) fn new(world: Arc<World>, key: ObjectKey, uid: Uid) -> Self {
        let status = world.store.vm(&key).map(|record| record.object.status.clone()).unwrap_or_default();
        VmTask {
            backoff: Backoff::new(world.settings.backoff, world.entropy.clone()),
            track: Track::new(world.recorder.clone(), key.clone()),
            world,
            key,
            uid,
            failure: None,
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

    /// Looks at everything that the decision depends on.
    fn observe(&mut self, record: &VmRecord, now: Timestamp) -> Observed {
        self.watch_process(record);
        self.registry_asked &= !matches!(record.run, Run::Up { .. });
        let image = self.image(record);
        let (guest, last) = self.guest(now);
        Observed {
            exit: self.process.as_mut().and_then(Process::poll_exit),
            killed: self.process.as_ref().and_then(|process| process.killed.clone()),
            guest,
            last,
            image,
            permit: self.permit.is_some(),
            asked: self.asked,
            failure: self.failure.clone(),
            closed_until: self.backoff.closed_until(now),
            default_network: self.world.default_network(),
            dependency: self.dependency(record),
            line: self.place_in_line(),
            rebooted: self.rebooted(record),
        }
    }

    /// A new generation opens the backoff's gate, and so does a deletion.
    fn observe_declaration(&mut self, record: &VmRecord) {
        let deleted = record.object.metadata.deletion_timestamp.is_some();
        if self.backoff.observe((record.object.metadata.generation, deleted)) {
            self.failure = None;
        }
    }

    fn dependency(&self, record: &VmRecord) -> Option<String> {
        let depends_on = &record.object.spec.depends_on;
        blocker(&self.key.namespace, depends_on, |key| self.world.store.vm(key))
    }

    fn place_in_line(&mut self) -> Option<LineView> {
        let Some(InLine::Waits { standing, since, impatient }) = self.line.as_mut() else {
            return self.line.as_ref().map(|_| LineView::Called);
        };
        let called = standing.has_changed().is_err();
        let told = standing.borrow_and_update().clone();
        match told {
            Some(standing) if !called => {
                Some(LineView::Waits { standing, since: *since, impatient: *impatient })
            }
            _ => {
                self.line = Some(InLine::Called);
                Some(LineView::Called)
            }
        }
    }

    fn rebooted(&self, record: &VmRecord) -> bool {
        matches!(&record.run, Run::Up { process, .. } if !self.world.driver.of_this_boot(process))
    }

    /// Follows the recorded process: its exit and its guest.
    fn watch_process(&mut self, record: &VmRecord) {
        let Run::Up { process, .. } = &record.run else {
            self.process = None;
            return;
        };
        // There is no other before its exit is recorded, which ends the watch.
        if self.process.is_some() {
            return;
        }
        let (driver, dir) = (self.world.driver.clone(), self.world.vm_dir(self.uid));
        let logs = match self.world.settings.log_limit {
            Some(limit) => LogSink::new(dir.join(crate::agent::LOG_FILE), limit),
            None => LogSink::nowhere(),
        };
        let link = Link::start(driver.clone(), dir.clone(), logs, self.world.clock);
        let booted = record.object.status.conditions.iter().find(|condition| condition.kind == "Booted");
        let adopted = !self.launched && booted.is_some_and(|booted| booted.status == true.into());
        let identity = process.clone();
        let waiting = async move { driver.exited(&dir, &identity).await }.boxed();
        let since = self.world.clock.now();
        self.process = Some(Process { link, waiting, exit: None, killed: None, ever: adopted, since });
    }

    /// The guest as the link shows it, and the last state that it reported.
    fn guest(&mut self, now: Timestamp) -> (Guest, Option<GuestState>) {
        let Some(process) = self.process.as_mut() else {
            self.world.set_agent(self.uid, None);
            return (Guest::Silent { ever: false, since: now }, None);
        };
        let link::LinkState { up, last } = process.link.look();
        process.ever |= last.is_some();
        let (ever, since) = (process.ever, process.since);
        let (agent, guest) = match up {
            Some((agent, state, since)) => (Some(agent), Guest::Connected { state, since }),
            None => (None, Guest::Silent { ever, since }),
        };
        self.world.set_agent(self.uid, agent);
        if last.is_some() {
            // A guest that is heard of has booted: its permit is another's.
            self.permit = None;
        }
        (guest, last)
    }

    /// Takes down what the VM does now, and how long it took to get there.
    fn record_activity(&mut self, record: &VmRecord, seen: &Observed, plan: &plan::Plan) {
        let mut now = activity(record, seen, plan);
        if now.phase == Some(Phase::ImageWait) && now.awaits.is_none() {
            now.awaits = self.awaited_digest(record);
        }
        let Activity { phase, .. } = now;
        if let Some(left) = self.track.enter(&now) {
            self.stopwatch.left(left, phase, self.launched);
        }
    }

    /// The digest that a named image is pulled by, if it is known.
    fn awaited_digest(&self, record: &VmRecord) -> Option<String> {
        let name = record.object.spec.image.name.as_ref()?;
        let image = self.world.store.image(&ObjectKey::new(Kind::Image, &self.key.namespace, name))?;
        Some(image.image.as_ref()?.digest.to_string())
    }

    fn image(&mut self, record: &VmRecord) -> ImageView {
        let spec = &record.object.spec.image;
        let own = spec.direct().map(|source| (source, spec.pull_policy, None));
        let (pin, policy, direct) = match (own.or_else(|| self.always(spec)), &spec.name) {
            (Some((source, policy, kernel)), _) => {
                let pinned = record.image.as_ref();
                match pinned.filter(|pin| pin.source == source && pin.kernel == kernel) {
                    Some(pin) => (pin.clone(), policy, true),
                    None => return ImageView::Unresolved { source, policy },
                }
            }
            (None, Some(name)) => match self.named_image(name) {
                Ok(pin) => (pin, PullPolicy::default(), false),
                Err((reason, message)) => return ImageView::Waiting { reason, message },
            },
            (None, None) => {
                let message = "spec.image names nothing".to_owned();
                return ImageView::Waiting { reason: "InvalidSpec".to_owned(), message };
            }
        };
        let disk = match self.world.store.disk(&pin.digest).map(|disk| disk.state) {
            Some(DiskState::Ready { config, .. }) => Some(config),
            _ => None,
        };
        if disk.is_some() || self.share.as_ref().is_some_and(|share| *share.digest() != pin.digest) {
            self.share = None;
        }
        let pull = self.share.as_ref().map(Share::state);
        ImageView::Known { disk, pull, pin, policy, asked: self.registry_asked, direct }
    }

    /// The source of a named image that is asked for again before each start: the VM does so itself, with
    /// the image's kernel, and others on the same image stay as they are.
    fn always(&self, spec: &ImageRef) -> Option<(Source, PullPolicy, Option<Box<PinnedKernel>>)> {
        let key = ObjectKey::new(Kind::Image, &self.key.namespace, spec.name.as_ref()?);
        let record = self.world.store.image(&key)?;
        let image = &record.object;
        let policy = image.spec.pull_policy();
        if policy != PullPolicy::Always || image.metadata.deletion_timestamp.is_some() {
            return None;
        }
        let kernel = match image.spec.kernel() {
            None => None,
            // One that is not ready yet is waited for, as the image is.
            Some(_) => Some(record.current().filter(|pin| self.boots(pin))?.kernel.clone()?),
        };
        Some((image.spec.source.chosen(&image.metadata.namespace)?, policy, kernel))
    }

    /// The kernel that the VM pins beside an image that it resolves itself.
    fn own_kernel(&self, record: &VmRecord) -> Option<Box<PinnedKernel>> {
        self.always(&record.object.spec.image)?.2
    }

    /// Whether the kernel that goes with a pin is ready.
    fn boots(&self, pin: &PinnedImage) -> bool {
        pin.boot().is_some_and(|boot| self.world.kernels.files(boot.kernel.as_ref()).is_some())
    }

    /// The digest and the kernel of an `Image` object that is ready, or why there is none.
    fn named_image(&self, name: &str) -> Result<PinnedImage, (String, String)> {
        let refuse = |reason: &str, message: String| Err((reason.to_owned(), message));
        let key = ObjectKey::new(Kind::Image, &self.key.namespace, name);
        let Some(image) = self.world.store.image(&key) else {
            return refuse(
                "ImageNotFound",
                format!("{key} does not exist; declare it, or name an image that exists"),
            );
        };
        if image.object.metadata.deletion_timestamp.is_some() {
            return refuse("ImageTerminating", format!("{key} is being deleted"));
        }
        let disk_ready =
            |pin: &PinnedImage| self.world.store.disk(&pin.digest).is_some_and(|disk| disk.is_ready());
        let ready = image.current().filter(|pin| disk_ready(pin) && self.boots(pin));
        match ready {
            Some(pin) => Ok(pin.clone()),
            None => {
                let status = &image.object.status;
                let why = status.conditions.iter().find(|condition| condition.kind == "Ready");
                let message = why.map_or("it has not been looked at yet", |why| why.message.as_str());
                let phase = if status.phase == "Failed" || status.phase == "Backoff" {
                    "ImageFailed"
                } else {
                    "Pulling"
                };
                refuse(phase, format!("{key} is not ready: {message}"))
            }
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
        let now = self.world.clock.now();
        self.backoff.fail(now);
        self.world.meters.failure(Kind::Vm.singular(), &failure.reason);
        self.world.event(&self.key, self.uid, Severity::Warning, &failure.reason, &failure.message);
        tracing::warn!(vm = %self.key, reason = failure.reason, "{}", failure.message);
        self.failure = Some(failure);
    }

    /// Says what failed over the last status, where no new one can be had.
    async fn publish_failure(&mut self) {
        let (Some(record), Some(failure)) = (self.world.store.vm(&self.key), &self.failure) else { return };
        let now = self.world.clock.now();
        let mut status = VmStatus::clone(&record.object.status);
        status.next_retry_time = self.backoff.closed_until(now);
        set_condition(&mut status.conditions, failure_condition(failure, &record.object.metadata, now));
        let update = VmUpdate { status: Some(status), ..VmUpdate::default() };
        if let Err(error) = self.world.store.publish_vm(&self.key, self.uid, update).await {
            tracing::debug!(vm = %self.key, %error, "status not published");
        }
    }

    fn succeed(&mut self) {
        self.failure = None;
    }

    /// A success that also ends the row of failures: the step is not part of a crash loop.
    fn advance(&mut self) {
        self.failure = None;
        self.backoff.reset();
    }

    /// A run that lasted forgets the failures before it.
    fn steady(&mut self, record: &VmRecord, now: Timestamp) {
        if let Run::Up { since, .. } = record.run
            && now.duration_since(since).as_secs() >= STEADY_SECONDS
        {
            self.backoff.reset();
        }
    }
}

impl Process {
    /// The end of the process, if it has come.
    fn poll_exit(&mut self) -> Option<VmmExit> {
        if self.exit.is_none() {
            self.exit = (&mut self.waiting).now_or_never();
        }
        self.exit.clone()
    }

    /// Waits for the end of a process that was killed. Who killed it has reaped it: the exit does not
    /// tell any more how it came about.
    async fn killed(&mut self, why: &str) {
        self.killed = Some(why.to_owned());
        if self.exit.is_none() {
            let exit = (&mut self.waiting).await;
            let signal = exit.signal.or_else(|| exit.code.is_none().then_some(SIGKILL));
            self.exit = Some(VmmExit { signal, ..exit });
        }
    }

    async fn changed(&mut self) {
        if self.exit.is_some() {
            return self.link.changed().await;
        }
        tokio::select! {
            biased;
            exit = &mut self.waiting => self.exit = Some(exit),
            () = self.link.changed() => {}
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
        let now = world.clock.now();
        self.observe_declaration(&record);
        if let Some(until) = self.backoff.closed_until(now).filter(|_| self.held_off) {
            return Outcome::Wait(Some(until));
        }
        self.held_off = false;
        self.steady(&record, now);
        let mut seen = self.observe(&record, now);
        let rules = Rules { boot_timeout: world.settings.boot_timeout, patience: world.settings.patience };
        let mut plan = plan::plan(&record, &seen, rules, now);
        if plan.step == Step::Queue && self.permit_at_once() {
            seen.permit = true;
            plan = plan::plan(&record, &seen, rules, now);
        }
        self.record_activity(&record, &seen, &plan);
        let extras = status::Extras { driver: world.driver.name(), timings: &self.stopwatch.timings };
        let status = status::status(&record, &seen, &plan, &extras, now);
        self.release_permit(&record, &plan.step);
        self.announce(status::was_ready(&status));
        let update = VmUpdate { status: Some(status), ..VmUpdate::default() };
        if let Err(error) = world.store.publish_vm(&self.key, self.uid, update).await {
            tracing::debug!(vm = %self.key, %error, "status not published");
        }
        match plan.step {
            Step::Wait(until) => Outcome::Wait(until),
            step => {
                world.meters.step(Kind::Vm, activity::name(&step));
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
        let VmTask { backoff, line, .. } = forgotten;
        (self.backoff, self.line) = (backoff, line);
        let step = acting.unwrap_or(discriminant(&Step::Wait(None)));
        self.fail(Failure::of_panic(message, step));
        if acting.is_some() {
            return Outcome::Again;
        }
        self.held_off = true;
        self.publish_failure().await;
        Outcome::Wait(self.backoff.closed_until(self.world.clock.now()))
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
