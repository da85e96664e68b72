//! An interactive session: stdin to the guest, its output to stdout and stderr.

use std::future::pending;
use std::io;

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::error::CliError;
use super::terminal::{RawMode, size};
use crate::api::channel::Frame;
use crate::api::types::Status;

/// How much of stdin is read at once, in bytes.
const BLOCK: usize = 16 << 10;

/// What goes into a session.
#[derive(Clone, Copy, Debug)]
pub(super) struct Session {
    /// Whether stdin does.
    pub(super) stdin: bool,
    /// Whether stdin is a terminal that the guest's end is to feel like.
    pub(super) terminal: bool,
    /// The byte that ends the session when it is typed.
    pub(super) escape: Option<u8>,
}

type Socket = WebSocketStream<UnixStream>;

/// Runs a session. Gives how the command ended; none if the user left.
///
/// # Errors
/// When the connection breaks, or stdout does. The terminal is restored whatever happens.
pub(super) async fn run(socket: Socket, session: Session) -> Result<Option<Status>, CliError> {
    let raw = if session.terminal { Some(RawMode::enter()?) } else { None };
    let (sender, receiver) = socket.split();
    let mut terminated = signal(SignalKind::terminate())?;
    let mut hung_up = signal(SignalKind::hangup())?;
    let outcome = tokio::select! {
        status = receive(receiver) => status.map(Some),
        left = send(sender, session) => left.map(|()| None),
        _ = terminated.recv() => Err(CliError::silent(128 + 15)),
        _ = hung_up.recv() => Err(CliError::silent(128 + 1)),
    };
    drop(raw);
    outcome
}

/// Prints the output until the end is told.
async fn receive(mut socket: SplitStream<Socket>) -> Result<Status, CliError> {
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    while let Some(message) = socket.next().await {
        let message = message.map_err(|error| lost(&error.to_string()))?;
        let Message::Binary(message) = message else { continue };
        match Frame::decode(message).map_err(|error| lost(&error.to_string()))? {
            Some(Frame::Stdout(data)) => {
                stdout.write_all(&data).await?;
                stdout.flush().await?;
            }
            Some(Frame::Stderr(data)) => {
                stderr.write_all(&data).await?;
                stderr.flush().await?;
            }
            Some(Frame::Ended(status)) => return Ok(*status),
            _ => {}
        }
    }
    Err(lost("the daemon closed it"))
}

fn lost(why: &str) -> CliError {
    CliError::new(format!("the session was lost: {why}"))
}

/// Sends stdin and the terminal's size. Ends only when the user leaves.
async fn send(mut socket: SplitSink<Socket, Message>, session: Session) -> Result<(), CliError> {
    let mut resized = if session.terminal { Some(signal(SignalKind::window_change())?) } else { None };
    if session.terminal {
        send_size(&mut socket).await;
    }
    let mut stdin = session.stdin.then(tokio::io::stdin);
    let mut block = vec![0; BLOCK];
    loop {
        let read = tokio::select! {
            read = read(&mut stdin, &mut block) => read?,
            () = changed(&mut resized) => {
                send_size(&mut socket).await;
                continue;
            }
        };
        let input = &block[..read];
        let typed = match session.escape.and_then(|escape| input.iter().position(|byte| *byte == escape)) {
            Some(place) => &input[..place],
            None => input,
        };
        let frame = if read == 0 { Frame::StdinClosed } else { Frame::Stdin(Bytes::copy_from_slice(typed)) };
        // The other direction tells why a connection broke.
        if socket.send(Message::Binary(frame.encode())).await.is_err() {
            return pending().await;
        }
        if typed.len() < read {
            return Ok(());
        }
        if read == 0 {
            stdin = None;
        }
    }
}

async fn read(stdin: &mut Option<tokio::io::Stdin>, block: &mut [u8]) -> io::Result<usize> {
    match stdin {
        Some(stdin) => stdin.read(block).await,
        None => pending().await,
    }
}

async fn changed(resized: &mut Option<Signal>) {
    match resized {
        Some(resized) => drop(resized.recv().await),
        None => pending().await,
    }
}

async fn send_size(socket: &mut SplitSink<Socket, Message>) {
    if let Some(size) = size() {
        let _ = socket.send(Message::Binary(Frame::Resize(size).encode())).await;
    }
}
