//! The codec by value and by property.

use proptest::prelude::*;

use super::*;

const NONCE_A: Nonce = [7; NONCE];
const NONCE_B: Nonce = [9; NONCE];

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        Just(Kind::Message),
        Just(Kind::Stdin),
        Just(Kind::Stdout),
        Just(Kind::Stderr),
        Just(Kind::Credit),
        Just(Kind::Reset)
    ]
}

fn frame() -> impl Strategy<Value = Frame> {
    (kind(), any::<u32>(), prop::collection::vec(any::<u8>(), 0..300))
        .prop_map(|(kind, stream, payload)| Frame { kind, stream, payload })
}

/// Everything a decoder makes of `bytes` that arrive in pieces of the given lengths.
fn decode(decoder: &mut Decoder, bytes: &[u8], pieces: &[usize]) -> Vec<Result<Item, WireError>> {
    let mut items = Vec::new();
    let mut lengths = pieces.iter().copied().filter(|length| *length > 0).cycle();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (now, later) = rest.split_at(lengths.next().unwrap_or(rest.len()).min(rest.len()));
        decoder.push(now);
        rest = later;
        while let Some(item) = decoder.next_item().transpose() {
            items.push(item);
        }
    }
    items
}

fn connection(from: Side, nonce: &Nonce, frames: &[Frame]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_preamble(&mut bytes, from, nonce);
    for frame in frames {
        encode(&mut bytes, frame.kind, frame.stream, &frame.payload);
    }
    bytes
}

fn expected(nonce: Nonce, frames: &[Frame]) -> Vec<Result<Item, WireError>> {
    std::iter::once(Item::Preamble(nonce)).chain(frames.iter().cloned().map(Item::Frame)).map(Ok).collect()
}

proptest! {
    #[test]
    fn frames_survive_any_chunking(
        frames in prop::collection::vec(frame(), 0..8),
        pieces in prop::collection::vec(0..90_usize, 0..8),
    ) {
        let bytes = connection(Side::Host, &NONCE_A, &frames);
        let mut decoder = Decoder::new(Side::Host, None);
        prop_assert_eq!(decode(&mut decoder, &bytes, &pieces), expected(NONCE_A, &frames));
    }

    #[test]
    fn the_host_finds_its_nonce_behind_any_garbage(
        garbage in prop::collection::vec(any::<u8>(), 0..500),
        old in prop::collection::vec(frame(), 0..4),
        frames in prop::collection::vec(frame(), 0..4),
        pieces in prop::collection::vec(0..90_usize, 0..8),
    ) {
        let mut bytes = garbage;
        bytes.extend(connection(Side::Guest, &NONCE_A, &old));
        bytes.extend(connection(Side::Guest, &NONCE_B, &frames));
        let mut decoder = Decoder::new(Side::Guest, Some(NONCE_B));
        prop_assert_eq!(decode(&mut decoder, &bytes, &pieces), expected(NONCE_B, &frames));
    }

    /// A daemon dies in the middle of any frame, and the guest notices nothing of it: the second Hello
    /// of the next daemon is found.
    #[test]
    fn a_repeated_hello_ends_any_truncated_frame(
        frames in prop::collection::vec(frame(), 1..4),
        claimed in 0..=MAX_PAYLOAD,
        cut in any::<prop::sample::Index>(),
        nonce: Nonce,
        pieces in prop::collection::vec(0..9_000_usize, 0..8),
    ) {
        let mut bytes = connection(Side::Host, &NONCE_A, &frames);
        encode(&mut bytes, Kind::Stdin, 1, &vec![1; claimed]);
        bytes.truncate(cut.index(bytes.len()));
        let hello = connection(Side::Host, &nonce, &frames[..1]);
        bytes.extend(&hello);
        bytes.extend(padding());
        bytes.extend(&hello);

        let mut decoder = Decoder::new(Side::Host, None);
        let items = decode(&mut decoder, &bytes, &pieces);
        let tail = expected(nonce, &frames[..1]);
        prop_assert!(items.ends_with(&tail), "{:?}", items);
    }

    #[test]
    fn no_bytes_break_the_decoder_or_fill_it(bytes in prop::collection::vec(any::<u8>(), 0..2_000)) {
        let mut wire = connection(Side::Host, &NONCE_A, &[]);
        wire.extend(bytes);
        for item in decode(&mut Decoder::new(Side::Host, None), &wire, &[13, 700]).into_iter().flatten() {
            if let Item::Frame(frame) = item {
                prop_assert!(frame.payload.len() <= MAX_PAYLOAD);
            }
        }
    }

    #[test]
    fn credit_is_conserved(sizes in prop::collection::vec(0..MAX_PAYLOAD, 0..40)) {
        let (mut sending, mut receiving) = (Sending::default(), Receiving::default());
        let mut unread = Vec::new();
        for size in sizes {
            while sending.room() < size {
                let amount = unread.pop().expect("the window is larger than a frame");
                receiving.grant(amount);
                prop_assert_eq!(sending.credit(amount), Ok(()));
            }
            sending.spend(size);
            prop_assert_eq!(receiving.take(size), Ok(()));
            unread.push(cost(size));
        }
        for amount in unread {
            prop_assert_eq!(sending.credit(amount), Ok(()));
        }
        prop_assert!(sending.settled());
        prop_assert_eq!(sending.credit(1), Err(Overrun));
    }
}

#[test]
fn a_malformed_frame_is_an_error_and_then_only_a_preamble_counts() {
    let mut bytes = connection(Side::Host, &NONCE_A, &[]);
    bytes.extend([99, 0, 0, 0, 0, 0, 0, 0]);
    encode(&mut bytes, Kind::Stdin, 1, b"lost");
    bytes.extend(connection(Side::Host, &NONCE_B, &[]));
    let items = decode(&mut Decoder::new(Side::Host, None), &bytes, &[]);
    assert_eq!(
        items,
        [
            Ok(Item::Preamble(NONCE_A)),
            Err(WireError::Malformed([99, 0, 0, 0, 0, 0, 0, 0])),
            Ok(Item::Preamble(NONCE_B))
        ]
    );
}

#[test]
fn a_length_over_the_cap_is_an_error_before_anything_is_stored() {
    let mut bytes = connection(Side::Guest, &NONCE_A, &[]);
    bytes.extend([Kind::Stdout as u8, 0, 0xff, 0xff, 1, 0, 0, 0]);
    let items = decode(&mut Decoder::new(Side::Guest, Some(NONCE_A)), &bytes, &[1]);
    assert!(matches!(items[..], [Ok(Item::Preamble(NONCE_A)), Err(WireError::Malformed(_))]));
}

#[test]
fn a_side_does_not_take_its_own_echo_for_an_answer() {
    let echo = connection(Side::Host, &NONCE_A, &[]);
    assert_eq!(decode(&mut Decoder::new(Side::Guest, Some(NONCE_A)), &echo, &[]), []);
}

#[test]
fn a_message_that_does_not_fit_a_frame_is_refused() {
    let message = GuestMessage::Refused { message: "x".repeat(MAX_PAYLOAD) };
    let mut out = Vec::new();
    assert!(matches!(encode_message(&mut out, 1, &message), Err(WireError::TooLong(_))));
    assert!(out.is_empty());
}

#[test]
fn messages_read_as_documented() {
    let json = r#"{"type":"exec","argv":["ls"],"stdin":true}"#;
    let exec = HostMessage::Exec(ExecRequest { argv: vec!["ls".into()], stdin: true, ..Default::default() });
    assert_eq!(serde_json::from_str::<HostMessage>(json).unwrap(), exec);
    let state = GuestMessage::State { state: GuestState::Exited { code: 3 } };
    assert_eq!(
        serde_json::to_string(&state).unwrap(),
        r#"{"type":"state","state":{"phase":"exited","code":3}}"#
    );
}
