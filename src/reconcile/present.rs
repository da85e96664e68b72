//! Images that are on the host by another object's doing, or because somebody pulled them ahead.

use crate::image::Source;
use crate::object::Kind;
use crate::store::{PinnedImage, Record, Store};

/// What a source stands for to an object that has its base disk.
pub(super) fn present(store: &Store, source: &Source) -> Option<PinnedImage> {
    let pins = |kind| {
        let (records, _) = store.list(kind, None);
        records.into_iter().filter_map(|record| match record {
            Record::Vm(vm) => vm.image.clone(),
            Record::Image(image) => image.image.clone(),
        })
    };
    let is_here = |pin: &PinnedImage| {
        pin.source == *source && store.disk(&pin.digest).is_some_and(|disk| disk.is_ready())
    };
    let found = pins(Kind::Image).chain(pins(Kind::Vm)).find(is_here).or_else(|| unused(store, source))?;
    Some(PinnedImage { kernel: None, ..found })
}

/// A registry's image whose base disk nothing refers to at present.
fn unused(store: &Store, source: &Source) -> Option<PinnedImage> {
    let Source::Oci(reference) = source else { return None };
    let disks = store.disks().into_iter().filter(|disk| disk.is_ready());
    let mut wanted = disks.filter(|disk| {
        disk.unused.as_ref().is_some_and(|unused| unused.source.as_deref() == Some(reference))
    });
    wanted.next().map(|disk| PinnedImage { source: source.clone(), digest: disk.digest, kernel: None })
}
