//! The way down: the guest is asked, the process killed, its end recorded, and what it left taken away.

use std::mem::discriminant;
use std::time::Duration;

use crate::agent::AgentError;
use crate::reconcile::step::StepError;
use crate::reconcile::task::Wake;
use crate::reconcile::vm::state::Observed;
use crate::reconcile::vm::step::{Failure, Step};
use crate::reconcile::vm::{VmTask, exit};
use crate::store::{Run, Severity, Stopping, VmRecord, VmUpdate};

/// How long the guest may take to acknowledge that it shuts down.
pub(super) const ASK_TIMEOUT: Duration = Duration::from_secs(3);

impl VmTask {
    /// Records the intent; the asking is a step of its own, repeated by a daemon that adopts the VM.
    pub(super) async fn stop(&mut self, record: &VmRecord, why: String) -> Result<(), StepError> {
        let Run::Up { process, spec, boot, since, stopping: None } = record.run.clone() else {
            return Err(StepError::Stale);
        };
        self.asked = false;
        self.event("Stopping", &why);
        let stopping = Some(Stopping { since: self.world.clock.now(), why });
        let run = Run::Up { process, spec, boot, since, stopping };
        self.publish(record, VmUpdate { run: Some(run), ..VmUpdate::default() }).await
    }

    pub(super) async fn ask(&mut self, record: &VmRecord, wake: &mut Wake) -> Result<(), StepError> {
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

    pub(super) async fn kill(&mut self, record: &VmRecord, why: &str) -> Result<(), StepError> {
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

    pub(super) async fn record_exit(
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
        self.detach(record).await?;
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
            self.attempts.succeed();
            self.event("Stopped", &message);
        }
        Ok(())
    }

    /// Tap, folder, disk, then the reservation that said they may exist.
    pub(super) async fn tear_down(&mut self, record: &VmRecord) -> Result<(), StepError> {
        let world = self.world.clone();
        self.detach(record).await?;
        world.driver.cleanup(&world.vm_dir(self.uid)).await?;
        world.store.release_vm(&self.key, self.uid).await?;
        self.attempts.advance();
        Ok(())
    }

    pub(super) async fn remove(&mut self) -> Result<(), StepError> {
        self.share = None;
        self.world.store.remove_vm(&self.key, self.uid).await?;
        self.event("Deleted", "the VM and everything that it held are gone");
        self.world.collector.notify_one();
        Ok(())
    }
}
