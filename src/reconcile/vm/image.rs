//! Which image a VM is to run, with which kernel, and how far the two are.
//!
//! In: the spec, the store's images and disks, the task's share in a pull. Out: an [`ImageView`].

use std::sync::Arc;

use super::VmTask;
use super::state::ImageView;
use crate::image::Source;
use crate::object::{ImageRef, Kind, ObjectKey, PullPolicy, RunPolicy};
use crate::reconcile::pulls::Share;
use crate::store::{DiskState, ImageRecord, PinnedImage, PinnedKernel, VmRecord};

impl VmTask {
    /// The image that the spec asks for. A share in a pull that is not waited for is let go.
    pub(super) fn image(&mut self, record: &VmRecord) -> ImageView {
        let mut view = self.wanted(record);
        let halted = record.object.spec.run_policy == RunPolicy::Halted;
        let leaves = halted || record.object.metadata.deletion_timestamp.is_some();
        let awaits = |share: &Share| match &view {
            _ if leaves => false,
            ImageView::Known { pin, policy, disk: None, .. } => {
                *policy != PullPolicy::Never && *share.digest() == pin.digest
            }
            // The answer may be the same digest.
            ImageView::Unresolved { .. } => self.attempts.failure().is_none(),
            ImageView::Known { .. } | ImageView::Waiting { .. } => false,
        };
        if !self.share.as_ref().is_some_and(awaits) {
            self.share = None;
        }
        if let ImageView::Known { pull, .. } = &mut view {
            *pull = self.share.as_ref().map(Share::state);
        }
        view
    }

    /// The image that the spec asks for, and whether its disk is there.
    fn wanted(&self, record: &VmRecord) -> ImageView {
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
        ImageView::Known { disk, pull: None, pin, policy, asked: self.registry_asked, direct }
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
    pub(super) fn own_kernel(&self, record: &VmRecord) -> Option<Box<PinnedKernel>> {
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

    /// The `Image` that the VM names, if there is one of that name.
    pub(super) fn named(&self, record: &VmRecord) -> Option<Arc<ImageRecord>> {
        let name = record.object.spec.image.name.as_ref()?;
        self.world.store.image(&ObjectKey::new(Kind::Image, &self.key.namespace, name))
    }

    /// The digest that a named image is pulled by, if it is known.
    pub(super) fn awaited_digest(&self, record: &VmRecord) -> Option<String> {
        Some(self.named(record)?.image.as_ref()?.digest.to_string())
    }
}
