//! The framing of interactive sessions over a WebSocket: `v5.channel.k8s.io`.
//!
//! Each binary message is one byte that names the channel, then the data. Kubernetes' remotecommand
//! (KEP-4006) is the source. Pure; both ends use it.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::types::Status;

/// The WebSocket subprotocol's name.
pub const PROTOCOL: &str = "v5.channel.k8s.io";
/// The longest message, in bytes.
pub const MAX_MESSAGE: usize = 1 << 20;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// One message of a session.
#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    /// Input.
    Stdin(Bytes),
    /// The input is at its end.
    StdinClosed,
    /// Output.
    Stdout(Bytes),
    /// Error output.
    Stderr(Bytes),
    /// How the command ended; the last message.
    Ended(Box<Status>),
    /// The terminal's new size.
    Resize(TerminalSize),
}

/// A terminal's size in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// A message that breaks the protocol.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the other end broke the {PROTOCOL} protocol: {0}")]
pub struct FrameError(String);

impl Frame {
    /// The message's bytes.
    pub fn encode(&self) -> Bytes {
        let (channel, data) = match self {
            Frame::Stdin(data) => (STDIN, data.clone()),
            Frame::StdinClosed => (CLOSE, Bytes::from_static(&[STDIN])),
            Frame::Stdout(data) => (STDOUT, data.clone()),
            Frame::Stderr(data) => (STDERR, data.clone()),
            Frame::Ended(status) => (ERROR, json(status)),
            Frame::Resize(size) => (RESIZE, json(size)),
        };
        let mut message = BytesMut::with_capacity(1 + data.len());
        message.put_u8(channel);
        message.put(data);
        message.freeze()
    }

    /// Reads a message; none if it is of no consequence.
    ///
    /// # Errors
    /// When the message is not of the protocol.
    pub fn decode(message: Bytes) -> Result<Option<Frame>, FrameError> {
        let Some(channel) = message.first().copied() else { return Ok(None) };
        let data = message.slice(1..);
        let broken = |what: &str, error: serde_json::Error| FrameError(format!("{what}: {error}"));
        Ok(Some(match channel {
            STDIN => Frame::Stdin(data),
            STDOUT => Frame::Stdout(data),
            STDERR => Frame::Stderr(data),
            ERROR => {
                Frame::Ended(serde_json::from_slice(&data).map_err(|error| broken("bad status", error))?)
            }
            RESIZE => {
                Frame::Resize(serde_json::from_slice(&data).map_err(|error| broken("bad size", error))?)
            }
            CLOSE if data.first() == Some(&STDIN) => Frame::StdinClosed,
            CLOSE => return Ok(None),
            other => return Err(FrameError(format!("no channel {other}"))),
        }))
    }
}

fn json<T: Serialize>(data: &T) -> Bytes {
    serde_json::to_vec(data).expect("plain data serialises").into()
}
