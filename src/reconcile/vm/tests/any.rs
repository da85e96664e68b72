//! What holds of every decision, whatever is recorded and seen.

use proptest::prelude::*;

use super::*;

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
