//! The task that owns a link: frames in, frames out, streams in between.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncWriteExt;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use vmlet_wire::{
    CONTROL, Decoder, Frame, GuestMessage, GuestState, HostMessage, Item, Kind, Overrun, Receiving, Sending,
    encode, encode_message,
};

use super::exec::{ExecOutput, Received};
use super::log::Chunk;
use super::receive::receive;
use super::{AgentError, clip, clip_state};
use crate::hypervisor::GuestStream;

/// While more than this waits to be sent, no command is taken.
const OUTPUT_LIMIT: usize = 256 << 10;

/// What handles ask of the task. What waits is bounded by credit and by the number of streams. What is
/// long is boxed, because every link has room for some commands.
#[derive(Debug)]
pub(super) enum Command {
    Open { id: u32, open: Box<(Vec<u8>, Stream)> },
    Message { stream: u32, message: Box<HostMessage> },
    Input { stream: u32, data: Bytes },
    Credit { stream: u32, amount: u32 },
    Reset { stream: u32 },
}

/// An open stream.
#[derive(Debug)]
pub(super) enum Stream {
    /// A request with one answer.
    Reply(oneshot::Sender<GuestMessage>),
    /// A process.
    Exec {
        /// Until the guest has answered.
        started: Option<oneshot::Sender<Result<(), AgentError>>>,
        outputs: mpsc::UnboundedSender<Received>,
        receiving: Receiving,
        sending: Sending,
        /// Mirrors `sending` for those who wait to send.
        window: Arc<Semaphore>,
    },
    /// The workload's output.
    Log { chunks: mpsc::UnboundedSender<Chunk>, receiving: Receiving },
}

impl Stream {
    pub(super) fn exec(
        started: oneshot::Sender<Result<(), AgentError>>,
        outputs: mpsc::UnboundedSender<Received>,
        window: Arc<Semaphore>,
    ) -> Self {
        let (receiving, sending) = (Receiving::default(), Sending::default());
        Stream::Exec { started: Some(started), outputs, receiving, sending, window }
    }

    pub(super) fn log(chunks: mpsc::UnboundedSender<Chunk>) -> Self {
        Stream::Log { chunks, receiving: Receiving::default() }
    }
}

impl From<Overrun> for AgentError {
    fn from(_: Overrun) -> Self {
        AgentError::Protocol("it overran a stream's credit".to_owned())
    }
}

/// One link.
pub(super) struct Connection {
    decoder: Decoder,
    output: BytesMut,
    streams: HashMap<u32, Stream>,
    state: watch::Sender<GuestState>,
}

impl Connection {
    pub(super) fn new(decoder: Decoder, unsent: BytesMut, state: watch::Sender<GuestState>) -> Self {
        Connection { decoder, output: unsent, streams: HashMap::new(), state }
    }

    /// Serves until the stream ends, the guest breaks the protocol, or nobody wants the link any more.
    pub(super) async fn run(mut self, stream: GuestStream, mut commands: mpsc::UnboundedReceiver<Command>) {
        match self.serve(stream, &mut commands).await {
            Ok(()) => tracing::debug!("the guest's link ended"),
            Err(error) => tracing::warn!(%error, "the guest's link was closed"),
        }
    }

    async fn serve(
        &mut self,
        stream: GuestStream,
        commands: &mut mpsc::UnboundedReceiver<Command>,
    ) -> Result<(), AgentError> {
        let (mut reader, mut writer) = tokio::io::split(stream);
        // The log's stream comes first, as the first command; a final state is acknowledged after it.
        if let Some(command) = commands.recv().await {
            self.obey(command);
        }
        self.acknowledge_state();
        loop {
            // The handshake may have read further than its answer.
            while let Some(item) =
                self.decoder.next_item().map_err(|error| AgentError::Protocol(error.to_string()))?
            {
                if let Item::Frame(frame) = item {
                    self.handle(frame)?;
                }
            }
            tokio::select! {
                biased;
                // Reading comes last: a guest that talks without end cannot keep commands from being
                // sent, while commands wait for credit and room, and so for reading.
                written = writer.write(&self.output), if !self.output.is_empty() => match written? {
                    0 => return Ok(()),
                    length if length == self.output.len() => self.output = BytesMut::new(),
                    length => self.output.advance(length),
                },
                command = commands.recv(), if self.output.len() < OUTPUT_LIMIT => match command {
                    Some(command) => self.obey(command),
                    None => return Ok(()),
                },
                received = receive(&mut reader, &mut self.decoder) => if received? == 0 {
                    return Ok(());
                },
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Open { id, open } => {
                let (frame, stream) = *open;
                self.output.extend_from_slice(&frame);
                self.streams.insert(id, stream);
            }
            Command::Message { stream, message } => self.send(stream, &message),
            Command::Input { stream, data } => {
                // A stream that has ended in the meantime takes nothing more.
                if let Some(Stream::Exec { sending, .. }) = self.streams.get_mut(&stream) {
                    sending.spend(data.len());
                    encode(&mut self.output, Kind::Stdin, stream, &data);
                }
            }
            Command::Credit { stream, amount } => {
                if let Some(Stream::Exec { receiving, .. } | Stream::Log { receiving, .. }) =
                    self.streams.get_mut(&stream)
                {
                    receiving.grant(amount);
                    encode(&mut self.output, Kind::Credit, stream, &amount.to_le_bytes());
                }
            }
            Command::Reset { stream } => {
                if self.streams.remove(&stream).is_some() {
                    encode(&mut self.output, Kind::Reset, stream, &[]);
                }
            }
        }
    }

    fn send(&mut self, stream: u32, message: &HostMessage) {
        if stream == CONTROL || self.streams.contains_key(&stream) {
            encode_message(&mut self.output, stream, message).expect("only execs can be too long");
        }
    }

    /// A guest that is about to leave waits for this.
    fn acknowledge_state(&mut self) {
        if self.state.borrow().is_final() {
            self.send(CONTROL, &HostMessage::StateSeen);
        }
    }

    fn handle(&mut self, frame: Frame) -> Result<(), AgentError> {
        let Frame { kind, stream, payload } = frame;
        match kind {
            Kind::Message => {
                let message = serde_json::from_slice(&payload)
                    .map_err(|error| AgentError::Protocol(format!("an unreadable message: {error}")))?;
                self.handle_message(stream, message)
            }
            Kind::Stdout | Kind::Stderr => self.handle_output(stream, kind, payload.into()),
            Kind::Credit => {
                let amount = payload.as_slice().try_into().map(u32::from_le_bytes);
                let amount = amount.map_err(|_| AgentError::Protocol("a credit of odd length".to_owned()))?;
                if let Some(Stream::Exec { sending, window, .. }) = self.streams.get_mut(&stream) {
                    sending.credit(amount)?;
                    window.add_permits(amount as usize);
                }
                Ok(())
            }
            Kind::Reset => {
                self.streams.remove(&stream);
                Ok(())
            }
            Kind::Stdin => Err(AgentError::Protocol("it sent a host's frame".to_owned())),
        }
    }

    /// Data of a stream that was just reset may still come, and is dropped.
    fn handle_output(&mut self, stream: u32, kind: Kind, data: Bytes) -> Result<(), AgentError> {
        match self.streams.get_mut(&stream) {
            Some(Stream::Exec { outputs, receiving, .. }) => {
                receiving.take(data.len())?;
                let output =
                    if kind == Kind::Stderr { ExecOutput::Stderr(data) } else { ExecOutput::Stdout(data) };
                let _ = outputs.send(Received(output));
            }
            Some(Stream::Log { chunks, receiving }) => {
                receiving.take(data.len())?;
                let _ = chunks.send(Chunk::Data(data));
            }
            Some(Stream::Reply(_)) => {
                return Err(AgentError::Protocol("it answered a request with data".to_owned()));
            }
            None => {}
        }
        Ok(())
    }

    fn handle_message(&mut self, stream: u32, message: GuestMessage) -> Result<(), AgentError> {
        if stream == CONTROL {
            return match message {
                // A Hello that was repeated is answered again; the state may be newer.
                GuestMessage::State { state } | GuestMessage::HelloAck { state, .. } => {
                    self.state.send_replace(clip_state(state));
                    self.acknowledge_state();
                    Ok(())
                }
                other => Err(unexpected(&other)),
            };
        }
        // Late words of a stream that was reset are for nobody.
        let Some(open) = self.streams.get_mut(&stream) else { return Ok(()) };
        match (open, message) {
            (Stream::Reply(_), message) => {
                if let Some(Stream::Reply(reply)) = self.streams.remove(&stream) {
                    let _ = reply.send(message);
                }
            }
            (Stream::Exec { started, .. }, GuestMessage::Started) if started.is_some() => {
                let _ = started.take().map(|started| started.send(Ok(())));
            }
            (Stream::Exec { started, .. }, GuestMessage::Refused { message }) if started.is_some() => {
                let refusal = Err(AgentError::Refused(clip(&message)));
                let _ = started.take().map(|started| started.send(refusal));
                self.streams.remove(&stream);
            }
            (Stream::Exec { started: None, outputs, .. }, GuestMessage::Exited { code }) => {
                let _ = outputs.send(Received(ExecOutput::Exit(code)));
                self.streams.remove(&stream);
            }
            (Stream::Log { chunks, receiving }, GuestMessage::LogsFrom { offset }) => {
                receiving.take(0)?;
                let _ = chunks.send(Chunk::From(offset));
            }
            (_, other) => return Err(unexpected(&other)),
        }
        Ok(())
    }
}

fn unexpected(message: &GuestMessage) -> AgentError {
    AgentError::Protocol(clip(&format!("{message:?} is out of place")))
}
