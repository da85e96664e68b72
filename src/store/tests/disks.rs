use uuid::Uuid;

use super::super::*;
use super::support::*;
use crate::image::{ImageConfig, Source};
use crate::object::Quantity;

fn publish(store: &Store, claim: Uuid) -> Result<(), PublishError> {
    now(store.publish_disk(&digest(1), claim, "/d".into(), Quantity::bytes(1), ImageConfig::default()))
}

#[test]
fn exactly_one_install_is_granted() {
    let (store, _) = Store::in_memory();
    let (a, b) = (Uuid::from_u128(1), Uuid::from_u128(2));
    let claim = |claim| now(store.claim_disk(&digest(1), claim)).unwrap();
    assert_eq!((claim(a), claim(b), claim(a)), (DiskClaim::Granted, DiskClaim::Taken, DiskClaim::Granted));
    assert!(matches!(publish(&store, b), Err(PublishError::Stale)), "not b's to publish");
    now(store.abandon_disk(&digest(1), b)).unwrap();
    assert_eq!(claim(b), DiskClaim::Taken, "not b's to abandon");
    now(store.abandon_disk(&digest(1), a)).unwrap();
    assert_eq!(claim(b), DiskClaim::Removing, "it may be in its place all the same");
    now(store.forget_disk(&digest(1))).unwrap();
    assert_eq!(claim(b), DiskClaim::Granted);
    publish(&store, b).unwrap();
    assert_eq!(claim(a), DiskClaim::Ready);
    now(store.abandon_disk(&digest(1), b)).unwrap();
    assert_eq!(claim(a), DiskClaim::Ready, "a published disk is not abandoned");
    assert!(matches!(publish(&store, b), Err(PublishError::Stale)), "nor published twice");
}

#[test]
fn disks_that_nobody_refers_to_are_condemned_then_forgotten() {
    let (store, _) = Store::in_memory();
    for number in 1..=4 {
        install(&store, &digest(number));
    }
    now(store.claim_disk(&digest(5), Uuid::nil())).unwrap();
    let pin = |number| {
        Some(Some(PinnedImage { source: Source::Oci("r".to_owned()), digest: digest(number), kernel: None }))
    };
    let by_image = declare(&store, image("base"));
    let update = ImageUpdate { image: pin(1), ..ImageUpdate::default() };
    now(store.publish_image(&image_key("base"), by_image, update)).unwrap();
    let by_vm = declare(&store, vm("a"));
    now(store.publish_vm(&key("a"), by_vm, VmUpdate { image: pin(2), ..VmUpdate::default() })).unwrap();
    let by_reservation = declare(&store, vm("b"));
    now(store.reserve_vm(VmClaim { image: digest(3), ..claim("b", by_reservation) })).unwrap();

    let condemn = || now(store.condemn_disks()).unwrap();
    assert_eq!(condemn(), [digest(4)], "not pinned, not reserved, not being installed");
    now(store.release_vm(&key("b"), by_reservation)).unwrap();
    assert_eq!(condemn(), [digest(3), digest(4)], "those of the last time included");
    assert_eq!(now(store.claim_disk(&digest(4), Uuid::nil())).unwrap(), DiskClaim::Removing);
    now(store.forget_disk(&digest(4))).unwrap();
    now(store.forget_disk(&digest(1))).expect("a disk in use is left alone");
    let known: Vec<Digest> = store.disks().into_iter().map(|disk| disk.digest).collect();
    assert_eq!(known, [digest(1), digest(2), digest(3), digest(5)]);
    assert_eq!(now(store.claim_disk(&digest(4), Uuid::nil())).unwrap(), DiskClaim::Granted);
    assert!(matches!(store.disk(&digest(1)).unwrap().state, DiskState::Ready { .. }));
}

#[test]
fn only_a_disk_that_should_be_there_is_lost() {
    let (store, _) = Store::in_memory();
    let lose = || {
        now(store.lose_disk(&digest(1))).unwrap();
        store.disk(&digest(1)).map(|disk| disk.state)
    };
    now(store.claim_disk(&digest(1), Uuid::nil())).unwrap();
    assert_eq!(lose(), Some(DiskState::Installing { claim: Uuid::nil() }), "it is on its way");
    publish(&store, Uuid::nil()).unwrap();
    assert_eq!(lose(), None);
    install(&store, &digest(1));
    now(store.condemn_disks()).unwrap();
    assert_eq!(lose(), Some(DiskState::Removing), "its removal goes on");
}
