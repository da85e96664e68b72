//! A process in the guest, seen from the host.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use vmlet_wire::{HostMessage, TtySize, cost};

use super::AgentError;
use super::connection::Command;

/// The longest piece of input that is sent as one frame.
const PIECE: usize = 16 << 10;

/// What a process says.
#[derive(Clone, Debug, PartialEq)]
pub enum ExecOutput {
    /// Standard output, or everything if it has a terminal.
    Stdout(Bytes),
    /// Standard error.
    Stderr(Bytes),
    /// Its end: the exit code, or 128 + the signal that ended it. Nothing follows.
    Exit(i32),
}

/// A running process: its two halves can be used by different tasks.
#[derive(Debug)]
pub struct ExecSession {
    /// Its input and its controls.
    pub input: ExecInput,
    /// What it says. Dropping it kills the process.
    pub output: ExecOutputs,
}

impl ExecSession {
    pub(super) fn new(
        stream: u32,
        commands: mpsc::UnboundedSender<Command>,
        outputs: mpsc::UnboundedReceiver<Received>,
        window: Arc<Semaphore>,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        ExecSession {
            input: ExecInput { stream, commands: commands.clone(), window },
            output: ExecOutputs { stream, commands, outputs, _permit: permit },
        }
    }
}

/// The input and the controls of a process. Dropping it ends the input.
#[derive(Debug)]
pub struct ExecInput {
    stream: u32,
    commands: mpsc::UnboundedSender<Command>,
    window: Arc<Semaphore>,
}

impl ExecInput {
    /// Sends input; waits while the process does not read. Input to a process that has ended is lost.
    ///
    /// Not cancel-safe: a part may have been sent.
    pub async fn send(&self, mut data: Bytes) -> Result<(), AgentError> {
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(PIECE));
            let window = self.window.acquire_many(cost(piece.len()));
            tokio::select! {
                biased;
                () = self.commands.closed() => return Err(AgentError::Closed),
                permits = window => permits.map_err(|_| AgentError::Closed)?.forget(),
            }
            self.tell(Command::Input { stream: self.stream, data: piece })?;
        }
        Ok(())
    }

    /// Ends the input; the process reads an end of file.
    pub fn close(self) {}

    /// Changes the size of its terminal.
    pub fn resize(&self, size: TtySize) -> Result<(), AgentError> {
        self.message(HostMessage::Resize(size))
    }

    /// Sends it a signal, by number.
    pub fn signal(&self, signal: i32) -> Result<(), AgentError> {
        self.message(HostMessage::Signal { signal })
    }

    fn message(&self, message: HostMessage) -> Result<(), AgentError> {
        self.tell(Command::Message { stream: self.stream, message: Box::new(message) })
    }

    fn tell(&self, command: Command) -> Result<(), AgentError> {
        self.commands.send(command).map_err(|_| AgentError::Closed)
    }
}

impl Drop for ExecInput {
    fn drop(&mut self) {
        // Without a link there is nobody to tell.
        let _ = self.message(HostMessage::StdinClosed);
    }
}

/// What a process says, in order.
#[derive(Debug)]
pub struct ExecOutputs {
    stream: u32,
    commands: mpsc::UnboundedSender<Command>,
    outputs: mpsc::UnboundedReceiver<Received>,
    _permit: OwnedSemaphorePermit,
}

impl ExecOutputs {
    /// The next output; none after its end, or when the link is lost. Cancel-safe. Not calling it
    /// stops the process once its window is full, and nothing else.
    pub async fn recv(&mut self) -> Option<ExecOutput> {
        let Received(output) = self.outputs.recv().await?;
        if let ExecOutput::Stdout(data) | ExecOutput::Stderr(data) = &output {
            let credit = Command::Credit { stream: self.stream, amount: cost(data.len()) };
            // Output that has arrived counts even if no more can come.
            let _ = self.commands.send(credit);
        }
        Some(output)
    }
}

impl Drop for ExecOutputs {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Reset { stream: self.stream });
    }
}

/// Output on its way from the connection; its credit is due when it is received.
#[derive(Debug)]
pub(super) struct Received(pub(super) ExecOutput);
