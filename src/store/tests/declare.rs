use serde_json::json;

use super::super::*;
use super::support::*;
use crate::object::AnyObject;

fn labelled(name: &str, value: &str) -> AnyObject {
    let mut object = vm(name);
    object.metadata_mut().labels.insert("tier".to_owned(), value.to_owned());
    object
}

#[test]
fn a_new_name_gets_an_identity_and_a_known_one_keeps_it() {
    let (store, _) = Store::in_memory();
    let uid = declare(&store, vm("web"));
    let record = store.vm(&key("web")).unwrap();
    let metadata = &record.object.metadata;
    assert_eq!((metadata.uid, metadata.generation), (Some(uid), 1));
    assert_eq!(metadata.creation_timestamp, Some(at(1)));
    assert_eq!(metadata.finalizers, ["vmlet.dev/cleanup"]);
    assert_eq!(record.object.status.observed_generation, -1);

    let again = now(store.declare(vm("web"), origin("a.yaml"), false, at(2))).unwrap();
    assert_eq!(again, Declared::Unchanged);
    assert_eq!(store.vm(&key("web")), Some(record), "a repeated declaration changes no version");
}

#[test]
fn what_manifests_say_of_identity_and_status_is_ignored() {
    let (store, _) = Store::in_memory();
    let mut object = vm("web");
    let forged = uuid::Uuid::new_v4();
    object.metadata_mut().uid = Some(forged);
    object.metadata_mut().generation = 77;
    object.metadata_mut().deletion_timestamp = Some(at(0));
    let AnyObject::Vm(inner) = &mut object else { unreachable!() };
    inner.status.phase = "Running".to_owned();
    inner.kind = Kind::Image;
    declare(&store, object);
    let record = store.vm(&key("web")).unwrap();
    let metadata = &record.object.metadata;
    assert_ne!(metadata.uid, Some(forged));
    assert_eq!((metadata.generation, metadata.deletion_timestamp), (1, None));
    assert_eq!(record.object.status.phase, "");
}

#[test]
fn only_a_changed_spec_is_a_new_generation() {
    let (store, _) = Store::in_memory();
    let uid = declare(&store, vm("web"));
    let again = |object| now(store.declare(object, origin("a.yaml"), false, at(2))).unwrap();
    assert_eq!(again(labelled("web", "front")), Declared::MetadataUpdated);
    let larger = vm_with("web", json!({"image": {"name": "base"}, "memory": "512Mi"}));
    let Declared::Updated { generation: 2, changes } = again(larger) else { panic!("not updated") };
    assert_eq!(changes.iter().map(|change| change.field.as_str()).collect::<Vec<_>>(), ["memory"]);
    let metadata = &store.vm(&key("web")).unwrap().object.metadata;
    assert_eq!((metadata.uid, metadata.generation, metadata.labels.len()), (Some(uid), 2, 0));
}

#[test]
fn the_place_of_declaration_follows_and_a_moved_line_is_no_change() {
    let (store, _) = Store::in_memory();
    declare(&store, vm("web"));
    let before = store.record(&key("web")).unwrap();
    let moved = Origin { line: 9, ..origin("a.yaml") };
    assert_eq!(now(store.declare(vm("web"), moved, false, at(2))).unwrap(), Declared::Unchanged);
    let after = store.record(&key("web")).unwrap();
    assert_eq!((after.origin().line, version(&after)), (9, version(&before)));

    let renamed = now(store.declare(vm("web"), origin("b.yaml"), true, at(3))).unwrap();
    assert_eq!(renamed, Declared::MetadataUpdated);
    assert_eq!(store.record(&key("web")).unwrap().origin(), &origin("b.yaml"));
}

#[test]
fn another_place_conflicts_unless_it_takes_over() {
    let (store, _) = Store::in_memory();
    declare(&store, vm("web"));
    let foreign = Origin { source: "git:x".to_owned(), ..origin("a.yaml") };
    for place in [origin("b.yaml"), foreign] {
        let refused = now(store.declare(labelled("web", "b"), place, false, at(2)));
        let Err(DeclareError::Conflict { incumbent }) = refused else { panic!("{refused:?}") };
        assert_eq!(incumbent, origin("a.yaml"));
    }
    assert!(store.vm(&key("web")).unwrap().object.metadata.labels.is_empty());
}

#[test]
fn a_deletion_is_asked_for_once_by_the_owner_and_is_not_taken_back() {
    let (store, _) = Store::in_memory();
    declare(&store, vm("web"));
    assert!(!now(store.undeclare(&key("web"), "git:x", at(2))).unwrap(), "a foreign source");
    assert!(!now(store.undeclare(&key("other"), "directory:/m", at(2))).unwrap(), "an absent object");
    assert!(now(store.undeclare(&key("web"), "directory:/m", at(3))).unwrap());
    assert!(!now(store.undeclare(&key("web"), "directory:/m", at(4))).unwrap(), "the second time");
    let metadata = store.vm(&key("web")).unwrap().object.metadata.clone();
    assert_eq!((metadata.deletion_timestamp, metadata.generation), (Some(at(3)), 1));
    let refused = now(store.declare(vm("web"), origin("a.yaml"), true, at(5)));
    assert!(matches!(refused, Err(DeclareError::Terminating)));
}

#[test]
fn a_problem_is_noted_once_and_ends_with_a_good_declaration() {
    let (store, _) = Store::in_memory();
    declare(&store, vm("web"));
    let problem = || Some(Problem { reason: "InvalidManifest".to_owned(), message: "a:1".to_owned() });
    assert!(now(store.set_problem(&key("web"), problem())).unwrap());
    let noted = version(&store.record(&key("web")).unwrap());
    assert!(!now(store.set_problem(&key("web"), problem())).unwrap());
    assert!(!now(store.set_problem(&key("absent"), problem())).unwrap());
    assert_eq!(version(&store.record(&key("web")).unwrap()), noted);
    let good = now(store.declare(vm("web"), origin("a.yaml"), false, at(2))).unwrap();
    assert_eq!(good, Declared::MetadataUpdated);
    assert_eq!(store.vm(&key("web")).unwrap().problem, None);
}

#[test]
fn what_rivals_declare_is_kept_by_source_beside_what_the_own_source_says() {
    let (store, _) = Store::in_memory();
    declare(&store, vm("web"));
    let problem = |message: &str| Problem { reason: "Conflict".to_owned(), message: message.to_owned() };
    let rival = |name: &str, source: &str, message: Option<&str>| {
        now(store.set_rival(&key(name), source, message.map(problem))).unwrap()
    };
    let said = || {
        let record = store.record(&key("web")).unwrap();
        (record.problems().map(|problem| problem.message.clone()).collect::<Vec<_>>(), version(&record))
    };
    assert!(rival("web", "a", Some("by a")) && rival("web", "b", Some("by b")));
    let (both, noted) = said();
    assert_eq!(both, ["by a", "by b"]);
    assert!(!rival("web", "a", Some("by a")) && !rival("web", "c", None) && !rival("absent", "a", None));
    assert_eq!(said().1, noted, "nothing changed");
    now(store.set_problem(&key("web"), Some(problem("its own")))).unwrap();
    assert_eq!(said().0, ["its own", "by a", "by b"]);
    assert!(rival("web", "a", None));
    assert_eq!(said().0, ["its own", "by b"]);
    // A good declaration ends what its own source said.
    now(store.declare(vm("web"), origin("a.yaml"), false, at(2))).unwrap();
    assert_eq!(said().0, ["by b"]);
}

#[test]
fn namespaces_are_apart_and_lists_are_in_order() {
    let (store, _) = Store::in_memory();
    for (namespace, name) in [("b", "x"), ("a", "z"), ("a", "y"), ("ab", "x")] {
        let mut object = vm(name);
        object.metadata_mut().namespace = namespace.to_owned();
        declare(&store, object);
    }
    declare(&store, image("base"));
    let names = |namespace| {
        let (records, _) = store.list(Kind::Vm, namespace);
        records.iter().map(|record| record.key().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(names(None), ["vm/a/y", "vm/a/z", "vm/ab/x", "vm/b/x"]);
    assert_eq!(names(Some("a")), ["vm/a/y", "vm/a/z"]);
    assert_eq!(names(Some("c")), [""; 0]);
    assert_eq!(store.list(Kind::Image, None).0.len(), 1);
}

#[test]
fn a_circle_of_dependencies_is_refused_and_the_last_good_spec_stays() {
    let (store, _) = Store::in_memory();
    let on = |name: &str, on: &[&str]| vm_with(name, json!({"image": {"name": "base"}, "dependsOn": on}));
    let again = |object| now(store.declare(object, origin("a.yaml"), false, at(2)));
    declare(&store, on("a", &["b"]));
    declare(&store, on("b", &["c"]));
    let refused = again(on("c", &["a"])).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "spec.dependsOn makes a circle: vm/c → vm/a → vm/b → vm/c; remove one of these dependencies"
    );
    assert!(store.vm(&key("c")).is_none());
    declare(&store, on("c", &[]));
    assert!(matches!(again(on("c", &["a"])), Err(DeclareError::Dependency(_))));
    let record = store.vm(&key("c")).unwrap();
    assert_eq!((record.object.metadata.generation, record.object.spec.depends_on.len()), (1, 0));
    now(store.undeclare(&key("b"), "directory:/m", at(3))).unwrap();
    again(on("c", &["a"])).expect("what is being deleted waits for nobody");
}

#[test]
fn annotations_follow_the_manifest() {
    let (store, _) = Store::in_memory();
    declare(&store, vm("web"));
    let mut noted = vm("web");
    noted.metadata_mut().annotations.insert("note".to_owned(), "x".to_owned());
    let said = now(store.declare(noted, origin("a.yaml"), false, at(2))).unwrap();
    assert_eq!(said, Declared::MetadataUpdated);
    assert_eq!(store.vm(&key("web")).unwrap().object.metadata.annotations["note"], "x");
}

#[test]
fn what_a_manifest_says_of_an_images_status_is_ignored() {
    let (store, _) = Store::in_memory();
    let AnyObject::Image(mut object) = image("base") else { unreachable!() };
    object.status.phase = "Ready".to_owned();
    declare(&store, AnyObject::Image(object));
    assert_eq!(store.image(&image_key("base")).unwrap().object.status.phase, "");
}
