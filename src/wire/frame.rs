//! Frames, and how to find them in a stream that may start anywhere.

use std::fmt;

use serde::Serialize;

/// A frame's header: kind (u8), zero (u8), payload length (u16 LE), stream (u32 LE).
pub const HEADER: usize = 8;

/// The longest payload, in bytes.
pub const MAX_PAYLOAD: usize = 32 << 10;

/// The length of a connection's nonce, in bytes.
pub const NONCE: usize = 16;

/// Random bytes that name a connection.
pub type Nonce = [u8; NONCE];

const MAGIC: usize = 8;
const PREAMBLE: usize = MAGIC + NONCE;

/// The two ends. Each has its own magic, so that an echo is not mistaken for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The daemon.
    Host,
    /// The VM.
    Guest,
}

impl Side {
    // The first byte is no frame's kind.
    fn magic(self) -> &'static [u8; MAGIC] {
        match self {
            Side::Host => b"\xf7vmlet>\n",
            Side::Guest => b"\xf7vmlet<\n",
        }
    }
}

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A [`HostMessage`](crate::HostMessage) or [`GuestMessage`](crate::GuestMessage) in JSON.
    Message = 1,
    /// Input for a process.
    Stdin = 2,
    /// Output of a process or of the log.
    Stdout = 3,
    /// Error output of a process.
    Stderr = 4,
    /// Bytes that were consumed, as a u32 LE (see [`cost`](crate::cost)).
    Credit = 5,
    /// The stream is over: nothing more comes, and nothing more is wanted. No payload.
    Reset = 6,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        const KINDS: [Kind; 6] =
            [Kind::Message, Kind::Stdin, Kind::Stdout, Kind::Stderr, Kind::Credit, Kind::Reset];
        KINDS.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it carries.
    pub kind: Kind,
    /// The stream that it belongs to; [`CONTROL`](crate::CONTROL) is the connection's own.
    pub stream: u32,
    /// At most [`MAX_PAYLOAD`] bytes.
    pub payload: Vec<u8>,
}

/// What a peer's bytes turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A connection starts here.
    Preamble(Nonce),
    /// A frame of the connection.
    Frame(Frame),
}

/// The peer broke the protocol, or a message does not fit it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WireError {
    /// These bytes are no header.
    Malformed([u8; HEADER]),
    /// A message is longer than a frame: its length in bytes.
    TooLong(usize),
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WireError::Malformed(bytes) => write!(f, "{bytes:02x?} is not the header of a frame"),
            WireError::TooLong(length) => {
                write!(f, "a message of {length} bytes is over the limit of {MAX_PAYLOAD}")
            }
        }
    }
}

impl std::error::Error for WireError {}

/// Appends a frame.
///
/// # Panics
///
/// If the payload is longer than [`MAX_PAYLOAD`]: senders cut data to size, and messages go through
/// [`encode_message`].
pub fn encode(out: &mut impl Extend<u8>, kind: Kind, stream: u32, payload: &[u8]) {
    assert!(payload.len() <= MAX_PAYLOAD, "a payload of {} bytes", payload.len());
    let length = u16::try_from(payload.len()).expect("MAX_PAYLOAD fits 16 bits").to_le_bytes();
    out.extend([kind as u8, 0, length[0], length[1]]);
    out.extend(stream.to_le_bytes());
    out.extend(payload.iter().copied());
}

/// Appends a message as a frame, or nothing if it is too long for one.
pub fn encode_message<T: Serialize>(
    out: &mut impl Extend<u8>,
    stream: u32,
    message: &T,
) -> Result<(), WireError> {
    let json = serde_json::to_vec(message).expect("messages are plain data with string keys");
    if json.len() > MAX_PAYLOAD {
        return Err(WireError::TooLong(json.len()));
    }
    encode(out, Kind::Message, stream, &json);
    Ok(())
}

/// Appends the start of a connection.
pub fn encode_preamble(out: &mut impl Extend<u8>, from: Side, nonce: &Nonce) {
    out.extend(from.magic().iter().copied());
    out.extend(nonce.iter().copied());
}

/// What precedes a repeated Hello. Longer than the rest of any frame, true or accidental, that the
/// peer may be in the middle of; and where the peer expects a header, malformed, which makes it
/// hunt.
pub fn padding() -> Vec<u8> {
    vec![0; HEADER + MAX_PAYLOAD]
}

/// Finds frames in a peer's bytes. Holds at most one incomplete frame between calls, if it is
/// drained after every [`Decoder::push`], and no memory while there is none.
#[derive(Debug)]
pub struct Decoder {
    peer: Side,
    nonce: Option<Nonce>,
    hunting: bool,
    buffer: Vec<u8>,
    start: usize,
}

impl Decoder {
    /// Hunts for a preamble of `peer`: with this nonce, or with any.
    pub fn new(peer: Side, nonce: Option<Nonce>) -> Self {
        Decoder { peer, nonce, hunting: true, buffer: Vec::new(), start: 0 }
    }

    /// Bytes that came from the peer.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// Gives up the connection: from here on only a preamble counts.
    pub fn hunt(&mut self) {
        self.hunting = true;
    }

    /// Forgets everything: the peer's earlier bytes have no continuation.
    pub fn clear(&mut self) {
        self.buffer.clear();
        self.start = 0;
        self.hunting = true;
    }

    /// The next item, if it is complete. After an error the decoder hunts.
    pub fn next_item(&mut self) -> Result<Option<Item>, WireError> {
        if self.hunting {
            return Ok(self.find_preamble());
        }
        if self.start == self.buffer.len() {
            (self.buffer, self.start) = (Vec::new(), 0);
            return Ok(None);
        }
        let rest = &self.buffer[self.start..];
        if rest.first() == self.peer.magic().first() {
            return self.preamble_here();
        }
        let Some(header) = rest.first_chunk::<HEADER>() else { return Ok(None) };
        let [kind, zero, low, high, stream @ ..] = *header;
        let length = usize::from(u16::from_le_bytes([low, high]));
        let kind = match Kind::from_byte(kind) {
            Some(kind) if zero == 0 && length <= MAX_PAYLOAD => kind,
            _ => {
                self.hunting = true;
                return Err(WireError::Malformed(*header));
            }
        };
        let Some(payload) = rest.get(HEADER..HEADER + length) else { return Ok(None) };
        let frame = Frame { kind, stream: u32::from_le_bytes(stream), payload: payload.to_vec() };
        self.start += HEADER + length;
        Ok(Some(Item::Frame(frame)))
    }

    /// A preamble at a frame's boundary.
    fn preamble_here(&mut self) -> Result<Option<Item>, WireError> {
        let rest = &self.buffer[self.start..];
        let known = rest.len().min(MAGIC);
        if rest[..known] != self.peer.magic()[..known] {
            let mut header = [0; HEADER];
            header[..known].copy_from_slice(&rest[..known]);
            self.hunting = true;
            return Err(WireError::Malformed(header));
        }
        if rest.len() < PREAMBLE {
            return Ok(None);
        }
        // Goes through the hunt, which applies the nonce.
        Ok(self.find_preamble())
    }

    /// Discards up to and including the next preamble that counts, or as much as cannot be its
    /// start.
    fn find_preamble(&mut self) -> Option<Item> {
        self.hunting = true;
        while self.buffer.len() - self.start >= PREAMBLE {
            let window = &self.buffer[self.start..self.start + PREAMBLE];
            let (magic, nonce) = window.split_at(MAGIC);
            let nonce: Nonce = nonce.try_into().expect("the window is a magic and a nonce");
            if magic == self.peer.magic() && self.nonce.is_none_or(|wanted| wanted == nonce) {
                self.hunting = false;
                self.start += PREAMBLE;
                return Some(Item::Preamble(nonce));
            }
            self.start += 1;
        }
        None
    }
}
