use jiff::Timestamp;
use uuid::Uuid;

use super::super::row::Row;
use super::super::*;
use super::support::*;
use crate::boot::{KernelChoice, KernelSource};
use crate::image::{ImageConfig, Source};
use crate::object::{Quantity, Uid};

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
    let (store, _, clock) = timed();
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

    let condemn = || {
        // Whatever is said of them.
        let all: Vec<_> = store.disks().into_iter().map(|disk| (disk.digest, clock.get())).collect();
        now(store.condemn_disks(&all)).unwrap()
    };
    assert_eq!(condemn(), [digest(4)], "not pinned, not reserved, not being installed");
    now(store.release_vm(&key("b"), by_reservation)).unwrap();
    assert_eq!(condemn(), [digest(3)], "and not those of the last time");
    assert_eq!(now(store.claim_disk(&digest(4), Uuid::nil())).unwrap(), DiskClaim::Removing);
    now(store.forget_disk(&digest(4))).unwrap();
    now(store.forget_disk(&digest(1))).expect("a disk in use is left alone");
    let known: Vec<Digest> = store.disks().into_iter().map(|disk| disk.digest).collect();
    assert_eq!(known, [digest(1), digest(2), digest(3), digest(5)]);
    assert_eq!(now(store.claim_disk(&digest(4), Uuid::nil())).unwrap(), DiskClaim::Granted);
    assert!(matches!(store.disk(&digest(1)).unwrap().state, DiskState::Ready { .. }));
}

fn pin(store: &Store, name: &str, uid: Uid, pinned: Option<u8>) {
    let pin = pinned.map(|number| PinnedImage {
        source: Source::Oci(format!("r:{number}")),
        digest: digest(number),
        kernel: None,
    });
    now(store.publish_vm(&key(name), uid, VmUpdate { image: Some(pin), ..VmUpdate::default() })).unwrap();
}

fn unused(store: &Store, number: u8) -> Option<(Timestamp, Option<String>)> {
    store.disk(&digest(number)).unwrap().unused.map(|unused| (unused.since, unused.source))
}

#[test]
fn a_disk_knows_since_when_nothing_refers_to_it() {
    let (store, backend, clock) = timed();
    install(&store, &digest(1));
    assert_eq!(unused(&store, 1), Some((at(0), None)), "from its installation on");
    let (a, b) = (declare(&store, vm("a")), declare(&store, vm("b")));
    clock.set(at(10));
    pin(&store, "a", a, Some(1));
    pin(&store, "b", b, Some(1));
    assert_eq!(unused(&store, 1), None);
    clock.set(at(20));
    pin(&store, "a", a, None);
    assert_eq!(unused(&store, 1), None, "b still does");
    clock.set(at(30));
    pin(&store, "b", b, Some(2));
    let since_30 = Some((at(30), Some("r:1".to_owned())));
    assert_eq!(unused(&store, 1), since_30);
    clock.set(at(40));
    let (store, _) = backend.crash(0);
    assert_eq!(unused(&store, 1), since_30, "a restart does not begin it anew");
    now(store.touch_disk(&digest(1), "r:latest")).unwrap();
    assert_eq!(unused(&store, 1), Some((at(40), Some("r:latest".to_owned()))));
}

#[test]
fn the_transaction_that_drops_the_last_reference_notes_it() {
    let (store, _, clock) = timed();
    install(&store, &digest(1));
    install(&store, &digest(2));
    let (a, b) = (declare(&store, vm("a")), declare(&store, vm("b")));
    now(store.reserve_vm(claim("a", a))).unwrap();
    pin(&store, "b", b, Some(2));
    assert_eq!((unused(&store, 1), unused(&store, 2)), (None, None));
    clock.set(at(5));
    now(store.release_vm(&key("a"), a)).unwrap();
    assert_eq!(unused(&store, 1), Some((at(5), None)), "the reservation's end");
    clock.set(at(6));
    now(store.undeclare(&key("b"), "directory:/m", at(6))).unwrap();
    assert_eq!(unused(&store, 2), None, "one that is being deleted still holds it");
    now(store.remove_vm(&key("b"), b)).unwrap();
    assert_eq!(unused(&store, 2), Some((at(6), Some("r:2".to_owned()))), "the record's end");
}

#[test]
fn what_was_used_since_it_was_looked_at_is_not_condemned() {
    let (store, _, clock) = timed();
    install(&store, &digest(1));
    let a = declare(&store, vm("a"));
    clock.set(at(9));
    pin(&store, "a", a, Some(1));
    let condemn = |since| now(store.condemn_disks(&[(digest(1), since)])).unwrap();
    assert_eq!(condemn(at(0)), [], "it is in use");
    assert!(matches!(
        now(store.condemn_disk(&digest(1))),
        Err(RemoveDiskError::InUse { by }) if by == [key("a")]
    ));
    pin(&store, "a", a, None);
    assert_eq!(condemn(at(0)), [], "its time began anew");
    assert_eq!(condemn(at(9)), [digest(1)]);
    now(store.condemn_disk(&digest(1))).expect("it is on its way");
    assert!(matches!(now(store.condemn_disk(&digest(7))), Err(RemoveDiskError::Unknown)));
    now(store.claim_disk(&digest(8), Uuid::nil())).unwrap();
    assert!(matches!(now(store.condemn_disk(&digest(8))), Err(RemoveDiskError::Installing)));
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
    now(store.condemn_disk(&digest(1))).unwrap();
    assert_eq!(lose(), Some(DiskState::Removing), "its removal goes on");
}

/// A pin of one digest, with a kernel that is in the image of another.
fn with_kernel(image: u8, kernel: u8) -> PinnedImage {
    let source = KernelSource::Oci(format!("r:{kernel}"));
    let choice = KernelChoice { source: Some(source), command_line: None };
    let kernel = PinnedKernel { choice, disk: Some(digest(kernel)), boot: None };
    PinnedImage {
        source: Source::Oci(format!("r:{image}")),
        digest: digest(image),
        kernel: Some(Box::new(kernel)),
    }
}

#[test]
fn a_kernels_disk_is_in_use_and_is_remembered_by_no_images_name() {
    let (store, _, clock) = timed();
    install(&store, &digest(1));
    install(&store, &digest(2));
    let a = declare(&store, vm("a"));
    let publish = |image| {
        let update = VmUpdate { image: Some(image), ..VmUpdate::default() };
        now(store.publish_vm(&key("a"), a, update)).unwrap();
    };
    publish(Some(with_kernel(1, 2)));
    assert_eq!((unused(&store, 1), unused(&store, 2)), (None, None));
    clock.set(at(3));
    publish(None);
    assert_eq!(unused(&store, 1), Some((at(3), Some("r:1".to_owned()))));
    assert_eq!(unused(&store, 2), Some((at(3), None)), "nobody named it as an image");
}

#[test]
fn a_disk_is_remembered_by_the_last_name_of_its_last_user() {
    let (store, _, clock) = timed();
    install(&store, &digest(1));
    let a = declare(&store, vm("a"));
    for name in ["r:first", "r:last"] {
        let pin = PinnedImage { source: Source::Oci(name.to_owned()), digest: digest(1), kernel: None };
        let update = VmUpdate { image: Some(Some(pin)), ..VmUpdate::default() };
        now(store.publish_vm(&key("a"), a, update)).unwrap();
    }
    clock.set(at(3));
    pin(&store, "a", a, None);
    assert_eq!(unused(&store, 1), Some((at(3), Some("r:last".to_owned()))));
}

#[test]
fn the_time_without_users_begins_when_a_disk_is_ready() {
    let (store, _, clock) = timed();
    let a = declare(&store, vm("a"));
    now(store.claim_disk(&digest(1), Uuid::nil())).unwrap();
    assert_eq!(unused(&store, 1), None, "it is on its way");
    pin(&store, "a", a, Some(1));
    pin(&store, "a", a, None);
    assert_eq!(unused(&store, 1), None);
    clock.set(at(8));
    publish(&store, Uuid::nil()).unwrap();
    assert_eq!(unused(&store, 1), Some((at(8), None)));
}

#[test]
fn a_condemned_disk_goes_though_it_is_wanted_again() {
    let (store, _) = Store::in_memory();
    install(&store, &digest(1));
    now(store.condemn_disk(&digest(1))).unwrap();
    let a = declare(&store, vm("a"));
    pin(&store, "a", a, Some(1));
    now(store.condemn_disk(&digest(1))).expect("it is on its way, and pulled anew after that");
}

#[test]
fn a_disk_that_was_forgotten_or_lost_is_not_in_the_log_either() {
    let (store, backend) = Store::in_memory();
    install(&store, &digest(1));
    install(&store, &digest(2));
    now(store.condemn_disk(&digest(1))).unwrap();
    now(store.forget_disk(&digest(1))).unwrap();
    now(store.lose_disk(&digest(2))).unwrap();
    let (again, _) = backend.crash(0);
    assert_eq!(again.disks(), []);
}

/// Logs may hold what earlier versions, or people, wrote.
#[test]
fn a_store_that_is_opened_says_of_each_disk_whether_it_is_used() {
    let (store, _) = Store::in_memory();
    install(&store, &digest(1));
    install(&store, &digest(2));
    let a = declare(&store, vm("a"));
    pin(&store, "a", a, Some(2));
    let turned = store.export().unwrap().rows.into_iter().map(|row| match row {
        Row::Disk(disk) => {
            let unused = Some(Unused { since: at(1), source: None }).filter(|_| disk.unused.is_none());
            Row::Disk(Arc::new(DiskRecord { unused, ..DiskRecord::clone(&disk) }))
        }
        row => row,
    });
    let rows = turned.map(|row| (row.key().text().into_bytes(), row.encode())).collect();
    let (again, _) = super::super::memory::start(rows, StoreSettings::default());
    assert!(unused(&again, 1).is_some() && unused(&again, 2).is_none());
}
