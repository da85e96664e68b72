//! The guest's one loop: children, the workload's output, the host's requests, deadlines.
//!
//! In: signals, the link, output of processes. Out: the workload's exit code, once the host has
//! been told all that there is to tell. Nothing here waits for a process or for the host, except in
//! the one poll.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;
use vmlet_wire::{
    CONTROL, ExecRequest, Frame, GuestConfig, GuestMessage, GuestState, HostMessage, Kind, LOG_RING,
    MAX_STREAMS, Overrun, Sending, VERSION,
};

use crate::console;
use crate::exec::Exec;
use crate::failure::Failure;
use crate::link::{Incoming, Link};
use crate::log_ring::LogRing;
use crate::power_button::PowerButton;
use crate::process::{self, End};
use crate::signals::Signals;
use crate::stats;
use crate::workload::{Running, Workload};

/// How long the host has to take in the workload's end.
const FAREWELL: Duration = Duration::from_secs(2);

/// How long after the link's opening a host counts as about to connect.
const ARRIVAL: Duration = Duration::from_millis(300);

/// How much of the output that the host has not taken in goes to the console at the end.
const CONSOLE_TAIL: usize = 64 << 10;

/// How much of the log is sent in one frame.
const LOG_PIECE: usize = 16 << 10;

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

/// What ends with the host's connection.
#[derive(Default)]
struct Connection {
    execs: BTreeMap<u32, Exec>,
    follower: Option<Follower>,
    /// The host knows the final state.
    state_seen: bool,
}

/// The stream that the log is sent on.
struct Follower {
    stream: u32,
    next: u64,
    sending: Sending,
}

/// The host broke the protocol.
struct Violation;

impl From<Overrun> for Violation {
    fn from(_: Overrun) -> Self {
        Violation
    }
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

    /// Handles what the host sent; whether there may be more.
    fn serve(&mut self) -> bool {
        let Some(link) = &mut self.link else { return false };
        let (incoming, more) = link.receive();
        for incoming in incoming {
            let handled = match incoming {
                Incoming::Connected | Incoming::Disconnected => {
                    self.reset_connection();
                    Ok(())
                }
                Incoming::Frame(frame) => self.handle(frame),
            };
            if let Err(Violation) = handled {
                self.reset_connection();
                if let Some(link) = &mut self.link {
                    link.reject();
                }
                break;
            }
        }
        more
    }

    fn reset_connection(&mut self) {
        for exec in std::mem::take(&mut self.connection).execs.values() {
            exec.kill();
        }
    }

    fn handle(&mut self, frame: Frame) -> Result<(), Violation> {
        let Frame { kind, stream, payload } = frame;
        match kind {
            Kind::Message => {
                let message = serde_json::from_slice(&payload).map_err(|_| Violation)?;
                self.handle_message(stream, message)
            }
            // What comes for a stream that has just ended is late, not wrong.
            Kind::Stdin => match self.connection.execs.get_mut(&stream) {
                Some(exec) => Ok(exec.take_input(payload)?),
                None => Ok(()),
            },
            Kind::Credit => {
                let amount = payload.as_slice().try_into().map(u32::from_le_bytes).map_err(|_| Violation)?;
                self.take_credit(stream, amount)
            }
            Kind::Reset => {
                if let Some(exec) = self.connection.execs.remove(&stream) {
                    exec.kill();
                }
                self.connection.follower.take_if(|follower| follower.stream == stream);
                Ok(())
            }
            Kind::Stdout | Kind::Stderr => Err(Violation),
        }
    }

    fn take_credit(&mut self, stream: u32, amount: u32) -> Result<(), Violation> {
        if let Some(exec) = self.connection.execs.get_mut(&stream) {
            exec.credit(amount)?;
        } else if let Some(follower) = self.connection.follower.as_mut().filter(|f| f.stream == stream) {
            follower.sending.credit(amount)?;
            if follower.sending.settled() {
                self.log_taken = follower.next;
            }
        }
        Ok(())
    }

    fn handle_message(&mut self, stream: u32, message: HostMessage) -> Result<(), Violation> {
        let answer = match message {
            HostMessage::Hello { .. } => {
                let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
                let message = GuestMessage::HelloAck {
                    version: VERSION,
                    boot_id: boot_id.trim().to_owned(),
                    state: self.state.clone(),
                };
                if let Some(link) = &mut self.link {
                    link.greet(&message);
                }
                return Ok(());
            }
            HostMessage::StateSeen => {
                self.connection.state_seen = true;
                return Ok(());
            }
            HostMessage::Resize(size) => return self.with_exec(stream, |exec| exec.resize(size)),
            HostMessage::Signal { signal } => return self.with_exec(stream, |exec| exec.signal(signal)),
            HostMessage::StdinClosed => return self.with_exec(stream, Exec::close_input),
            HostMessage::Exec(request) => self.start_exec(stream, &request)?,
            HostMessage::Logs { from_offset } => self.follow_log(stream, from_offset),
            HostMessage::Stats => GuestMessage::Stats(stats::read()),
            HostMessage::Shutdown { grace_seconds } => {
                self.shut_down(Duration::from_secs(grace_seconds.into()));
                GuestMessage::ShuttingDown
            }
        };
        if let Some(link) = &mut self.link {
            link.send(stream, &answer);
        }
        Ok(())
    }

    fn with_exec(&mut self, stream: u32, act: impl FnOnce(&mut Exec)) -> Result<(), Violation> {
        if let Some(exec) = self.connection.execs.get_mut(&stream) {
            act(exec);
        }
        Ok(())
    }

    fn start_exec(&mut self, stream: u32, request: &ExecRequest) -> Result<GuestMessage, Violation> {
        let refuse = |message: String| Ok(GuestMessage::Refused { message });
        let Connection { execs, .. } = &mut self.connection;
        if stream == CONTROL || execs.contains_key(&stream) {
            return Err(Violation);
        }
        let Some(workload) = &self.workload else { return refuse("the workload does not run".to_owned()) };
        if execs.len() >= MAX_STREAMS {
            return refuse(format!("{MAX_STREAMS} processes run already"));
        }
        match Exec::start(request, workload) {
            Ok(exec) => {
                execs.insert(stream, exec);
                Ok(GuestMessage::Started)
            }
            Err(failure) => refuse(failure.message),
        }
    }

    fn follow_log(&mut self, stream: u32, from_offset: u64) -> GuestMessage {
        if self.connection.follower.is_some() {
            return GuestMessage::Refused { message: "the log is followed already".to_owned() };
        }
        let offset = from_offset.clamp(self.log.start(), self.log.end());
        self.log_taken = offset;
        let mut sending = Sending::default();
        sending.spend(0);
        self.connection.follower = Some(Follower { stream, next: offset, sending });
        GuestMessage::LogsFrom { offset }
    }

    /// Moves data between processes, the log and the link, as far as credit and room go. Whether there is
    /// room again: what stood back while there was none, input included, has no other wake-up.
    fn pump(&mut self) -> bool {
        let Some(link) = &mut self.link else { return false };
        self.connection.execs.retain(|stream, exec| !exec.pump(*stream, link));
        if let Some(follower) = &mut self.connection.follower {
            follower.pump(&self.log, link);
        }
        let full = !link.has_room();
        link.flush();
        full && link.has_room()
    }
}

impl Follower {
    fn pump(&mut self, log: &LogRing, link: &mut Link) {
        if self.next < log.start() && self.sending.room() > 0 {
            self.next = log.start();
            self.sending.spend(0);
            link.send(self.stream, &GuestMessage::LogsFrom { offset: self.next });
        }
        while (log.start()..log.end()).contains(&self.next) && self.sending.room() > 0 && link.has_room() {
            let piece = log.read(self.next, self.sending.room().min(LOG_PIECE));
            link.send_frame(Kind::Stdout, self.stream, &piece);
            self.sending.spend(piece.len());
            self.next += piece.len() as u64;
        }
    }
}
