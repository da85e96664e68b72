//! The start of a connection (see `vmlet_wire`): Hello until the guest answers this very one.

use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep_until};
use vmlet_wire::{
    CONTROL, Decoder, Frame, GuestMessage, GuestState, HostMessage, Item, Kind, Nonce, Side, VERSION,
    encode_message, encode_preamble, padding,
};

use super::receive::receive;
use super::{AgentError, clip_state};
use crate::hypervisor::GuestStream;

/// The first wait for an answer; each further one is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(500);

/// The longest wait. A guest that boots finds all Hellos of the meantime waiting.
const LONGEST_WAIT: Duration = Duration::from_secs(4);

/// A connection that has begun.
pub(super) struct Greeting {
    pub(super) decoder: Decoder,
    /// What is left of the last Hello, half of which the guest may have.
    pub(super) unsent: BytesMut,
    pub(super) boot_id: String,
    pub(super) state: GuestState,
}

pub(super) async fn greet(stream: &mut GuestStream) -> Result<Greeting, AgentError> {
    let nonce: Nonce = rand::random();
    let mut decoder = Decoder::new(Side::Guest, Some(nonce));
    let mut unsent = BytesMut::new();
    append_hello(&mut unsent, &nonce);
    let mut wait = FIRST_WAIT;
    let mut repeat_at = Instant::now() + wait;
    let (mut reader, mut writer) = tokio::io::split(stream);
    loop {
        tokio::select! {
            biased;
            // First: a guest that talks without end is greeted all the same.
            written = writer.write(&unsent), if !unsent.is_empty() => match written? {
                0 => return Err(AgentError::Closed),
                length => unsent.advance(length),
            },
            received = receive(&mut reader, &mut decoder) => {
                if received? == 0 {
                    return Err(AgentError::Closed);
                }
                if let Some((boot_id, state)) = answer(&mut decoder)? {
                    return Ok(Greeting { decoder, unsent, boot_id, state });
                }
            }
            () = sleep_until(repeat_at), if unsent.is_empty() => {
                unsent.extend(padding());
                append_hello(&mut unsent, &nonce);
                wait = (wait * 2).min(LONGEST_WAIT);
                repeat_at = Instant::now() + wait;
            }
        }
    }
}

fn append_hello(out: &mut BytesMut, nonce: &Nonce) {
    encode_preamble(out, Side::Host, nonce);
    encode_message(out, CONTROL, &HostMessage::Hello { version: VERSION }).expect("a Hello is short");
}

/// The answer, if it is complete.
fn answer(decoder: &mut Decoder) -> Result<Option<(String, GuestState)>, AgentError> {
    let refuse = |what: String| Err(AgentError::Protocol(what));
    loop {
        match decoder.next_item() {
            Ok(None) => return Ok(None),
            Ok(Some(Item::Preamble(_))) => {}
            Ok(Some(Item::Frame(Frame { kind: Kind::Message, stream: CONTROL, payload }))) => {
                return match serde_json::from_slice(&payload) {
                    Ok(GuestMessage::HelloAck { version, .. }) if version != VERSION => {
                        Err(AgentError::Version(version))
                    }
                    Ok(GuestMessage::HelloAck { boot_id, state, .. }) if is_boot_id(&boot_id) => {
                        Ok(Some((boot_id, clip_state(state))))
                    }
                    Ok(_) => refuse("its first message is no proper HelloAck".to_owned()),
                    Err(error) => refuse(format!("its first message is unreadable: {error}")),
                };
            }
            Ok(Some(Item::Frame(frame))) => {
                return refuse(format!("it began with a frame of {:?}", frame.kind));
            }
            Err(error) => return refuse(error.to_string()),
        }
    }
}

/// Looks like a uuid; it is stored in a file.
fn is_boot_id(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}
