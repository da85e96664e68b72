//! What people are told: the status by value.

use super::super::status::{Extras, status};
use super::*;
use crate::object::{Condition, Port, Protocol, Timings, VmStatus};

/// The status at a second.
fn describe(record: &VmRecord, seen: &Observed, second: i64) -> VmStatus {
    let plan = plan(record, seen, RULES, at(second));
    let extras = Extras { driver: "test", timings: &Timings::default(), now: wall(second) };
    status(record, seen, &plan, &extras, at(second))
}

/// The truth of a condition; none if it is not listed.
fn is(status: &VmStatus, kind: &str) -> Option<bool> {
    let found = status.conditions.iter().find(|condition| condition.kind == kind)?;
    Some(found.status == true.into())
}

fn said_ready(mut record: VmRecord) -> VmRecord {
    let ready = Condition {
        kind: "Ready".to_owned(),
        status: true.into(),
        observed_generation: 1,
        last_transition_time: wall(0),
        reason: "Ready".to_owned(),
        message: String::new(),
    };
    record.object.status.conditions.push(ready);
    record
}

fn failed(transient: bool) -> Option<Failure> {
    let step = discriminant(&Step::Boot);
    Some(Failure { reason: "X".to_owned(), message: "it failed".to_owned(), transient, step })
}

#[test]
fn a_vm_is_ready_while_its_guest_says_so() {
    let heard = describe(&up(), &ready(), 10);
    assert_eq!(
        (is(&heard, "Ready"), is(&heard, "Reconciling"), is(&heard, "Stalled")),
        (Some(true), None, None)
    );
    assert_eq!((is(&heard, "Booted"), is(&heard, "AgentConnected")), (Some(true), Some(true)));
    assert_eq!(
        (heard.pid, heard.driver.as_deref(), heard.started_at),
        (Some(7), Some("test"), Some(wall(0)))
    );
    assert_eq!((heard.observed_generation, heard.phase.as_str()), (1, "Running"));
    let still = describe(&said_ready(up()), &ready(), 10).conditions;
    let since = still.iter().find(|condition| condition.kind == "Ready").unwrap().last_transition_time;
    assert_eq!(since, wall(0), "what is as it was keeps its time");
    let preparing = Guest::Connected { state: GuestState::Starting, since: at(1) };
    let preparing = describe(&up(), &Observed { guest: preparing, ..ready() }, 10);
    assert_eq!((is(&preparing, "Ready"), is(&preparing, "Reconciling")), (Some(false), Some(true)));
    let stopping = describe(&stopping(up()), &ready(), 10);
    assert_eq!(is(&stopping, "Ready"), Some(false));
    let edited = edited(up(), |spec| spec.cpus += 1);
    let due = describe(&edited, &ready(), 10);
    assert_eq!((is(&due, "Ready"), due.observed_generation), (Some(false), 2), "it is about to be stopped");
}

#[test]
fn what_was_said_of_a_guest_holds_while_its_link_is_made_anew() {
    let silent = |ever| Observed { guest: Guest::Silent { ever, since: at(9) }, ..seen() };
    let (before, first) = (said_ready(up()), up());
    let adopted = describe(&before, &silent(true), 10);
    assert_eq!((is(&adopted, "Ready"), is(&adopted, "Booted")), (Some(true), Some(true)));
    assert_eq!(is(&adopted, "AgentConnected"), Some(false));
    assert_eq!(is(&describe(&before, &silent(true), 12), "Ready"), Some(false), "not for ever");
    assert_eq!(is(&describe(&first, &silent(true), 10), "Ready"), Some(false), "it was not ready before");
    let unheard = describe(&before, &silent(false), 10);
    assert_eq!(
        (is(&unheard, "Ready"), is(&unheard, "Booted")),
        (Some(false), Some(false)),
        "another process"
    );
}

#[test]
fn a_vm_that_has_ended_shows_nothing_of_its_process() {
    let guest = Guest::Connected { state: GuestState::Ready, since: at(1) };
    let mut record = said_ready(up());
    let port = Port { host: 8080, guest: 80, protocol: Protocol::Tcp };
    let nic = crate::network::Nic {
        mac: "52:54:00:00:00:01".to_owned(),
        link: crate::network::Link::User,
        ports: vec![port],
    };
    record.reservation.as_mut().unwrap().nic = Some(nic);
    assert_eq!(describe(&record, &ready(), 10).ports.len(), 1);
    let ended = describe(&record, &Observed { guest, ..exited(None, Some(0)) }, 10);
    assert_eq!((is(&ended, "Ready"), is(&ended, "Booted")), (Some(false), Some(false)));
    assert_eq!(is(&ended, "AgentConnected"), Some(false));
    assert_eq!((ended.pid, ended.driver, ended.started_at, ended.ports.len()), (None, None, None, 0));
}

#[test]
fn a_failure_is_told_with_its_next_try_or_as_one_that_has_none() {
    let (closed_until, next_try) = (Some(at(20)), Some(wall(20)));
    let gated = Observed { failure: failed(true), closed_until, next_try, ..seen() };
    let waits = describe(&reserved(), &gated, 10);
    assert_eq!((is(&waits, "Reconciling"), is(&waits, "Stalled")), (Some(true), None));
    assert_eq!(waits.next_retry_time, Some(wall(20)));
    let stalled = describe(&record(), &Observed { failure: failed(false), ..seen() }, 10);
    assert_eq!((is(&stalled, "Reconciling"), is(&stalled, "Stalled")), (None, Some(true)));
    assert_eq!(stalled.next_retry_time, None);
    // What runs is as it should be, and what is to come after it has failed.
    let both =
        describe(&up(), &Observed { failure: failed(true), closed_until: Some(at(20)), ..ready() }, 10);
    let told = both.conditions.iter().find(|condition| condition.kind == "Reconciling").unwrap();
    assert_eq!(
        (is(&both, "Ready"), told.reason.as_str(), told.message.as_str()),
        (Some(true), "X", "it failed")
    );
    let halted = edited(record(), |spec| spec.run_policy = RunPolicy::Halted);
    assert_eq!(is(&describe(&halted, &seen(), 10), "Reconciling"), None, "it is to rest");
}

#[test]
fn a_pull_that_failed_is_told_with_its_next_try_or_as_one_that_has_none() {
    let pulled = |retry| {
        let failed = PullState::Failed { reason: "NotFound", message: "gone".to_owned(), attempt: 2, retry };
        let mut record = record();
        record.image = Some(pin('a'));
        describe(&record, &Observed { image: image(pin('a'), None, Some(failed)), ..seen() }, 10)
    };
    let (again, never) = (pulled(Some(wall(30))), pulled(None));
    assert_eq!((is(&again, "Stalled"), again.next_retry_time), (None, Some(wall(30))));
    assert_eq!(
        (is(&never, "Stalled"), is(&never, "Reconciling"), never.next_retry_time),
        (Some(true), None, None)
    );
    let why = never.conditions.iter().find(|condition| condition.kind == "ImageReady").unwrap();
    assert_eq!((is(&never, "ImageReady"), why.reason.as_str()), (Some(false), "NotFound"));
}

#[test]
fn an_image_that_is_not_there_says_why() {
    let ready = |view: ImageView, failure: Option<Failure>| {
        let status = describe(&record(), &Observed { image: view, failure, ..seen() }, 10);
        let found = status.conditions.iter().find(|condition| condition.kind == "ImageReady").unwrap();
        (found.status == true.into(), found.reason.clone())
    };
    let no = |reason: &str| (false, reason.to_owned());
    let missing = ImageView::Waiting { reason: "ImageNotFound".to_owned(), message: String::new() };
    assert_eq!(ready(missing, None), no("ImageNotFound"));
    let unresolved = ImageView::Unresolved { source: pin('a').source, policy: PullPolicy::default() };
    assert_eq!(ready(unresolved.clone(), None), no("Pulling"));
    assert_eq!(ready(unresolved, failed(true)), no("X"));
    assert!(ready(known(pin('a')), None).0);
}
