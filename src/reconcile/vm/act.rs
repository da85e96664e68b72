//! The steps of a VM's plan. No policy here: each step does what the plan said, records it before
//! it can have effects and publishes what came of it.

#[cfg(test)]
mod tests;

use std::mem::discriminant;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::watch;

use super::guest_config::guest_config;
use super::plan::Step;
use super::state::{Failure, Observed};

use super::{InLine, VmTask, exit};
use crate::agent::AgentError;
use crate::boot::Boot;
use crate::hypervisor::Launch;
use crate::image::{ImageError, Source};
use crate::object::NetworkMode;
use crate::reconcile::present::present;
use crate::reconcile::step::StepError;
use crate::reconcile::task::Wake;
use crate::store::{
    DiskState, NetworkClaim, PinnedImage, ReserveError, Run, Severity, Standing, Stopping, VmClaim, VmRecord,
    VmUpdate,
};

/// How long the guest may take to acknowledge that it shuts down.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);

impl VmTask {
    /// Takes one step. A failure closes the backoff's gate and stays in the status until a step succeeds.
    pub(super) async fn act(&mut self, record: &VmRecord, seen: &Observed, step: Step, wake: &mut Wake) {
        let kind = discriminant(&step);
        self.acting = Some(kind);
        // What the step is based on may be another's transaction, which nobody waited for yet.
        let touches_host = matches!(
            step,
            Step::Reserve { .. }
                | Step::Relinquish
                | Step::Boot
                | Step::Kill { .. }
                | Step::RecordExit { .. }
                | Step::TearDown
        );
        let durable = if touches_host { self.world.store.settled().await } else { Ok(()) };
        let done = match durable {
            Ok(()) => self.take(record, seen, step, wake).await,
            Err(error) => Err(error.into()),
        };
        self.acting = None;
        if let Some(failure) = done.err().and_then(|error| error.of(kind)) {
            self.fail(failure);
        }
    }

    async fn take(
        &mut self,
        record: &VmRecord,
        seen: &Observed,
        step: Step,
        wake: &mut Wake,
    ) -> Result<(), StepError> {
        match step {
            Step::Wait(_) => Ok(()),
            Step::Resolve(source) => self.resolve(record, &source, wake).await,
            Step::Find(source) => self.find(record, &source).await,
            Step::Pin(pin) => self.pin(record, pin).await,
            Step::Pull(pin) => {
                self.share = Some(self.world.pulls.join(&pin.source, &pin.digest));
                Ok(())
            }
            Step::Reserve { discard_disk, impatient } => self.reserve(record, discard_disk, impatient).await,
            Step::Relinquish => self.relinquish(record).await,
            Step::Queue => self.queue(wake).await,
            Step::Boot => self.boot(record).await,
            Step::Stop { why } => self.stop(record, why).await,
            Step::Ask => self.ask(record, wake).await,
            Step::Kill { why } => self.kill(record, &why).await,
            Step::RecordExit { rerun, failed } => self.record_exit(record, seen, rerun, failed).await,
            Step::TearDown => self.tear_down(record).await,
            Step::Remove => self.remove().await,
        }
    }

    async fn resolve(
        &mut self,
        record: &VmRecord,
        source: &Source,
        wake: &mut Wake,
    ) -> Result<(), StepError> {
        let images = self.world.images.clone();
        let Some(resolved) = wake.unless_woken(images.resolve(source)).await else {
            return Ok(());
        };
        let pin = PinnedImage { source: source.clone(), digest: resolved?, kernel: self.own_kernel(record) };
        self.registry_asked = true;
        // What was asked again before a start says nothing of how the last run ended.
        if record.image.as_ref() == Some(&pin) {
            self.succeed();
            return Ok(());
        }
        self.pin(record, pin).await
    }

    async fn find(&mut self, record: &VmRecord, source: &Source) -> Result<(), StepError> {
        let found = present(&self.world.store, source).ok_or_else(|| ImageError::not_present(source))?;
        self.pin(record, PinnedImage { kernel: self.own_kernel(record), ..found }).await
    }

    async fn pin(&mut self, record: &VmRecord, pin: PinnedImage) -> Result<(), StepError> {
        self.publish(record, VmUpdate { image: Some(Some(pin)), ..VmUpdate::default() }).await?;
        self.advance();
        // The image that was pinned before may be nobody's now.
        self.world.collector.notify_one();
        Ok(())
    }

    /// Undoes what the present reservation made and the new one would not know of, then claims.
    async fn reserve(
        &mut self,
        record: &VmRecord,
        discard_disk: bool,
        impatient: bool,
    ) -> Result<(), StepError> {
        let world = self.world.clone();
        if let Some(nic) = record.reservation.as_ref().and_then(|held| held.nic.as_ref()) {
            world.network.detach(nic).await?;
        }
        if discard_disk {
            // What is on it is lost: not if the edit that asks for that was taken back meanwhile.
            self.unchanged(record)?;
            world.driver.remove_disk(&world.vm_dir(self.uid)).await?;
        }
        let claim = VmClaim { impatient, ..self.claim(record).ok_or(StepError::Stale)? };
        match world.store.reserve_vm(claim).await {
            Err(ReserveError::Waiting { line }) => self.stand_in_line(line, impatient),
            reserved => {
                self.line = None;
                reserved?;
                self.advance();
            }
        }
        world.collector.notify_one();
        Ok(())
    }

    /// Waiting is no failure: there is no backoff, and one event tells of its beginning.
    fn stand_in_line(&mut self, standing: watch::Receiver<Option<Standing>>, impatient: bool) {
        let since = match self.line {
            Some(InLine::Waits { since, .. }) => since,
            Some(InLine::Called) | None => {
                let told = standing.borrow().as_ref().map(ToString::to_string).unwrap_or_default();
                self.event("Waiting", &told);
                self.world.clock.now()
            }
        };
        self.line = Some(InLine::Waits { standing, since, impatient });
        self.succeed();
    }

    /// A start that was given up halfway may have left a tap.
    async fn relinquish(&mut self, record: &VmRecord) -> Result<(), StepError> {
        if let Some(nic) = record.reservation.as_ref().and_then(|held| held.nic.as_ref()) {
            self.world.network.detach(nic).await?;
        }
        self.world.store.relinquish_vm(&self.key, self.uid).await?;
        self.line = None;
        Ok(())
    }

    fn claim(&self, record: &VmRecord) -> Option<VmClaim> {
        let (spec, settings) = (&record.object.spec, &self.world.settings);
        let ports = spec.network.ports.clone();
        let network = match spec.network.mode.unwrap_or(self.world.default_network()) {
            NetworkMode::Bridge => {
                NetworkClaim::Bridge { subnet: settings.subnet?, fixed: spec.network.address, ports }
            }
            NetworkMode::User => NetworkClaim::User { ports },
            NetworkMode::None => NetworkClaim::None,
        };
        Some(VmClaim {
            key: self.key.clone(),
            uid: self.uid,
            generation: record.object.metadata.generation,
            image: record.image.as_ref()?.digest.clone(),
            network,
            vmm_users: settings.vmm_users.clone(),
            memory: spec.memory,
            cpus: spec.cpus,
            disk: spec.root_disk.size,
            capacity: settings.capacity,
            impatient: false,
        })
    }

    /// Gets in line; the permit comes as a change, so that an edit need not wait for it.
    async fn queue(&mut self, wake: &mut Wake) -> Result<(), StepError> {
        let boots = self.world.boots.clone();
        let acquire = async move { boots.acquire_owned().await.expect("the permits are never closed") };
        let mut queue = self.queue.take().unwrap_or_else(|| acquire.boxed());
        self.permit = wake.unless_woken(&mut queue).await;
        if self.permit.is_none() {
            self.queue = Some(queue);
        }
        Ok(())
    }

    /// Devices, then the gated process, then its record, and only then may it run.
    async fn boot(&mut self, record: &VmRecord) -> Result<(), StepError> {
        let world = self.world.clone();
        let boot = record.image.as_ref().and_then(PinnedImage::boot).ok_or(StepError::Stale)?;
        let launch = self.launch(record, &boot).ok_or(StepError::Stale)??;
        if let Some(held) = &record.reservation {
            world.images.check(&held.image).await?;
        }
        // Neither of what follows can be cut off: what it leaves behind would come after the next step's work.
        // So an edit or a deletion is looked for after them.
        world.driver.prepare(&launch).await?;
        if let Some(nic) = &launch.nic {
            world.network.attach(nic).await?;
        }
        self.unchanged(record)?;
        let gated = world.driver.spawn(&launch).await?;
        let process = gated.process().clone();
        let pid = process.pid;
        let run = Run::Up {
            process,
            spec: record.object.spec.clone(),
            boot,
            since: world.clock.now(),
            stopping: None,
        };
        let update = VmUpdate { run: Some(run), starts: Some(record.starts + 1), ..VmUpdate::default() };
        // An edit or a deletion in the meantime refuses this, and the process ends at its gate.
        self.publish(record, update).await?;
        self.launched = true;
        gated.release().await?;
        if record.starts > 0 {
            world.meters.restart();
        }
        self.succeed();
        self.event("Started", &format!("{} started, pid {pid}", world.driver.name()));
        Ok(())
    }

    /// Fails if the declaration moved on since the record was read.
    fn unchanged(&self, record: &VmRecord) -> Result<(), StepError> {
        let declared = |record: &VmRecord| {
            let metadata = &record.object.metadata;
            (metadata.uid, metadata.generation, metadata.deletion_timestamp)
        };
        let now = self.world.store.vm(&self.key);
        let same = now.is_some_and(|now| declared(&now) == declared(record));
        if same { Ok(()) } else { Err(StepError::Stale) }
    }

    /// None if the VM's disk is not there any more.
    fn launch(&self, record: &VmRecord, boot: &Boot) -> Option<Result<Launch, StepError>> {
        let world = &self.world;
        let held = record.reservation.as_ref()?;
        let Some(DiskState::Ready { path, config, .. }) =
            world.store.disk(&held.image).map(|disk| disk.state)
        else {
            return None;
        };
        let Some(files) = world.kernels.files(boot.kernel.as_ref()) else {
            return Some(Err(StepError::Failed {
                reason: "KernelGone".to_owned(),
                message:
                    "its kernel is not in the state folder any more; restart the daemon to have it made anew"
                        .to_owned(),
                transient: true,
            }));
        };
        Some(Ok(Launch {
            uid: self.uid,
            key: self.key.clone(),
            dir: world.vm_dir(self.uid),
            cpus: held.cpus,
            memory: held.memory,
            boot: files,
            command_line: boot.command_line.clone(),
            base_disk: path,
            root_size: held.disk,
            nic: held.nic.clone(),
            guest: guest_config(&record.object, &config, held.nic.as_ref(), &world.settings.resolvers),
            export: None,
            vmm_user: held.vmm_user,
        }))
    }

    /// Records the intent; the asking is a step of its own, repeated by a daemon that adopts the VM.
    async fn stop(&mut self, record: &VmRecord, why: String) -> Result<(), StepError> {
        let Run::Up { process, spec, boot, since, stopping: None } = record.run.clone() else {
            return Err(StepError::Stale);
        };
        self.asked = false;
        self.event("Stopping", &why);
        let stopping = Some(Stopping { since: self.world.clock.now(), why });
        let run = Run::Up { process, spec, boot, since, stopping };
        self.publish(record, VmUpdate { run: Some(run), ..VmUpdate::default() }).await
    }

    async fn ask(&mut self, record: &VmRecord, wake: &mut Wake) -> Result<(), StepError> {
        let grace = record.object.spec.termination_grace_period_seconds;
        let asked = match self.world.agent(self.uid) {
            Some(agent) => {
                let answer = tokio::time::timeout(ASK_TIMEOUT, agent.shutdown(grace));
                // An edit may have changed the grace period. Asking twice does no harm.
                let Some(answer) = wake.unless_woken(answer).await else { return Ok(()) };
                answer
                    .map_err(|_| "the guest does not answer".to_owned())
                    .and_then(|answer| answer.map_err(|error: AgentError| error.to_string()))
            }
            None => Err("the link is down".to_owned()),
        };
        self.asked = true;
        if let Err(why) = asked {
            tracing::info!(vm = %self.key, why, "shutdown by the power button");
            self.world.driver.power_button(&self.world.vm_dir(self.uid)).await?;
        }
        Ok(())
    }

    async fn kill(&mut self, record: &VmRecord, why: &str) -> Result<(), StepError> {
        let Run::Up { process, .. } = &record.run else {
            return Err(StepError::Stale);
        };
        self.world.event(&self.key, self.uid, Severity::Warning, "Killing", why);
        self.world.driver.kill(process).await?;
        if let Some(watched) = self.process.as_mut() {
            watched.await_killed(why).await;
        }
        Ok(())
    }

    async fn record_exit(
        &mut self,
        record: &VmRecord,
        seen: &Observed,
        rerun: bool,
        failed: bool,
    ) -> Result<(), StepError> {
        let Run::Up { spec, stopping, .. } = &record.run else {
            return Err(StepError::Stale);
        };
        // The tap goes first: once the exit is recorded, nobody knows what this run had attached.
        if let Some(nic) = record.reservation.as_ref().and_then(|held| held.nic.as_ref()) {
            self.world.network.detach(nic).await?;
        }
        let grace = record.object.spec.termination_grace_period_seconds;
        let exit = exit::last_exit(seen, stopping.as_ref(), grace, self.world.clock.now());
        let message = exit.message.clone();
        let run = if rerun { Run::Idle } else { Run::Ended { spec: spec.clone() } };
        let update = VmUpdate { run: Some(run), last_exit: Some(Some(exit)), ..VmUpdate::default() };
        let publish = self.world.store.publish_vm(&self.key, self.uid, update);
        publish.await?;
        if failed {
            let (reason, message) = ("WorkloadExited".to_owned(), format!("{message}; it is started again"));
            self.fail(Failure { reason, message, transient: true, step: discriminant(&Step::Boot) });
        } else {
            self.succeed();
            self.event("Stopped", &message);
        }
        Ok(())
    }

    /// Tap, folder, disk, then the reservation that said they may exist.
    async fn tear_down(&mut self, record: &VmRecord) -> Result<(), StepError> {
        let world = self.world.clone();
        if let Some(nic) = record.reservation.as_ref().and_then(|held| held.nic.as_ref()) {
            world.network.detach(nic).await?;
        }
        world.driver.cleanup(&world.vm_dir(self.uid)).await?;
        world.store.release_vm(&self.key, self.uid).await?;
        self.advance();
        Ok(())
    }

    async fn remove(&mut self) -> Result<(), StepError> {
        self.share = None;
        self.world.store.remove_vm(&self.key, self.uid).await?;
        self.event("Deleted", "the VM and everything that it held are gone");
        self.world.collector.notify_one();
        Ok(())
    }

    /// Publishes unless the spec moved on.
    fn publish(
        &self,
        record: &VmRecord,
        update: VmUpdate,
    ) -> impl Future<Output = Result<(), StepError>> + Send + use<> {
        let (store, key, uid) = (self.world.store.clone(), self.key.clone(), self.uid);
        let update = VmUpdate { generation: Some(record.object.metadata.generation), ..update };
        async move { Ok(store.publish_vm(&key, uid, update).await?) }
    }

    fn event(&self, reason: &str, message: &str) {
        self.world.event(&self.key, self.uid, Severity::Normal, reason, message);
    }
}
