//! What the host asks for: processes beside the workload, its output, numbers, its end.
//!
//! In: frames of the link. Out: frames, as far as credit and room go. What breaks the protocol ends the
//! connection, and all that was started on it.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use vmlet_wire::{
    CONTROL, ExecRequest, Frame, GuestMessage, HostMessage, Kind, MAX_STREAMS, Overrun, Sending, VERSION,
};

use super::Supervisor;
use crate::exec::Exec;
use crate::link::{Incoming, Link};
use crate::log_ring::LogRing;
use crate::stats;

/// How much of the log is sent in one frame.
const LOG_PIECE: usize = 16 << 10;

/// What ends with the host's connection.
#[derive(Default)]
pub(super) struct Connection {
    pub(super) execs: BTreeMap<u32, Exec>,
    pub(super) follower: Option<Follower>,
    /// The host knows the final state.
    pub(super) state_seen: bool,
}

/// The stream that the log is sent on.
pub(super) struct Follower {
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
    /// Handles what the host sent; whether there may be more.
    pub(super) fn serve(&mut self) -> bool {
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
    pub(super) fn pump(&mut self) -> bool {
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
