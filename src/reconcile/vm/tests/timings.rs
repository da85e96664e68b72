//! The phases of a start, and how long they took.

use super::super::activity::{Stopwatch, activity};
use super::*;
use crate::object::Timings;
use crate::reconcile::track::Left;
use crate::timeline::Phase;

/// Phases that are left one after the other, each with its milliseconds.
fn timed(launched: bool, phases: &[(Phase, u64, bool)]) -> Timings {
    let mut watch = Stopwatch::new(Timings::default());
    for (index, (phase, millis, failed)) in phases.iter().enumerate() {
        let left = Left { phase: *phase, took: Duration::from_millis(*millis), failed: *failed };
        let next = phases.get(index + 1).map(|(next, ..)| *next);
        watch.left(left, next.or(Some(Phase::Ready)), launched);
    }
    watch.timings
}

#[test]
fn each_phase_of_a_start_counts_for_its_timing() {
    let start = [
        (Phase::Resolve, 1, false),
        (Phase::ImageWait, 20, false),
        (Phase::Blocked, 5, false),
        (Phase::ImageWait, 300, false),
        (Phase::Reserve, 4000, false),
        (Phase::Prepare, 2, false),
        (Phase::Boot, 30, false),
        (Phase::Workload, 400, false),
    ];
    let expected = Timings {
        image_ms: Some(321),
        reserve_ms: Some(4000),
        prepare_ms: Some(2),
        boot_ms: Some(30),
        workload_ms: Some(400),
    };
    assert_eq!(timed(true, &start), expected);
    // Another daemon started it: how long that took is not known.
    assert_eq!(timed(false, &start), Timings { boot_ms: None, workload_ms: None, ..expected });
}

#[test]
fn a_reservation_that_failed_is_no_timing_and_keeps_the_waits_before_it() {
    let again = [(Phase::ImageWait, 20, false), (Phase::Reserve, 7, true), (Phase::Reserve, 3, false)];
    let timings = timed(true, &again);
    assert_eq!((timings.image_ms, timings.reserve_ms), (Some(20), Some(3)));
    assert_eq!(timed(true, &again[..2]), Timings::default());
}

#[test]
fn a_vm_whose_failure_no_retry_mends_is_in_no_phase() {
    let phase = |transient, closed_until| {
        let (reason, message, step) = ("X".to_owned(), "x".to_owned(), discriminant(&Step::Boot));
        let failure = Some(Failure { reason, message, transient, step });
        let seen = Observed { failure, closed_until, ..seen() };
        let activity = activity(&record(), &seen, &decide(&record(), &seen));
        (activity.phase, activity.failed)
    };
    assert_eq!(phase(true, Some(at(20))), (Some(Phase::Backoff), true));
    assert_eq!(phase(false, None), (None, true));
}
