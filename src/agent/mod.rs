//! The host's side of the guest link.
//!
//! In: a driver's byte stream. Out: the guest's state as it changes, its workload's output in a file,
//! and answers to requests.
//!
//! ```text
//! Agent ──commands──▶ connection task ──frames──▶ guest
//!   ▲                   │   │    ▲
//!   └──watch, replies───┘   ▼    └─ credit when it is written
//!                        log task ──▶ file
//! ```
//!
//! Guaranteed: one task owns the stream and never waits for anything but the stream and its
//! commands, so no reader of an exec and no disk can hold up another stream. Everything from the
//! guest is bounded by credit, frame size and time; a guest that breaks the protocol has its link
//! closed, and nothing else happens. Dropping all handles closes the link and leaves the guest
//! alone.

mod connection;
mod exec;
mod fake;
mod handshake;
mod log;
mod receive;
#[cfg(test)]
mod tests;

pub use exec::{ExecInput, ExecOutput, ExecOutputs, ExecSession};
pub use fake::{FakeGuest, FakeScript};
pub use log::{DEFAULT_LOG_LIMIT, LOG_FILE, LogSink};
pub use vmlet_wire::{ExecRequest, GuestState, GuestStats, TtySize};

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::timeout;
use vmlet_wire::{CONTROL, GuestMessage, HostMessage, MAX_STREAMS, encode_message};

use crate::hypervisor::GuestStream;
use connection::{Command, Connection, Stream};

/// How long a guest may take to answer a request. Emulated guests on a busy host are slow.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);

/// Processes run by one agent at a time; the rest of the guest's streams is for requests.
const MAX_EXECS: usize = MAX_STREAMS / 2;

/// Longest text that is taken over from a guest, in bytes.
const MAX_TEXT: usize = 1024;

/// A connected guest. Clones share the connection.
#[derive(Clone, Debug)]
pub struct Agent {
    commands: mpsc::UnboundedSender<Command>,
    state: watch::Receiver<GuestState>,
    next_stream: Arc<AtomicU32>,
    execs: Arc<Semaphore>,
}

/// Why the guest did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The link ended: the VM is gone, or the driver closed it.
    #[error("the link to the guest is closed")]
    Closed,
    /// The byte stream failed.
    #[error("the link to the guest failed: {0}")]
    Io(#[from] std::io::Error),
    /// The guest sent what it must not.
    #[error("the guest broke the protocol: {0}; its link was closed")]
    Protocol(String),
    /// The guest speaks another version.
    #[error(
        "the guest speaks version {0} of the protocol, not {ours}; restart the VM to update its guest",
        ours = vmlet_wire::VERSION
    )]
    Version(u32),
    /// The guest said no.
    #[error("the guest refused: {0}")]
    Refused(String),
    /// No answer came.
    #[error("the guest did not answer within {} s", REPLY_TIMEOUT.as_secs())]
    TimedOut,
    /// The request does not fit a frame.
    #[error("the request is too long: {0}; shorten its arguments or environment")]
    TooLong(#[from] vmlet_wire::WireError),
    /// Too many processes at a time.
    #[error("{MAX_EXECS} processes run in the guest already; wait for one to end")]
    Busy,
    /// The workload's output cannot be kept.
    #[error("cannot use the log {path}: {source}; check the disk and its permissions")]
    Log {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
}

impl Agent {
    /// Performs the handshake, begins to follow the workload's output into `logs`, and serves the
    /// link in a task of its own.
    ///
    /// Waits for the guest for as long as the stream lives: how long a boot may take is the
    /// caller's business.
    pub async fn connect(mut stream: GuestStream, logs: LogSink) -> Result<Agent, AgentError> {
        let greeting = handshake::greet(&mut stream).await?;
        let log = log::Log::open(logs, greeting.boot_id).await?;

        let (commands, receiver) = mpsc::unbounded_channel();
        let (state_sender, state) = watch::channel(greeting.state);
        let agent = Agent {
            commands: commands.clone(),
            state,
            next_stream: Arc::new(AtomicU32::new(CONTROL + 1)),
            execs: Arc::new(Semaphore::new(MAX_EXECS)),
        };
        // Before all else: a guest that is about to leave waits for its log's reader.
        let (chunks, chunk_receiver) = mpsc::unbounded_channel();
        let request = HostMessage::Logs { from_offset: log.offset() };
        let stream_id = agent.open(&request, Stream::log(chunks))?;
        tokio::spawn(log.run(chunk_receiver, commands.downgrade(), stream_id));
        tokio::spawn(Connection::new(greeting.decoder, greeting.unsent, state_sender).run(stream, receiver));
        Ok(agent)
    }

    /// The guest's state; its sender goes when the link does.
    pub fn guest(&self) -> watch::Receiver<GuestState> {
        self.state.clone()
    }

    /// Resolves when the link is gone. Cancel-safe.
    pub async fn closed(&self) {
        self.commands.closed().await;
    }

    /// Runs a process beside the workload. Resolves when it runs.
    pub async fn exec(&self, request: ExecRequest) -> Result<ExecSession, AgentError> {
        let permit = Arc::clone(&self.execs).try_acquire_owned().map_err(|_| AgentError::Busy)?;
        let (started, reply) = oneshot::channel();
        let (sender, outputs) = mpsc::unbounded_channel();
        let window = Arc::new(Semaphore::new(vmlet_wire::WINDOW as usize));
        let stream = Stream::exec(started, sender, Arc::clone(&window));
        let id = self.open(&HostMessage::Exec(request), stream)?;
        // Made before the wait: dropping it, for whatever reason, ends the process.
        let session = ExecSession::new(id, self.commands.clone(), outputs, window, permit);
        match timeout(REPLY_TIMEOUT, reply).await {
            Ok(Ok(Ok(()))) => Ok(session),
            Ok(Ok(Err(error))) => Err(error),
            Ok(Err(_)) => Err(AgentError::Closed),
            Err(_) => Err(AgentError::TimedOut),
        }
    }

    /// Asks the guest to end its workload, with `grace_seconds` before it is killed, and then to
    /// power off. Resolves when the guest has begun.
    pub async fn shutdown(&self, grace_seconds: u32) -> Result<(), AgentError> {
        match self.request(&HostMessage::Shutdown { grace_seconds }).await? {
            GuestMessage::ShuttingDown => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Figures about the guest, as it tells them.
    pub async fn stats(&self) -> Result<GuestStats, AgentError> {
        match self.request(&HostMessage::Stats).await? {
            GuestMessage::Stats(stats) => Ok(stats),
            other => Err(unexpected(&other)),
        }
    }

    async fn request(&self, message: &HostMessage) -> Result<GuestMessage, AgentError> {
        let (sender, reply) = oneshot::channel();
        let id = self.open(message, Stream::Reply(sender))?;
        match timeout(REPLY_TIMEOUT, reply).await {
            Ok(Ok(GuestMessage::Refused { message })) => Err(AgentError::Refused(clip(&message))),
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(AgentError::Closed),
            Err(_) => {
                // The answer may still come; it is for nobody then.
                let _ = self.commands.send(Command::Reset { stream: id });
                Err(AgentError::TimedOut)
            }
        }
    }

    fn open(&self, message: &HostMessage, stream: Stream) -> Result<u32, AgentError> {
        let id = self.next_stream.fetch_add(1, Ordering::Relaxed);
        let mut frame = Vec::new();
        encode_message(&mut frame, id, message)?;
        self.commands
            .send(Command::Open { id, open: Box::new((frame, stream)) })
            .map_err(|_| AgentError::Closed)?;
        Ok(id)
    }
}

fn unexpected(message: &GuestMessage) -> AgentError {
    AgentError::Protocol(clip(&format!("{message:?} is no answer to the request")))
}

/// A guest's text, fit for a status or a log line: short, and without control characters.
fn clip(text: &str) -> String {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A guest's state with its texts fit to be shown.
fn clip_state(state: GuestState) -> GuestState {
    match state {
        GuestState::Failed { message } => GuestState::Failed { message: clip(&message) },
        state => state,
    }
}
