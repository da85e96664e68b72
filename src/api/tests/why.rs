use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::types::Why;
use super::super::why::{Facts, explain};
use crate::boot::Boot;
use crate::image::{Digest, Source};
use crate::object::{API_VERSION, Condition, Image, Kind, ObjectKey, Vm};
use crate::store::{Event, ImageRecord, Origin, PinnedImage, Problem, Record, Run, Severity, VmRecord};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn key(kind: Kind, name: &str) -> ObjectKey {
    ObjectKey::new(kind, "default", name)
}

fn condition(kind: &str, holds: bool, reason: &str, message: &str) -> Condition {
    Condition {
        kind: kind.to_owned(),
        status: holds.into(),
        observed_generation: 1,
        last_transition_time: at(1),
        reason: reason.to_owned(),
        message: message.to_owned(),
    }
}

fn metadata(name: &str) -> Value {
    json!({"name": name, "generation": 1, "creationTimestamp": at(1)})
}

fn origin(line: u32) -> Origin {
    Origin { source: "directory:/m".to_owned(), path: PathBuf::from("ci.yaml"), line }
}

fn pin(reference: &str) -> PinnedImage {
    let digest: Digest = format!("sha256:{}", "3f".repeat(32)).parse().unwrap();
    PinnedImage { source: Source::Oci(reference.to_owned()), digest, kernel: None }
}

fn vm(name: &str, image: Value, conditions: Vec<Condition>) -> VmRecord {
    let object = json!({"apiVersion": API_VERSION, "kind": "VM", "metadata": metadata(name), "spec": {"image": image}});
    let mut object: Vm = serde_json::from_value(object).unwrap();
    object.status.conditions = conditions;
    object.status.observed_generation = 1;
    VmRecord::new(object, origin(14))
}

fn image(name: &str, conditions: Vec<Condition>) -> ImageRecord {
    let spec = json!({"source": {"oci": {"reference": "debian:12"}}});
    let object =
        json!({"apiVersion": API_VERSION, "kind": "Image", "metadata": metadata(name), "spec": spec});
    let mut object: Image = serde_json::from_value(object).unwrap();
    object.status.conditions = conditions;
    ImageRecord::new(object, origin(1))
}

fn world(vms: Vec<VmRecord>, images: Vec<ImageRecord>) -> BTreeMap<ObjectKey, Record> {
    let vms = vms.into_iter().map(|vm| Record::Vm(Arc::new(vm)));
    let records = vms.chain(images.into_iter().map(|image| Record::Image(Arc::new(image))));
    records.map(|record| (record.key(), record)).collect()
}

fn why(records: BTreeMap<ObjectKey, Record>, events: &[Event], name: &str) -> Why {
    let of = |key: &ObjectKey| {
        events.iter().filter(|event| event.subject.object() == Some(key)).cloned().collect()
    };
    explain(&Facts { records, events: &of, driver: "qemu, tcg" }, &key(Kind::Vm, name)).unwrap()
}

fn event(key: &ObjectKey, severity: Severity, reason: &str, message: &str, second: i64) -> Event {
    Event {
        subject: key.into(),
        uid: None,
        severity,
        reason: reason.to_owned(),
        message: message.to_owned(),
        first_seen: at(second),
        last_seen: at(second),
        count: 1,
    }
}

fn blockers(why: &Why) -> Vec<String> {
    why.blocked_by
        .iter()
        .map(|blocker| format!("{} {}: {}", blocker.what, blocker.reason, blocker.message))
        .collect()
}

#[test]
fn a_vm_that_waits_for_its_image_names_the_whole_chain() {
    let waiting =
        "image/debian is not ready: debian:12 waits for other pulls: as many as allowed are under way";
    let ci = vm(
        "ci",
        json!({"name": "debian"}),
        vec![
            condition("Ready", false, "Pulling", waiting),
            condition("ImageReady", false, "Pulling", waiting),
        ],
    );
    let mut debian =
        image("debian", vec![condition("Ready", false, "WaitingForPull", "debian:12 waits for other pulls")]);
    debian.object.status.next_retry_time = Some(at(60));
    let busy = image("busy", vec![condition("Ready", false, "Pulling", "busy:1 is being pulled")]);
    let events = [
        event(&key(Kind::Vm, "ci"), Severity::Normal, "Declared", "declared at /m/ci.yaml:14", 8),
        event(&key(Kind::Image, "debian"), Severity::Warning, "PullFailed", "connection reset by peer", 9),
    ];
    let why = why(world(vec![ci], vec![debian, busy]), &events, "ci");
    assert_eq!((why.object.as_str(), why.ready, why.message.as_str()), ("vm/ci", false, waiting));
    assert_eq!((why.declared.as_str(), why.seen), ("/m/ci.yaml:14", Some(at(8))));
    assert_eq!(
        blockers(&why),
        [
            "image/debian WaitingForPull: debian:12 waits for other pulls",
            "pull permits WaitingForPull: all are taken: image/busy",
        ]
    );
    assert_eq!(why.blocked_by[0].next_try, Some(at(60)));
    assert_eq!(why.blocked_by[0].last_error.as_ref().unwrap().message, "connection reset by peer");
    assert_eq!(why.then, ["reserve", "boot (qemu, tcg)", "workload", "ready"]);
}

#[test]
fn vms_that_share_a_pull_name_each_other() {
    let pulling = || {
        vec![
            condition("Ready", false, "Pulling", "alpine:3 is being pulled"),
            condition("ImageReady", false, "Pulling", "the image is not ready yet"),
        ]
    };
    let with_pin = |name: &str| VmRecord {
        image: Some(pin("alpine:3")),
        ..vm(name, json!({"oci": "alpine:3"}), pulling())
    };
    let records =
        world(vec![with_pin("ci-1"), with_pin("ci-2"), vm("ci-3", json!({"oci": "b"}), pulling())], vec![]);
    let why = why(records, &[], "ci-1");
    assert_eq!(why.shared_with, ["vm/ci-2"]);
    assert_eq!(why.blocked_by[0].what, "image alpine:3 (sha256:3f3f3f3f3f3f…)");
}

#[test]
fn an_image_that_does_not_exist_is_the_blocker() {
    let missing = vec![condition("Ready", false, "ImageNotFound", "image/nope does not exist")];
    let why = why(world(vec![vm("web", json!({"name": "nope"}), missing)], vec![]), &[], "web");
    assert_eq!(
        blockers(&why),
        ["image/nope NotFound: it does not exist; declare it, or name one that exists"]
    );
}

#[test]
fn a_vm_that_waits_for_a_permit_names_those_that_boot() {
    let image_ready = || condition("ImageReady", true, "Ready", "");
    let web = vm(
        "web",
        json!({"oci": "a"}),
        vec![condition("Ready", false, "WaitingForBoot", "waiting for a boot permit"), image_ready()],
    );
    let up = |name: &str, booted| {
        let mut vm = vm(name, json!({"oci": "a"}), vec![image_ready(), condition("Booted", booted, "", "")]);
        let process = crate::hypervisor::ProcessIdentity { pid: 1, start_time: 1, boot_id: String::new() };
        vm.run = Run::Up {
            process,
            spec: vm.object.spec.clone(),
            boot: Boot::default(),
            since: at(1),
            stopping: None,
        };
        vm
    };
    let why = why(world(vec![web, up("slow", false), up("done", true)], vec![]), &[], "web");
    assert_eq!(blockers(&why), ["boot permits WaitingForBoot: all are taken: vm/slow"]);
}

#[test]
fn ready_deleted_stalled_and_broken_objects_say_so() {
    let answer = |change: &dyn Fn(&mut VmRecord)| {
        let ready = vec![condition("Ready", true, "Ready", "the workload runs")];
        let mut web = vm("web", json!({"oci": "a"}), ready);
        change(&mut web);
        why(world(vec![web], vec![]), &[], "web")
    };
    let ready = answer(&|_| {});
    assert_eq!((ready.ready, ready.blocked_by, ready.then), (true, vec![], vec![]));
    let deleted = answer(&|web| web.object.metadata.deletion_timestamp = Some(at(5)));
    assert_eq!(deleted.then, ["shutdown", "removal of all that it holds", "the record goes"]);
    let stalled = answer(&|web| {
        web.object.status.conditions =
            vec![condition("Ready", false, "NoKvm", "no"), condition("Stalled", true, "NoKvm", "no")];
    });
    assert_eq!(stalled.then, ["nothing before its manifest changes"]);
    let message = "/m/ci.yaml:9:3: spec.memroy is not a field of VM; the last spec stays".to_owned();
    let problem = Problem { reason: "InvalidManifest".to_owned(), message: message.clone() };
    assert_eq!(answer(&|web| web.problem = Some(problem.clone())).problem, Some(message));
}

#[test]
fn dependencies_are_followed_to_what_holds_them_up() {
    let image_ready = || condition("ImageReady", true, "Ready", "");
    let waits = |name: &str, on: &[&str]| {
        let ready =
            condition("Ready", false, "DependencyNotReady", "waits until all that it depends on is Ready");
        let mut vm = vm(name, json!({"oci": "a"}), vec![ready, image_ready()]);
        vm.object.spec.depends_on = on.iter().map(|name| (*name).to_owned()).collect();
        vm
    };
    let short = condition("Ready", false, "InsufficientMemory", "needs 4Gi, 2Gi free");
    let db = vm("db", json!({"oci": "a"}), vec![short, image_ready()]);
    let fine = vm("fine", json!({"oci": "a"}), vec![condition("Ready", true, "Ready", "")]);
    let vms = vec![waits("web", &["app", "fine"]), waits("app", &["db", "gone", "web"]), db, fine];
    let why = why(world(vms, vec![]), &[], "web");
    assert_eq!(
        blockers(&why),
        [
            "vm/app DependencyNotReady: waits until all that it depends on is Ready",
            "vm/db InsufficientMemory: needs 4Gi, 2Gi free",
            "vm/gone NotFound: it does not exist; declare it, or name one that exists",
            "memory InsufficientMemory: needs 4Gi, 2Gi free",
        ]
    );
}
