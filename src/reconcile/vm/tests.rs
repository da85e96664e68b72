//! Decisions by value: what the record says, what is seen, and the step that must follow.

use std::mem::discriminant;
use std::time::Duration;

use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::json;
use vmlet_wire::GuestState;

use super::plan::{Plan, Rules, Step, plan};
use super::state::{Failure, Guest, ImageView, LineView, Observed};
use crate::boot::{Boot, KernelChoice, KernelId, KernelPaths, KernelSource};
use crate::hypervisor::{ProcessIdentity, VmmExit};
use crate::image::{ImageConfig, Source};
use crate::object::{
    AnyObject, Kind, LastExit, NetworkMode, ObjectKey, PullPolicy, Quantity, RunPolicy, Uid, Vm, VmSpec,
};
use crate::reconcile::pulls::PullState;
use crate::store::{
    Capacity, Declared, NetworkClaim, Origin, PinnedImage, PinnedKernel, Reservation, ReserveError, Run,
    Standing, Stopping, Store, VmClaim, VmRecord,
};

const RULES: Rules = Rules { boot_timeout: Duration::from_secs(60), patience: Duration::from_secs(120) };

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + second).unwrap()
}

fn pin(digit: char) -> PinnedImage {
    let digest = format!("sha256:{}", digit.to_string().repeat(64)).parse().unwrap();
    PinnedImage { source: Source::Oci("127.0.0.1:5055/debian:12".to_owned()), digest, kernel: None }
}

fn record() -> VmRecord {
    let mut object: Vm = serde_json::from_value(json!({
        "apiVersion": "vmlet.dev/v1alpha1", "kind": "VM", "metadata": {"name": "web"},
        "spec": {"image": {"oci": "127.0.0.1:5055/debian:12"}, "network": {"mode": "none"}}
    }))
    .unwrap();
    object.metadata.uid = Some(Uid::nil());
    object.metadata.generation = 1;
    VmRecord {
        object,
        origin: Origin { source: "test".to_owned(), path: "web.yaml".into(), line: 1 },
        problem: None,
        reservation: None,
        image: None,
        run: Run::Idle,
        starts: 0,
        last_exit: None,
        promotion: None,
    }
}

fn reserved() -> VmRecord {
    let mut record = record();
    record.image = Some(pin('a'));
    record.reservation = Some(Reservation {
        image: pin('a').digest,
        nic: None,
        vmm_user: None,
        memory: record.object.spec.memory,
        cpus: record.object.spec.cpus,
        disk: record.object.spec.root_disk.size,
    });
    record
}

fn up() -> VmRecord {
    let mut record = reserved();
    record.run = Run::Up {
        process: ProcessIdentity { pid: 7, start_time: 1, boot_id: "b".to_owned() },
        spec: record.object.spec.clone(),
        boot: Boot::default(),
        since: at(0),
        stopping: None,
    };
    record
}

fn stopping(mut record: VmRecord) -> VmRecord {
    if let Run::Up { stopping, .. } = &mut record.run {
        *stopping = Some(Stopping { since: at(0), why: "test".to_owned() });
    }
    record
}

fn deleted(mut record: VmRecord) -> VmRecord {
    record.object.metadata.deletion_timestamp = Some(at(0));
    record
}

fn edited(mut record: VmRecord, edit: impl FnOnce(&mut VmSpec)) -> VmRecord {
    edit(&mut record.object.spec);
    record.object.metadata.generation += 1;
    record
}

fn known(pin: PinnedImage) -> ImageView {
    image(pin, Some(ImageConfig::default()), None)
}

fn image(pin: PinnedImage, disk: Option<ImageConfig>, pull: Option<PullState>) -> ImageView {
    ImageView::Known { pin, policy: PullPolicy::default(), asked: false, disk, pull, direct: true }
}

fn seen() -> Observed {
    Observed {
        exit: None,
        killed: None,
        guest: Guest::Silent { ever: false, since: at(0) },
        last: None,
        image: known(pin('a')),
        permit: false,
        asked: false,
        failure: None,
        closed_until: None,
        default_network: NetworkMode::Bridge,
        dependency: None,
        line: None,
        rebooted: false,
    }
}

fn ready() -> Observed {
    let guest = Guest::Connected { state: GuestState::Ready, since: at(1) };
    Observed { guest, last: Some(GuestState::Ready), ..seen() }
}

fn exited(last: Option<GuestState>, workload: Option<i32>) -> Observed {
    let exit = VmmExit { code: Some(0), signal: None, workload, message: String::new() };
    Observed { exit: Some(exit), guest: Guest::Silent { ever: true, since: at(0) }, last, ..seen() }
}

fn decide(record: &VmRecord, seen: &Observed) -> Plan {
    plan(record, seen, RULES, at(10))
}

#[test]
fn policies_say_when_the_registry_is_asked() {
    let source = pin('a').source;
    let look = |policy, asked, disk: Option<ImageConfig>| {
        let image = ImageView::Known { pin: pin('a'), policy, asked, disk, pull: None, direct: true };
        Observed { image, ..seen() }
    };
    let here = || Some(ImageConfig::default());
    let always = look(PullPolicy::Always, false, here());
    assert_eq!(decide(&reserved(), &always).step, Step::Resolve(source.clone()));
    assert_eq!(decide(&reserved(), &look(PullPolicy::Always, true, here())).step, Step::Queue);
    assert!(matches!(decide(&up(), &always).step, Step::Wait(_)), "a VM that runs is left alone");
    assert_eq!(decide(&reserved(), &look(PullPolicy::IfNotPresent, false, here())).step, Step::Queue);
    assert_eq!(decide(&reserved(), &look(PullPolicy::Never, false, here())).step, Step::Queue);
    assert_eq!(decide(&reserved(), &look(PullPolicy::Never, false, None)).step, Step::Find(source.clone()));
    let unknown = ImageView::Unresolved { source: source.clone(), policy: PullPolicy::Never };
    assert_eq!(decide(&record(), &Observed { image: unknown, ..seen() }).step, Step::Find(source));
}

#[test]
fn a_vm_is_brought_up_step_by_step() {
    let unresolved =
        ImageView::Unresolved { source: Source::Oci("r".to_owned()), policy: PullPolicy::default() };
    let missing = image(pin('a'), None, None);
    let pulled = Some(PullState::Queued);
    let queued = image(pin('a'), None, pulled);
    let mut pinned = record();
    pinned.image = Some(pin('a'));
    let look = |image: ImageView| Observed { image, ..seen() };
    assert_eq!(decide(&record(), &look(unresolved)).step, Step::Resolve(Source::Oci("r".to_owned())));
    assert_eq!(decide(&record(), &seen()).step, Step::Pin(pin('a')));
    assert_eq!(decide(&pinned, &look(missing)).step, Step::Pull(pin('a')));
    assert_eq!(decide(&pinned, &look(queued)).step, Step::Wait(None));
    assert_eq!(decide(&pinned, &seen()).step, Step::Reserve { discard_disk: false, impatient: false });
    assert_eq!(decide(&reserved(), &seen()).step, Step::Queue);
    assert_eq!(decide(&reserved(), &Observed { permit: true, ..seen() }).step, Step::Boot);
    assert_eq!(decide(&up(), &seen()).step, Step::Wait(Some(at(60))));
    assert_eq!(decide(&up(), &ready()).step, Step::Wait(None));
}

#[test]
fn an_edit_stops_the_vm_once_and_says_why() {
    let bigger = edited(up(), |spec| spec.memory = Quantity::mebibytes(512));
    let Step::Stop { why } = decide(&bigger, &ready()).step else { panic!("no stop") };
    assert_eq!(why, "memory 256Mi → 512Mi (restart)");
    let asked = Observed { asked: true, ..ready() };
    assert_eq!(decide(&stopping(bigger.clone()), &ready()).step, Step::Ask);
    assert_eq!(decide(&stopping(bigger), &asked).step, Step::Wait(Some(at(35))));
    let live = edited(up(), |spec| spec.termination_grace_period_seconds = 1);
    assert_eq!(decide(&live, &ready()).step, Step::Wait(None));
}

#[test]
fn a_shutdown_that_takes_too_long_ends_in_a_kill() {
    let record = edited(stopping(up()), |spec| spec.termination_grace_period_seconds = 5);
    let asked = Observed { asked: true, ..ready() };
    assert_eq!(plan(&record, &asked, RULES, at(9)).step, Step::Wait(Some(at(10))));
    assert!(matches!(plan(&record, &asked, RULES, at(10)).step, Step::Kill { .. }));
    let impatient = edited(stopping(up()), |spec| spec.termination_grace_period_seconds = 0);
    assert!(matches!(plan(&impatient, &ready(), RULES, at(0)).step, Step::Kill { .. }));
}

#[test]
fn a_guest_that_was_never_heard_of_is_killed_not_asked() {
    assert!(matches!(decide(&stopping(up()), &seen()).step, Step::Kill { .. }));
    assert!(matches!(plan(&up(), &seen(), RULES, at(61)).step, Step::Kill { .. }));
}

#[test]
fn an_adopted_guest_gets_a_moment_to_link_up_before_the_power_button() {
    let lost = Observed { guest: Guest::Silent { ever: true, since: at(0) }, ..seen() };
    assert_eq!(plan(&stopping(up()), &lost, RULES, at(1)).step, Step::Wait(Some(at(3))));
    assert_eq!(plan(&stopping(up()), &lost, RULES, at(3)).step, Step::Ask);
}

#[test]
fn run_policies_decide_over_the_end() {
    let ended = |policy, code| {
        let record = edited(up(), |spec| spec.run_policy = policy);
        let last = Some(GuestState::Exited { code });
        match decide(&record, &exited(last, None)).step {
            Step::RecordExit { rerun, failed } => (rerun, failed),
            step => panic!("{step:?}"),
        }
    };
    assert_eq!(ended(RunPolicy::Always, 0), (true, true));
    assert_eq!(ended(RunPolicy::RerunOnFailure, 0), (false, false));
    assert_eq!(ended(RunPolicy::RerunOnFailure, 3), (true, true));
    assert_eq!(ended(RunPolicy::Once, 3), (false, false));
    let once = edited(up(), |spec| spec.run_policy = RunPolicy::Once);
    let never_began = Observed { guest: Guest::Silent { ever: false, since: at(0) }, ..exited(None, None) };
    assert_eq!(decide(&once, &never_began).step, Step::RecordExit { rerun: true, failed: true });
    let adopted = exited(None, Some(0));
    assert_eq!(decide(&once, &adopted).step, Step::RecordExit { rerun: false, failed: false });
}

#[test]
fn an_ended_vm_runs_again_only_for_a_new_spec_or_policy() {
    let mut ended = reserved();
    ended.object.spec.run_policy = RunPolicy::Once;
    ended.run = Run::Ended { spec: ended.object.spec.clone() };
    ended.last_exit = Some(LastExit {
        code: Some(1),
        reason: "Error".to_owned(),
        message: "it failed".to_owned(),
        finished_at: at(0),
    });
    let step = |record: &VmRecord| decide(record, &seen()).step;
    assert_eq!(step(&ended), Step::Relinquish, "others can use what it ran on");
    let room_given_back = ended.reservation.as_mut().unwrap();
    (room_given_back.memory, room_given_back.cpus) = (Quantity::bytes(0), 0);
    assert_eq!(step(&ended), Step::Wait(None));
    assert_eq!(
        step(&edited(ended.clone(), |spec| spec.termination_grace_period_seconds = 1)),
        Step::Wait(None)
    );
    let reserve = Step::Reserve { discard_disk: false, impatient: false };
    assert_eq!(step(&edited(ended.clone(), |spec| spec.cpus = 2)), reserve);
    assert_eq!(step(&edited(ended.clone(), |spec| spec.run_policy = RunPolicy::RerunOnFailure)), reserve);
    assert_eq!(step(&edited(ended, |spec| spec.run_policy = RunPolicy::Halted)), Step::Wait(None));
}

#[test]
fn deletion_goes_one_way_stop_tear_down_remove() {
    assert!(matches!(decide(&deleted(up()), &ready()).step, Step::Stop { .. }));
    assert_eq!(decide(&deleted(reserved()), &seen()).step, Step::TearDown);
    assert_eq!(decide(&deleted(record()), &seen()).step, Step::Remove);
}

#[test]
fn a_new_image_is_ready_before_the_vm_stops_for_it() {
    let mut record = up();
    let missing = image(pin('b'), None, None);
    let look = |image| Observed { image, ..ready() };
    assert_eq!(decide(&record, &look(known(pin('b')))).step, Step::Pin(pin('b')));
    record.image = Some(pin('b'));
    assert_eq!(decide(&record, &look(missing)).step, Step::Pull(pin('b')));
    assert!(matches!(decide(&record, &look(known(pin('b')))).step, Step::Stop { .. }));
    record.run = Run::Idle;
    assert_eq!(
        decide(&record, &look(known(pin('b')))).step,
        Step::Reserve { discard_disk: true, impatient: false }
    );
}

#[test]
fn another_kernel_of_its_image_restarts_a_vm_on_its_disk() {
    let choice =
        KernelChoice { source: Some(KernelSource::Image(KernelPaths::default())), command_line: None };
    let made = |name: &str, command_line: Option<&str>| {
        let kernel = Some(KernelId(name.to_owned()));
        let boot = Some(Boot { kernel, command_line: command_line.map(str::to_owned) });
        PinnedImage {
            kernel: Some(Box::new(PinnedKernel { choice: choice.clone(), disk: None, boot })),
            ..pin('a')
        }
    };
    let look = |pin: &PinnedImage| Observed { image: known(pin.clone()), ..ready() };
    let mut record = up();
    let wanted = made("k", None);
    assert_eq!(decide(&record, &look(&wanted)).step, Step::Pin(wanted.clone()));
    record.image = Some(wanted.clone());
    let stop = decide(&record, &look(&wanted));
    assert!(matches!(stop.step, Step::Stop { .. }) && stop.message.contains("kernel"), "{stop:?}");
    let started = |record: &VmRecord, pin: &PinnedImage| {
        let mut record = record.clone();
        let Run::Up { boot, .. } = &mut record.run else { panic!("it runs") };
        *boot = pin.boot().unwrap();
        record
    };
    assert_eq!(decide(&started(&record, &wanted), &look(&wanted)).step, Step::Wait(None));
    // The same kernel by another way is no change; another command line is one.
    record.image = Some(made("k", Some("quiet")));
    let look_at = look(record.image.as_ref().unwrap());
    assert!(matches!(decide(&started(&record, &wanted), &look_at).step, Step::Stop { .. }));
    let other = KernelChoice { source: Some(KernelSource::Oci("k:1".to_owned())), command_line: None };
    let same = PinnedKernel { choice: other, ..*wanted.kernel.clone().unwrap() };
    record.image = Some(PinnedImage { kernel: Some(Box::new(same)), ..wanted.clone() });
    let look_at = look(record.image.as_ref().unwrap());
    assert_eq!(decide(&started(&record, &wanted), &look_at).step, Step::Wait(None));
    // It is started again on what it reserved.
    record.run = Run::Idle;
    assert_eq!(decide(&record, &Observed { permit: true, ..look_at }).step, Step::Boot);
}

#[test]
fn a_closed_gate_holds_the_failed_step_but_not_a_deletion() {
    let failure = |step: &Step| Failure {
        reason: "X".to_owned(),
        message: "x".to_owned(),
        transient: true,
        step: discriminant(step),
    };
    let gated =
        Observed { failure: Some(failure(&Step::Boot)), closed_until: Some(at(20)), permit: true, ..seen() };
    let waiting = decide(&reserved(), &gated);
    assert_eq!(
        (waiting.step, waiting.phase, waiting.reason.as_str()),
        (Step::Wait(Some(at(20))), "Backoff", "X")
    );
    // A crash loop's gate does not delay the record of the next exit, nor a stop.
    let exit =
        Observed { failure: Some(failure(&Step::Boot)), closed_until: Some(at(20)), ..exited(None, None) };
    assert!(matches!(decide(&up(), &exit).step, Step::RecordExit { .. }));
    let stalled = Failure { transient: false, ..failure(&Step::Boot) };
    let stalled = Observed { failure: Some(stalled), closed_until: None, permit: true, ..seen() };
    assert_eq!(
        (decide(&reserved(), &stalled).step, decide(&reserved(), &stalled).phase),
        (Step::Relinquish, "Failed"),
        "others can use what it does not run on"
    );
    assert_eq!(decide(&record(), &stalled).step, Step::Wait(None));
}

fn in_line(impatient: bool) -> Option<LineView> {
    let (store, _) = Store::in_memory();
    Some(LineView::Waits { standing: standing(&store), since: at(0), impatient })
}

/// What a VM is told that claims more than is free.
fn standing(store: &Store) -> Standing {
    use futures_util::FutureExt;
    let digest = pin('a').digest;
    let claim = |name: &str| {
        let object = Vm {
            metadata: crate::object::ObjectMeta { name: name.to_owned(), ..record().object.metadata },
            ..record().object
        };
        let origin = record().origin;
        let declared = store.declare(AnyObject::Vm(object), origin, false, at(0)).now_or_never().unwrap();
        let Ok(Declared::Created { uid }) = declared else { panic!("{declared:?}") };
        VmClaim {
            key: ObjectKey::new(Kind::Vm, "default", name),
            uid,
            generation: 1,
            image: digest.clone(),
            network: NetworkClaim::None,
            vmm_users: None,
            memory: Quantity::mebibytes(4096),
            cpus: 1,
            disk: Quantity::mebibytes(64),
            capacity: Capacity {
                memory: Quantity::mebibytes(6144),
                cpus: 8,
                disk: Quantity::mebibytes(1024),
            },
            impatient: false,
        }
    };
    let install = Uid::nil();
    store.claim_disk(&digest, install).now_or_never().unwrap().unwrap();
    let published =
        store.publish_disk(&digest, install, "/d".into(), Quantity::bytes(1), ImageConfig::default());
    published.now_or_never().unwrap().unwrap();
    store.reserve_vm(claim("first")).now_or_never().unwrap().unwrap();
    match store.reserve_vm(claim("second")).now_or_never().unwrap() {
        Err(ReserveError::Waiting { line }) => line.borrow().clone().unwrap(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_vm_that_does_not_fit_waits_and_becomes_impatient() {
    let line = |impatient, second| {
        let looks = Observed { line: in_line(impatient), ..seen() };
        plan(&reserved(), &looks, RULES, at(second))
    };
    let waits = line(false, 10);
    assert_eq!(
        (waits.step, waits.phase, waits.reason.as_str()),
        (Step::Wait(Some(at(120))), "Waiting", "InsufficientMemory")
    );
    assert_eq!(waits.message, "needs 4Gi of memory, 2Gi is free; 1st in line");
    assert_eq!(line(false, 120).step, Step::Reserve { discard_disk: false, impatient: true });
    assert_eq!(line(true, 500).step, Step::Wait(None));
}

#[test]
fn a_vm_whose_turn_has_come_claims_once_more_though_all_fits() {
    let called = Observed { line: Some(LineView::Called), permit: true, ..seen() };
    assert_eq!(decide(&reserved(), &called).step, Step::Reserve { discard_disk: false, impatient: false });
}

#[test]
fn who_is_not_to_run_gives_back_room_and_place() {
    let halted = |record| edited(record, |spec| spec.run_policy = RunPolicy::Halted);
    let waiting = Observed { line: in_line(false), ..seen() };
    assert_eq!(decide(&halted(reserved()), &seen()).step, Step::Relinquish);
    assert_eq!(decide(&halted(record()), &waiting).step, Step::Relinquish);
    assert_eq!(decide(&halted(record()), &seen()).step, Step::Wait(None));
    let blocked = Observed { dependency: Some("vm/db is Pulling".to_owned()), ..waiting };
    let mut pinned = record();
    pinned.image = Some(pin('a'));
    let plan = decide(&pinned, &blocked);
    assert_eq!(
        (plan.step, plan.phase, plan.reason.as_str()),
        (Step::Relinquish, "Waiting", "DependencyNotReady")
    );
    assert_eq!(plan.message, "vm/db is Pulling");
}

#[test]
fn a_dependency_holds_the_start_up_and_nothing_else() {
    let blocked = Observed { dependency: Some("vm/db is Pulling".to_owned()), permit: true, ..seen() };
    assert_eq!(decide(&reserved(), &blocked).phase, "Waiting");
    assert_eq!(decide(&up(), &Observed { dependency: blocked.dependency, ..ready() }).step, Step::Wait(None));
}

#[test]
fn a_reboot_of_the_host_is_no_end_of_the_workload() {
    let once = edited(up(), |spec| spec.run_policy = RunPolicy::Once);
    let seen = Observed { rebooted: true, ..exited(None, None) };
    assert_eq!(decide(&once, &seen).step, Step::RecordExit { rerun: true, failed: false });
    let exit = super::exit::last_exit(&seen, None, 30, at(1));
    assert_eq!((exit.reason.as_str(), exit.code), ("HostReboot", None));
    // The console's last line says that it had ended before.
    let ended = Observed { rebooted: true, ..exited(None, Some(0)) };
    assert_eq!(decide(&once, &ended).step, Step::RecordExit { rerun: false, failed: false });
}

#[test]
fn a_stop_that_became_a_killing_says_so() {
    let stopping = Stopping { since: at(0), why: "the VM is deleted".to_owned() };
    let said = |exit: Observed| super::exit::last_exit(&exit, Some(&stopping), 30, at(1));
    let (shut_down, deaf) = (said(exited(None, Some(0))), said(exited(None, Some(137))));
    assert_eq!(
        (shut_down.reason.as_str(), shut_down.message.as_str()),
        ("Shutdown", "shut down: the VM is deleted")
    );
    assert_eq!(deaf.reason, "Killed");
    assert!(
        deaf.message.ends_with("its workload did not end within 30 s and was killed"),
        "{}",
        deaf.message
    );
}

fn any_record() -> impl Strategy<Value = VmRecord> {
    let policies = [RunPolicy::Always, RunPolicy::RerunOnFailure, RunPolicy::Once, RunPolicy::Halted];
    (0..4_usize, any::<bool>(), any::<bool>(), prop::sample::select(policies.to_vec()), 0..40_u32).prop_map(
        |(stage, gone, stop, policy, grace)| {
            let record = match stage {
                0 => record(),
                1 => reserved(),
                _ => up(),
            };
            let record = if stop { stopping(record) } else { record };
            let record = edited(record, |spec| {
                spec.run_policy = policy;
                spec.termination_grace_period_seconds = grace;
            });
            if gone { deleted(record) } else { record }
        },
    )
}

fn any_sight() -> impl Strategy<Value = Observed> {
    let guests = [
        Guest::Silent { ever: false, since: at(0) },
        Guest::Silent { ever: true, since: at(0) },
        Guest::Connected { state: GuestState::Ready, since: at(0) },
        Guest::Connected { state: GuestState::Exited { code: 1 }, since: at(0) },
    ];
    let images = [
        ImageView::Unresolved { source: Source::Oci("r".to_owned()), policy: PullPolicy::default() },
        ImageView::Waiting { reason: "ImageNotFound".to_owned(), message: String::new() },
        image(pin('a'), None, None),
        known(pin('a')),
        known(pin('b')),
    ];
    let lines = [None, None, Some(LineView::Called), in_line(false), in_line(true)];
    (
        prop::sample::select(guests.to_vec()),
        prop::sample::select(images.to_vec()),
        prop::sample::select(lines.to_vec()),
        any::<[bool; 7]>(),
    )
        .prop_map(|(guest, image, line, [exit, permit, asked, closed, blocked, rebooted, transient])| {
            let dependency = blocked.then(|| "vm/db is Pulling".to_owned());
            let base = if exit { exited(None, Some(1)) } else { seen() };
            let failed = Failure {
                reason: "X".to_owned(),
                message: String::new(),
                transient,
                step: discriminant(&Step::Boot),
            };
            let failure = closed.then_some(failed);
            let closed_until = closed.then_some(at(5000));
            Observed {
                guest,
                image,
                permit,
                asked,
                failure,
                closed_until,
                line,
                dependency,
                rebooted,
                killed: None,
                ..base
            }
        })
}

proptest! {
    /// Whatever is recorded and seen: nothing boots that is deleted, halted, up, unreserved or behind
    /// a closed gate, and nothing that is up loses its reservation or record.
    #[test]
    fn no_step_breaks_the_order_of_things(record in any_record(), seen in any_sight(), second in 0..100_i64) {
        let now = at(second);
        let step = plan(&record, &seen, RULES, now).step;
        let is_up = matches!(record.run, Run::Up { .. });
        let gone = record.object.metadata.deletion_timestamp.is_some();
        match step {
            Step::Boot | Step::Queue => {
                prop_assert!(!gone && !is_up && record.reservation.is_some() && seen.closed_until.is_none());
                prop_assert!(seen.dependency.is_none() && seen.line.is_none());
                prop_assert!(record.object.spec.run_policy != RunPolicy::Halted);
                prop_assert_eq!(&record.reservation.unwrap().image, &record.image.unwrap().digest);
            }
            Step::TearDown | Step::Remove => prop_assert!(gone && !is_up),
            Step::Reserve { .. } => prop_assert!(!gone && !is_up),
            Step::Stop { .. } | Step::Ask | Step::Kill { .. } | Step::RecordExit { .. } => prop_assert!(is_up),
            Step::Wait(Some(until)) => prop_assert!(until > now, "a wait that is over spins"),
            Step::Relinquish => prop_assert!(!is_up),
            Step::Wait(None) | Step::Resolve(_) | Step::Find(_) | Step::Pin(_) | Step::Pull(_) => {}
        }
    }

    /// A VM that is up and deleted is on its way down, or waits with a time limit.
    #[test]
    fn a_deletion_never_waits_for_ever(record in any_record(), seen in any_sight(), second in 0..100_i64) {
        let record = deleted(record);
        let step = plan(&record, &seen, RULES, at(second)).step;
        prop_assert!(step != Step::Wait(None), "{step:?}");
    }
}

#[test]
fn a_boot_that_was_given_up_says_why_it_was_killed() {
    let killed = |killed: Option<&str>| {
        let exit = VmmExit { code: None, signal: Some(9), workload: None, message: String::new() };
        let seen = Observed { exit: Some(exit), killed: killed.map(str::to_owned), ..seen() };
        super::exit::last_exit(&seen, None, 30, at(1))
    };
    let (given_up, by_another) = (killed(Some("the guest was not heard of within 60 s")), killed(None));
    assert_eq!(given_up.reason, "Killed");
    assert_eq!(given_up.message, "killed: the guest was not heard of within 60 s");
    assert_eq!(by_another.message, "signal 9 ended the VMM");
}

#[test]
fn a_step_that_failed_is_not_taken_before_its_time_whatever_asks_for_it() {
    let failed = |step: Step| {
        let (reason, message) = ("DriverFailed".to_owned(), "it did not work".to_owned());
        let failure = Failure { reason, message, transient: true, step: discriminant(&step) };
        Observed { failure: Some(failure), closed_until: Some(at(500)), ..ready() }
    };
    let overdue = stopping(edited(up(), |spec| spec.termination_grace_period_seconds = 1));
    let kill = Step::Kill { why: String::new() };
    assert_eq!(discriminant(&decide(&overdue, &ready()).step), discriminant(&kill));
    assert_eq!(decide(&overdue, &failed(kill)).step, Step::Wait(Some(at(500))));
    let going = deleted(reserved());
    assert_eq!(decide(&going, &ready()).step, Step::TearDown);
    let waits = decide(&going, &failed(Step::TearDown));
    assert_eq!((waits.step, waits.phase), (Step::Wait(Some(at(500))), "Terminating"));
}

#[test]
fn a_vm_that_was_stopped_for_an_edit_runs_again_whatever_its_policy() {
    let once = stopping(edited(up(), |spec| spec.run_policy = RunPolicy::Once));
    assert_eq!(decide(&once, &exited(None, Some(0))).step, Step::RecordExit { rerun: true, failed: false });
}

#[test]
fn a_guest_that_does_not_power_off_after_its_workload_is_killed() {
    let state = GuestState::Exited { code: 0 };
    let guest = Guest::Connected { state: state.clone(), since: at(0) };
    let seen = Observed { guest, last: Some(state), ..seen() };
    assert_eq!(plan(&up(), &seen, RULES, at(29)).step, Step::Wait(Some(at(30))));
    assert!(matches!(plan(&up(), &seen, RULES, at(30)).step, Step::Kill { .. }));
}
