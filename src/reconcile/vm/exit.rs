//! How a run ended, and what to tell people: a pure function of what was seen.

use jiff::Timestamp;
use vmlet_wire::GuestState;

use super::state::Observed;
use crate::hypervisor::VmmExit;
use crate::object::LastExit;
use crate::store::Stopping;

/// The exit code of a workload that the guest killed after its grace period: 128 + SIGKILL.
const WORKLOAD_KILLED: i32 = 137;

/// The workload's exit code, from the link or else from the guest's last console line.
pub(super) fn workload_code(seen: &Observed) -> Option<i32> {
    match &seen.last {
        Some(GuestState::Exited { code }) => Some(*code),
        _ => seen.exit.as_ref().and_then(|exit| exit.workload),
    }
}

/// `grace` is how long the workload had to end by itself, in seconds.
pub(super) fn last_exit(
    seen: &Observed,
    stopping: Option<&Stopping>,
    grace: u32,
    now: Timestamp,
) -> LastExit {
    let code = workload_code(seen);
    let exit = seen.exit.as_ref();
    let said = exit.map_or("", |exit| exit.message.as_str());
    let killed = exit.is_some_and(|exit| exit.signal.is_some());
    let (reason, message) = match (stopping, code) {
        (_, None) if seen.rebooted => ("HostReboot", "the host was restarted while the VM ran".to_owned()),
        (Some(stopping), _) if killed => ("Killed", format!("killed: {}", stopping.why)),
        (Some(stopping), Some(WORKLOAD_KILLED)) => {
            let how = format!("its workload did not end within {grace} s and was killed");
            ("Killed", format!("shut down: {}; {how}", stopping.why))
        }
        (Some(stopping), _) => ("Shutdown", format!("shut down: {}", stopping.why)),
        (None, Some(0)) => ("Completed", "the workload ended with exit code 0".to_owned()),
        (None, Some(code)) => ("Error", format!("the workload ended with exit code {code}")),
        (None, None) => match &seen.killed {
            Some(why) if killed => ("Killed", format!("killed: {why}")),
            _ => vmm_death(exit, said),
        },
    };
    let message = match &seen.last {
        Some(GuestState::Failed { message }) if stopping.is_none() => {
            format!("the workload could not be started: {message}")
        }
        _ => message,
    };
    LastExit { code, reason: reason.to_owned(), message, finished_at: now }
}

fn vmm_death(exit: Option<&VmmExit>, said: &str) -> (&'static str, String) {
    if said.contains("Kernel panic") {
        return ("GuestPanic", format!("the guest's kernel panicked: {said}"));
    }
    let how = match exit {
        Some(VmmExit { signal: Some(signal), .. }) => format!("signal {signal} ended the VMM"),
        Some(VmmExit { code: Some(0), .. }) => "the VM powered off".to_owned(),
        Some(VmmExit { code: Some(code), .. }) => format!("the VMM ended with code {code}"),
        _ => "the VMM is gone".to_owned(),
    };
    let message = if said.is_empty() { how } else { format!("{how}: {said}") };
    ("VmmFailed", message)
}
