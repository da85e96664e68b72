//! Images that are on the host by another object's doing.

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
    pins(Kind::Image).chain(pins(Kind::Vm)).find(is_here)
}
