use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::super::*;
use crate::object::{AnyObject, Kind, ObjectKey};
use crate::store::Problem;

fn key(name: &str) -> ObjectKey {
    ObjectKey::new(Kind::Vm, "default", name)
}

fn vm(name: &str, cpus: u32) -> String {
    format!(
        "apiVersion: vmlet.dev/v1alpha1\nkind: VM\nmetadata: {{name: {name}}}\nspec: {{image: {{name: a}}, cpus: {cpus}}}\n---\n"
    )
}

fn good(objects: &[(&str, u32)]) -> FileState {
    let text: String = objects.iter().map(|(name, cpus)| vm(name, *cpus)).collect();
    let decoded = decode(Path::new("x.yaml"), text.as_bytes());
    assert_eq!(decoded.diagnostics, []);
    FileState::Good(Arc::new(decoded.objects))
}

fn broken(text: &str) -> FileState {
    let decoded = decode(Path::new("b.yaml"), text.as_bytes());
    assert!(!decoded.diagnostics.is_empty());
    FileState::Broken(Arc::new(Broken::new(decoded.diagnostics, text.as_bytes())))
}

fn snapshot(files: Vec<(&str, FileState)>) -> Snapshot {
    let files = files.into_iter().map(|(path, state)| (PathBuf::from(path), state)).collect();
    Snapshot { complete: true, files, trouble: Vec::new() }
}

fn incomplete(files: Vec<(&str, FileState)>) -> Snapshot {
    Snapshot { complete: false, trouble: vec!["cannot read x: gone".to_owned()], ..snapshot(files) }
}

/// A store that does as it is told.
#[derive(Clone, Debug, Default)]
struct Model {
    held: BTreeMap<ObjectKey, Held>,
}

impl Model {
    fn apply(&mut self, changes: &[Change]) {
        for change in changes {
            match change.clone() {
                Change::Declare { object, path, line, take_over } => {
                    let problem = match self.held.get(&object.key()) {
                        Some(held) => {
                            assert!(take_over || held.path == path, "a foreign file needs to take over");
                            held.problem.clone()
                        }
                        None => None,
                    };
                    let held = Held { path, line, terminating: false, problem, object: *object };
                    self.held.insert(held.object.key(), held);
                }
                Change::Undeclare(key) => assert!(self.held.remove(&key).is_some(), "{key} is held"),
                Change::Problem { key, problem } => {
                    self.held.get_mut(&key).expect("only held objects have problems").problem = problem;
                }
                Change::Warning { .. } => {}
            }
        }
    }

    fn step(&mut self, snapshot: &Snapshot) -> Vec<Change> {
        self.step_with(snapshot, &mut unguarded(), Instant::now())
    }

    fn step_with(&mut self, snapshot: &Snapshot, guard: &mut MassDeleteGuard, now: Instant) -> Vec<Change> {
        let held: Vec<Held> = self.held.values().cloned().collect();
        let changes = changes(&held, snapshot, guard, now);
        self.apply(&changes);
        changes
    }

    /// `web@a.yaml cpus`
    fn shown(&self) -> Vec<String> {
        let cpus = |object: &AnyObject| match object {
            AnyObject::Vm(vm) => vm.spec.cpus,
            AnyObject::Image(_) => 0,
        };
        let show = |held: &Held| {
            format!("{}@{} {}", held.object.metadata().name, held.path.display(), cpus(&held.object))
        };
        self.held.values().map(show).collect()
    }

    fn problem(&self, name: &str) -> Option<&Problem> {
        self.held[&key(name)].problem.as_ref()
    }
}

fn unguarded() -> MassDeleteGuard {
    MassDeleteGuard::new(MassDeleteSettings { confirm_after: None, ..MassDeleteSettings::default() })
}

fn effects(changes: &[Change]) -> Vec<&Change> {
    changes.iter().filter(|change| !matches!(change, Change::Warning { .. })).collect()
}

#[test]
fn objects_are_created_updated_and_deleted() {
    let mut model = Model::default();
    model.step(&snapshot(vec![("a.yaml", good(&[("web", 1), ("db", 1)]))]));
    assert_eq!(model.shown(), ["db@a.yaml 1", "web@a.yaml 1"]);
    let next = snapshot(vec![("a.yaml", good(&[("web", 2)]))]);
    model.step(&next);
    assert_eq!(model.shown(), ["web@a.yaml 2"]);
    assert_eq!(model.step(&next), []);
}

#[test]
fn nothing_is_deleted_on_an_incomplete_look() {
    let mut model = Model::default();
    model.step(&snapshot(vec![("a.yaml", good(&[("web", 1)])), ("b.yaml", good(&[("db", 1), ("ci", 1)]))]));
    // `b.yaml` was seen and has lost an object, `a.yaml` was not seen.
    model.step(&incomplete(vec![("b.yaml", good(&[("db", 2)]))]));
    assert_eq!(model.shown(), ["ci@b.yaml 1", "db@b.yaml 2", "web@a.yaml 1"]);
    assert_eq!(model.problem("web").unwrap().reason, "SourceUnavailable");
    assert_eq!(model.problem("db"), None);
    model.step(&snapshot(vec![("b.yaml", good(&[("db", 2)]))]));
    assert_eq!(model.shown(), ["db@b.yaml 2"]);
}

#[test]
fn a_broken_file_keeps_its_objects() {
    let mut model = Model::default();
    model.step(&snapshot(vec![("b.yaml", good(&[("web", 1)]))]));
    model.step(&snapshot(vec![("b.yaml", broken("kind: VMM\napiVersion: vmlet.dev/v1alpha1"))]));
    assert_eq!(model.shown(), ["web@b.yaml 1"]);
    let problem = model.problem("web").unwrap();
    assert_eq!(problem.reason, "InvalidManifest");
    assert_eq!(
        problem.message,
        "b.yaml:1:7: kind \"VMM\" is unknown (did you mean `VM`?); the last spec stays"
    );
    model.step(&snapshot(vec![("b.yaml", good(&[("web", 1)]))]));
    assert_eq!(model.problem("web"), None);
}

#[test]
fn a_refused_folder_keeps_what_was_below_it() {
    let mut model = Model::default();
    model.step(&snapshot(vec![("link/web.yaml", good(&[("web", 1)]))]));
    model.step(&snapshot(vec![("link", broken("a: 1"))]));
    assert_eq!(model.problem("web").unwrap().reason, "InvalidManifest");
}

#[test]
fn an_object_may_move_to_a_file_with_errors() {
    let mut model = Model::default();
    model.step(&snapshot(vec![("a.yaml", good(&[("web", 1), ("db", 1)]))]));
    let moved = broken(&vm("web", 1).replace("cpus", "cpsu"));
    model.step(&snapshot(vec![("a.yaml", good(&[])), ("b.yaml", moved)]));
    assert_eq!(model.shown(), ["web@a.yaml 1"]);
    assert_eq!(model.problem("web").unwrap().reason, "InvalidManifest");
    model.step(&snapshot(vec![("a.yaml", good(&[])), ("b.yaml", good(&[("web", 2)]))]));
    assert_eq!((model.shown(), model.problem("web")), (vec!["web@b.yaml 2".to_owned()], None));
}

#[test]
fn a_move_is_an_update_also_while_the_other_file_is_written() {
    let mut model = Model::default();
    model.step(&snapshot(vec![("a.yaml", good(&[("web", 1)]))]));
    model.step(&snapshot(vec![("a.yaml", good(&[])), ("b.yaml", FileState::Unsettled)]));
    assert_eq!(model.shown(), ["web@a.yaml 1"]);
    let changes = model.step(&snapshot(vec![("a.yaml", good(&[])), ("b.yaml", good(&[("web", 1)]))]));
    assert!(matches!(effects(&changes)[..], [Change::Declare { take_over: true, .. }]), "{changes:?}");
    assert_eq!(model.shown(), ["web@b.yaml 1"]);
}

#[test]
fn of_two_declarations_the_one_in_force_stays() {
    let mut model = Model::default();
    model.step(&snapshot(vec![("b.yaml", good(&[("web", 1)]))]));
    let both = snapshot(vec![("a.yaml", good(&[("web", 2)])), ("b.yaml", good(&[("web", 1)]))]);
    let changes = model.step(&both);
    assert_eq!(model.shown(), ["web@b.yaml 1"]);
    assert_eq!(
        model.problem("web").unwrap().message,
        "declared at b.yaml:1, which is in force, and at a.yaml:1, which is not: rename or remove one of the two"
    );
    let warning = Change::Warning {
        about: About::Object(key("web")),
        reason: "Conflict",
        message: "a.yaml:1 declares vm/web too; b.yaml:1 stays in force: rename or remove one of the two"
            .to_owned(),
    };
    assert!(changes.contains(&warning), "{changes:?}");
    // Saying it again changes nothing.
    assert_eq!(effects(&model.step(&both)), Vec::<&Change>::new());

    model.step(&snapshot(vec![("a.yaml", good(&[("web", 2)]))]));
    assert_eq!((model.shown(), model.problem("web")), (vec!["web@a.yaml 2".to_owned()], None));
}

#[test]
fn of_two_new_declarations_the_first_file_wins() {
    let mut model = Model::default();
    let both = snapshot(vec![("b.yaml", good(&[("web", 1)])), ("a.yaml", good(&[("web", 2)]))]);
    model.step(&both);
    model.step(&both);
    assert_eq!(model.shown(), ["web@a.yaml 2"]);
    assert_eq!(model.problem("web").unwrap().reason, "Conflict");
}

#[test]
fn an_object_being_deleted_waits_for_its_end() {
    let mut model = Model::default();
    let declared = snapshot(vec![("a.yaml", good(&[("web", 1)]))]);
    model.step(&declared);
    model.held.get_mut(&key("web")).unwrap().terminating = true;
    model.step(&declared);
    assert_eq!(
        model.problem("web").map(|problem| (problem.reason.as_str(), problem.message.as_str())),
        Some(("Redeclared", "declared again at a.yaml:1; created anew when the old one is gone"))
    );
    assert_eq!(model.step(&declared), [], "it is said once");
    model.step(&snapshot(vec![]));
    assert_eq!(model.problem("web"), None);
    model.held.clear();
    model.step(&declared);
    assert_eq!(model.shown(), ["web@a.yaml 1"]);
}

#[test]
fn a_mass_deletion_must_last() {
    let names: Vec<String> = (0..10).map(|number| format!("vm-{number}")).collect();
    let objects: Vec<(&str, u32)> = names.iter().map(|name| (name.as_str(), 1)).collect();
    let all = snapshot(vec![("a.yaml", good(&objects))]);
    let few = snapshot(vec![("a.yaml", good(&objects[..4]))]);
    let fewer = snapshot(vec![("a.yaml", good(&objects[..3]))]);
    let (mut model, mut guard) = (Model::default(), MassDeleteGuard::default());
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    model.step_with(&all, &mut guard, at(0));

    let refused = |model: &mut Model, guard: &mut MassDeleteGuard, snapshot: &Snapshot, seconds| {
        let changes = model.step_with(snapshot, guard, at(seconds));
        let warned = |change: &Change| matches!(change, Change::Warning { reason: "MassDelete", .. });
        changes.iter().any(warned) && model.held.len() == 10
    };
    assert!(refused(&mut model, &mut guard, &few, 1));
    assert!(refused(&mut model, &mut guard, &few, 30));
    assert_eq!(guard.due(), Some(at(31)));
    assert_eq!(model.problem("vm-9").unwrap().reason, "MassDelete");
    // Other deletions, an incomplete look, or the objects' return start the wait anew.
    assert!(refused(&mut model, &mut guard, &fewer, 31));
    model.step_with(&incomplete(vec![]), &mut guard, at(40));
    assert_eq!(guard.due(), None);
    assert!(refused(&mut model, &mut guard, &few, 62));
    model.step_with(&all, &mut guard, at(70));
    assert_eq!(model.problem("vm-9"), None);
    assert!(refused(&mut model, &mut guard, &few, 95));
    model.step_with(&few, &mut guard, at(125));
    assert_eq!(model.held.len(), 4);
    assert_eq!(guard.due(), None);
}

#[test]
fn small_deletions_need_no_confirmation() {
    let mut model = Model::default();
    let objects = [("a", 1), ("b", 1), ("c", 1), ("d", 1), ("e", 1)];
    model.step(&snapshot(vec![("a.yaml", good(&objects))]));
    model.step_with(&snapshot(vec![]), &mut MassDeleteGuard::default(), Instant::now());
    assert_eq!(model.held.len(), 0);
}

const FILES: [&str; 3] = ["a.yaml", "b.yaml", "c/d.yaml"];
const NAMES: [&str; 4] = ["web", "db", "ci", "x"];

fn file() -> impl Strategy<Value = FileState> {
    let objects = btree_map(0..NAMES.len(), 1_u32..3, 0..4);
    prop_oneof![
        6 => objects.prop_map(|objects| {
            good(&objects.iter().map(|(name, cpus)| (NAMES[*name], *cpus)).collect::<Vec<_>>())
        }),
        1 => (0..NAMES.len()).prop_map(|name| broken(&format!("kind: VM\nname: {}", NAMES[name]))),
        1 => Just(FileState::Unsettled),
    ]
}

fn any_snapshot() -> impl Strategy<Value = Snapshot> {
    (btree_map(0..FILES.len(), file(), 0..=FILES.len()), prop::bool::weighted(0.8)).prop_map(
        |(files, complete)| {
            let files = files.into_iter().map(|(path, state)| (FILES[path], state)).collect();
            if complete { snapshot(files) } else { incomplete(files) }
        },
    )
}

/// Where each object is declared.
fn declarations(snapshot: &Snapshot) -> BTreeMap<ObjectKey, BTreeSet<PathBuf>> {
    let mut declared: BTreeMap<ObjectKey, BTreeSet<PathBuf>> = BTreeMap::new();
    for (path, state) in &snapshot.files {
        if let FileState::Good(objects) = state {
            for located in objects.iter() {
                declared.entry(located.object.key()).or_default().insert(path.clone());
            }
        }
    }
    declared
}

proptest! {
    #[test]
    fn only_what_is_surely_gone_is_deleted_and_all_converges(history in vec(any_snapshot(), 1..12)) {
        let mut model = Model::default();
        for snapshot in &history {
            let before = model.clone();
            let changes = model.step(snapshot);
            let declared = declarations(snapshot);
            let mut touched = BTreeSet::new();
            for change in &changes {
                match change {
                    Change::Undeclare(key) => {
                        prop_assert!(snapshot.complete);
                        prop_assert!(!declared.contains_key(key));
                        let own = snapshot.files.get(&before.held[key].path);
                        prop_assert!(matches!(own, None | Some(FileState::Good(_))));
                        prop_assert!(touched.insert(key.clone()), "{} is changed twice", key);
                    }
                    Change::Declare { object, path, .. } => {
                        prop_assert!(declared[&object.key()].contains(path));
                        prop_assert!(touched.insert(object.key()), "{} is changed twice", object.key());
                        // The incumbent gives way only if it declares the object no more.
                        if let Some(held) = before.held.get(&object.key()) {
                            prop_assert!(held.path == *path || !declared[&object.key()].contains(&held.path));
                        }
                    }
                    _ => {}
                }
            }
            // New objects get their problems in a second step; a third has nothing to do.
            model.step(snapshot);
            let third = model.step(snapshot);
            prop_assert_eq!(effects(&third), Vec::<&Change>::new());
            let settled = snapshot.files.values().all(|state| matches!(state, FileState::Good(_)));
            if snapshot.complete && settled {
                let held: BTreeSet<&ObjectKey> = model.held.keys().collect();
                prop_assert_eq!(held, declared.keys().collect::<BTreeSet<_>>());
                for (key, held) in &model.held {
                    prop_assert!(declared[key].contains(&held.path));
                    prop_assert_eq!(held.problem.is_some(), declared[key].len() > 1);
                }
            }
        }
    }
}

/// Where each object is declared, and with how many processors. No object is declared twice.
type Places = BTreeMap<usize, (usize, u32)>;
const MOVERS: [&str; 5] = ["v0", "v1", "v2", "v3", "v4"];
const HOMES: [&str; 3] = ["a.yaml", "b.yaml", "c.yaml"];

fn placed(places: &Places, before: Option<(&Places, &Snapshot)>) -> Snapshot {
    let of = |places: &Places, file: usize| -> Vec<(&str, u32)> {
        let here = places.iter().filter(|(_, (place, _))| *place == file);
        here.map(|(name, (_, cpus))| (MOVERS[*name], *cpus)).collect()
    };
    let files = (0..HOMES.len()).map(|file| {
        // As a source does: a file that did not change is the very one of before.
        let same = before.filter(|(known, _)| of(known, file) == of(places, file));
        let state = same.map(|(_, snapshot)| snapshot.files[Path::new(HOMES[file])].clone());
        (HOMES[file], state.unwrap_or_else(|| good(&of(places, file))))
    });
    snapshot(files.collect())
}

proptest! {
    #[test]
    fn what_is_edited_is_all_that_is_to_be_compared(
        places in btree_map(0..MOVERS.len(), (0..HOMES.len(), 1..3_u32), 0..=MOVERS.len()),
        edits in vec((0..MOVERS.len(), prop::option::weighted(0.2, 0..HOMES.len()), 1..4_u32), 0..3),
        unsettled in prop::option::weighted(0.3, 0..HOMES.len()),
    ) {
        let before = placed(&places, None);
        let (mut model, mut guard) = (Model::default(), MassDeleteGuard::new(MassDeleteSettings::default()));
        let now = Instant::now();
        model.apply(&changes(&[], &before, &mut guard, now));
        let mut later = places.clone();
        for (name, moved, cpus) in edits {
            if let Some((file, known)) = later.get_mut(&name) {
                (*file, *known) = (moved.unwrap_or(*file), cpus);
            }
        }
        let mut after = placed(&later, Some((&places, &before)));
        if let Some(file) = unsettled {
            after.files.insert(HOMES[file].into(), FileState::Unsettled);
        }
        let all: Vec<Held> = model.held.values().cloned().collect();
        let wanted = changes(&all, &after, &mut guard.clone(), now);
        match super::super::desired::edited(&before, &after) {
            Some(edited) => {
                let objects = edited.files.values().flat_map(|state| match state {
                    FileState::Good(objects) => objects.iter().map(|at| at.object.key()).collect(),
                    _ => Vec::new(),
                });
                let held: Vec<Held> = objects.filter_map(|key| model.held.get(&key).cloned()).collect();
                let got = changes(&held, &edited, &mut guard, now);
                // Files are looked at in order, and so are objects: only the order can differ.
                let set = |changes: &[Change]| changes.iter().map(|change| format!("{change:?}")).collect::<BTreeSet<_>>();
                prop_assert_eq!(set(&got), set(&wanted));
            }
            None => prop_assert!(places.values().map(|(file, _)| file).ne(later.values().map(|(file, _)| file))),
        }
    }
}
