use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::manifest::decode;

const SOURCE: &str = "directory:/m";

fn snapshot(files: &[(&str, &str)]) -> Snapshot {
    let files = files.iter().map(|(path, text)| {
        let decoded = decode(Path::new(path), text.as_bytes());
        assert_eq!(decoded.diagnostics, []);
        (PathBuf::from(path), FileState::Good(Arc::new(decoded.objects)))
    });
    Snapshot { complete: true, files: files.collect(), trouble: Vec::new() }
}

/// What a file declares, with every VM running.
fn up(path: &str, text: &str) -> Vec<Running> {
    let FileState::Good(objects) = &snapshot(&[(path, text)]).files[Path::new(path)] else { unreachable!() };
    let running = |located: &crate::manifest::Located| Running {
        held: Held {
            object: located.object.clone(),
            path: path.into(),
            line: located.line,
            terminating: false,
            problem: None,
        },
        source: SOURCE.to_owned(),
        process: match &located.object {
            AnyObject::Vm(vm) => Process::Up { started: vm.spec.clone() },
            AnyObject::Image(_) => Process::Idle,
        },
    };
    objects.iter().map(running).collect()
}

fn vm(name: &str, spec: &str) -> String {
    format!("---\napiVersion: vmlet.dev/v1alpha1\nkind: VM\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n")
}

fn image(name: &str, reference: &str) -> String {
    format!(
        "---\napiVersion: vmlet.dev/v1alpha1\nkind: Image\nmetadata: {{name: {name}}}\nspec: {{source: {{oci: {{reference: '{reference}'}}}}}}\n"
    )
}

fn whole(running: &[Running], files: &[(&str, &str)]) -> Difference {
    let look = Look { snapshot: snapshot(files), scope: Scope::Source(SOURCE.to_owned()) };
    difference(running, &[look], MassDeleteSettings::default())
}

/// `vm/web Update Restart [memory] [vms]`
fn shown(difference: &Difference) -> Vec<String> {
    let one = |change: &ObjectDifference| {
        let action = match change.action {
            Action::Delete { held_back: true, .. } => "HeldBack".to_owned(),
            Action::Delete { .. } => "Delete".to_owned(),
            other => format!("{other:?}"),
        };
        let mut words: Vec<String> = vec![change.object.to_string(), action, format!("{:?}", change.outcome)];
        words.extend(change.fields.iter().map(|field| field.field.clone()));
        words.extend(change.vms.iter().map(ToString::to_string));
        words.extend(change.waits_for.iter().map(|image| format!("waits for {image}")));
        words.join(" ")
    };
    difference.changes.iter().map(one).collect()
}

#[test]
fn what_is_declared_as_it_runs_changes_nothing() {
    let text = vm("web", "image: {name: debian}") + &image("debian", "debian:12");
    let running = up("a.yaml", &text);
    assert!(whole(&running, &[("a.yaml", &text)]).is_empty());
    // Moved to another file and line, too.
    assert!(whole(&running, &[("b.yaml", &format!("\n\n{text}"))]).is_empty());
}

#[test]
fn each_edit_has_the_outcome_that_the_reconcile_gives_it() {
    for (before, after, outcome) in [
        ("image: {oci: a}", "image: {oci: a}, memory: 512Mi", "Restart memory"),
        ("image: {oci: a}", "image: {oci: a}, rootDisk: {size: 1Gi}", "Recreate rootDisk.size"),
        ("image: {oci: a}", "image: {oci: b}", "Recreate image.oci"),
        (
            "image: {oci: a}",
            "image: {oci: a}, terminationGracePeriodSeconds: 1",
            "None terminationGracePeriodSeconds",
        ),
        ("image: {oci: a}", "image: {oci: a}, runPolicy: Halted, cpus: 2", "Stop cpus runPolicy"),
        ("image: {oci: a}", "image: {name: b}", "None image.name image.oci waits for image/b"),
    ] {
        let running = up("a.yaml", &vm("web", before));
        let difference = whole(&running, &[("a.yaml", &vm("web", after))]);
        assert_eq!(shown(&difference), [format!("vm/web Update {outcome}")], "{before} → {after}");
    }
}

#[test]
fn an_edit_is_judged_by_the_spec_that_runs() {
    // It was started before the last edit: the edit's undoing restarts nothing.
    let mut running = up("a.yaml", &vm("web", "image: {oci: a}, memory: 512Mi"));
    let AnyObject::Vm(started) = up("a.yaml", &vm("web", "image: {oci: a}"))[0].held.object.clone() else {
        unreachable!()
    };
    running[0].process = Process::Up { started: started.spec.clone() };
    let undone = vm("web", "image: {oci: a}");
    assert_eq!(shown(&whole(&running, &[("a.yaml", &undone)])), ["vm/web Update None memory"]);
    // One that ended starts again if its policy or a restarting field says so.
    let once = vm("web", "image: {oci: a}, runPolicy: Once");
    let mut running = up("a.yaml", &once);
    running[0].process = Process::Ended { started: started.spec, code: Some(0) };
    let outcome = |running: &[Running], spec: &str| shown(&whole(running, &[("a.yaml", &vm("web", spec))]));
    assert_eq!(outcome(&running, "image: {oci: a}"), ["vm/web Update Start runPolicy"]);
    assert_eq!(
        outcome(&running, "image: {oci: a}, runPolicy: RerunOnFailure"),
        ["vm/web Update None runPolicy"]
    );
    // One without a process has nothing to restart.
    running[0].process = Process::Idle;
    assert_eq!(
        outcome(&running, "image: {oci: a}, memory: 1Gi, runPolicy: Once"),
        ["vm/web Update None memory"]
    );
}

#[test]
fn an_images_new_reference_moves_the_vms_that_run_on_it() {
    let vms = [
        vm("a", "image: {name: debian}"),
        vm("b", "image: {name: debian}, runPolicy: Halted"),
        vm("c", "image: {name: other}"),
    ]
    .concat();
    let running = up("a.yaml", &(image("debian", "debian:12") + &vms));
    let after = whole(&running, &[("a.yaml", &(image("debian", "debian:13") + &vms))]);
    assert_eq!(shown(&after), ["image/debian Update Pull source.oci.reference vm/a"]);
    assert_eq!(after.restarts().len(), 1);
    let kernel = image("debian", "debian:12").replace("}}}", "}}, kernel: {image: {}}}");
    let after = whole(&running, &[("a.yaml", &(kernel + &vms))]);
    assert_eq!(shown(&after), ["image/debian Update Kernel kernel.image vm/a"]);
    assert_eq!(after.restarts().len(), 1);
}

#[test]
fn what_is_gone_is_deleted_and_an_image_in_use_is_held() {
    let (debian, web, old) =
        (image("debian", "d:1"), vm("web", "image: {name: debian}"), vm("old", "image: {oci: a}"));
    let running = up("a.yaml", &(debian + &web + &old));
    let after = whole(&running, &[("a.yaml", &web)]);
    assert_eq!(shown(&after), ["vm/old Delete Stop", "image/debian Delete Held vm/web"]);
    let after = whole(&running, &[]);
    assert_eq!(shown(&after), ["vm/old Delete Stop", "vm/web Delete Stop", "image/debian Delete Remove"]);
    assert!(matches!(after.changes[0].action, Action::Delete { file_exists: false, .. }));
}

#[test]
fn a_mass_deletion_is_held_back_and_said() {
    let vms: String = (0..8).map(|number| vm(&format!("vm-{number}"), "image: {oci: a}")).collect();
    let running = up("a.yaml", &vms);
    let after = whole(&running, &[]);
    assert_eq!(shown(&after)[0], "vm/vm-0 HeldBack None");
    assert_eq!(
        after.notes,
        ["8 of 8 objects are not declared any more; they are deleted if that lasts for 30 s"]
    );
}

#[test]
fn an_object_declared_twice_is_a_conflict() {
    let text = vm("web", "image: {oci: a}");
    let running = up("b.yaml", &text);
    let edited = vm("web", "image: {oci: b}");
    let after = whole(&running, &[("a.yaml", &edited), ("b.yaml", &text)]);
    assert!(after.is_empty());
    assert_eq!(
        after.refused,
        ["a.yaml:2 declares vm/web too; b.yaml:2 stays in force: rename or remove one of the two"]
    );
    // Another source's object cannot be declared.
    let mut foreign = running;
    foreign[0].source = "directory:/other".to_owned();
    let after = whole(&foreign, &[("a.yaml", &edited)]);
    assert_eq!(after.refused, ["a.yaml:2 declares vm/web, which /other/b.yaml:2 declares already"]);
}

#[test]
fn files_and_copies_are_compared_by_what_they_declare() {
    let (web, old) = (vm("web", "image: {oci: a}"), vm("old", "image: {oci: a}"));
    let running = up("a.yaml", &(web.clone() + &old));
    let edited = vm("web", "image: {oci: a}, cpus: 2");
    let look = |scope| Look {
        snapshot: snapshot(&[("a.yaml", &edited), ("b.yaml", &vm("new", "image: {oci: a}"))]),
        scope,
    };
    let compare = |scope| difference(&running, &[look(scope)], MassDeleteSettings::default());
    let files = ["a.yaml".into()].into();
    let part = compare(Scope::Files { source: SOURCE.to_owned(), files });
    assert_eq!(shown(&part), ["vm/web Update Restart cpus"]);
    let copy = compare(Scope::Elsewhere);
    assert_eq!(shown(&copy), ["vm/new Create Start", "vm/web Update Restart cpus"]);
    assert_eq!(copy.refused, Vec::<String>::new());
}

#[test]
fn an_object_being_deleted_comes_back_as_another() {
    let text = vm("web", "image: {oci: a}");
    let mut running = up("a.yaml", &text);
    running[0].held.terminating = true;
    assert_eq!(shown(&whole(&running, &[("a.yaml", &text)])), ["vm/web Recreate Start"]);
    assert!(whole(&running, &[]).is_empty());
}

#[test]
fn vms_that_would_wait_for_each_other_are_refused() {
    let running = up("a.yaml", &vm("web", "image: {oci: a}"));
    let circle =
        vm("web", "image: {oci: a}, dependsOn: [db]") + &vm("db", "image: {oci: a}, dependsOn: [web]");
    let after = whole(&running, &[("a.yaml", &circle)]);
    assert!(after.is_empty());
    assert_eq!(
        after.refused,
        ["vm/db: spec.dependsOn makes a circle: vm/db → vm/web → vm/db; remove one of these dependencies"]
    );
}
