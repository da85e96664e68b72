//! A VM that runs and is left alone: what is told of its guest, and when it is looked at again.

use super::*;

/// Waits, of a VM that is up, at second 10.
fn look(seen: Observed) -> (Step, &'static str, String) {
    let plan = decide(&up(), &seen);
    (plan.step, plan.phase, plan.reason)
}

fn told(step: Step, phase: &'static str, reason: &str) -> (Step, &'static str, String) {
    (step, phase, reason.to_owned())
}

#[test]
fn a_guest_whose_link_is_made_anew_is_not_lost_yet() {
    let silent = |since| Observed { guest: Guest::Silent { ever: true, since: at(since) }, ..seen() };
    assert_eq!(look(silent(9)), told(Step::Wait(Some(at(12))), "Running", "Adopting"));
    assert_eq!(look(silent(8)), told(Step::Wait(Some(at(11))), "Running", "Adopting"));
    assert_eq!(look(silent(7)), told(Step::Wait(None), "Running", "AgentLost"));
}

#[test]
fn a_guest_is_told_of_as_it_is() {
    let connected = |state: GuestState| {
        look(Observed {
            guest: Guest::Connected { state: state.clone(), since: at(1) },
            last: Some(state),
            ..seen()
        })
    };
    assert_eq!(connected(GuestState::Starting), told(Step::Wait(None), "Starting", "WorkloadStarting"));
    assert_eq!(connected(GuestState::Ready), told(Step::Wait(None), "Running", "Ready"));
}

/// The gate of a failure is the image's, or of the start before: the VM runs on meanwhile.
#[test]
fn a_new_image_is_fetched_again_when_the_gate_opens_and_not_before() {
    let unresolved = ImageView::Unresolved { source: pin('b').source, policy: PullPolicy::default() };
    let failed = |step: Step| Failure {
        reason: "X".to_owned(),
        message: String::new(),
        transient: true,
        step: discriminant(&step),
    };
    let look = |failure: Option<Failure>| {
        let closed_until = failure.is_some().then(|| at(20));
        decide(&up(), &Observed { image: unresolved.clone(), failure, closed_until, ..ready() })
    };
    let fetch = Step::Resolve(pin('b').source);
    assert_eq!((look(None).step, look(None).phase), (fetch.clone(), "Running"));
    for step in [fetch, Step::Boot] {
        let waits = look(Some(failed(step)));
        assert_eq!((waits.step, waits.reason.as_str()), (Step::Wait(Some(at(20))), "Ready"));
    }
}
