use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::super::*;
use crate::object::{AnyObject, Kind, ObjectKey, Uid};
use crate::reconcile::Clock;
use crate::store::{Event, EventWatch, MemoryBackend, Origin, Problem, Severity, Store, Subject};

const ROOT: &str = "/m";

fn snapshot(text: &str) -> Arc<Snapshot> {
    let path = PathBuf::from("new.yaml");
    let decoded = decode(&Path::new(ROOT).join(&path), text.as_bytes());
    let state = if decoded.diagnostics.is_empty() {
        FileState::Good(Arc::new(decoded.objects))
    } else {
        FileState::Broken(Arc::new(Broken::new(decoded.diagnostics, text.as_bytes())))
    };
    Arc::new(Snapshot { complete: true, files: BTreeMap::from([(path, state)]), trouble: Vec::new() })
}

async fn next(events: &mut EventWatch) -> Event {
    timeout(Duration::from_secs(10), events.next()).await.expect("an event comes").unwrap()
}

#[tokio::test]
async fn errors_of_a_file_without_objects_are_events_of_the_file() {
    let (store, _) = Store::in_memory();
    let mut events = store.watch_events();
    let (sender, snapshots) = watch::channel(Arc::new(Snapshot::default()));
    let start = |store: Store, snapshots| {
        let cancel = CancellationToken::new();
        let (keeper, guard) = (cancel.clone(), MassDeleteSettings::default());
        let (ready, _) = watch::channel(Readiness::default());
        tokio::spawn(async move {
            keep(store, Path::new(ROOT), snapshots, guard, ready, Clock::Host, keeper).await
        });
        cancel
    };
    let cancel = start(store.clone(), snapshots.clone());
    sender.send_replace(snapshot("apiVersion: vmlet.dev/v1alpha1\nkind: VMM\n"));
    let event = next(&mut events).await;
    let file = Subject::Manifest { path: "/m/new.yaml".into() };
    assert_eq!(
        (&event.subject, event.severity, event.reason.as_str()),
        (&file, Severity::Warning, "InvalidManifest")
    );
    assert_eq!(event.message, "/m/new.yaml:2:7: kind \"VMM\" is unknown (did you mean `VM`?)");
    assert_eq!(broken_files(&store.events(None)).into_keys().collect::<Vec<_>>(), [Path::new("/m/new.yaml")]);
    sender.send_replace(snapshot(""));
    assert_eq!(next(&mut events).await.reason, "ManifestGood");
    sender.send_replace(snapshot("apiVersion: vmlet.dev/v1alpha1\nkind: VMM\n"));
    assert_eq!(next(&mut events).await.reason, "InvalidManifest");
    // The next daemon knows, and says so when it is mended.
    cancel.cancel();
    let _cancel = start(store.clone(), snapshots);
    sender.send_replace(snapshot(""));
    let event = next(&mut events).await;
    assert_eq!((&event.subject, event.reason.as_str()), (&file, "ManifestGood"));
    assert_eq!(broken_files(&store.events(None)), BTreeMap::new());
}

/// The folder `/m`, kept: what is shown is applied to the store.
pub(super) struct Kept {
    pub(super) store: Store,
    pub(super) backend: MemoryBackend,
    pub(super) shown: watch::Sender<Arc<Snapshot>>,
    events: EventWatch,
    _cancel: DropGuard,
}

impl Kept {
    pub(super) fn new() -> Kept {
        Kept::over(Store::in_memory())
    }

    pub(super) fn over((store, backend): (Store, MemoryBackend)) -> Kept {
        let (shown, snapshots) = watch::channel(Arc::new(Snapshot::default()));
        let events = store.watch_events();
        let cancel = CancellationToken::new();
        let (guard, (ready, _)) = (MassDeleteSettings::default(), watch::channel(Readiness::default()));
        let (kept, keeper) = (store.clone(), cancel.clone());
        tokio::spawn(async move {
            keep(kept, Path::new(ROOT), snapshots, guard, ready, Clock::Host, keeper).await
        });
        Kept { store, backend, shown, events, _cancel: cancel.drop_guard() }
    }

    /// Shows a folder of these files, and lets all that comes of it at once happen.
    pub(super) async fn show(&self, files: &[(&str, &str)]) {
        let state = |text: &str| FileState::of(Path::new(ROOT), text.as_bytes());
        let files = files.iter().map(|(path, text)| (PathBuf::from(path), state(text))).collect();
        self.shown.send_replace(Arc::new(Snapshot { complete: true, files, trouble: Vec::new() }));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    /// The reasons of all events since the last call.
    pub(super) async fn reasons(&mut self) -> Vec<String> {
        let mut reasons = Vec::new();
        while let Ok(Ok(event)) = timeout(Duration::from_millis(1), self.events.next()).await {
            reasons.push(event.reason.clone());
        }
        reasons
    }

    pub(super) fn problem(&self, name: &str) -> Option<String> {
        self.store.record(&key(name))?.problem().map(|problem| problem.reason.clone())
    }

    pub(super) fn uid(&self, name: &str) -> Option<Uid> {
        self.store.vm(&key(name))?.object.metadata.uid
    }
}

pub(super) fn key(name: &str) -> ObjectKey {
    ObjectKey::new(Kind::Vm, "default", name)
}

pub(super) fn vm(name: &str, depends_on: &str) -> String {
    format!(
        "---\napiVersion: vmlet.dev/v1alpha1\nkind: VM\nmetadata: {{name: {name}}}\nspec: {{image: {{name: base}}, dependsOn: [{depends_on}]}}\n"
    )
}

#[tokio::test(start_paused = true)]
async fn what_is_declared_again_while_it_is_deleted_is_created_when_it_is_gone() {
    let kept = Kept::new();
    let web = vm("web", "");
    kept.show(&[("a.yaml", &web)]).await;
    let first = kept.uid("web").unwrap();
    kept.show(&[]).await;
    kept.show(&[("a.yaml", &web)]).await;
    assert_eq!((kept.uid("web"), kept.problem("web").as_deref()), (Some(first), Some("Redeclared")));
    kept.store.remove_vm(&key("web"), first).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(kept.uid("web").is_some_and(|second| second != first));
}

#[tokio::test(start_paused = true)]
async fn a_name_that_another_source_gives_up_is_declared_when_it_is_free() {
    let kept = Kept::new();
    let FileState::Good(objects) = FileState::of(Path::new(ROOT), vm("web", "").as_bytes()) else { panic!() };
    let origin = Origin { source: "directory:/old".to_owned(), path: "a.yaml".into(), line: 1 };
    kept.store.declare(objects[0].object.clone(), origin, false, Timestamp::now()).await.unwrap();
    kept.store.undeclare(&key("web"), "directory:/old", Timestamp::now()).await.unwrap();
    let old = kept.uid("web").unwrap();
    kept.show(&[("a.yaml", &vm("web", ""))]).await;
    assert_eq!(kept.uid("web"), Some(old));
    kept.store.remove_vm(&key("web"), old).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(kept.uid("web").is_some_and(|new| new != old));
}

#[tokio::test(start_paused = true)]
async fn what_is_gone_before_a_look_at_the_folder_ends_is_noticed() {
    let kept = Kept::new();
    let (web, other) = (vm("web", ""), vm("other", ""));
    kept.show(&[("a.yaml", &web)]).await;
    let first = kept.uid("web").unwrap();
    kept.show(&[]).await;
    kept.backend.hold();
    kept.show(&[("a.yaml", &web), ("b.yaml", &other)]).await;
    let store = kept.store.clone();
    tokio::spawn(async move { store.remove_vm(&key("web"), first).await });
    tokio::time::sleep(Duration::from_millis(1)).await;
    kept.backend.release();
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(kept.uid("web").is_some_and(|second| second != first));
}

#[tokio::test(start_paused = true)]
async fn the_order_within_a_look_does_not_matter() {
    let kept = Kept::new();
    kept.show(&[("a.yaml", &(vm("a", "") + &vm("b", "a")))]).await;
    // The first is refused for what the second is no more.
    kept.show(&[("a.yaml", &(vm("a", "b") + &vm("b", "")))]).await;
    let depends_on = |name: &str| kept.store.vm(&key(name)).unwrap().object.spec.depends_on.clone();
    assert_eq!((depends_on("a"), depends_on("b")), (vec!["b".to_owned()], vec![]));
}

#[tokio::test(start_paused = true)]
async fn lasting_trouble_is_told_once() {
    let mut kept = Kept::new();
    let broken = ("broken.yaml", "kind: VMM\n");
    kept.show(&[("a.yaml", &vm("a", "")), ("b.yaml", &vm("b", "a")), broken]).await;
    assert_eq!(kept.reasons().await, ["InvalidManifest", "Declared", "Declared"]);
    // A circle: the one in force stays, and says so.
    let circle = ("a.yaml", vm("a", "b"));
    kept.show(&[(circle.0, &circle.1), ("b.yaml", &vm("b", "a")), broken]).await;
    let first = kept.reasons().await;
    let problem = kept.problem("a").expect("it has a problem");
    assert_eq!(first, std::slice::from_ref(&problem));
    kept.show(&[(circle.0, &circle.1), ("b.yaml", &vm("b", "a")), broken, ("c.yaml", &vm("c", ""))]).await;
    assert_eq!(kept.reasons().await, ["Declared"]);
    assert_eq!(kept.problem("a"), Some(problem));
}

#[tokio::test(start_paused = true)]
async fn a_mass_deletion_that_lasts_takes_place_though_nothing_changes_any_more() {
    let kept = Kept::new();
    let files: Vec<(String, String)> =
        (0..10).map(|n| (format!("{n}.yaml"), vm(&format!("v{n}"), ""))).collect();
    let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
    kept.show(&files).await;
    kept.show(&files[..1]).await;
    let going = || {
        let (vms, _) = kept.store.list(Kind::Vm, None);
        vms.iter().filter(|record| record.metadata().deletion_timestamp.is_some()).count()
    };
    assert_eq!((going(), kept.problem("v9").as_deref()), (0, Some("MassDelete")));
    tokio::time::sleep(Duration::from_secs(29)).await;
    assert_eq!(going(), 0);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(going(), 9);
}

#[tokio::test(start_paused = true)]
async fn what_is_being_written_is_taken_in_when_it_is_whole() {
    let kept = Kept::new();
    let files = |state: FileState| {
        let good = FileState::of(Path::new(ROOT), vm("a", "").as_bytes());
        let files = BTreeMap::from([(PathBuf::from("a.yaml"), good), (PathBuf::from("b.yaml"), state)]);
        Arc::new(Snapshot { complete: true, files, trouble: Vec::new() })
    };
    for state in [FileState::Unsettled, FileState::of(Path::new(ROOT), vm("b", "").as_bytes())] {
        kept.shown.send_replace(files(state));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(kept.uid("b").is_some());
}

#[tokio::test(start_paused = true)]
async fn what_another_source_declares_is_not_this_ones_business() {
    let kept = Kept::new();
    let FileState::Good(objects) = FileState::of(Path::new(ROOT), vm("web", "").as_bytes()) else { panic!() };
    let origin = Origin { source: "directory:/old".to_owned(), path: "a.yaml".into(), line: 1 };
    kept.store.declare(objects[0].object.clone(), origin, false, Timestamp::now()).await.unwrap();
    // A file that may be about to declare it, as far as its text tells.
    kept.show(&[("broken.yaml", "kind: VMM\nmetadata: {name: web}\n")]).await;
    assert_eq!(kept.problem("web"), None);
    assert_eq!(kept.store.record(&key("web")).unwrap().metadata().deletion_timestamp, None);
}

/// What the folder `/old` declares: `web`.
pub(super) fn of_old(web: &str) -> (AnyObject, Origin) {
    let FileState::Good(objects) = FileState::of(Path::new(ROOT), web.as_bytes()) else { panic!() };
    let origin = Origin { source: "directory:/old".to_owned(), path: "a.yaml".into(), line: 1 };
    (objects[0].object.clone(), origin)
}

#[tokio::test(start_paused = true)]
async fn a_conflict_with_another_source_lasts_as_long_as_it_is_one() {
    let mut kept = Kept::new();
    let web = vm("web", "");
    let (object, origin) = of_old(&web);
    kept.store.declare(object.clone(), origin.clone(), false, Timestamp::now()).await.unwrap();
    kept.show(&[("a.yaml", &vm("web", "db"))]).await;
    let message =
        "declared at /m/a.yaml:2 too, which is not in force: rename or remove one of the two".to_owned();
    let conflict = Problem { reason: "Conflict".to_owned(), message };
    let problem = |kept: &Kept| kept.store.record(&key("web")).unwrap().problem().cloned();
    assert_eq!(problem(&kept), Some(conflict.clone()));
    // What the other source says of its own object is another matter.
    kept.store.set_problem(&key("web"), None).await.unwrap();
    kept.store.declare(object, Origin { line: 7, ..origin }, false, Timestamp::now()).await.unwrap();
    assert_eq!(problem(&kept), Some(conflict.clone()));
    // A look that is not complete says nothing.
    let gone = Snapshot { complete: false, trouble: vec!["unreadable".to_owned()], ..Snapshot::default() };
    kept.shown.send_replace(Arc::new(gone));
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(problem(&kept), Some(conflict));
    kept.show(&[]).await;
    assert_eq!(problem(&kept), None);
    assert!(kept.reasons().await.ends_with(&["ManifestGood".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn a_name_that_was_contested_goes_to_the_rival_when_it_is_free() {
    let kept = Kept::new();
    let (object, origin) = of_old(&vm("web", ""));
    kept.store.declare(object, origin, false, Timestamp::now()).await.unwrap();
    kept.show(&[("a.yaml", &vm("web", ""))]).await;
    let old = kept.uid("web").unwrap();
    kept.store.undeclare(&key("web"), "directory:/old", Timestamp::now()).await.unwrap();
    kept.store.remove_vm(&key("web"), old).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(kept.uid("web").is_some_and(|new| new != old));
    assert_eq!(kept.problem("web"), None);
}

#[tokio::test(start_paused = true)]
async fn a_conflict_within_the_folder_is_noted_at_the_first_look_and_outlives_edits() {
    let kept = Kept::new();
    let (first, second) = (vm("web", ""), vm("web", "a"));
    kept.show(&[("a.yaml", &first), ("b.yaml", &second)]).await;
    assert_eq!(kept.problem("web").as_deref(), Some("Conflict"));
    // The one in force is edited: it declares away what was noted.
    kept.show(&[("a.yaml", &vm("web", "b")), ("b.yaml", &second)]).await;
    assert_eq!(kept.problem("web").as_deref(), Some("Conflict"));
    kept.show(&[("a.yaml", &first)]).await;
    assert_eq!(kept.problem("web"), None);
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_here_is_not_noted_with_another_sources_object() {
    let kept = Kept::new();
    let (object, origin) = of_old(&vm("web", ""));
    kept.store.declare(object, origin, false, Timestamp::now()).await.unwrap();
    // Two files declare it here, and one of them waits for itself.
    kept.show(&[("a.yaml", &vm("web", "web")), ("b.yaml", &vm("web", ""))]).await;
    let record = kept.store.record(&key("web")).unwrap();
    assert_eq!(record.own_problem(), None);
}

#[tokio::test(start_paused = true)]
async fn an_image_in_use_makes_way_for_another_sources_of_its_name() {
    let kept = Kept::new();
    let base = "apiVersion: vmlet.dev/v1alpha1\nkind: Image\nmetadata: {name: base}\nspec: {source: {oci: {reference: 'r/a:1'}}}\n";
    let (object, origin) = of_old(base);
    let image = object.key();
    kept.store.declare(object, origin, false, Timestamp::now()).await.unwrap();
    let uid = |kept: &Kept| kept.store.image(&image).unwrap().object.metadata.uid.unwrap();
    let old = uid(&kept);
    // First it is contested, then the other source gives it up.
    kept.show(&[("a.yaml", &vm("web", "")), ("b.yaml", base)]).await;
    assert!(kept.store.record(&image).unwrap().problem().is_some_and(|problem| problem.reason == "Conflict"));
    kept.store.undeclare(&image, "directory:/old", Timestamp::now()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(kept.store.record(&image).unwrap().problem().is_some_and(Problem::is_redeclared));
    kept.store.remove_image(&image, old).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_ne!(uid(&kept), old);
}
