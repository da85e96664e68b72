//! What is declared, moved, taken away and declared again in a folder: the real `keep` over the rig's store.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use vmlet::manifest::{FileState, MassDeleteSettings, Readiness, Snapshot, decode, keep};
use vmlet::store::{Record, Severity};
use vmlet::testing::{ImageScript, VmScript};

use crate::rig::{self, Rig, image, image_key, is_ready, says, spec, vm, vm_key};
use crate::{SECOND, phase};

/// A folder's snapshots, applied by the real `keep` to the rig's store.
struct Folder {
    snapshots: watch::Sender<Arc<Snapshot>>,
    cancel: CancellationToken,
}

impl Folder {
    fn over(rig: &Rig) -> Self {
        let (snapshots, receiver) = watch::channel(Arc::new(Snapshot::default()));
        let (store, clock, cancel) = (rig.store.clone(), rig.clock(), CancellationToken::new());
        let until = cancel.clone();
        tokio::spawn(async move {
            let root = std::path::Path::new("/m");
            let (readiness, _) = watch::channel(Readiness::default());
            keep(store, root, receiver, MassDeleteSettings::default(), readiness, clock, until).await;
        });
        Folder { snapshots, cancel }
    }

    fn has(&self, files: &[(&str, Vec<Value>)]) {
        let files = files.iter().map(|(path, objects)| {
            let text: Vec<String> = objects.iter().map(Value::to_string).collect();
            let text = text.join("\n---\n");
            let decoded = decode(path.as_ref(), text.as_bytes());
            assert_eq!(decoded.diagnostics, []);
            ((*path).into(), FileState::Good(Arc::new(decoded.objects)))
        });
        let snapshot = Snapshot { complete: true, files: files.collect(), trouble: Vec::new() };
        self.snapshots.send_replace(Arc::new(snapshot));
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

fn problem(record: Option<&Record>) -> Option<String> {
    record?.problem().map(|problem| problem.reason.clone())
}

#[tokio::test(start_paused = true)]
async fn a_name_declared_again_while_its_vm_stops_waits_visibly_and_starts_anew() {
    let rig = Rig::new();
    rig.host.script_image("r/a:1", ImageScript::new('a', SECOND));
    rig.script("web", VmScript { deaf: true, ..VmScript::default() });
    let folder = Folder::over(&rig);
    folder.has(&[("a.yaml", vec![vm("web", spec("256Mi"))])]);
    rig.ready(&vm_key("web")).await;
    let old = rig.vm("web");
    folder.has(&[]);
    rig.until(&vm_key("web"), |record| phase(record) == "Terminating").await;
    folder.has(&[("b.yaml", vec![vm("web", spec("512Mi"))])]);
    let told = |record: Option<&Record>| {
        let Some(record) = record else { return false };
        rig::conditions(record).iter().any(|c| {
            c.reason == "Redeclared"
                && c.message == "declared again at b.yaml:1; created anew when the old one is gone"
        })
    };
    let waiting = rig.until(&vm_key("web"), told).await.unwrap();
    assert_eq!(waiting.metadata().uid, old.object.metadata.uid);
    let event = |rig: &Rig| rig.events("web").into_iter().find(|e| e.reason == "Redeclared");
    assert_eq!(event(&rig).unwrap().severity, Severity::Normal);
    let anew = |record: Option<&Record>| {
        record.is_some_and(|record| record.metadata().uid != old.object.metadata.uid && is_ready(record))
    };
    rig.until(&vm_key("web"), anew).await;
    let new = rig.vm("web");
    assert_eq!((new.starts, new.object.metadata.generation, new.object.status.restarts), (1, 1, 0));
    assert_eq!((new.problem.clone(), new.last_exit.clone()), (None, None));
    assert_eq!(rig.host.folders(), [rig.settings.vms.join(new.object.metadata.uid.unwrap().to_string())]);
    folder.has(&[]);
    rig.gone(&vm_key("web")).await;
    rig.assert_nothing_left().await;
}

#[tokio::test(start_paused = true)]
async fn a_circle_of_dependencies_is_refused_told_and_mended_in_any_order() {
    let rig = Rig::new();
    rig.host.script_image("r/a:1", ImageScript::new('a', SECOND));
    let folder = Folder::over(&rig);
    let on = |name: &str, on: &[&str]| vm(name, json!({"image": {"oci": "r/a:1"}, "dependsOn": on}));
    folder.has(&[("m.yaml", vec![on("a", &["b"]), on("b", &[])])]);
    rig.ready(&vm_key("a")).await;
    folder.has(&[("m.yaml", vec![on("a", &["b"]), on("b", &["a"])])]);
    let refused =
        rig.until(&vm_key("b"), |record| problem(record).as_deref() == Some("DependencyCycle")).await;
    let message = refused.unwrap().problem().unwrap().message.clone();
    assert!(
        message.starts_with("/m/m.yaml:3: spec.dependsOn makes a circle: vm/b → vm/a → vm/b"),
        "{message}"
    );
    assert!(rig.vm("b").object.spec.depends_on.is_empty(), "the last good spec stays");
    // Turned round in one look: whichever is declared first, both are right in the end.
    for (a, b) in [(&[][..], &["a"][..]), (&["b"][..], &[][..])] {
        folder.has(&[("m.yaml", vec![on("a", a), on("b", b)])]);
        let taken = |record: Option<&Record>| matches!(record, Some(Record::Vm(vm)) if vm.object.spec.depends_on == b && vm.problem.is_none());
        rig.until(&vm_key("b"), taken).await;
        let taken = |record: Option<&Record>| matches!(record, Some(Record::Vm(vm)) if vm.object.spec.depends_on == a && vm.problem.is_none());
        rig.until(&vm_key("a"), taken).await;
    }
}

#[tokio::test(start_paused = true)]
async fn of_two_declarations_of_one_name_the_incumbent_runs_on_and_both_are_told() {
    let rig = Rig::new();
    rig.host.script_image("r/a:1", ImageScript::new('a', SECOND));
    let folder = Folder::over(&rig);
    folder.has(&[("a.yaml", vec![vm("web", spec("256Mi"))])]);
    rig.ready(&vm_key("web")).await;
    let run = rig.vm("web").run.clone();
    let both = [("a.yaml", vec![vm("web", spec("256Mi"))]), ("b.yaml", vec![vm("web", spec("1Gi"))])];
    for _ in 0..3 {
        folder.has(&both);
        rig.until(&vm_key("web"), |record| problem(record).as_deref() == Some("Conflict")).await;
    }
    let told = |record: Option<&Record>| {
        rig::conditions(record.unwrap()).iter().any(|c| c.kind == "ManifestProblem" && c.reason == "Conflict")
    };
    let record = rig.until(&vm_key("web"), told).await;
    assert!(is_ready(&record.unwrap()));
    assert_eq!(rig.vm("web").run, run);
    let events = rig.events("web");
    let told: Vec<_> = events.iter().filter(|event| event.reason == "Conflict").collect();
    assert!(
        told.iter().any(|event| event.message.contains("a.yaml:1") && event.message.contains("b.yaml:1"))
    );
    assert!(told.iter().all(|event| event.count == 1), "lasting trouble is told once: {told:?}");
}

#[tokio::test(start_paused = true)]
async fn an_image_in_use_that_is_declared_again_makes_way_and_its_vm_runs_on() {
    let rig = Rig::new();
    rig.host.script_image("r/a:1", ImageScript::new('a', SECOND));
    let folder = Folder::over(&rig);
    let web = || ("v.yaml", vec![vm("web", json!({"image": {"name": "a"}}))]);
    folder.has(&[web(), ("i.yaml", vec![image("a", "r/a:1")])]);
    rig.ready(&vm_key("web")).await;
    let old = rig.image("a").object.metadata.uid;
    folder.has(&[web()]);
    rig.until(&image_key("a"), |record| says("InUse")(record)).await;
    folder.has(&[web(), ("i.yaml", vec![image("a", "r/a:1")])]);
    let anew = |record: Option<&Record>| {
        record.is_some_and(|record| record.metadata().uid != old && is_ready(record))
    };
    rig.until(&image_key("a"), anew).await;
    assert_eq!((rig.vm("web").starts, rig.host.pulls("r/a:1")), (1, 1));
    assert!(is_ready(&rig.store.record(&vm_key("web")).unwrap()));
}
