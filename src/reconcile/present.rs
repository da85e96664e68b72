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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{ImageUpdate, VmUpdate};
    use crate::testing::Rig;

    fn pin(reference: &str, digit: char) -> PinnedImage {
        let digest = format!("sha256:{}", digit.to_string().repeat(64)).parse().unwrap();
        PinnedImage { source: Source::Oci(reference.to_owned()), digest, kernel: None }
    }

    async fn declare(rig: &Rig, kind: &str, spec: &str, pinned: &PinnedImage) {
        let head = format!(
            "apiVersion: vmlet.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {}}}",
            kind.to_lowercase()
        );
        let key = rig.declare(&format!("{head}\nspec: {spec}\n")).await;
        let uid = rig.store.record(&key).unwrap().metadata().uid.unwrap();
        let image = Some(Some(pinned.clone()));
        match key.kind {
            Kind::Vm => rig.store.publish_vm(&key, uid, VmUpdate { image, ..VmUpdate::default() }).await,
            Kind::Image => {
                rig.store.publish_image(&key, uid, ImageUpdate { image, ..ImageUpdate::default() }).await
            }
        }
        .unwrap();
    }

    async fn install(rig: &Rig, pin: &PinnedImage) {
        let claim = crate::object::Uid::nil();
        rig.store.claim_disk(&pin.digest, claim).await.unwrap();
        let size = crate::object::Quantity::bytes(1);
        rig.store.publish_disk(&pin.digest, claim, "/d".into(), size, Default::default()).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn an_image_is_present_by_a_pin_or_by_the_last_name_of_an_unused_disk() {
        let rig = Rig::new();
        let of = |reference: &str| present(&rig.store, &Source::Oci(reference.to_owned()));
        let (a, b, c) = (pin("r/a:1", 'a'), pin("r/b:1", 'b'), pin("r/c:1", 'c'));
        declare(&rig, "Image", "{source: {oci: {reference: 'r/a:1'}}}", &a).await;
        declare(&rig, "VM", "{image: {oci: 'r/b:1'}}", &b).await;
        assert_eq!((of("r/a:1"), of("r/b:1")), (None, None), "their disks are not there yet");
        install(&rig, &a).await;
        install(&rig, &b).await;
        install(&rig, &c).await;
        assert_eq!((of("r/a:1"), of("r/b:1")), (Some(a), Some(b)));
        assert_eq!(of("r/c:1"), None, "nobody called it so");
        rig.store.touch_disk(&c.digest, "r/c:1").await.unwrap();
        assert_eq!((of("r/c:1"), of("r/d:1")), (Some(c.clone()), None));
        rig.store.condemn_disk(&c.digest).await.unwrap();
        assert_eq!(of("r/c:1"), None, "it goes");
    }

    #[tokio::test(start_paused = true)]
    async fn another_objects_kernel_is_not_found_with_its_image() {
        let rig = Rig::new();
        let choice = crate::boot::KernelChoice { source: None, command_line: Some("quiet".to_owned()) };
        let kernel = Some(Box::new(crate::store::PinnedKernel { choice, disk: None, boot: None }));
        let a = PinnedImage { kernel, ..pin("r/a:1", 'a') };
        declare(&rig, "Image", "{source: {oci: {reference: 'r/a:1'}}}", &a).await;
        install(&rig, &a).await;
        assert_eq!(present(&rig.store, &a.source), Some(PinnedImage { kernel: None, ..a.clone() }));
    }
}
