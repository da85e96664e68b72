use std::sync::Arc;

use jiff::Timestamp;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;

use super::ImageTask;
use super::observe::{Observed, digest_of, promotable};
use super::plan::plan;
use super::status::status;
use super::step::{Failure, Plan, Step};
use crate::boot::{Boot, KernelChoice, KernelId, KernelSource};
use crate::image::Source;
use crate::object::{DiskStatus, PullPolicy, PullProgress, Quantity};
use crate::reconcile::pulls::PullState;
use crate::reconcile::step::StepError;
use crate::reconcile::task::{Outcome, Reconciler, Wake};
use crate::reconcile::world::World;
use crate::store::{ImageRecord, Origin, PinnedImage, PinnedKernel, Problem, Run, VmRecord};
use crate::testing::Rig;

const REFERENCE: &str = "127.0.0.1:5055/debian:12";

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn pin(reference: &str) -> PinnedImage {
    let digest = format!("sha256:{}", "a".repeat(64)).parse().unwrap();
    PinnedImage { source: Source::Oci(reference.to_owned()), digest, kernel: None }
}

fn record(image: Option<PinnedImage>) -> ImageRecord {
    let object = serde_json::from_value(json!({
        "apiVersion": "vmlet.dev/v1alpha1", "kind": "Image", "metadata": {"name": "debian", "generation": 2},
        "spec": {"source": {"oci": {"reference": REFERENCE}}}
    }))
    .unwrap();
    let origin = Origin { source: "test".to_owned(), path: "image.yaml".into(), line: 1 };
    ImageRecord { image, ..ImageRecord::new(object, origin) }
}

fn seen(pull: Option<PullState>) -> Observed {
    let (kernel_disk, kernel) = (false, None);
    Observed {
        disk: None,
        kernel_disk,
        kernel,
        vm: None,
        pull,
        failure: None,
        closed_until: None,
        next_try: None,
    }
}

#[test]
fn an_image_is_resolved_pulled_and_ready() {
    let pinned = record(Some(pin(REFERENCE)));
    assert_eq!(plan(&record(None), &seen(None)).step, Step::Resolve(Source::Oci(REFERENCE.to_owned())));
    assert_eq!(
        plan(&record(Some(pin("other:1"))), &seen(None)).step,
        Step::Resolve(Source::Oci(REFERENCE.to_owned()))
    );
    let PinnedImage { source, digest, .. } = pin(REFERENCE);
    assert_eq!(plan(&pinned, &seen(None)).step, Step::Pull { source, digest });
    assert_eq!(plan(&pinned, &seen(Some(PullState::Queued))).step, Step::Wait(None));
    let disk = Some(DiskStatus { path: "/d".to_owned(), size: Quantity::bytes(1) });
    assert_eq!(plan(&pinned, &Observed { disk, ..seen(None) }).phase, "Ready");
}

#[test]
fn an_image_that_is_never_pulled_is_looked_for() {
    let never = |image| {
        let mut record = record(image);
        let oci = record.object.spec.source.oci.as_mut().unwrap();
        oci.pull_policy = PullPolicy::Never;
        record
    };
    let find = Step::Find(Source::Oci(REFERENCE.to_owned()));
    assert_eq!(plan(&never(None), &seen(None)).step, find);
    assert_eq!(plan(&never(Some(pin("other:1"))), &seen(None)).step, find);
    assert_eq!(plan(&never(Some(pin(REFERENCE))), &seen(None)).step, find);
    let disk = Some(DiskStatus { path: "/d".to_owned(), size: Quantity::bytes(1) });
    assert_eq!(plan(&never(Some(pin(REFERENCE))), &Observed { disk, ..seen(None) }).phase, "Ready");
}

#[test]
fn a_failed_pull_says_why_and_when_it_is_tried_again() {
    let pinned = record(Some(pin(REFERENCE)));
    let failed = |retry| PullState::Failed {
        reason: "RegistryUnavailable",
        message: "connection refused".to_owned(),
        attempt: 2,
        retry,
    };
    let waiting = seen(Some(failed(Some(at(9)))));
    let status = status(&pinned, &waiting, &plan(&pinned, &waiting), at(5));
    let ready = &status.conditions[0];
    assert_eq!((status.phase.as_str(), status.next_retry_time), ("Backoff", Some(at(9))));
    assert_eq!(
        (ready.reason.as_str(), ready.message.as_str()),
        ("RegistryUnavailable", "connection refused (attempt 2 of this pull)")
    );
    assert_eq!((ready.observed_generation, status.observed_generation), (2, 2));
    assert_eq!(plan(&pinned, &seen(Some(failed(None)))).phase, "Failed");
}

#[test]
fn progress_is_shown_while_it_is_made() {
    let pinned = record(Some(pin(REFERENCE)));
    let progress = PullProgress {
        layers: 4,
        layers_done: 2,
        bytes: 100,
        bytes_done: 61,
        bytes_per_second: Some(34 << 20),
    };
    let pulling = seen(Some(PullState::Running(progress.clone())));
    let status = status(&pinned, &pulling, &plan(&pinned, &pulling), at(5));
    assert_eq!(status.progress.as_deref(), Some("layer 3 of 4, 61 %, 34 MiB/s"));
    assert_eq!(status.pull, Some(progress));
}

#[test]
fn what_is_wrong_with_the_declaration_is_told() {
    let mut contested = record(None);
    let problem = Problem { reason: "Conflict".to_owned(), message: "declared twice".to_owned() };
    contested.rivals.insert("another".to_owned(), problem);
    let told = status(&contested, &seen(None), &plan(&contested, &seen(None)), at(1)).conditions;
    let told = told.iter().find(|condition| condition.kind == "ManifestProblem").expect("it is told");
    assert_eq!((told.reason.as_str(), told.message.as_str()), ("Conflict", "declared twice"));
}

#[test]
fn a_deletion_is_not_held_up_by_a_pull() {
    let mut gone = record(Some(pin(REFERENCE)));
    gone.object.metadata.deletion_timestamp = Some(at(1));
    assert_eq!(plan(&gone, &seen(Some(PullState::Queued))).step, Step::Remove);
    let failure = Failure {
        reason: "StoreFailed".to_owned(),
        message: "full".to_owned(),
        transient: true,
        step: std::mem::discriminant(&Step::Remove),
    };
    let until = Some(Instant::now());
    let failed = Observed { failure: Some(failure), closed_until: until, ..seen(None) };
    assert_eq!(plan(&gone, &failed).step, Step::Wait(until));
    let hopeless = failed.failure.clone().map(|failure| Failure { transient: false, ..failure });
    let hopeless = Observed { failure: hopeless, ..failed };
    assert_eq!(plan(&gone, &hopeless).step, Step::Wait(until), "it is tried again all the same");
    assert_eq!(plan(&gone, &Observed { closed_until: None, ..hopeless }).step, Step::Remove);
}

/// An image whose disk is ready, with this kernel in its spec and in its pin.
fn with_kernel(spec: serde_json::Value, kernel: Option<PinnedKernel>) -> ImageRecord {
    let mut record = record(Some(PinnedImage { kernel: kernel.map(Box::new), ..pin(REFERENCE) }));
    record.object.spec.kernel = serde_json::from_value(spec).unwrap();
    record
}

fn there() -> Observed {
    let disk = Some(DiskStatus { path: "/d".to_owned(), size: Quantity::bytes(1) });
    Observed { disk, ..seen(None) }
}

fn step(record: &ImageRecord, seen: &Observed) -> Step {
    let Plan { step, phase, .. } = plan(record, seen);
    assert_eq!(
        phase == "Ready",
        record.current().is_some_and(|pin| pin.boot().is_some()) && step == Step::Wait(None)
    );
    step
}

#[test]
fn a_kernel_in_the_image_is_made_once_its_disk_is_there() {
    let spec = || json!({"image": {}, "commandLine": "loglevel=7"});
    let new = with_kernel(spec(), None);
    assert_eq!(plan(&new, &seen(None)).phase, "Pulling");
    let choice = new.object.spec.kernel().unwrap();
    let pending = PinnedKernel { choice: choice.clone(), disk: None, boot: None };
    assert_eq!(step(&new, &there()), Step::MakeKernel(pending.clone()));
    let boot = Boot { kernel: Some(KernelId("k".to_owned())), command_line: choice.command_line.clone() };
    let made = with_kernel(spec(), Some(PinnedKernel { boot: Some(boot), ..pending }));
    let ready = Observed { kernel: Some("6.1.0".to_owned()), ..there() };
    assert_eq!(step(&made, &ready), Step::Wait(None));
    assert_eq!(status(&made, &ready, &plan(&made, &ready), at(1)).kernel.as_deref(), Some("6.1.0"));
    // Its files are lost: they are made again.
    assert!(matches!(plan(&made, &there()).step, Step::MakeKernel(_)));
    // Another choice is made anew, and none at all needs nothing.
    let edited = ImageRecord { image: made.image.clone(), ..with_kernel(json!({"image": {}}), None) };
    assert!(matches!(step(&edited, &ready), Step::MakeKernel(PinnedKernel { boot: None, .. })));
    let host = ImageRecord { image: made.image.clone(), ..record(None) };
    assert_eq!(step(&host, &ready), Step::PinKernel(None));
}

#[test]
fn a_kernel_in_another_image_is_resolved_pinned_pulled_and_made() {
    let spec = || json!({"oci": {"reference": "kernels:1"}});
    let new = with_kernel(spec(), None);
    let choice = new.object.spec.kernel().unwrap();
    let source = Source::Oci("kernels:1".to_owned());
    let resolve = Step::ResolveKernel { choice: choice.clone(), source: source.clone() };
    assert_eq!(step(&new, &there()), resolve);
    let digest: crate::image::Digest = format!("sha256:{}", "b".repeat(64)).parse().unwrap();
    let pending = PinnedKernel { choice, disk: Some(digest.clone()), boot: None };
    let resolved = with_kernel(spec(), Some(pending.clone()));
    assert!(resolved.image.as_ref().unwrap().disks().any(|kept| *kept == digest), "kept before it is pulled");
    assert_eq!(step(&resolved, &there()), Step::Pull { source, digest });
    let failed = PullState::Failed { reason: "NotFound", message: "no".to_owned(), attempt: 1, retry: None };
    let plan = plan(&resolved, &Observed { pull: Some(failed), ..there() });
    assert_eq!((plan.phase, plan.reason.as_str()), ("Failed", "NotFound"));
    let pulled = Observed { kernel_disk: true, ..there() };
    assert_eq!(step(&resolved, &pulled), Step::MakeKernel(pending));
}

#[test]
fn the_hosts_kernel_needs_nothing_but_its_command_line() {
    assert_eq!(step(&with_kernel(json!({"host": {}}), None), &there()), Step::Wait(None));
    let spec = || json!({"commandLine": "loglevel=7"});
    let choice = KernelChoice { source: None, command_line: Some("loglevel=7".to_owned()) };
    let pending = PinnedKernel { choice, disk: None, boot: None };
    assert_eq!(step(&with_kernel(spec(), None), &there()), Step::MakeKernel(pending.clone()));
    let host = json!({"host": {}, "commandLine": "loglevel=7"});
    let Step::PinKernel(Some(kernel)) = step(&with_kernel(host, None), &there()) else {
        panic!("not pinned")
    };
    assert_eq!(kernel.choice.source, Some(KernelSource::Host));
    assert_eq!(kernel.boot.unwrap(), Boot { kernel: None, command_line: Some("loglevel=7".to_owned()) });
}

#[test]
fn a_kernel_that_cannot_be_made_stalls_its_image() {
    let pending = with_kernel(json!({"image": {}}), None);
    let Step::MakeKernel(kernel) = plan(&pending, &there()).step else { panic!("not made") };
    let failure = Failure {
        reason: "KernelLacksDriver".to_owned(),
        message: "no overlay".to_owned(),
        transient: false,
        step: std::mem::discriminant(&Step::MakeKernel(kernel)),
    };
    let failed = Observed { failure: Some(failure), ..there() };
    let status = status(&pending, &failed, &plan(&pending, &failed), at(1));
    let said = |kind: &str| status.conditions.iter().find(|condition| condition.kind == kind).cloned();
    assert_eq!(
        (status.phase.as_str(), said("Ready").unwrap().reason.as_str()),
        ("Failed", "KernelLacksDriver")
    );
    assert!(said("Stalled").is_some());
}

#[tokio::test(start_paused = true)]
async fn a_digest_that_was_asked_for_before_an_edit_is_not_recorded_after_it() {
    let rig = Rig::new();
    let manifest = |reference: &str| {
        format!(
            "apiVersion: vmlet.dev/v1alpha1\nkind: Image\nmetadata: {{name: base}}\nspec: {{source: {{oci: {{reference: '{reference}'}}}}}}"
        )
    };
    let key = rig.declare(&manifest("r/a:1")).await;
    let before = rig.store.image(&key).unwrap();
    let world = Arc::new(World::new(rig.store.clone(), rig.parts(), rig.settings.clone()));
    let mut task = ImageTask::new(world, key.clone(), before.object.metadata.uid.unwrap());
    rig.declare(&manifest("r/b:1")).await;
    let (_sender, receiver) = watch::channel(0);
    let resolved = task.resolve(&before, &Source::Oci("r/a:1".to_owned()), &mut Wake::new(receiver)).await;
    assert!(matches!(resolved, Err(StepError::Stale)));
    assert_eq!(rig.store.image(&key).unwrap().image, None);
}

#[test]
fn an_image_whose_pull_ended_without_a_disk_is_pulled_again() {
    let pinned = record(Some(pin(REFERENCE)));
    assert!(matches!(plan(&pinned, &seen(Some(PullState::Done))).step, Step::Pull { .. }));
}

#[test]
fn an_image_that_is_not_ready_is_reconciling_and_says_when_it_goes_on() {
    let pinned = record(Some(pin(REFERENCE)));
    let failed = PullState::Failed { reason: "R", message: "m".to_owned(), attempt: 3, retry: Some(at(9)) };
    let of = |seen: &Observed| status(&pinned, seen, &plan(&pinned, seen), at(1));
    let waiting = of(&seen(Some(failed.clone())));
    assert!(waiting.conditions.iter().any(|condition| condition.kind == "Reconciling"));
    assert_eq!(waiting.next_retry_time, Some(at(9)));
    let disk = Some(DiskStatus { path: "/d".to_owned(), size: Quantity::bytes(1) });
    let ready = of(&Observed { disk, ..seen(Some(failed)) });
    assert_eq!((ready.phase.as_str(), ready.next_retry_time), ("Ready", None));
}

fn manifest(reference: &str) -> String {
    format!(
        "apiVersion: vmlet.dev/v1alpha1\nkind: Image\nmetadata: {{name: base}}\nspec: {{source: {{oci: {{reference: '{reference}'}}}}}}"
    )
}

async fn task(rig: &Rig) -> (crate::object::ObjectKey, ImageTask) {
    let key = rig.declare(&manifest("r/a:1")).await;
    let world = Arc::new(World::new(rig.store.clone(), rig.parts(), rig.settings.clone()));
    let uid = rig.store.image(&key).unwrap().object.metadata.uid.unwrap();
    (key.clone(), ImageTask::new(world, key, uid))
}

fn wake() -> (watch::Sender<u64>, Wake) {
    let (sender, receiver) = watch::channel(0);
    (sender, Wake::new(receiver))
}

#[tokio::test(start_paused = true)]
async fn a_pin_ends_the_row_of_failures_and_an_edit_what_was_refused_for_good() {
    let rig = Rig::new();
    let (key, mut task) = task(&rig).await;
    let (_sender, mut wake) = wake();
    let script = |failures, lasting| crate::testing::EffectScript { failures, lasting, ..Default::default() };
    rig.script("resolve", script(2, false));
    while rig.store.image(&key).unwrap().image.is_none() {
        if let Outcome::Wait(Some(until)) = task.reconcile(&mut wake).await {
            assert!(until > Instant::now(), "a failed step is not taken again at once");
            tokio::time::sleep(std::time::Duration::from_secs(3)).await;
        }
    }
    assert_eq!((task.attempts.failures(), task.attempts.failure().is_none()), (0, true));
    rig.script("resolve", script(1, true));
    rig.declare(&manifest("r/b:1")).await;
    while task.reconcile(&mut wake).await != Outcome::Wait(None) {}
    assert_eq!(rig.store.image(&key).unwrap().object.status.phase, "Failed");
    rig.declare(&manifest("r/c:1")).await;
    assert_eq!(task.reconcile(&mut wake).await, Outcome::Again, "it is resolved");
    assert!(rig.store.image(&key).unwrap().current().is_some());
}

#[tokio::test(start_paused = true)]
async fn after_a_panic_nothing_but_the_failures_is_known() {
    let rig = Rig::new();
    let (_, mut task) = task(&rig).await;
    let source = Source::Oci("r/a:1".to_owned());
    let digest = task.world.images.resolve(&source).await.unwrap();
    task.share = Some(task.world.pulls.join(&source, &digest));
    assert!(matches!(task.panicked("once").await, Outcome::Wait(Some(_))), "the look may panic again");
    assert!(task.share.is_none());
    assert_eq!(task.attempts.failures(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_task_of_a_former_image_of_the_name_ends() {
    let rig = Rig::new();
    let (key, _) = task(&rig).await;
    let world = Arc::new(World::new(rig.store.clone(), rig.parts(), rig.settings.clone()));
    let mut former = ImageTask::new(world, key.clone(), crate::object::Uid::from_u128(5));
    let (_sender, mut wake) = wake();
    assert_eq!(former.reconcile(&mut wake).await, Outcome::Gone);
    assert_eq!(rig.store.image(&key).unwrap().object.status.phase, "");
}

const BUILDER: &str = "apiVersion: vmlet.dev/v1alpha1\nkind: VM\nmetadata: {name: builder}\nspec: {image: {oci: 'r/a:1'}, runPolicy: Halted}";
const GOLDEN: &str = "apiVersion: vmlet.dev/v1alpha1\nkind: Image\nmetadata: {name: golden}\nspec: {source: {vm: {name: builder}}}";

/// A VM that is stopped and has a disk, as its record says.
async fn stopped(rig: &Rig) -> VmRecord {
    let key = rig.declare(BUILDER).await;
    let mut vm = VmRecord::clone(&rig.store.vm(&key).unwrap());
    vm.object.status.phase = "Stopped".to_owned();
    vm.object.status.observed_generation = vm.object.metadata.generation;
    vm.reservation = Some(crate::store::Reservation {
        image: pin(REFERENCE).digest,
        nic: None,
        vmm_user: None,
        memory: Quantity::bytes(0),
        cpus: 0,
        disk: vm.object.spec.root_disk.size,
    });
    vm
}

#[tokio::test(start_paused = true)]
async fn an_image_is_made_only_of_a_vm_that_is_stopped_for_certain() {
    let vm = stopped(&Rig::new()).await;
    let key = vm.object.key();
    let refused = |change: &dyn Fn(&mut VmRecord)| {
        let mut vm = vm.clone();
        change(&mut vm);
        promotable(&key, Some(&vm)).map(drop)
    };
    assert_eq!(refused(&|_| {}), Ok(()));
    let spec = vm.object.spec.clone();
    let run = Run::Up {
        process: crate::hypervisor::ProcessIdentity { pid: 1, start_time: 1, boot_id: String::new() },
        spec,
        boot: Boot::default(),
        since: at(0),
        stopping: None,
    };
    let said = [
        refused(&|vm| vm.run = run.clone()),
        refused(&|vm| vm.object.status.phase = "Pending".to_owned()),
        refused(&|vm| vm.object.status.observed_generation -= 1),
        refused(&|vm| vm.object.metadata.deletion_timestamp = Some(at(1))),
        refused(&|vm| vm.reservation = None),
    ];
    let texts = [
        "when it is stopped",
        "when it is stopped",
        "when it is stopped",
        "is being deleted",
        "has never run",
    ];
    for (said, text) in said.iter().zip(texts) {
        assert!(said.as_ref().is_err_and(|why| why.contains(text)), "{said:?} and {text}");
    }
    assert!(promotable(&key, None).is_err());
}

/// Each run of a VM, each VM, and each declaration of an image is an image of its own.
#[tokio::test(start_paused = true)]
async fn images_of_vms_have_digests_of_what_they_are_made_of() {
    let rig = Rig::new();
    let key = rig.declare(GOLDEN).await;
    let image = rig.store.image(&key).unwrap();
    let vm = stopped(&rig).await;
    let uid = image.object.metadata.uid.unwrap();
    let digest = |vm: &VmRecord, image: &ImageRecord, uid| digest_of(vm, uid, image);
    let first = digest(&vm, &image, uid);
    assert_eq!(digest(&vm, &image, uid), first);
    let mut again = vm.clone();
    again.starts += 1;
    assert_ne!(digest(&again, &image, uid), first);
    let mut other = vm.clone();
    other.object.metadata.uid = Some(crate::object::Uid::from_u128(9));
    assert_ne!(digest(&other, &image, uid), first);
    assert_ne!(digest(&vm, &image, crate::object::Uid::from_u128(9)), first);
    let mut edited = ImageRecord::clone(&image);
    edited.object.metadata.generation += 1;
    assert_ne!(digest(&vm, &edited, uid), first);
}
