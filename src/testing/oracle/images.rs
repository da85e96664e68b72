//! What a source stands for in the scripted registry, and whether it can be had.

use super::super::images::name;
use super::{Sight, stalled};
use crate::boot::KernelSource;
use crate::image::{Digest, Source};
use crate::object::{Kind, ObjectKey};
use crate::store::{ImageRecord, Record, VmRecord};

impl Sight<'_> {
    /// What a source stands for; none if it is not there.
    pub(super) fn digest(&self, source: &Source) -> Option<Digest> {
        self.world.image_script(source).digest
    }

    /// Whether a source was refused for good.
    fn doomed(&self, source: &Source) -> bool {
        self.world.doomed.contains(&name(source))
    }

    /// Whether an image cannot be had: it is not in the registry, or was refused for good and is not
    /// tried again.
    pub(super) fn out_of_reach(&self, image: &ImageRecord) -> bool {
        let Some(source) = image.object.spec.source.chosen(&image.object.metadata.namespace) else {
            return true;
        };
        let kernel = match image.object.spec.kernel().and_then(|choice| choice.source) {
            Some(KernelSource::Oci(reference)) => Some(Source::Oci(reference)),
            _ => None,
        };
        let stalled = stalled(&image.object.status.conditions);
        let lost = |source: &Source| self.digest(source).is_none() || self.doomed(source) && stalled;
        std::iter::once(source).chain(kernel).any(|source| lost(&source))
    }

    /// The `Image` object that a VM names.
    pub(super) fn wanted_image(&self, vm: &VmRecord) -> Option<&ImageRecord> {
        let (namespace, name) = (&vm.object.metadata.namespace, vm.object.spec.image.name.as_ref()?);
        match self.records.get(&ObjectKey::new(Kind::Image, namespace, name))? {
            Record::Image(image) if image.object.metadata.deletion_timestamp.is_none() => Some(image),
            _ => None,
        }
    }

    /// The digest that a VM is to run; none if it cannot be had.
    pub(super) fn wanted_digest(&self, vm: &VmRecord) -> Option<Digest> {
        let spec = &vm.object.spec.image;
        if let Some(source) = spec.direct() {
            let refused = self.doomed(&source) && stalled(&vm.object.status.conditions);
            return self.digest(&source).filter(|_| !refused);
        }
        let image = self.wanted_image(vm)?;
        let source = image.object.spec.source.chosen(&image.object.metadata.namespace)?;
        if let Source::Vm(_) = source {
            return image.image.as_ref().map(|pin| pin.digest.clone());
        }
        self.digest(&source).filter(|_| !self.out_of_reach(image))
    }
}
