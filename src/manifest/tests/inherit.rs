//! A folder in the place of another: what becomes of what the one before declared.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::super::Snapshot;
use super::keep::{Kept, key, of_old, vm};
use crate::object::Uid;

/// The folder `/old` declared these VMs; a daemon that reads `/m` comes after it.
async fn after_old(names: &[&str]) -> Kept {
    let before = Kept::new();
    for name in names {
        let (object, origin) = of_old(&vm(name, ""));
        before.store.declare(object, origin, false, Timestamp::now()).await.unwrap();
    }
    Kept::over(before.backend.crash(0))
}

fn generation(kept: &Kept, name: &str) -> (Option<Uid>, i64) {
    let vm = kept.store.vm(&key(name)).unwrap();
    (vm.object.metadata.uid, vm.object.metadata.generation)
}

#[tokio::test(start_paused = true)]
async fn what_the_new_folder_declares_is_its_own_and_not_started_anew() {
    let mut kept = after_old(&["web"]).await;
    let before = generation(&kept, "web");
    kept.show(&[("moved/b.yaml", &vm("web", ""))]).await;
    let record = kept.store.record(&key("web")).unwrap();
    assert_eq!((record.origin().to_string().as_str(), kept.problem("web")), ("/m/moved/b.yaml:2", None));
    assert_eq!(generation(&kept, "web"), before);
    let events = kept.store.events(Some(&(&key("web")).into()));
    let told = &events.last().unwrap().message;
    assert_eq!(told, "declared at /m/moved/b.yaml:2 instead of /old/a.yaml:1, which is not read any more");
    // It is the folder's own: it goes with its manifest.
    kept.show(&[]).await;
    assert!(kept.store.record(&key("web")).unwrap().metadata().deletion_timestamp.is_some());
    assert_eq!(kept.reasons().await, ["Declared", "Undeclared"]);
}

#[tokio::test(start_paused = true)]
async fn what_no_folder_declares_stays_and_says_so() {
    let mut kept = after_old(&["web", "db"]).await;
    // A look that is not complete says nothing of what is not there.
    let part = Snapshot { complete: false, trouble: vec!["unreadable".to_owned()], ..Snapshot::default() };
    kept.shown.send_replace(Arc::new(part));
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(kept.problem("db"), None);
    kept.show(&[("a.yaml", &vm("web", ""))]).await;
    assert_eq!((kept.problem("web"), kept.problem("db").as_deref()), (None, Some("SourceGone")));
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let record = kept.store.record(&key("db")).unwrap();
    assert_eq!(record.metadata().deletion_timestamp, None);
    assert_eq!(kept.reasons().await.iter().filter(|reason| *reason == "SourceGone").count(), 1);
    // Declared after all.
    kept.show(&[("a.yaml", &vm("web", "")), ("b.yaml", &vm("db", ""))]).await;
    assert_eq!((kept.problem("db"), generation(&kept, "db").1), (None, 1));
}

#[tokio::test(start_paused = true)]
async fn the_folder_that_comes_back_finds_its_own() {
    let kept = after_old(&["web"]).await;
    kept.show(&[]).await;
    assert_eq!(kept.problem("web").as_deref(), Some("SourceGone"));
    // As the keeper of that folder does, when it is read again.
    let (store, _) = kept.backend.crash(0);
    let (object, origin) = of_old(&vm("web", ""));
    let declared = store.declare(object, origin, false, Timestamp::now()).await.unwrap();
    assert_eq!(declared, crate::store::Declared::MetadataUpdated);
    assert_eq!(store.record(&key("web")).unwrap().problem(), None);
}

/// Thousands of names that are another folder's are noted with few flushes.
#[tokio::test(start_paused = true)]
async fn conflicts_do_not_wait_for_one_another() {
    let kept = Kept::new();
    let names: Vec<String> = (0..20).map(|number| format!("v{number}")).collect();
    for name in &names {
        let (object, origin) = of_old(&vm(name, ""));
        kept.store.declare(object, origin, false, Timestamp::now()).await.unwrap();
    }
    kept.backend.hold();
    let all: String = names.iter().map(|name| vm(name, "")).collect();
    kept.show(&[("a.yaml", &all)]).await;
    let noted = names.iter().filter(|name| kept.problem(name).as_deref() == Some("Conflict"));
    assert_eq!(noted.count(), names.len(), "all of them while the first one's flush goes on");
}
