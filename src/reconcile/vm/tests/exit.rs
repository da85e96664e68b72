//! How a run ended: whether there is another, and what people are told.

use super::super::exit::last_exit;
use super::*;

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
    assert_eq!(ended(RunPolicy::Halted, 3), (true, false), "it is no failure, and runs when it may");
    let once = edited(up(), |spec| spec.run_policy = RunPolicy::Once);
    let never_began = Observed { guest: Guest::Silent { ever: false, since: at(0) }, ..exited(None, None) };
    assert_eq!(decide(&once, &never_began).step, Step::RecordExit { rerun: true, failed: true });
    let preparing = exited(Some(GuestState::Starting), None);
    assert_eq!(decide(&once, &preparing).step, Step::RecordExit { rerun: true, failed: true });
    // Nothing was heard of it, but its last words on the console say that it ran.
    let unheard = Observed { guest: Guest::Silent { ever: false, since: at(0) }, ..exited(None, Some(0)) };
    assert_eq!(decide(&once, &unheard).step, Step::RecordExit { rerun: false, failed: false });
    // An earlier daemon heard of it.
    assert_eq!(decide(&once, &exited(None, None)).step, Step::RecordExit { rerun: false, failed: false });
    let adopted = exited(None, Some(0));
    assert_eq!(decide(&once, &adopted).step, Step::RecordExit { rerun: false, failed: false });
}

#[test]
fn a_vm_that_was_stopped_for_an_edit_runs_again_whatever_its_policy() {
    let once = stopping(edited(up(), |spec| spec.run_policy = RunPolicy::Once));
    assert_eq!(decide(&once, &exited(None, Some(0))).step, Step::RecordExit { rerun: true, failed: false });
}

#[test]
fn a_reboot_of_the_host_is_no_end_of_the_workload() {
    let once = edited(up(), |spec| spec.run_policy = RunPolicy::Once);
    let seen = Observed { rebooted: true, ..exited(None, None) };
    assert_eq!(decide(&once, &seen).step, Step::RecordExit { rerun: true, failed: false });
    let exit = last_exit(&seen, None, 30, wall(1));
    assert_eq!((exit.reason.as_str(), exit.code), ("HostReboot", None));
    // The console's last line says that it had ended before.
    let ended = Observed { rebooted: true, ..exited(None, Some(0)) };
    assert_eq!(decide(&once, &ended).step, Step::RecordExit { rerun: false, failed: false });
}

#[test]
fn a_stop_that_became_a_killing_says_so() {
    let stopping = Stopping { since: wall(0), why: "the VM is deleted".to_owned() };
    let said = |exit: Observed| last_exit(&exit, Some(&stopping), 30, wall(1));
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

#[test]
fn a_boot_that_was_given_up_says_why_it_was_killed() {
    let killed = |killed: Option<&str>| {
        let exit = VmmExit { code: None, signal: Some(9), workload: None, message: String::new() };
        let seen = Observed { exit: Some(exit), killed: killed.map(str::to_owned), ..seen() };
        last_exit(&seen, None, 30, wall(1))
    };
    let (given_up, by_another) = (killed(Some("the guest was not heard of within 60 s")), killed(None));
    assert_eq!(given_up.reason, "Killed");
    assert_eq!(given_up.message, "killed: the guest was not heard of within 60 s");
    assert_eq!(by_another.message, "signal 9 ended the VMM");
}

#[test]
fn a_workload_that_could_not_be_started_says_why_unless_it_was_to_stop() {
    let failed = exited(Some(GuestState::Failed { message: "no such file".to_owned() }), None);
    let stopping = Stopping { since: wall(0), why: "the VM is deleted".to_owned() };
    assert_eq!(
        last_exit(&failed, None, 30, wall(1)).message,
        "the workload could not be started: no such file"
    );
    assert_eq!(last_exit(&failed, Some(&stopping), 30, wall(1)).message, "shut down: the VM is deleted");
}

#[test]
fn the_end_of_a_vmm_is_told_by_what_it_said() {
    let died = |code, signal, message: &str| {
        let exit = VmmExit { code, signal, workload: None, message: message.to_owned() };
        let exit = last_exit(&Observed { exit: Some(exit), ..seen() }, None, 30, wall(1));
        (exit.reason, exit.message)
    };
    let said = |reason: &str, message: &str| (reason.to_owned(), message.to_owned());
    assert_eq!(died(Some(0), None, ""), said("VmmFailed", "the VM powered off"));
    assert_eq!(died(Some(1), None, "no kvm"), said("VmmFailed", "the VMM ended with code 1: no kvm"));
    assert_eq!(died(None, Some(11), ""), said("VmmFailed", "signal 11 ended the VMM"));
    assert_eq!(died(None, None, ""), said("VmmFailed", "the VMM is gone"));
    let panic = "Kernel panic - not syncing: no init";
    assert_eq!(
        died(Some(0), None, panic),
        said("GuestPanic", &format!("the guest's kernel panicked: {panic}"))
    );
}
