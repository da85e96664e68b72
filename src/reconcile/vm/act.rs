//! The steps of a VM's plan. No policy here: each step does what the plan said, records it before
//! it can have effects and publishes what came of it.

mod image;
mod start;
mod stop;
#[cfg(test)]
mod tests;

use std::mem::discriminant;

use super::VmTask;
use super::state::Observed;
use super::step::Step;
use crate::reconcile::step::StepError;
use crate::reconcile::task::Wake;
use crate::store::{Severity, VmRecord, VmUpdate};

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

    /// Takes away the tap that the reservation may have made.
    async fn detach(&mut self, record: &VmRecord) -> Result<(), StepError> {
        if let Some(nic) = record.reservation.as_ref().and_then(|held| held.nic.as_ref()) {
            self.world.network.detach(nic).await?;
        }
        Ok(())
    }

    fn event(&self, reason: &str, message: &str) {
        self.world.event(&self.key, self.uid, Severity::Normal, reason, message);
    }
}
