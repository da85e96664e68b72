//! Interactive sessions over WebSockets: commands in a VM, and its console.
//!
//! Output that the client does not take stays where it is made: each direction waits for the other
//! end, and neither waits for the other direction. A session ends with the command, the client, or
//! the server, whichever is first, and the command does not outlive it.

use std::io;
use std::time::Duration;

use axum::Extension;
use axum::Json;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, Query, State};
use axum::response::IntoResponse;
use bytes::{Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::Api;
use super::channel::{Frame, MAX_MESSAGE, PROTOCOL, TerminalSize};
use super::error::{Answer, ApiError};
use super::files::find_vm;
use super::request::Params;
use super::resources::Place;
use super::stall::Patience;
use super::types::Status;
use crate::agent::{Agent, ExecInput, ExecOutput, ExecOutputs, ExecRequest, ExecSession, TtySize};
use crate::hypervisor::GuestStream;
use crate::object::{Kind, ObjectKey};

/// The longest command with its arguments, in bytes.
const MAX_COMMAND: usize = 64 << 10;
/// How soon a client that is gone is noticed.
const PING_PERIOD: Duration = Duration::from_secs(10);
/// How much of a console is read at once, in bytes.
const BLOCK: usize = 8 << 10;

/// Where the client's frames go.
trait Input: Send + 'static {
    /// Takes a frame, as soon as there is room. An error ends the input, not the session.
    fn take(&mut self, frame: Frame) -> impl Future<Output = io::Result<()>> + Send;
}

/// Where the frames for the client come from.
trait Output: Send + 'static {
    /// The next frame. [`Frame::Ended`] is the last one. Cancel-safe.
    fn next(&mut self) -> impl Future<Output = Frame> + Send;
}

/// `GET …/stats`: figures from inside the guest.
pub(super) async fn stats(State(api): State<Api>, Path(place): Path<Place>) -> Answer {
    let key = place.key(Kind::Vm);
    let stats = agent(&api, &key)?.stats().await;
    let stats = stats.map_err(|error| ApiError::unavailable(format!("{key}: {error}")))?;
    Ok(Json(stats).into_response())
}

/// `GET …/exec?command=&command=&stdin=&stdout=&stderr=&tty=`, a WebSocket.
pub(super) async fn exec(
    State(api): State<Api>,
    Path(place): Path<Place>,
    Query(params): Query<Vec<(String, String)>>,
    Extension(patience): Extension<Patience>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Answer {
    let (key, params) = (place.key(Kind::Vm), Params(params));
    let request = exec_request(&params)?;
    let upgrade = upgrade.map_err(|error| ApiError::bad_request(error.to_string()))?;
    let session = agent(&api, &key)?.exec(request).await;
    let session = session.map_err(|error| ApiError::unavailable(format!("{key}: {error}")))?;
    let ExecSession { input, output } = session;
    Ok(upgraded(upgrade, patience, api.cancel, ProcessInput(Some(input)), output))
}

fn exec_request(params: &Params) -> Result<ExecRequest, ApiError> {
    let argv: Vec<String> = params.all("command").map(str::to_owned).collect();
    if argv.first().is_none_or(String::is_empty) {
        return Err(ApiError::bad_request("name the command to run: ?command=WORD&command=WORD…"));
    }
    if argv.iter().map(String::len).sum::<usize>() > MAX_COMMAND {
        return Err(ApiError::bad_request(format!("the command is longer than {MAX_COMMAND} bytes")));
    }
    // The client's first resize follows at once.
    let tty = params.flag("tty").then_some(TtySize { rows: 24, cols: 80 });
    Ok(ExecRequest { argv, tty, stdin: params.flag("stdin"), ..ExecRequest::default() })
}

fn agent(api: &Api, key: &ObjectKey) -> Result<Agent, ApiError> {
    let (record, uid) = find_vm(api, key)?;
    let phase = &record.object.status.phase;
    api.guests.agent(uid).ok_or_else(|| {
        let phase = if phase.is_empty() { "Pending" } else { phase };
        ApiError::conflict(key, format!("{key} has no connection to its guest: it is {phase}"))
    })
}

/// Connects a client to a VM's console.
pub(super) async fn attach(
    api: &Api,
    key: &ObjectKey,
    patience: Patience,
    upgrade: WebSocketUpgrade,
) -> Answer {
    let (_, uid) = find_vm(api, key)?;
    let console = api.guests.console(uid).await;
    let console = console
        .map_err(|why| ApiError::conflict(key, format!("{key} has no console to attach to: {why}")))?;
    let (output, input) = tokio::io::split(console);
    Ok(upgraded(upgrade, patience, api.cancel.clone(), input, output))
}

fn upgraded(
    upgrade: WebSocketUpgrade,
    patience: Patience,
    cancel: CancellationToken,
    input: impl Input,
    output: impl Output,
) -> axum::response::Response {
    upgrade.protocols([PROTOCOL]).max_message_size(MAX_MESSAGE).max_frame_size(MAX_MESSAGE).on_upgrade(
        async move |socket| {
            patience.endless();
            let (sender, receiver) = socket.split();
            tokio::select! {
                () = cancel.cancelled() => {}
                () = send(sender, output) => {}
                () = receive(receiver, input) => {}
            }
        },
    )
}

/// Sends the output to its end, then says goodbye. A client that is gone is noticed even while there
/// is no output and its input waits for the process.
async fn send(mut socket: SplitSink<WebSocket, Message>, mut output: impl Output) {
    let mut last = false;
    while !last {
        let message = tokio::select! {
            frame = output.next() => {
                last = matches!(frame, Frame::Ended(_));
                Message::Binary(frame.encode())
            }
            () = sleep(PING_PERIOD) => Message::Ping(Bytes::new()),
        };
        if socket.send(message).await.is_err() {
            return;
        }
    }
    let _ = socket.send(Message::Close(None)).await;
}

/// Hands the client's frames on; ends when the client goes or breaks the protocol.
async fn receive(mut socket: SplitStream<WebSocket>, mut input: impl Input) {
    let mut open = true;
    while let Some(Ok(message)) = socket.next().await {
        match message {
            Message::Binary(message) => match Frame::decode(message) {
                // Input that nobody reads any more is dropped: the output goes on.
                Ok(Some(frame)) if open => open = input.take(frame).await.is_ok(),
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(%error, "a session is closed");
                    return;
                }
            },
            Message::Close(_) => return,
            Message::Text(_) | Message::Ping(_) | Message::Pong(_) => {}
        }
    }
}

/// A process's input, until it is closed.
struct ProcessInput(Option<ExecInput>);

impl Input for ProcessInput {
    async fn take(&mut self, frame: Frame) -> io::Result<()> {
        let Some(input) = &self.0 else { return Ok(()) };
        let taken = match frame {
            Frame::Stdin(data) => input.send(data).await,
            Frame::Resize(TerminalSize { width, height }) => {
                input.resize(TtySize { rows: height, cols: width })
            }
            Frame::StdinClosed => {
                self.0 = None;
                Ok(())
            }
            Frame::Stdout(_) | Frame::Stderr(_) | Frame::Ended(_) => Ok(()),
        };
        taken.map_err(io::Error::other)
    }
}

impl Output for ExecOutputs {
    async fn next(&mut self) -> Frame {
        match self.recv().await {
            Some(ExecOutput::Stdout(data)) => Frame::Stdout(data),
            Some(ExecOutput::Stderr(data)) => Frame::Stderr(data),
            Some(ExecOutput::Exit(code)) => Frame::Ended(Box::new(Status::of_exit(code))),
            None => lost("the connection to the guest was lost while the command ran"),
        }
    }
}

impl Input for WriteHalf<GuestStream> {
    async fn take(&mut self, frame: Frame) -> io::Result<()> {
        match frame {
            Frame::Stdin(data) => self.write_all(&data).await,
            // A console has no end of input and no size.
            _ => Ok(()),
        }
    }
}

impl Output for ReadHalf<GuestStream> {
    async fn next(&mut self) -> Frame {
        let mut block = BytesMut::with_capacity(BLOCK);
        match self.read_buf(&mut block).await {
            Ok(0) | Err(_) => lost("the console was closed: the VM has stopped"),
            Ok(_) => Frame::Stdout(Bytes::from(block)),
        }
    }
}

fn lost(message: &str) -> Frame {
    Frame::Ended(Box::new(Status::failure(500, "InternalError", message)))
}
