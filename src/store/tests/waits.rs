//! What a call returned is durable: each of them waits for its flush.

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use uuid::Uuid;

use super::super::*;
use super::support::*;
use crate::image::ImageConfig;
use crate::object::{Quantity, Uid};

/// Two VMs, `web` with a reservation, `gone` deleted; a deleted image; base disks in every state.
struct Stage {
    store: Store,
    web: Uid,
    gone: Uid,
    image: Uid,
    /// Of the promotion and of the installation that are under way.
    claim: Uuid,
}

fn stage() -> (Stage, MemoryBackend) {
    let (store, backend) = store_with_disk();
    install(&store, &digest(2));
    let claim_id = Uuid::from_u128(7);
    now(store.claim_disk(&digest(3), claim_id)).unwrap();
    install(&store, &digest(4));
    now(store.condemn_disk(&digest(4))).unwrap();
    let (web, gone) = (declare(&store, vm("web")), declare(&store, vm("gone")));
    let image = declare(&store, image("old"));
    now(store.reserve_vm(claim("web", web))).unwrap();
    for key in [key("gone"), image_key("old")] {
        assert!(now(store.undeclare(&key, "directory:/m", at(2))).unwrap());
    }
    (Stage { store, web, gone, image, claim: claim_id }, backend)
}

type Call = for<'a> fn(&'a Stage) -> LocalBoxFuture<'a, bool>;

/// Each is true if it succeeds.
const CALLS: [(&str, Call); 18] = [
    ("declare", |s| {
        s.store.declare(vm("new"), origin("a.yaml"), false, at(3)).map(|done| done.is_ok()).boxed_local()
    }),
    ("undeclare", |s| {
        let key = key("web");
        async move { s.store.undeclare(&key, "directory:/m", at(3)).await.is_ok_and(|done| done) }
            .boxed_local()
    }),
    ("set_problem", |s| {
        let problem = Problem { reason: "R".to_owned(), message: String::new() };
        async move { s.store.set_problem(&key("web"), Some(problem)).await.is_ok_and(|done| done) }
            .boxed_local()
    }),
    ("set_rival", |s| {
        let problem = Problem { reason: "R".to_owned(), message: String::new() };
        async move { s.store.set_rival(&key("web"), "other", Some(problem)).await.is_ok_and(|done| done) }
            .boxed_local()
    }),
    ("reserve_vm", |s| {
        let larger = VmClaim { cpus: 2, ..claim("web", s.web) };
        s.store.reserve_vm(larger).map(|done| done.is_ok()).boxed_local()
    }),
    ("relinquish_vm", |s| async { s.store.relinquish_vm(&key("web"), s.web).await.is_ok() }.boxed_local()),
    ("release_vm", |s| async { s.store.release_vm(&key("web"), s.web).await.is_ok() }.boxed_local()),
    ("remove_vm", |s| async { s.store.remove_vm(&key("gone"), s.gone).await.is_ok() }.boxed_local()),
    ("remove_image", |s| {
        async { s.store.remove_image(&image_key("old"), s.image).await.is_ok() }.boxed_local()
    }),
    ("claim_promotion", |s| {
        async { s.store.claim_promotion(&key("web"), s.claim).await.is_ok() }.boxed_local()
    }),
    ("claim_disk", |s| {
        async { s.store.claim_disk(&digest(9), s.claim).await.is_ok_and(|it| it == DiskClaim::Granted) }
            .boxed_local()
    }),
    ("publish_disk", |s| {
        async {
            let (path, size) = ("/d".into(), Quantity::bytes(1));
            s.store.publish_disk(&digest(3), s.claim, path, size, ImageConfig::default()).await.is_ok()
        }
        .boxed_local()
    }),
    ("abandon_disk", |s| async { s.store.abandon_disk(&digest(3), s.claim).await.is_ok() }.boxed_local()),
    ("condemn_disks", |s| {
        async {
            let since = s.store.disk(&digest(2)).unwrap().unused.unwrap().since;
            s.store.condemn_disks(&[(digest(2), since)]).await.is_ok_and(|gone| gone == [digest(2)])
        }
        .boxed_local()
    }),
    ("condemn_disk", |s| async { s.store.condemn_disk(&digest(2)).await.is_ok() }.boxed_local()),
    ("touch_disk", |s| async { s.store.touch_disk(&digest(2), "r").await.is_ok() }.boxed_local()),
    ("forget_disk", |s| async { s.store.forget_disk(&digest(4)).await.is_ok() }.boxed_local()),
    ("lose_disk", |s| async { s.store.lose_disk(&digest(2)).await.is_ok() }.boxed_local()),
];

#[test]
fn every_change_is_waited_for() {
    for (name, call) in CALLS {
        let (stage, backend) = stage();
        backend.hold();
        let mut waiting = call(&stage);
        assert!((&mut waiting).now_or_never().is_none(), "{name} is not durable, and is not waited for");
        backend.release();
        assert_eq!(waiting.now_or_never(), Some(true), "{name}");
    }
}

#[test]
fn the_end_of_a_promotion_is_waited_for() {
    let (stage, backend) = stage();
    now(stage.store.claim_promotion(&key("web"), stage.claim)).unwrap();
    backend.hold();
    assert!(stage.store.release_promotion(&key("web"), stage.claim).now_or_never().is_none());
}

/// Even a call that changes nothing has seen what may not be durable yet.
#[test]
fn who_changes_nothing_waits_for_what_it_saw() {
    let (stage, backend) = stage();
    let again = || stage.store.declare(vm("new"), origin("a.yaml"), false, at(3)).now_or_never();
    backend.hold();
    assert!(again().is_none());
    assert!(again().is_none(), "it tells of a VM that a crash would undo");
    backend.release();
    assert!(matches!(again(), Some(Ok(Declared::Unchanged))));
}
