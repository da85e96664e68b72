use std::ptr;

use futures_util::FutureExt;
use serde_json::json;

use super::super::*;
use super::support::*;
use crate::image::Source;
use crate::object::{ImageStatus, LastExit, Uid};

fn update() -> VmUpdate {
    VmUpdate::default()
}

#[test]
fn a_publish_writes_the_given_fields_and_no_others() {
    let (store, _) = store_with_disk();
    let uid = declare(&store, vm("web"));
    let reservation = now(store.reserve_vm(claim("web", uid))).unwrap();
    let pinned = PinnedImage { source: Source::Oci("r".to_owned()), digest: digest(1), kernel: None };
    let exit =
        LastExit { code: Some(1), reason: "Error".to_owned(), message: String::new(), finished_at: at(9) };
    let publish = |update| now(store.publish_vm(&key("web"), uid, update)).unwrap();
    publish(VmUpdate { status: phase("Starting"), ..update() });
    publish(VmUpdate { image: Some(Some(pinned.clone())), ..update() });
    publish(VmUpdate { run: Some(running()), starts: Some(1), ..update() });
    publish(VmUpdate { last_exit: Some(Some(exit.clone())), ..update() });
    let record = store.vm(&key("web")).unwrap();
    assert_eq!(record.object.status.phase, "Starting");
    assert_eq!((&record.image, &record.run, record.starts), (&Some(pinned), &running(), 1));
    assert_eq!((&record.last_exit, &record.reservation), (&Some(exit), &Some(reservation)));
    publish(VmUpdate { image: Some(None), last_exit: Some(None), ..update() });
    let record = store.vm(&key("web")).unwrap();
    assert_eq!((&record.image, &record.last_exit, record.starts), (&None, &None, 1));
}

#[test]
fn a_publish_that_changes_nothing_is_no_change() {
    let (store, _) = Store::in_memory();
    let uid = declare(&store, vm("web"));
    let publish = || {
        let same = VmUpdate { status: phase("Pending"), starts: Some(0), ..update() };
        now(store.publish_vm(&key("web"), uid, same)).unwrap();
        version(&store.record(&key("web")).unwrap())
    };
    assert_eq!(publish(), publish());
}

/// Thousands of versions are kept for watchers: each has only what it changed for itself.
#[test]
fn versions_of_a_record_share_what_they_have_in_common() {
    let (store, _) = Store::in_memory();
    let uid = declare(&store, vm("web"));
    let first = store.vm(&key("web")).unwrap().object.clone();
    let publish = |update| {
        now(store.publish_vm(&key("web"), uid, update)).unwrap();
        store.vm(&key("web")).unwrap().object.clone()
    };
    let second = publish(VmUpdate { status: phase("Starting"), ..update() });
    assert!(ptr::eq(&*first.spec, &*second.spec), "the spec was copied for a status");
    assert!(
        ptr::eq(&*first.metadata.labels, &*second.metadata.labels),
        "the labels were copied for a status"
    );
    let third = publish(VmUpdate { starts: Some(1), ..update() });
    assert!(ptr::eq(&*second.status, &*third.status), "the status was copied for a count");
    assert_ne!(second.metadata.resource_version, third.metadata.resource_version);
}

#[test]
fn a_stale_publish_changes_nothing() {
    let (store, _) = store_with_disk();
    let uid = declare(&store, vm("web"));
    let before = store.vm(&key("web"));
    let stale =
        |uid, update| matches!(now(store.publish_vm(&key("web"), uid, update)), Err(PublishError::Stale));
    assert!(stale(Uid::new_v4(), VmUpdate { status: phase("x"), ..update() }), "another uid");
    assert!(
        stale(uid, VmUpdate { generation: Some(2), status: phase("x"), ..update() }),
        "another generation"
    );
    assert!(stale(uid, VmUpdate { run: Some(running()), ..update() }), "a process without a reservation");
    assert_eq!(store.vm(&key("web")), before);
    now(store.publish_vm(&key("web"), uid, VmUpdate { generation: Some(1), ..update() })).unwrap();
    let edited = vm_with("web", json!({"image": {"name": "base"}, "cpus": 2}));
    now(store.declare(edited, origin("a.yaml"), false, at(2))).unwrap();
    assert!(stale(uid, VmUpdate { generation: Some(1), ..update() }), "the spec moved on");
    now(store.publish_vm(&key("web"), uid, VmUpdate { status: phase("x"), ..update() }))
        .expect("no generation asked for, none checked");
}

#[test]
fn images_are_published_likewise() {
    let (store, _) = Store::in_memory();
    let uid = declare(&store, image("base"));
    let publish = |uid, generation, phase: &str| {
        let status = ImageStatus { phase: phase.to_owned(), ..ImageStatus::default() };
        let pinned = PinnedImage { source: Source::Oci("r".to_owned()), digest: digest(1), kernel: None };
        let update = ImageUpdate { generation, status: Some(status), image: Some(Some(pinned)) };
        now(store.publish_image(&image_key("base"), uid, update))
    };
    publish(uid, Some(1), "Ready").unwrap();
    let before = store.image(&image_key("base")).unwrap();
    assert_eq!((before.object.status.phase.as_str(), before.image.is_some()), ("Ready", true));
    assert!(matches!(publish(uid, Some(2), "x"), Err(PublishError::Stale)));
    assert!(matches!(publish(Uid::new_v4(), None, "x"), Err(PublishError::Stale)));
    publish(uid, None, "Ready").unwrap();
    assert_eq!(store.image(&image_key("base")), Some(before), "the same again is no change");
}

#[test]
fn a_vm_goes_last_of_all() {
    let (store, _) = store_with_disk();
    let uid = declare(&store, vm("web"));
    let remove = |uid| now(store.remove_vm(&key("web"), uid));
    assert!(matches!(remove(uid), Err(RemoveError::NotDeleted)));
    now(store.reserve_vm(claim("web", uid))).unwrap();
    now(store.publish_vm(&key("web"), uid, VmUpdate { run: Some(running()), ..update() })).unwrap();
    now(store.undeclare(&key("web"), "directory:/m", at(2))).unwrap();
    assert!(matches!(remove(uid), Err(RemoveError::Held { what: "a process" })));
    let ended = VmUpdate {
        run: Some(Run::Ended { spec: store.vm(&key("web")).unwrap().object.spec.clone() }),
        ..update()
    };
    now(store.publish_vm(&key("web"), uid, ended)).unwrap();
    assert!(matches!(remove(uid), Err(RemoveError::Held { what: "a reservation" })));
    now(store.release_vm(&key("web"), uid)).unwrap();
    assert!(matches!(remove(Uid::new_v4()), Err(RemoveError::Stale)));
    remove(uid).unwrap();
    assert!(store.vm(&key("web")).is_none());
    assert!(matches!(remove(uid), Err(RemoveError::Stale)));
    assert_ne!(declare(&store, vm("web")), uid, "the name is free for another identity");
}

#[test]
fn an_image_in_use_stays_and_says_who_uses_it() {
    let (store, _) = Store::in_memory();
    let uid = declare(&store, image("base"));
    let web = declare(&store, vm("web"));
    declare(&store, vm_with("direct", json!({"image": {"oci": "127.0.0.1:5055/base:1"}})));
    let mut elsewhere = vm("far");
    elsewhere.metadata_mut().namespace = "other".to_owned();
    declare(&store, elsewhere);
    let remove = |uid| now(store.remove_image(&image_key("base"), uid));
    assert!(matches!(remove(uid), Err(RemoveImageError::NotDeleted)));
    now(store.undeclare(&image_key("base"), "directory:/m", at(2))).unwrap();
    assert!(matches!(remove(Uid::new_v4()), Err(RemoveImageError::Stale)));
    now(store.undeclare(&key("web"), "directory:/m", at(2))).unwrap();
    let refused = remove(uid);
    assert!(
        matches!(&refused, Err(RemoveImageError::InUse { by }) if *by == [key("web")]),
        "a VM uses its image until it is gone: {refused:?}"
    );
    now(store.remove_vm(&key("web"), web)).unwrap();
    remove(uid).unwrap();
    assert!(store.image(&image_key("base")).is_none());
}

#[test]
fn an_image_in_use_makes_way_for_its_successor() {
    let again = || Some(Problem { reason: Problem::REDECLARED.to_owned(), message: String::new() });
    for own in [true, false] {
        let (store, _) = Store::in_memory();
        let uid = declare(&store, image("base"));
        declare(&store, vm("web"));
        now(store.undeclare(&image_key("base"), "directory:/m", at(2))).unwrap();
        match own {
            true => now(store.set_problem(&image_key("base"), again())).unwrap(),
            false => now(store.set_rival(&image_key("base"), "directory:/other", again())).unwrap(),
        };
        now(store.remove_image(&image_key("base"), uid)).unwrap();
        assert_ne!(declare(&store, image("base")), uid);
    }
}

#[test]
fn what_others_build_on_is_waited_for_and_a_status_is_not() {
    let (store, backend) = Store::in_memory();
    let (web, base) = (declare(&store, vm("web")), declare(&store, image("base")));
    let pin =
        || Some(Some(PinnedImage { source: Source::Oci("r".to_owned()), digest: digest(1), kernel: None }));
    let spec = store.vm(&key("web")).unwrap().object.spec.clone();
    let exit =
        LastExit { code: Some(1), reason: "Error".to_owned(), message: String::new(), finished_at: at(9) };
    backend.hold();
    let waits = [
        VmUpdate { image: pin(), ..update() },
        VmUpdate { run: Some(Run::Ended { spec }), ..update() },
        VmUpdate { starts: Some(1), ..update() },
        VmUpdate { last_exit: Some(Some(exit)), ..update() },
    ];
    for update in waits {
        let published = store.publish_vm(&key("web"), web, update.clone()).now_or_never();
        assert!(published.is_none(), "not durable, and not waited for: {update:?}");
    }
    let pinned = ImageUpdate { image: pin(), ..ImageUpdate::default() };
    assert!(store.publish_image(&image_key("base"), base, pinned).now_or_never().is_none());
    now(store.publish_vm(&key("web"), web, VmUpdate { status: phase("x"), ..update() })).unwrap();
    let status = ImageUpdate { status: Some(ImageStatus::default()), ..ImageUpdate::default() };
    now(store.publish_image(&image_key("base"), base, status)).unwrap();
    assert!(store.settled().now_or_never().is_none());
    backend.release();
    now(store.settled()).unwrap();
}

#[test]
fn a_vm_whose_disk_is_read_is_not_started() {
    let (store, _) = store_with_disk();
    let uid = declare(&store, vm("web"));
    let claim_it = |id| now(store.claim_promotion(&key("web"), id));
    let (first, second) = (Uid::new_v4(), Uid::new_v4());
    assert!(matches!(claim_it(first), Err(PromoteError::NeverRan)));
    now(store.reserve_vm(claim("web", uid))).unwrap();
    let claimed = claim_it(first).unwrap();
    assert_eq!((claimed.uid, claimed.base), (uid, digest(1)));
    assert!(matches!(claim_it(second), Err(PromoteError::Taken)));
    let start = || now(store.publish_vm(&key("web"), uid, VmUpdate { run: Some(running()), ..update() }));
    assert!(matches!(start(), Err(PublishError::Stale)));
    now(store.release_promotion(&key("web"), second)).unwrap();
    assert!(matches!(start(), Err(PublishError::Stale)), "another's release");
    now(store.release_promotion(&key("web"), first)).unwrap();
    start().unwrap();
    assert!(matches!(claim_it(first), Err(PromoteError::Running)));
}

#[test]
fn nothing_is_made_of_a_vm_that_is_being_deleted() {
    let (store, _) = store_with_disk();
    let uid = declare(&store, vm("web"));
    now(store.reserve_vm(claim("web", uid))).unwrap();
    now(store.undeclare(&key("web"), "directory:/m", at(2))).unwrap();
    assert!(matches!(now(store.claim_promotion(&key("web"), uid)), Err(PromoteError::Gone)));
}

#[test]
fn giving_back_room_keeps_the_disk_and_twice_is_no_change() {
    let (store, _) = store_with_disk();
    let uid = declare(&store, vm("web"));
    let before = now(store.reserve_vm(claim("web", uid))).unwrap();
    let relinquish = || {
        now(store.relinquish_vm(&key("web"), uid)).unwrap();
        store.vm(&key("web")).unwrap()
    };
    let (once, twice) = (relinquish(), relinquish());
    let held = once.reservation.as_ref().unwrap();
    assert_eq!((held.disk, held.cpus, held.can_run()), (before.disk, 0, false));
    assert_eq!(once, twice);
}
