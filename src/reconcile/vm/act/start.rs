//! The way up: what the VM needs is claimed, then made, then its process started.

use futures_util::FutureExt;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::boot::Boot;
use crate::hypervisor::Launch;
use crate::object::NetworkMode;
use crate::reconcile::step::StepError;
use crate::reconcile::task::Wake;
use crate::reconcile::vm::guest_config::guest_config;
use crate::reconcile::vm::{InLine, VmTask};
use crate::store::{
    DiskState, NetworkClaim, PinnedImage, ReserveError, Run, Standing, VmClaim, VmRecord, VmUpdate,
};

impl VmTask {
    /// Undoes what the present reservation made and the new one would not know of, then claims.
    pub(super) async fn reserve(
        &mut self,
        record: &VmRecord,
        discard_disk: bool,
        impatient: bool,
    ) -> Result<(), StepError> {
        let world = self.world.clone();
        self.detach(record).await?;
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
                self.attempts.advance();
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
                Instant::now()
            }
        };
        self.line = Some(InLine::Waits { standing, since, impatient });
        self.attempts.succeed();
    }

    /// A start that was given up halfway may have left a tap.
    pub(super) async fn relinquish(&mut self, record: &VmRecord) -> Result<(), StepError> {
        self.detach(record).await?;
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
    pub(super) async fn queue(&mut self, wake: &mut Wake) -> Result<(), StepError> {
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
    pub(super) async fn boot(&mut self, record: &VmRecord) -> Result<(), StepError> {
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
        self.attempts.succeed();
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
}
