//! The way up: image, room, permit, boot, and what holds it up.

use std::net::Ipv4Addr;

use super::*;
use crate::network::{Link, Nic};
use crate::object::{Network, Port, Protocol};

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
fn an_ended_vm_runs_again_only_for_a_new_spec_or_policy() {
    let mut ended = reserved();
    ended.object.spec.run_policy = RunPolicy::Once;
    ended.run = Run::Ended { spec: ended.object.spec.clone() };
    ended.last_exit = Some(LastExit {
        code: Some(1),
        reason: "Error".to_owned(),
        message: "it failed".to_owned(),
        finished_at: wall(0),
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
    assert_eq!(step(&edited(ended.clone(), |spec| spec.run_policy = RunPolicy::Halted)), Step::Wait(None));
    ended.last_exit.as_mut().unwrap().code = Some(0);
    assert_eq!(
        step(&edited(ended, |spec| spec.run_policy = RunPolicy::RerunOnFailure)),
        Step::Wait(None),
        "it has succeeded"
    );
}

#[test]
fn what_is_held_and_does_not_fit_the_spec_is_claimed_anew() {
    let port = |host| Port { host, guest: 80, protocol: Protocol::Tcp };
    let bridged = || {
        let (tap, gateway) = ("vmt0".to_owned(), Ipv4Addr::new(10, 63, 0, 1));
        let address = Ipv4Addr::new(10, 63, 0, 2);
        let link = Link::Bridge { tap, tap_owner: None, address, prefix: 24, gateway };
        Some(Nic { mac: "52:54:00:00:00:01".to_owned(), link, ports: vec![port(8080)] })
    };
    let users = || Some(Nic { link: Link::User, ..bridged().unwrap() });
    let step = |nic: Option<Nic>, mode: NetworkMode, edit: fn(&mut VmSpec)| {
        let mut held = reserved();
        let ports = nic.iter().flat_map(|nic| nic.ports.clone()).collect();
        held.object.spec.network = Network { mode: Some(mode), ports, ..Network::default() };
        held.reservation.as_mut().unwrap().nic = nic;
        decide(&edited(held, edit), &seen()).step
    };
    let (none, bridge, user) = (NetworkMode::None, NetworkMode::Bridge, NetworkMode::User);
    let fits = |step: Step| assert_eq!(step, Step::Queue);
    fits(step(None, none, |_| {}));
    fits(step(bridged(), bridge, |_| {}));
    fits(step(users(), user, |_| {}));
    fits(step(bridged(), bridge, |spec| spec.network.address = Some(Ipv4Addr::new(10, 63, 0, 2))));
    let anew = |step: Step| assert_eq!(step, Step::Reserve { discard_disk: false, impatient: false });
    anew(step(None, bridge, |_| {}));
    anew(step(None, user, |_| {}));
    anew(step(bridged(), none, |_| {}));
    anew(step(bridged(), user, |_| {}));
    anew(step(users(), bridge, |_| {}));
    anew(step(bridged(), bridge, |spec| spec.network.address = Some(Ipv4Addr::new(10, 63, 0, 9))));
    anew(step(bridged(), bridge, |spec| spec.network.ports[0].host = 8081));
    anew(step(users(), user, |spec| spec.network.ports.clear()));
    anew(step(None, none, |spec| spec.cpus += 1));
    anew(step(None, none, |spec| spec.memory = Quantity::mebibytes(1024)));
    let size = step(None, none, |spec| spec.root_disk.size = Quantity::mebibytes(1));
    assert_eq!(size, Step::Reserve { discard_disk: true, impatient: false }, "a disk of another size");
}

#[test]
fn who_waits_for_an_image_that_cannot_be_had_keeps_no_room_from_others() {
    let waiting = |reason: &str| ImageView::Waiting { reason: reason.to_owned(), message: String::new() };
    let failed = |retry| PullState::Failed { reason: "NotFound", message: "x".to_owned(), attempt: 1, retry };
    let pulled = |retry| image(pin('a'), None, Some(failed(retry)));
    for view in [waiting("ImageNotFound"), waiting("Pulling"), pulled(None), pulled(Some(wall(20)))] {
        let plan = decide(&reserved(), &Observed { image: view, ..seen() });
        assert_eq!(plan.step, Step::Relinquish, "{}: {}", plan.phase, plan.reason);
    }
    // The registry that has just failed may answer soon, but nothing runs before it does.
    let (source, step) = (pin('a').source, discriminant(&Step::Resolve(pin('a').source)));
    let failure = Failure { reason: "X".to_owned(), message: String::new(), transient: true, step };
    let unresolved = ImageView::Unresolved { source, policy: PullPolicy::default() };
    let gated = Observed { image: unresolved, failure: Some(failure), closed_until: Some(at(20)), ..seen() };
    assert_eq!(decide(&reserved(), &gated).step, Step::Relinquish);
    assert_eq!(decide(&record(), &gated).step, Step::Wait(Some(at(20))), "it holds nothing");
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
