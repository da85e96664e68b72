//! What stops a VM that runs, and how.

use super::*;

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
fn a_guest_that_does_not_power_off_after_its_workload_is_killed() {
    let state = GuestState::Exited { code: 0 };
    let guest = Guest::Connected { state: state.clone(), since: at(0) };
    let seen = Observed { guest, last: Some(state), ..seen() };
    assert_eq!(plan(&up(), &seen, RULES, at(29)).step, Step::Wait(Some(at(30))));
    assert!(matches!(plan(&up(), &seen, RULES, at(30)).step, Step::Kill { .. }));
}

#[test]
fn deletion_goes_one_way_stop_tear_down_remove() {
    assert!(matches!(decide(&deleted(up()), &ready()).step, Step::Stop { .. }));
    assert_eq!(decide(&deleted(reserved()), &seen()).step, Step::TearDown);
    assert_eq!(decide(&deleted(record()), &seen()).step, Step::Remove);
}
