//! Which image the VM is to run: found, and recorded before anything is made of it.

use crate::image::{ImageError, Source};
use crate::reconcile::present::present;
use crate::reconcile::step::StepError;
use crate::reconcile::task::Wake;
use crate::reconcile::vm::VmTask;
use crate::store::{PinnedImage, VmRecord, VmUpdate};

impl VmTask {
    pub(super) async fn resolve(
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
            self.attempts.succeed();
            return Ok(());
        }
        self.pin(record, pin).await
    }

    pub(super) async fn find(&mut self, record: &VmRecord, source: &Source) -> Result<(), StepError> {
        let found = present(&self.world.store, source).ok_or_else(|| ImageError::not_present(source))?;
        self.pin(record, PinnedImage { kernel: self.own_kernel(record), ..found }).await
    }

    pub(super) async fn pin(&mut self, record: &VmRecord, pin: PinnedImage) -> Result<(), StepError> {
        self.publish(record, VmUpdate { image: Some(Some(pin)), ..VmUpdate::default() }).await?;
        self.attempts.advance();
        // The image that was pinned before may be nobody's now.
        self.world.collector.notify_one();
        Ok(())
    }
}
