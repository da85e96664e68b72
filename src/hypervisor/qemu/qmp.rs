//! QEMU's machine protocol: JSON lines on a Unix socket (QEMU's docs/interop/qmp-spec).
//!
//! In: a connected stream and one command. Out: its return value. The VMM is trusted to exist, not to
//! be sane: lines, their number and the time they take are bounded.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{
    AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader,
};

/// The longest line that is read, in bytes.
const MAX_LINE: u64 = 64 << 10;
/// The most lines (events, mostly) that are read in wait for one answer.
const MAX_LINES: usize = 1000;
/// How long a whole exchange may take.
const LIMIT: Duration = Duration::from_secs(5);

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum QmpError {
    /// The stream broke.
    #[error("the QMP connection broke: {0}")]
    Io(#[from] std::io::Error),
    /// No answer in time.
    #[error("QEMU did not answer on its QMP socket within {} s", LIMIT.as_secs())]
    Timeout,
    /// Not what the protocol says.
    #[error("QEMU broke the QMP protocol: {0}")]
    Protocol(&'static str),
    /// QEMU refused the command.
    #[error("QEMU refused {command}: {message}")]
    Refused {
        /// The command.
        command: &'static str,
        /// QEMU's words.
        message: String,
    },
}

/// What QEMU sends. Exactly one field of a message is there.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Message {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    #[serde(rename = "return")]
    value: Option<Value>,
    error: Option<Refusal>,
    event: Option<String>,
}

#[derive(Deserialize)]
struct Refusal {
    desc: String,
}

/// Greets, runs one command without arguments, and hangs up.
pub(super) async fn execute(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin,
    command: &'static str,
) -> Result<Value, QmpError> {
    let exchange = async {
        let mut stream = BufReader::new(stream);
        if read_message(&mut stream).await?.greeting.is_none() {
            return Err(QmpError::Protocol("no greeting"));
        }
        call(&mut stream, "qmp_capabilities").await?;
        call(&mut stream, command).await
    };
    tokio::time::timeout(LIMIT, exchange).await.map_err(|_| QmpError::Timeout)?
}

async fn call(
    stream: &mut (impl AsyncBufRead + AsyncWrite + Unpin),
    command: &'static str,
) -> Result<Value, QmpError> {
    let line = format!("{}\n", json!({"execute": command}));
    stream.write_all(line.as_bytes()).await?;
    for _ in 0..MAX_LINES {
        match read_message(stream).await? {
            Message { value: Some(value), .. } => return Ok(value),
            Message { error: Some(refusal), .. } => {
                let message = refusal.desc.chars().filter(|c| !c.is_control()).take(500).collect();
                return Err(QmpError::Refused { command, message });
            }
            Message { event: Some(_), .. } => {}
            _ => return Err(QmpError::Protocol("a message that is neither answer nor event")),
        }
    }
    Err(QmpError::Protocol("events without end"))
}

async fn read_message(stream: &mut (impl AsyncBufRead + Unpin)) -> Result<Message, QmpError> {
    let mut line = Vec::new();
    stream.take(MAX_LINE).read_until(b'\n', &mut line).await?;
    if !line.ends_with(b"\n") {
        let full = line.len() as u64 == MAX_LINE;
        return Err(QmpError::Protocol(if full { "a line over 64 KiB" } else { "an end amid a line" }));
    }
    serde_json::from_slice(&line).map_err(|_| QmpError::Protocol("a line that is not a JSON message"))
}
