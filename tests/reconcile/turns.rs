//! Bad moments: edits, deletions, panics and reboots in the middle of slow steps. The newer wish wins
//! promptly, and nothing of the older one is left.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vmlet::hypervisor::fake::{Behaviour, Step};
use vmlet::manifest::{FileState, MassDeleteSettings, Readiness, Snapshot, decode, keep};
use vmlet::store::{Record, Severity};
use vmlet::testing::ImageScript;

use crate::rig::{self, Rig, image, image_key, is_ready, reason, vm, vm_key};
use crate::{SECOND, phase};

fn spec(memory: &str) -> Value {
    json!({"image": {"oci": "r/a:1"}, "memory": memory})
}

/// A world with an image and a VM that has come so far.
async fn with_vm(behaviour: Behaviour, came_so_far: impl Fn(Option<&Record>) -> bool) -> Rig {
    let rig = Rig::new();
    rig.images.script("r/a:1", ImageScript::new('a', SECOND));
    rig.driver.set_behaviour(behaviour);
    rig.declare(vm("web", spec("256Mi"))).await;
    rig.until(&vm_key("web"), came_so_far).await;
    rig
}

fn says(wanted: &'static str) -> impl Fn(Option<&Record>) -> bool {
    move |record| record.is_some_and(|record| reason(record) == wanted)
}

fn slow_prepare() -> Behaviour {
    Behaviour { prepare: 10 * SECOND, ..Behaviour::default() }
}

fn slow_boot() -> Behaviour {
    Behaviour { boot: Some(40 * SECOND), ..Behaviour::default() }
}

#[tokio::test(start_paused = true)]
async fn an_edit_while_disks_are_made_starts_the_vm_once_with_the_new_spec() {
    let rig = with_vm(slow_prepare(), |record| says("Booting")(record)).await;
    rig.declare(vm("web", spec("512Mi"))).await;
    rig.ready(&vm_key("web")).await;
    let record = rig.vm("web");
    assert_eq!((record.starts, record.object.status.restarts), (1, 0), "the old spec was never started");
    assert_eq!(record.reservation.as_ref().unwrap().memory.to_string(), "512Mi");
    assert_eq!(rig.driver.violations(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_deletion_while_disks_are_made_starts_nothing() {
    let rig = with_vm(slow_prepare(), |record| says("Booting")(record)).await;
    let began = Instant::now();
    rig.driver.panic_next(Step::Spawn, None, 1);
    rig.undeclare(&vm_key("web")).await;
    let mut changes = rig.store.watch(None).unwrap();
    rig.gone(&vm_key("web")).await;
    assert!(began.elapsed() <= 11 * SECOND, "{:?}", began.elapsed());
    while let Ok(Ok(change)) = tokio::time::timeout(SECOND, changes.next()).await {
        let Record::Vm(vm) = &change.record else { continue };
        assert_eq!(vm.starts, 0, "a deleted VM was started");
    }
    assert!(rig.events("web").iter().all(|event| event.reason != "InternalError"), "it was not even spawned");
    rig.assert_nothing_left().await;
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_is_halted_while_disks_are_made_is_not_spawned() {
    let rig = with_vm(slow_prepare(), |record| says("Booting")(record)).await;
    rig.driver.panic_next(Step::Spawn, None, 1);
    rig.declare(vm("web", json!({"image": {"oci": "r/a:1"}, "memory": "256Mi", "runPolicy": "Halted"})))
        .await;
    rig.until(&vm_key("web"), |record| phase(record) == "Stopped").await;
    tokio::time::sleep(60 * SECOND).await;
    assert!(rig.events("web").iter().all(|event| event.reason != "InternalError"));
    assert_eq!(rig.vm("web").starts, 0);
}

/// A start that is given up halfway leaves its tap to the step that comes next, whichever it is.
#[tokio::test(start_paused = true)]
async fn the_tap_of_a_start_that_failed_is_not_left() {
    for next in ["none", "halted", "deleted"] {
        let rig = Rig::new();
        rig.images.script("r/a:1", ImageScript::new('a', SECOND));
        rig.driver.fail_next(Step::Spawn, None, usize::MAX, true);
        rig.declare(vm("web", spec("256Mi"))).await;
        rig.eventually(|| rig.network.attached() == 1).await;
        match next {
            "none" => {
                rig.driver.fail_next(Step::Spawn, None, 0, true);
                let bare = json!({"image": {"oci": "r/a:1"}, "memory": "256Mi", "network": {"mode": "none"}});
                rig.declare(vm("web", bare)).await;
                rig.ready(&vm_key("web")).await;
            }
            "halted" => {
                let halted = json!({"image": {"oci": "r/a:1"}, "memory": "256Mi", "runPolicy": "Halted"});
                rig.declare(vm("web", halted)).await;
                rig.until(&vm_key("web"), |record| phase(record) == "Stopped").await;
                rig.eventually(|| !rig.vm("web").reservation.as_ref().unwrap().can_run()).await;
            }
            _ => {
                rig.undeclare(&vm_key("web")).await;
                rig.gone(&vm_key("web")).await;
            }
        }
        assert_eq!(rig.network.attached(), 0, "{next}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_waits_after_a_crash_has_no_tap() {
    let rig = with_vm(Behaviour::default(), |record| record.is_some_and(is_ready)).await;
    rig.driver.fail_next(Step::Spawn, None, usize::MAX, true);
    rig.crash("web");
    rig.until(&vm_key("web"), |record| phase(record) == "Backoff").await;
    assert_eq!(rig.network.attached(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_deletion_during_the_boot_does_not_wait_for_it() {
    let up = |record: Option<&Record>| matches!(record, Some(Record::Vm(vm)) if vm.starts == 1);
    let rig = with_vm(slow_boot(), up).await;
    let began = Instant::now();
    rig.undeclare(&vm_key("web")).await;
    rig.gone(&vm_key("web")).await;
    assert!(began.elapsed() < SECOND, "a guest that was never heard of is killed: {:?}", began.elapsed());
    rig.assert_nothing_left().await;
}

#[tokio::test(start_paused = true)]
async fn an_edit_during_the_boot_does_not_wait_for_it() {
    let up = |record: Option<&Record>| matches!(record, Some(Record::Vm(vm)) if vm.starts == 1);
    let rig = with_vm(slow_boot(), up).await;
    let began = Instant::now();
    rig.driver.set_behaviour(Behaviour::default());
    rig.declare(vm("web", spec("512Mi"))).await;
    rig.ready(&vm_key("web")).await;
    assert!(began.elapsed() < 3 * SECOND, "{:?}", began.elapsed());
    assert_eq!(rig.vm("web").starts, 2);
    assert_eq!(rig.driver.violations(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_deletion_during_a_vms_own_pull_cancels_it() {
    let rig = Rig::new();
    rig.images.script("r/a:1", ImageScript::new('a', 3600 * SECOND));
    rig.declare(vm("web", spec("256Mi"))).await;
    rig.eventually(|| rig.images.staged() == 1).await;
    let began = Instant::now();
    rig.undeclare(&vm_key("web")).await;
    rig.gone(&vm_key("web")).await;
    assert!(began.elapsed() < SECOND, "{:?}", began.elapsed());
    rig.assert_nothing_left().await;
}

#[tokio::test(start_paused = true)]
async fn an_edit_during_the_stop_counts_for_it() {
    let rig = Rig::new();
    rig.images.script("r/a:1", ImageScript::new('a', SECOND));
    // Guests that do not shut down: only the grace period ends them.
    rig.let_guests_stay();
    rig.declare(vm("web", spec("256Mi"))).await;
    rig.ready(&vm_key("web")).await;
    rig.declare(vm(
        "web",
        json!({"image": {"oci": "r/a:1"}, "memory": "512Mi",
        "terminationGracePeriodSeconds": 3600}),
    ))
    .await;
    rig.until(&vm_key("web"), |record| phase(record) == "Stopping").await;
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!(rig.vm("web").object.status.phase, "Stopping");
    let began = Instant::now();
    rig.declare(vm(
        "web",
        json!({"image": {"oci": "r/a:1"}, "memory": "1Gi",
        "terminationGracePeriodSeconds": 0}),
    ))
    .await;
    rig.ready(&vm_key("web")).await;
    assert!(began.elapsed() < 5 * SECOND, "{:?}", began.elapsed());
    let record = rig.vm("web");
    assert_eq!((record.starts, record.reservation.as_ref().unwrap().memory.to_string().as_str()), (2, "1Gi"));
}

#[tokio::test(start_paused = true)]
async fn an_image_that_is_deleted_as_a_vm_of_it_is_created_is_kept_or_pulled_anew() {
    for vm_first in [true, false] {
        let rig = Rig::new();
        rig.images.script("r/a:1", ImageScript::new('a', SECOND));
        rig.declare(image("a", "r/a:1")).await;
        rig.ready(&image_key("a")).await;
        let web = || vm("web", json!({"image": {"name": "a"}}));
        if vm_first {
            rig.declare(web()).await;
            rig.undeclare(&image_key("a")).await;
            rig.until(&image_key("a"), |record| says("InUse")(record)).await;
            rig.undeclare(&vm_key("web")).await;
            rig.gone(&vm_key("web")).await;
        } else {
            rig.undeclare(&image_key("a")).await;
            rig.declare(web()).await;
            // The image may be gone already, or stay because of the VM; either way the VM never runs on it.
            tokio::time::sleep(10 * SECOND).await;
            assert!(rig.vm("web").starts == 0 && rig.driver.running().is_empty());
            rig.undeclare(&vm_key("web")).await;
            rig.gone(&vm_key("web")).await;
        }
        rig.gone(&image_key("a")).await;
        rig.assert_nothing_left().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_is_being_removed_is_pulled_anew_for_a_vm_that_names_it_directly() {
    let rig = with_vm(Behaviour::default(), |record| record.is_some_and(is_ready)).await;
    rig.undeclare(&vm_key("web")).await;
    rig.gone(&vm_key("web")).await;
    // At this instant the collector is woken for the disk.
    rig.declare(vm("next", spec("256Mi"))).await;
    rig.ready(&vm_key("next")).await;
    let digest = rig.vm("next").image.as_ref().unwrap().digest.clone();
    assert!(rig.store.disk(&digest).unwrap().is_ready());
    rig.undeclare(&vm_key("next")).await;
    rig.gone(&vm_key("next")).await;
    rig.assert_nothing_left().await;
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_a_failed_attempt_that_is_counted_told_and_backed_off() {
    let rig = Rig::new();
    rig.images.script("r/a:1", ImageScript::new('a', SECOND));
    rig.driver.panic_next(Step::Prepare, None, 4);
    rig.declare(vm("web", spec("256Mi"))).await;
    let mut waits = Vec::new();
    for _ in 0..4 {
        let before =
            rig.store.record(&vm_key("web")).map(|record| record.metadata().resource_version.clone());
        let failed = |record: Option<&Record>| {
            let Some(Record::Vm(vm)) = record else { return false };
            let status = &vm.object.status;
            status.next_retry_time.is_some_and(|at| at > rig.now())
                && says("InternalError")(record)
                && Some(&vm.object.metadata.resource_version) != before.as_ref()
        };
        rig.until(&vm_key("web"), failed).await;
        let status = rig.vm("web").object.status.clone();
        assert_eq!(status.phase, "Backoff");
        assert!(status.conditions[0].message.contains("Prepare panics as scripted"), "{status:?}");
        let next = status.next_retry_time.unwrap();
        waits.push(next.duration_since(rig.now()));
        tokio::time::sleep(Duration::try_from(next.duration_since(rig.now())).unwrap()).await;
    }
    assert!(waits[3] > waits[2] && waits[2] > waits[1] && waits[1] > waits[0], "{waits:?}");
    rig.ready(&vm_key("web")).await;
    let events = rig.events("web");
    let told = events.iter().find(|event| event.reason == "InternalError").unwrap();
    assert_eq!((told.count, told.severity), (4, Severity::Warning));
    assert_eq!(rig.driver.violations(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_one_objects_task_disturbs_no_other_and_an_edit_cuts_its_wait() {
    let rig = Rig::new();
    rig.images.script("r/a:1", ImageScript::new('a', SECOND));
    rig.declare(vm("web", spec("256Mi"))).await;
    rig.ready(&vm_key("web")).await;
    rig.driver.panic_next(Step::Spawn, None, usize::MAX);
    rig.declare(vm("bad", spec("256Mi"))).await;
    rig.until(&vm_key("bad"), |record| says("InternalError")(record)).await;
    tokio::time::sleep(3600 * SECOND).await;
    assert!(is_ready(&rig.store.record(&vm_key("web")).unwrap()));
    rig.driver.panic_next(Step::Spawn, None, 0);
    let began = Instant::now();
    rig.declare(vm("bad", spec("512Mi"))).await;
    rig.ready(&vm_key("bad")).await;
    assert!(began.elapsed() < 3 * SECOND, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_look_that_panics_is_backed_off_and_told_over_the_last_status() {
    let mut rig = with_vm(Behaviour::default(), |record| record.is_some_and(is_ready)).await;
    rig.kill().await;
    // The watch over an adopted process is part of the look.
    rig.driver.panic_next(Step::Exited, None, 3);
    rig.start();
    let told = |record: Option<&Record>| {
        let Some(Record::Vm(vm)) = record else { return false };
        vm.object.status.next_retry_time.is_some()
            && vm
                .object
                .status
                .conditions
                .iter()
                .any(|c| c.kind == "Reconciling" && c.reason == "InternalError")
    };
    rig.until(&vm_key("web"), told).await;
    let settled = |record: Option<&Record>| {
        let Some(Record::Vm(vm)) = record else { return false };
        is_ready(record.unwrap()) && vm.object.status.next_retry_time.is_none()
    };
    rig.until(&vm_key("web"), settled).await;
    let events = rig.events("web");
    assert_eq!(events.iter().find(|event| event.reason == "InternalError").unwrap().count, 3);
    assert_eq!((rig.vm("web").starts, rig.driver.running().len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_pull_that_panics_is_tried_again() {
    let rig = Rig::new();
    rig.images.script("r/a:1", ImageScript { panics: 2, ..ImageScript::new('a', SECOND) });
    rig.declare(image("a", "r/a:1")).await;
    let failed = rig.until(&image_key("a"), |record| says("InternalError")(record)).await.unwrap();
    let Record::Image(failed) = failed else { unreachable!() };
    assert!(failed.object.status.next_retry_time.is_some());
    rig.ready(&image_key("a")).await;
    assert_eq!((rig.images.pulls("r/a:1"), rig.images.staged()), (3, 0));
}

#[tokio::test(start_paused = true)]
async fn after_a_reboot_of_the_host_everything_starts_again_on_its_disk_and_address() {
    let mut rig = Rig::new();
    rig.images.script("r/a:1", ImageScript::new('a', SECOND));
    rig.declare(vm("job", json!({"image": {"oci": "r/a:1"}, "runPolicy": "Once"}))).await;
    rig.declare(vm("web", spec("256Mi"))).await;
    for name in ["job", "web"] {
        rig.ready(&vm_key(name)).await;
    }
    let before = ["job", "web"].map(|name| rig.vm(name).reservation.clone());
    let folders = rig.driver.folders().len();
    rig.kill().await;
    rig.driver.reboot();
    let began = Instant::now();
    rig.start();
    for name in ["job", "web"] {
        let again = |record: Option<&Record>| {
            matches!(record, Some(Record::Vm(vm)) if vm.starts == 2) && record.is_some_and(is_ready)
        };
        rig.until(&vm_key(name), again).await;
        let status = rig.vm(name).object.status.clone();
        assert_eq!(status.last_exit.unwrap().reason, "HostReboot");
        let events = rig.events(name);
        assert!(events.iter().all(|event| event.severity == Severity::Normal), "{events:?}");
    }
    assert!(began.elapsed() < 2 * SECOND, "there is no backoff: {:?}", began.elapsed());
    assert_eq!(["job", "web"].map(|name| rig.vm(name).reservation.clone()), before);
    assert_eq!((rig.driver.folders().len(), rig.images.pulls("r/a:1")), (folders, 1));
    assert_eq!(rig.driver.violations(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_vmm_in_a_folder_that_no_record_claims_is_ended_with_it() {
    let mut rig = with_vm(Behaviour::default(), |record| record.is_some_and(is_ready)).await;
    rig.kill().await;
    let folder = rig.driver.folders()[0].clone();
    assert!(folder.exists() && rig.driver.running().len() == 1);
    // As after a restore of an export from before the VM.
    rig.store = vmlet::store::Store::in_memory().0;
    rig.start();
    rig.eventually(|| rig.driver.running().is_empty() && rig.driver.folders().is_empty()).await;
    assert_eq!(rig.driver.violations(), Vec::<String>::new());
}

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
    rig.images.script("r/a:1", ImageScript::new('a', SECOND));
    rig.let_guests_stay();
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
    assert_eq!(rig.driver.folders(), [rig.settings.vms.join(new.object.metadata.uid.unwrap().to_string())]);
    folder.has(&[]);
    rig.gone(&vm_key("web")).await;
    rig.assert_nothing_left().await;
}

#[tokio::test(start_paused = true)]
async fn a_circle_of_dependencies_is_refused_told_and_mended_in_any_order() {
    let rig = Rig::new();
    rig.images.script("r/a:1", ImageScript::new('a', SECOND));
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
    rig.images.script("r/a:1", ImageScript::new('a', SECOND));
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
    rig.images.script("r/a:1", ImageScript::new('a', SECOND));
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
    assert_eq!((rig.vm("web").starts, rig.images.pulls("r/a:1")), (1, 1));
    assert!(is_ready(&rig.store.record(&vm_key("web")).unwrap()));
}

#[tokio::test(start_paused = true)]
async fn a_deleted_image_goes_when_an_edit_takes_its_last_vm_away() {
    let rig = Rig::new();
    rig.images.script("r/a:1", ImageScript::new('a', SECOND));
    rig.images.script("r/b:1", ImageScript::new('b', SECOND));
    rig.declare(image("a", "r/a:1")).await;
    rig.declare(vm("web", json!({"image": {"name": "a"}}))).await;
    rig.ready(&vm_key("web")).await;
    rig.undeclare(&image_key("a")).await;
    rig.until(&image_key("a"), |record| says("InUse")(record)).await;
    rig.declare(vm("web", json!({"image": {"oci": "r/b:1"}}))).await;
    rig.gone(&image_key("a")).await;
    rig.ready(&vm_key("web")).await;
}
