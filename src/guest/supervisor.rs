//! The guest's one loop: children, the workload's output, the host's requests, deadlines.
//!
//! In: signals, the link, output of processes. Out: the workload's exit code, once the host has
//! been told all that there is to tell. Nothing here waits for a process or for the host, except in
//! the one poll. What the host asks for is in `host`.

mod host;

use std::io::Read;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;
use vmlet_wire::{CONTROL, GuestConfig, GuestMessage, GuestState, LOG_RING};

use self::host::Connection;
use crate::console;
use crate::failure::Failure;
use crate::link::Link;
use crate::log_ring::LogRing;
use crate::power_button::PowerButton;
use crate::process::{self, End};
use crate::signals::Signals;
use crate::workload::{Running, Workload};

/// How long the host has to take in the workload's end.
const FAREWELL: Duration = Duration::from_secs(2);

/// How long after the link's opening a host counts as about to connect.
const ARRIVAL: Duration = Duration::from_millis(300);

/// How much of the output that the host has not taken in goes to the console at the end.
const CONSOLE_TAIL: usize = 64 << 10;

/// Output of the workload that is read in one go, so that the rest has its turn.
const OUTPUT_READS: usize = 16;

/// Everything that the loop knows.
pub(crate) struct Supervisor {
    signals: Option<Signals>,
    power_button: PowerButton,
    link: Option<Link>,
    link_opened: Instant,
    workload: Option<Workload>,
    grace: Duration,
    state: GuestState,
    exit_code: i32,
    log: LogRing,
    /// Up to here a host has taken the log in.
    log_taken: u64,
    connection: Connection,
    kill_at: Option<Instant>,
    leave_at: Option<Instant>,
}

impl Supervisor {
    pub(crate) fn new(started: Result<(GuestConfig, Workload), Failure>) -> Self {
        let complain = |failure: &dyn std::fmt::Display| console::say(failure);
        let mut supervisor = Supervisor {
            signals: Signals::open().inspect_err(|error| complain(error)).ok(),
            power_button: PowerButton::open(),
            link: Link::open().inspect_err(|failure| complain(failure)).ok(),
            link_opened: Instant::now(),
            workload: None,
            grace: Duration::ZERO,
            state: GuestState::Starting,
            exit_code: 0,
            log: LogRing::new(LOG_RING),
            log_taken: 0,
            connection: Connection::default(),
            kill_at: None,
            leave_at: None,
        };
        match started {
            Ok((config, workload)) => {
                supervisor.grace = Duration::from_secs(config.workload.grace_seconds.into());
                supervisor.state = workload.state();
                supervisor.workload = Some(workload);
            }
            Err(failure) => {
                supervisor.exit_code = failure.code;
                supervisor.enter(GuestState::Failed { message: failure.message });
            }
        }
        supervisor
    }

    /// Serves until the workload's end is told. Returns its exit code.
    pub(crate) fn run(mut self) -> i32 {
        loop {
            let pending = self.signals.as_ref().map(Signals::take).unwrap_or_default();
            if pending.shutdown | self.power_button.pressed() {
                self.shut_down(self.grace);
            }
            self.observe_readiness();
            // Before the children's ends: an end is reported after all output.
            let more_output = self.read_output();
            self.reap();
            let more_input = self.serve();
            let more_room = self.pump();
            self.keep_deadlines();
            if self.is_done() {
                break;
            }
            self.wait(more_output || more_input || more_room);
        }
        self.print_log_tail();
        self.exit_code
    }

    fn enter(&mut self, state: GuestState) {
        if state.is_final() {
            self.kill_at = None;
            self.leave_at = Some(Instant::now() + FAREWELL);
        }
        self.state = state;
        if let Some(link) = &mut self.link {
            link.send(CONTROL, &GuestMessage::State { state: self.state.clone() });
        }
    }

    fn observe_readiness(&mut self) {
        if let Some(Workload { pid, kind: Running::Init { notify: Some(notify), .. }, .. }) = &self.workload
            && notify.ready(*pid)
            && matches!(self.state, GuestState::Running { .. })
        {
            self.enter(GuestState::Ready);
        }
    }

    /// Reads a bounded piece of the workload's output into the log; whether there may be more.
    fn read_output(&mut self) -> bool {
        let Some(Workload { kind: Running::Command { output }, .. }) = &mut self.workload else {
            return false;
        };
        let mut buffer = [0; 16 << 10];
        for _ in 0..OUTPUT_READS {
            match output.read(&mut buffer) {
                Ok(length) if length > 0 => self.log.push(&buffer[..length]),
                _ => return false,
            }
        }
        true
    }

    /// Reaps all children that ended, those that were left to PID 1 included.
    fn reap(&mut self) {
        while let Some((pid, end)) = process::reap() {
            self.child_ended(pid, end);
        }
    }

    fn child_ended(&mut self, pid: Pid, end: End) {
        if let Some(exec) = self.connection.execs.values_mut().find(|exec| exec.pid() == pid) {
            exec.ended(end);
        } else if let Some(workload) = self.workload.as_ref().filter(|workload| workload.pid == pid) {
            self.exit_code = workload.exit_code(end);
            // Its last words, up to what fits the ring twice over if a child of it goes on writing.
            for _ in 0..8 {
                if !self.read_output() {
                    break;
                }
            }
            self.workload = None;
            self.enter(GuestState::Exited { code: self.exit_code });
        }
    }

    fn shut_down(&mut self, grace: Duration) {
        let Some(workload) = &self.workload else { return };
        let kill_at = Instant::now() + grace;
        match self.kill_at {
            None => workload.stop(),
            Some(earlier) if earlier <= kill_at => return,
            Some(_) => {}
        }
        self.kill_at = Some(kill_at);
    }

    fn keep_deadlines(&mut self) {
        if self.kill_at.is_some_and(|kill_at| kill_at <= Instant::now()) {
            if let Some(workload) = &self.workload {
                workload.kill();
            }
            // Once more if that was not the end.
            self.kill_at = Some(Instant::now() + FAREWELL);
        }
    }

    /// Whether all is told, or there is nobody to tell.
    fn is_done(&self) -> bool {
        let Some(leave_at) = self.leave_at else { return false };
        let now = Instant::now();
        let Some(link) = &self.link else { return true };
        if leave_at <= now {
            return true;
        }
        if link.connected() {
            self.connection.state_seen && link.flushed() && self.log_is_taken()
        } else {
            link.host_is_absent() && self.link_opened + ARRIVAL <= now
        }
    }

    fn log_is_taken(&self) -> bool {
        self.connection.follower.is_none() || self.log_taken == self.log.end()
    }

    /// What nobody took in goes to the console.
    fn print_log_tail(&self) {
        let end = self.log.end();
        let start = self.log_taken.max(end.saturating_sub(CONSOLE_TAIL as u64));
        if start < end {
            console::say(format!("the last {} bytes of the workload's output:", end - start));
            console::write(&self.log.read(start, CONSOLE_TAIL));
        }
    }

    /// Waits until there is something to do.
    fn wait(&self, at_once: bool) {
        let mut fds = Vec::new();
        let mut watch = |fd| fds.push(PollFd::new(fd, PollFlags::POLLIN));
        if let Some(signals) = &self.signals {
            watch(signals.as_fd());
        }
        self.power_button.fds().for_each(&mut watch);
        match self.workload.as_ref().map(|workload| &workload.kind) {
            Some(Running::Init { notify: Some(notify), .. }) => watch(notify.as_fd()),
            Some(Running::Command { output, .. }) => watch(output.as_fd()),
            _ => {}
        }
        if let Some(link) = &self.link {
            watch(link.changes());
            self.connection.execs.values().for_each(|exec| exec.interests(link, &mut fds));
        }
        let arrival = self.leave_at.map(|_| self.link_opened + ARRIVAL).filter(|at| *at > Instant::now());
        let deadline = [self.kill_at, self.leave_at, arrival].into_iter().flatten().min();
        let timeout = match deadline {
            _ if at_once => PollTimeout::ZERO,
            // Rounded up, not to wake up just before.
            Some(at) => {
                let left = at.saturating_duration_since(Instant::now()).as_millis() + 1;
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
            }
            None => PollTimeout::NONE,
        };
        // An interrupted or failed poll is a wake-up like any other.
        let _ = poll(&mut fds, timeout);
    }
}
