use futures_util::FutureExt;
use proptest::prelude::*;
use serde_json::json;
use tokio::sync::watch;

use super::super::admission::{Budget, Verdict, Waiter, verdicts};
use super::super::*;
use super::support::*;
use crate::object::{Quantity, Uid};

fn waiter(memory: u64, free: u64, impatient: bool) -> Waiter {
    let budget = |memory| Budget { memory, cpus: 1, disk: 1 };
    Waiter { needs: budget(memory), free: Budget { cpus: 100, disk: 100, ..budget(free) }, impatient }
}

fn waits(kept_for: Option<usize>) -> Verdict {
    Verdict::Waits { lacks: Resource::Memory, kept_for }
}

#[test]
fn smaller_ones_pass_a_patient_one_and_none_passes_an_impatient_one() {
    let line =
        |impatient| [waiter(6, 4, impatient), waiter(3, 4, false), waiter(2, 4, false), waiter(1, 4, false)];
    use Verdict::Admitted;
    assert_eq!(verdicts(&line(false)), [waits(None), Admitted, waits(None), Admitted]);
    assert_eq!(verdicts(&line(true)), [waits(None), waits(Some(0)), waits(Some(0)), waits(Some(0))]);
}

#[test]
fn what_an_impatient_one_does_not_lack_is_shared_besides_its_own_share() {
    let needs = |memory, cpus| Budget { memory, cpus, disk: 0 };
    let free = Budget { memory: 1, cpus: 4, disk: 0 };
    let first = Waiter { needs: needs(9, 3), free, impatient: true };
    let line = [first, Waiter { needs: needs(0, 1), impatient: false, ..first }];
    assert_eq!(verdicts(&line)[1], Verdict::Admitted);
    let line = [first, Waiter { needs: needs(0, 2), impatient: false, ..first }];
    assert_eq!(verdicts(&line)[1], Verdict::Waits { lacks: Resource::Cpus, kept_for: Some(0) });
}

proptest! {
    /// Whatever the line: nobody is let in beyond what is free, nobody waits who could be let in, and
    /// behind an impatient one nobody gets of what it lacks.
    #[test]
    fn the_rule_holds_for_every_line(
        line in prop::collection::vec((1..10_u64, any::<bool>()), 0..12), free in 0..20_u64
    ) {
        let waiters: Vec<Waiter> = line.iter().map(|(memory, angry)| waiter(*memory, free, *angry)).collect();
        let (mut left, mut barred) = (free, false);
        for (waiter, verdict) in waiters.iter().zip(verdicts(&waiters)) {
            let needs = waiter.needs.memory;
            if verdict == Verdict::Admitted {
                prop_assert!(!barred && needs <= left);
                left -= needs;
            } else {
                prop_assert!(barred || needs > left);
                barred |= waiter.impatient;
            }
        }
    }
}

/// A VM of that priority which wants that much of the 1024 MiB.
struct Applicant {
    name: &'static str,
    uid: Uid,
    memory: u64,
}

fn applicant(store: &Store, name: &'static str, priority: i32, memory: u64) -> Applicant {
    let uid = declare(store, vm_with(name, json!({"image": {"name": "base"}, "priority": priority})));
    Applicant { name, uid, memory }
}

fn claim_of(who: &Applicant, impatient: bool) -> VmClaim {
    let network = NetworkClaim::None;
    VmClaim { memory: Quantity::mebibytes(who.memory), network, impatient, ..claim(who.name, who.uid) }
}

fn apply(store: &Store, who: &Applicant) -> Result<Reservation, ReserveError> {
    now(store.reserve_vm(claim_of(who, false)))
}

type Line = watch::Receiver<Option<Standing>>;

fn line(store: &Store, who: &Applicant, impatient: bool) -> Line {
    match now(store.reserve_vm(claim_of(who, impatient))) {
        Err(ReserveError::Waiting { line }) => line,
        other => panic!("{} does not wait: {other:?}", who.name),
    }
}

fn told(line: &Line) -> String {
    line.borrow().as_ref().map(ToString::to_string).unwrap_or_default()
}

fn called(line: &Line) -> bool {
    line.has_changed().is_err()
}

fn holds(store: &Store, who: &Applicant) -> bool {
    store.vm(&key(who.name)).unwrap().reservation.as_ref().is_some_and(Reservation::can_run)
}

#[test]
fn who_does_not_fit_waits_and_is_let_in_by_the_release() {
    let (store, _) = store_with_disk();
    let (a, b) = (applicant(&store, "a", 0, 768), applicant(&store, "b", 0, 512));
    apply(&store, &a).unwrap();
    let line = line(&store, &b, false);
    assert_eq!(told(&line), "needs 512Mi of memory, 256Mi is free; 1st in line");
    assert!(!holds(&store, &b));
    now(store.release_vm(&key("a"), a.uid)).unwrap();
    assert!(called(&line) && holds(&store, &b), "the transaction that made room let it in");
    assert_eq!(apply(&store, &b).unwrap(), store.vm(&key("b")).unwrap().reservation.clone().unwrap());
}

#[test]
fn the_line_is_in_order_of_priority_then_age() {
    let (store, _) = store_with_disk();
    let all = applicant(&store, "all", 0, 1024);
    apply(&store, &all).unwrap();
    let low = applicant(&store, "a-low", -1, 600);
    let young = applicant(&store, "young", 0, 600);
    let vip = applicant(&store, "vip", 7, 600);
    let lines = [&low, &young, &vip].map(|who| line(&store, who, false));
    let places: Vec<String> =
        lines.iter().map(|line| told(line).rsplit_once("; ").unwrap().1.to_owned()).collect();
    assert_eq!(places, ["3rd in line", "2nd in line", "1st in line"]);
    now(store.release_vm(&key("all"), all.uid)).unwrap();
    assert_eq!([&low, &young, &vip].map(|who| holds(&store, who)), [false, false, true]);
    assert!(told(&lines[0]).ends_with("2nd in line"));
}

#[test]
fn of_equal_priority_the_older_is_first_whatever_the_names() {
    let (store, _) = store_with_disk();
    let all = applicant(&store, "all", 0, 1024);
    apply(&store, &all).unwrap();
    let young = applicant(&store, "a-young", 0, 600);
    let created = now(store.declare(vm("z-old"), origin("a.yaml"), false, at(0))).unwrap();
    let Declared::Created { uid } = created else { panic!("{created:?}") };
    let old = Applicant { name: "z-old", uid, memory: 600 };
    let lines = [&young, &old].map(|who| line(&store, who, false));
    assert!(told(&lines[0]).ends_with("2nd in line"), "{}", told(&lines[0]));
    now(store.release_vm(&key("all"), all.uid)).unwrap();
    assert_eq!([&young, &old].map(|who| holds(&store, who)), [false, true]);
}

#[test]
fn a_refused_claim_leaves_the_line_and_lets_others_in() {
    let (store, _) = store_with_disk();
    let (a, big, small) = (
        applicant(&store, "a", 0, 768),
        applicant(&store, "big", 0, 512),
        applicant(&store, "small", 0, 128),
    );
    apply(&store, &a).unwrap();
    let line_of_big = line(&store, &big, true);
    line(&store, &small, false);
    let refused = now(store.reserve_vm(VmClaim { image: digest(9), ..claim_of(&big, true) }));
    assert!(matches!(refused, Err(ReserveError::ImageNotReady { .. })), "{refused:?}");
    assert!(called(&line_of_big) && holds(&store, &small), "nothing is kept for who is not in line");
}

#[test]
fn what_a_vm_gives_back_to_stand_in_line_lets_others_in_at_once() {
    let (store, _) = store_with_disk();
    let (a, b, c) =
        (applicant(&store, "a", 0, 640), applicant(&store, "b", 0, 512), applicant(&store, "c", 0, 128));
    apply(&store, &a).unwrap();
    apply(&store, &c).unwrap();
    line(&store, &b, false);
    line(&store, &Applicant { memory: 1024, ..a }, false);
    assert!(holds(&store, &b));
}

#[test]
fn of_two_that_race_for_the_last_room_exactly_one_gets_it() {
    let (store, _) = store_with_disk();
    let (a, b) = (applicant(&store, "a", 0, 1024), applicant(&store, "b", 9, 1024));
    apply(&store, &a).unwrap();
    line(&store, &b, false);
    now(store.release_vm(&key("a"), a.uid)).unwrap();
    let again = line(&store, &a, false);
    assert_eq!((holds(&store, &a), holds(&store, &b)), (false, true), "{}", told(&again));
}

#[test]
fn a_big_one_is_passed_until_its_patience_ends() {
    let (store, _) = store_with_disk();
    let (base, big) = (applicant(&store, "base", 0, 512), applicant(&store, "big", 0, 1024));
    let (small, late) = (applicant(&store, "small", 0, 256), applicant(&store, "zlate", 0, 128));
    apply(&store, &base).unwrap();
    line(&store, &big, false);
    apply(&store, &small).expect("it passes the big one");
    let big_line = line(&store, &big, true);
    let late_line = line(&store, &late, false);
    assert_eq!(
        told(&late_line),
        "needs 128Mi of memory, and the 256Mi free is kept for vm/big, which has waited long; 2nd in line"
    );
    now(store.release_vm(&key("base"), base.uid)).unwrap();
    assert!(!holds(&store, &late) && !holds(&store, &big));
    now(store.release_vm(&key("small"), small.uid)).unwrap();
    assert!(called(&big_line) && holds(&store, &big) && !holds(&store, &late));
}

#[test]
fn an_edit_or_a_deletion_leaves_the_line_and_lets_others_in() {
    let (store, _) = store_with_disk();
    let (base, big) = (applicant(&store, "base", 0, 512), applicant(&store, "big", 0, 1024));
    let small = applicant(&store, "small", 0, 256);
    apply(&store, &base).unwrap();
    for deleted in [false, true] {
        let generation = store.vm(&key("big")).unwrap().object.metadata.generation;
        let claim = VmClaim { generation, ..claim_of(&big, true) };
        let Err(ReserveError::Waiting { line: big_line }) = now(store.reserve_vm(claim)) else {
            panic!("it does not wait")
        };
        let small_line = line(&store, &small, false);
        if deleted {
            now(store.undeclare(&key("big"), "directory:/m", at(2))).unwrap();
        } else {
            let edited = vm_with("big", json!({"image": {"name": "base"}, "priority": 1}));
            now(store.declare(edited, origin("a.yaml"), false, at(2))).unwrap();
        }
        assert!(called(&big_line) && called(&small_line), "deleted: {deleted}");
        assert!(holds(&store, &small));
        now(store.release_vm(&key("small"), small.uid)).unwrap();
    }
}

#[test]
fn who_waits_holds_neither_memory_nor_processors_but_keeps_its_leases() {
    let (store, _) = store_with_disk();
    let (a, b) = (declare(&store, vm("a")), declare(&store, vm("b")));
    let sized = |name, uid, memory| {
        now(store.reserve_vm(VmClaim { memory: Quantity::mebibytes(memory), ..claim(name, uid) }))
    };
    let held = sized("a", a, 512).unwrap();
    sized("b", b, 512).unwrap();
    // Each wants what the other holds: the first to say so makes room for the second.
    assert!(matches!(sized("a", a, 640), Err(ReserveError::Waiting { .. })));
    let waiting = store.vm(&key("a")).unwrap().reservation.clone().unwrap();
    assert_eq!((waiting.memory, waiting.cpus), (Quantity::bytes(0), 0));
    assert_eq!((waiting.nic.clone(), waiting.disk), (held.nic, held.disk));
    sized("b", b, 640).unwrap();
    now(store.relinquish_vm(&key("b"), b)).unwrap();
    assert_eq!(store.vm(&key("a")).unwrap().reservation.clone().unwrap().memory, Quantity::mebibytes(640));
}

#[test]
fn a_vm_that_does_not_run_gives_its_room_and_place_back() {
    let (store, _) = store_with_disk();
    let (a, b) = (applicant(&store, "a", 0, 1024), applicant(&store, "b", 0, 512));
    apply(&store, &a).unwrap();
    let line_b = line(&store, &b, false);
    now(store.relinquish_vm(&key("b"), b.uid)).unwrap();
    assert!(called(&line_b) && !holds(&store, &b));
    now(store.publish_vm(&key("a"), a.uid, VmUpdate { run: Some(running()), ..VmUpdate::default() }))
        .unwrap();
    assert!(matches!(now(store.relinquish_vm(&key("a"), a.uid)), Err(ReleaseError::Running)));
    now(store.publish_vm(&key("a"), a.uid, VmUpdate { run: Some(Run::Idle), ..VmUpdate::default() }))
        .unwrap();
    now(store.relinquish_vm(&key("a"), a.uid)).unwrap();
    assert!(!holds(&store, &a) && store.vm(&key("a")).unwrap().reservation.is_some());
    apply(&store, &b).unwrap();
}

#[test]
fn what_can_never_fit_is_refused_at_once_and_says_so() {
    let (store, _) = store_with_disk();
    let a = applicant(&store, "a", 0, 2048);
    let refused = apply(&store, &a).unwrap_err();
    assert!(!refused.transient());
    assert_eq!(
        refused.to_string(),
        "needs 2Gi of memory, and all VMs together may have 1Gi of memory; shrink the VM or start vmlet with a larger --memory-capacity"
    );
    let cpus =
        now(store.reserve_vm(VmClaim { cpus: 9, memory: Quantity::mebibytes(64), ..claim_of(&a, false) }));
    let Err(ReserveError::ExceedsCapacity { what: Resource::Cpus, .. }) = cpus else { panic!("{cpus:?}") };
}

#[test]
fn processors_and_disk_space_are_waited_for_likewise() {
    let (store, _) = store_with_disk();
    let (a, b) = (applicant(&store, "a", 0, 64), applicant(&store, "b", 0, 64));
    now(store.reserve_vm(VmClaim { cpus: 7, disk: Quantity::mebibytes(4000), ..claim_of(&a, false) }))
        .unwrap();
    let waits = |claim| match now(store.reserve_vm(claim)) {
        Err(ReserveError::Waiting { line }) => told(&line),
        other => panic!("{other:?}"),
    };
    let cpus = waits(VmClaim { cpus: 2, ..claim_of(&b, false) });
    assert_eq!(cpus, "needs 2 virtual processors, 1 is free; 1st in line");
    let disk = waits(VmClaim { disk: Quantity::mebibytes(128), ..claim_of(&b, false) });
    assert_eq!(disk, "needs 128Mi of disk space, 96Mi is free; 1st in line");
}

#[test]
fn the_back_of_a_long_line_is_not_told_of_every_step() {
    let (store, _) = store_with_disk();
    let all = applicant(&store, "all", 0, 1024);
    apply(&store, &all).unwrap();
    let names: Vec<&'static str> = (10..30).map(|n| &*format!("vm-{n}").leak()).collect();
    let lines: Vec<Line> =
        names.iter().map(|name| line(&store, &applicant(&store, name, 0, 512), false)).collect();
    let mut last = lines[19].clone();
    assert_eq!(told(&last), "needs 512Mi of memory; 8 or more are ahead in line");
    last.borrow_and_update();
    now(store.release_vm(&key("all"), all.uid)).unwrap();
    assert!(called(&lines[0]) && called(&lines[1]) && told(&lines[2]).ends_with("1st in line"));
    assert!(last.changed().now_or_never().is_none());
}

#[test]
fn a_process_is_not_published_of_a_vm_that_is_deleted_or_has_nothing_to_run_on() {
    let (store, _) = store_with_disk();
    let a = applicant(&store, "a", 0, 512);
    let up =
        || now(store.publish_vm(&key("a"), a.uid, VmUpdate { run: Some(running()), ..VmUpdate::default() }));
    apply(&store, &a).unwrap();
    now(store.relinquish_vm(&key("a"), a.uid)).unwrap();
    assert!(matches!(up(), Err(PublishError::Stale)), "it gave back what it would run on");
    apply(&store, &a).unwrap();
    now(store.undeclare(&key("a"), "directory:/m", at(2))).unwrap();
    assert!(matches!(up(), Err(PublishError::Stale)), "it is being deleted");
}

#[test]
fn what_is_kept_is_kept_for_the_first_who_waits_impatiently_and_only_if_it_would_do() {
    let line = [waiter(1, 4, true), waiter(4, 4, false)];
    assert_eq!(verdicts(&line)[1], waits(None), "the first was let in: nothing is kept for it");
    let line = [waiter(6, 4, true), waiter(5, 4, true), waiter(3, 4, false), waiter(7, 4, false)];
    assert_eq!(verdicts(&line)[2..], [waits(Some(0)), waits(None)]);
}

/// One VM holds half of the disk space and wants another disk, too big or of another image; who stands behind
/// it gets what the old one took.
#[test]
fn a_disk_that_is_to_go_gives_its_space_back_while_its_vm_waits() {
    for other_image in [false, true] {
        let (store, _) = store_with_disk();
        install(&store, &digest(2));
        let names = ["a", "b", "c"];
        let uids = names.map(|name| declare(&store, vm(name)));
        let capacity =
            Capacity { memory: Quantity::mebibytes(1024), cpus: 8, disk: Quantity::mebibytes(2048) };
        let of = |at: usize| VmClaim { capacity, ..claim(names[at], uids[at]) };
        now(store.reserve_vm(of(0))).unwrap();
        now(store.reserve_vm(of(1))).unwrap();
        assert!(
            matches!(now(store.reserve_vm(of(2))), Err(ReserveError::Waiting { .. })),
            "no space is left"
        );
        let larger = if other_image {
            VmClaim { image: digest(2), memory: Quantity::mebibytes(1000), ..of(0) }
        } else {
            VmClaim { disk: Quantity::mebibytes(1500), ..of(0) }
        };
        assert!(matches!(now(store.reserve_vm(larger)), Err(ReserveError::Waiting { .. })));
        let held = store.vm(&key("c")).unwrap().reservation.clone();
        assert!(held.is_some_and(|held| held.can_run()), "other image: {other_image}");
    }
}
