//! What a pass over a folder tells people, and what it leaves for the next one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::super::desired::edited;
use super::super::*;
use crate::object::{Kind, ObjectKey};
use crate::reconcile::Clock;
use crate::store::{Event, EventWatch, Origin, Severity, Store};

const ROOT: &str = "/m";

struct Kept {
    store: Store,
    shown: watch::Sender<Arc<Snapshot>>,
    events: EventWatch,
    ready: watch::Receiver<Readiness>,
    _cancel: DropGuard,
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new(Kind::Vm, "default", name)
}

fn vm(name: &str, depends_on: &str, cpus: u32) -> String {
    format!(
        "---\napiVersion: vmlet.dev/v1alpha1\nkind: VM\nmetadata: {{name: {name}}}\nspec: {{image: {{name: base}}, cpus: {cpus}, dependsOn: [{depends_on}]}}\n"
    )
}

fn state(text: &str) -> FileState {
    FileState::of(Path::new(ROOT), text.as_bytes())
}

fn folder(files: &[(&str, &FileState)]) -> Snapshot {
    let files = files.iter().map(|(path, state)| (PathBuf::from(path), (*state).clone())).collect();
    Snapshot { complete: true, files, trouble: Vec::new() }
}

impl Kept {
    fn new() -> Kept {
        let (store, _) = Store::in_memory();
        let (shown, snapshots) = watch::channel(Arc::new(Snapshot::default()));
        let events = store.watch_events();
        let cancel = CancellationToken::new();
        let (guard, (readied, ready)) = (MassDeleteSettings::default(), watch::channel(Readiness::default()));
        let (kept, keeper) = (store.clone(), cancel.clone());
        tokio::spawn(async move {
            keep(kept, Path::new(ROOT), snapshots, guard, readied, Clock::Host, keeper).await
        });
        Kept { store, shown, events, ready, _cancel: cancel.drop_guard() }
    }

    /// Shows this, and tells the events that come of it.
    async fn show(&mut self, snapshot: Snapshot) -> Vec<Event> {
        self.shown.send_replace(Arc::new(snapshot));
        tokio::time::sleep(Duration::from_millis(1)).await;
        let mut events = Vec::new();
        while let Ok(Ok(event)) = timeout(Duration::from_millis(1), self.events.next()).await {
            events.push(event);
        }
        events
    }

    fn cpus(&self, name: &str) -> u32 {
        self.store.vm(&key(name)).expect("it is declared").object.spec.cpus
    }
}

fn told(events: &[Event]) -> Vec<(&str, &str)> {
    events.iter().map(|event| (event.reason.as_str(), event.message.as_str())).collect()
}

#[tokio::test(start_paused = true)]
async fn declarations_edits_and_their_ends_are_told() {
    let mut kept = Kept::new();
    assert!(matches!(*kept.ready.borrow(), Readiness::Reading(_)));
    let (one, two) = (state(&vm("web", "", 1)), state(&vm("web", "", 2)));
    let declared = kept.show(folder(&[("a.yaml", &one)])).await;
    assert_eq!(told(&declared), [("Declared", "declared at /m/a.yaml:2")]);
    assert_eq!(*kept.ready.borrow(), Readiness::Applied);
    let edited = kept.show(folder(&[("a.yaml", &two)])).await;
    let [("SpecChanged", message)] = told(&edited)[..] else { panic!("{edited:?}") };
    assert!(message.contains("cpus 1 → 2") && message.ends_with("; effect: restart"), "{message}");
    let gone = kept.show(folder(&[])).await;
    assert_eq!(told(&gone), [("Undeclared", "its manifest is gone; it is deleted")]);
}

#[tokio::test(start_paused = true)]
async fn an_edit_that_is_taken_back_is_taken_back() {
    let mut kept = Kept::new();
    let (one, two) = (state(&vm("web", "", 1)), state(&vm("web", "", 2)));
    kept.show(folder(&[("a.yaml", &one)])).await;
    kept.show(folder(&[("a.yaml", &two)])).await;
    assert_eq!(kept.cpus("web"), 2);
    // The very same state: nothing but the last pass says that it is an edit.
    kept.show(folder(&[("a.yaml", &one)])).await;
    assert_eq!(kept.cpus("web"), 1);
}

#[tokio::test(start_paused = true)]
async fn what_was_refused_is_tried_again_with_the_next_edit() {
    let mut kept = Kept::new();
    let (a, b) = (state(&vm("a", "", 1)), state(&vm("b", "a", 1)));
    kept.show(folder(&[("a.yaml", &a), ("b.yaml", &b)])).await;
    let circle = state(&vm("a", "b", 2));
    let events = kept.show(folder(&[("a.yaml", &circle), ("b.yaml", &b)])).await;
    assert_eq!((events.len(), events[0].severity, kept.cpus("a")), (1, Severity::Warning, 1));
    // Only b is edited, and with that a is right.
    let free = state(&vm("b", "", 1));
    kept.show(folder(&[("a.yaml", &circle), ("b.yaml", &free)])).await;
    assert_eq!(kept.cpus("a"), 2);
}

#[tokio::test(start_paused = true)]
async fn a_new_object_that_is_refused_is_told_of() {
    let mut kept = Kept::new();
    let circle = state(&(vm("a", "b", 1) + &vm("b", "a", 1)));
    let events = kept.show(folder(&[("a.yaml", &circle)])).await;
    let refusal = events.iter().find(|event| event.severity == Severity::Warning).expect("one is refused");
    assert!(refusal.message.ends_with("; it is not created"), "{}", refusal.message);
    assert_eq!(events.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_another_source_has_is_not_taken_and_that_is_told() {
    let mut kept = Kept::new();
    let FileState::Good(objects) = state(&vm("web", "", 1)) else { panic!("it is good") };
    let origin = Origin { source: "directory:/other".to_owned(), path: "a.yaml".into(), line: 1 };
    kept.store.declare(objects[0].object.clone(), origin, false, Timestamp::now()).await.unwrap();
    let events = kept.show(folder(&[("a.yaml", &state(&vm("web", "", 2)))])).await;
    assert_eq!(
        events.iter().map(|event| (event.reason.as_str(), event.severity)).collect::<Vec<_>>(),
        [("Conflict", Severity::Warning)]
    );
    assert_eq!(kept.cpus("web"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_broken_file_is_mended_when_it_was_read_and_not_before() {
    let mut kept = Kept::new();
    let unread = || Snapshot {
        complete: false,
        files: BTreeMap::new(),
        trouble: vec!["cannot read /m: gone".to_owned()],
    };
    let broken = state("kind: VMM\n");
    let reasons = |events: Vec<Event>| events.into_iter().map(|event| event.reason).collect::<Vec<_>>();
    let seen = Snapshot { files: folder(&[("b.yaml", &broken)]).files, ..unread() };
    let first = reasons(kept.show(seen).await);
    assert!(first.contains(&"InvalidManifest".to_owned()), "{first:?}");
    let unread = reasons(kept.show(unread()).await);
    assert!(!unread.contains(&"ManifestGood".to_owned()), "it may be as broken as before: {unread:?}");
    assert_eq!(reasons(kept.show(folder(&[])).await), ["ManifestGood"]);
}

#[test]
fn only_the_same_files_of_whole_looks_are_compared_alone() {
    let (one, two) = (state(&vm("web", "", 1)), state(&vm("web", "", 2)));
    let before = folder(&[("a.yaml", &one)]);
    let after = folder(&[("a.yaml", &two)]);
    assert_eq!(edited(&before, &after), Some(after.clone()));
    let partly = |snapshot: &Snapshot| Snapshot { complete: false, ..snapshot.clone() };
    assert_eq!(edited(&partly(&before), &after), None);
    assert_eq!(edited(&before, &partly(&after)), None);
    assert_eq!(edited(&before, &folder(&[("b.yaml", &two)])), None, "it moved");
    assert_eq!(edited(&before, &folder(&[("b.yaml", &FileState::Unsettled)])), None, "it may have moved");
    assert_eq!(edited(&before, &folder(&[("a.yaml", &FileState::Unsettled)])), Some(folder(&[])));
    assert_eq!(edited(&before, &before), Some(folder(&[])));
}

/// What a folder asks for of these objects, each held for `a.yaml`.
fn asked(held: &[(&str, bool)], snapshot: &Snapshot, settings: MassDeleteSettings) -> Vec<Change> {
    let held: Vec<Held> = held
        .iter()
        .map(|(name, terminating)| {
            let FileState::Good(objects) = state(&vm(name, "", 1)) else { panic!("it is good") };
            let object = objects[0].object.clone();
            Held { object, path: "a.yaml".into(), line: 2, terminating: *terminating, problem: None }
        })
        .collect();
    changes(&held, snapshot, &mut MassDeleteGuard::new(settings), Instant::now())
}

#[test]
fn a_mass_is_more_than_so_many_and_more_than_that_share_of_what_lives() {
    let settings =
        MassDeleteSettings { percent: 50, objects: 1, confirm_after: Some(Duration::from_secs(30)) };
    let stays: String = ["c", "d"].map(|name| vm(name, "", 1)).concat();
    let deletions = |held: &[(&str, bool)]| {
        let asked = asked(held, &folder(&[("a.yaml", &state(&stays))]), settings);
        asked.iter().filter(|change| matches!(change, Change::Undeclare(_))).count()
    };
    let four = [("a", false), ("b", false), ("c", false), ("d", false)];
    assert_eq!(deletions(&four), 2, "a half is not more than a half");
    assert_eq!(deletions(&four[..3]), 0, "two of three are");
    let going = [("a", false), ("b", false), ("c", false), ("x", true), ("y", true)];
    assert_eq!(deletions(&going), 0, "what is going already does not count for the whole");
    assert_eq!(deletions(&four[1..]), 1, "one is no mass");
}

#[test]
fn a_line_a_label_or_an_annotation_that_changed_is_declared() {
    let unchanged = folder(&[("a.yaml", &state(&vm("web", "", 1)))]);
    assert_eq!(asked(&[("web", false)], &unchanged, MassDeleteSettings::default()), []);
    let moved = format!("\n\n{}", vm("web", "", 1));
    let labelled = vm("web", "", 1).replace("name: web", "name: web, labels: {a: b}");
    let annotated = vm("web", "", 1).replace("name: web", "name: web, annotations: {a: b}");
    for text in [moved, labelled, annotated] {
        let changed = folder(&[("a.yaml", &state(&text))]);
        let asked = asked(&[("web", false)], &changed, MassDeleteSettings::default());
        assert!(matches!(asked[..], [Change::Declare { take_over: false, .. }]), "{text}: {asked:?}");
    }
}
