//! What a source stands for in the scripted registry, and whether it can be had.

use std::collections::BTreeSet;

use super::super::images::name;
use super::{Sight, is_ready, stalled};
use crate::boot::KernelSource;
use crate::image::{Digest, Source};
use crate::object::{Kind, ObjectKey, PullPolicy};
use crate::store::{ImageRecord, Record, VmRecord};

impl Sight<'_> {
    /// Whether there is what a source names.
    fn is_there(&self, source: &Source) -> bool {
        self.world.image_script(source).digest.is_some()
    }

    /// Whether what a source names is on the host already, and known by its name.
    fn is_here(&self, source: &Source) -> bool {
        let disks = self.store.disks();
        let ready = |digest: &Digest| disks.iter().any(|disk| disk.digest == *digest && disk.is_ready());
        let pinned = self.records.values().filter_map(Record::pinned);
        let name = source.to_string();
        pinned.into_iter().any(|pin| pin.source == *source && ready(&pin.digest))
            || disks
                .iter()
                .any(|disk| disk.unused.as_ref().is_some_and(|unused| unused.source.as_ref() == Some(&name)))
    }

    /// Whether a source was refused for good.
    fn doomed(&self, source: &Source) -> bool {
        self.world.doomed.contains(&name(source))
    }

    /// Whether an image cannot be had: it is not in the registry, or was refused for good and is not
    /// tried again, or may not be pulled.
    pub(super) fn out_of_reach(&self, image: &ImageRecord) -> bool {
        let Some(source) = image.object.spec.source.chosen(&image.object.metadata.namespace) else {
            return true;
        };
        let kernel = match image.object.spec.kernel().and_then(|choice| choice.source) {
            Some(KernelSource::Oci(reference)) => Some(Source::Oci(reference)),
            _ => None,
        };
        let stalled = stalled(&image.object.status.conditions);
        let lost = |source: &Source| !self.is_there(source) || self.doomed(source) && stalled;
        let never = image.object.spec.pull_policy() == PullPolicy::Never;
        let lacks = if never { !self.is_here(&source) } else { lost(&source) };
        lacks || kernel.is_some_and(|source| lost(&source))
    }

    /// The `Image` object that a VM names.
    pub(super) fn wanted_image(&self, vm: &VmRecord) -> Option<&ImageRecord> {
        let (namespace, name) = (&vm.object.metadata.namespace, vm.object.spec.image.name.as_ref()?);
        match self.records.get(&ObjectKey::new(Kind::Image, namespace, name))? {
            Record::Image(image) if image.object.metadata.deletion_timestamp.is_none() => Some(image),
            _ => None,
        }
    }

    /// The digests that a VM may run; none if it cannot have any. A tag that moves leaves alone what is pinned
    /// to what it was.
    pub(super) fn wanted_digests(&self, vm: &VmRecord) -> Option<BTreeSet<Digest>> {
        let spec = &vm.object.spec.image;
        if let Some(source) = spec.direct() {
            let refused = self.doomed(&source) && stalled(&vm.object.status.conditions);
            let can = match spec.pull_policy {
                PullPolicy::Never => self.is_here(&source),
                _ => self.is_there(&source) && !refused,
            };
            return can.then(|| self.world.meanings(&source));
        }
        let image = self.wanted_image(vm)?;
        let source = image.object.spec.source.chosen(&image.object.metadata.namespace)?;
        if self.out_of_reach(image) {
            return None;
        }
        match (image.object.spec.pull_policy(), &source) {
            // The VM asks by itself.
            (PullPolicy::Always, _) => {
                let refused = self.doomed(&source) && stalled(&vm.object.status.conditions);
                (!refused).then(|| self.world.meanings(&source))
            }
            (_, Source::Vm(_)) => is_ready(&image.object.status.conditions).ok().and(Some(pinned(image))),
            _ => Some(pinned(image)),
        }
    }
}

/// What an image is pinned to.
fn pinned(image: &ImageRecord) -> BTreeSet<Digest> {
    image.image.iter().map(|pin| pin.digest.clone()).collect()
}
