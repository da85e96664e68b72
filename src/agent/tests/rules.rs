//! One rule of the link a test: what a guest is told, and what it may not do.

use vmlet_wire::{Decoder, HEADER, HostMessage, Item, padding};

use super::super::connection::Command;
use super::super::log::{Chunk, Log};
use super::*;

/// What the host says from its preamble on, item by item.
struct Heard {
    guest: DuplexStream,
    decoder: Decoder,
}

impl Heard {
    fn new(guest: DuplexStream) -> Self {
        let mut decoder = Decoder::new(Side::Host, None);
        // `rogue` has read the first preamble.
        let mut preamble = Vec::new();
        encode_preamble(&mut preamble, Side::Host, &[0; 16]);
        decoder.push(&preamble);
        Heard { guest, decoder }
    }

    /// The next frame; none if there is none for a minute.
    async fn frame(&mut self) -> Option<(Kind, u32, Vec<u8>)> {
        loop {
            match self.decoder.next_item().expect("the host keeps to the protocol") {
                Some(Item::Frame(frame)) => return Some((frame.kind, frame.stream, frame.payload)),
                Some(Item::Preamble(_)) => continue,
                None => {}
            }
            let mut bytes = vec![0; 64 << 10];
            let read = timeout(Duration::from_secs(60), self.guest.read(&mut bytes)).await.ok()?;
            let count = read.expect("a duplex does not fail");
            self.decoder.push(&bytes[..count]);
            if count == 0 {
                return None;
            }
        }
    }

    /// The next message that is not a Hello.
    async fn message(&mut self) -> Option<(u32, HostMessage)> {
        loop {
            let (kind, stream, payload) = self.frame().await?;
            if kind != Kind::Message {
                continue;
            }
            match serde_json::from_slice(&payload).expect("the host's own words") {
                HostMessage::Hello { .. } => {}
                message => return Some((stream, message)),
            }
        }
    }
}

fn say(message: &GuestMessage) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_message(&mut bytes, CONTROL, message).unwrap();
    bytes
}

/// What a guest gets that answers the first Hello so.
async fn answered(version: u32, boot_id: &str) -> Result<Agent, AgentError> {
    let (host, mut guest) = tokio::io::duplex(1 << 20);
    let connecting = tokio::spawn(Agent::connect(Box::new(host), LogSink::nowhere()));
    let mut preamble = [0; 24];
    guest.read_exact(&mut preamble).await.unwrap();
    let mut out = Vec::new();
    encode_preamble(&mut out, Side::Guest, preamble[8..].try_into().unwrap());
    let (boot_id, state) = (boot_id.to_owned(), GuestState::Ready);
    out.extend(say(&GuestMessage::HelloAck { version, boot_id, state }));
    guest.write_all(&out).await.unwrap();
    within(connecting).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn only_this_version_and_ids_that_boots_have_are_taken() {
    assert!(
        matches!(answered(VERSION + 1, "0a").await, Err(AgentError::Version(version)) if version == VERSION + 1)
    );
    assert!(answered(VERSION, &"a".repeat(64)).await.is_ok());
    assert!(answered(VERSION, "0a1b-F").await.is_ok());
    for other in ["", "../up", "0g", "0a\n", &"a".repeat(65)] {
        assert!(matches!(answered(VERSION, other).await, Err(AgentError::Protocol(_))), "{other:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_without_an_answer_is_greeted_again_and_again_behind_padding() {
    let (host, mut guest) = tokio::io::duplex(4 << 20);
    let connecting = tokio::spawn(Agent::connect(Box::new(host), LogSink::nowhere()));
    // After 0.5, 1, 2, 4, 4 and 4 seconds, so at 15.5.
    tokio::time::sleep(Duration::from_secs(16)).await;
    connecting.abort();
    let mut heard = Vec::new();
    guest.read_to_end(&mut heard).await.unwrap();
    let greetings = heard.windows(8).filter(|bytes| *bytes == &heard[..8]).count();
    assert_eq!(greetings, 7, "the longest wait is 4 s");
    let hello = (heard.len() - 6 * padding().len()) / 7;
    assert!(heard[hello..].starts_with(&padding()), "a guest amid a frame finds its end in the padding");
    assert_eq!(heard[hello + padding().len()..][..hello], heard[..hello]);
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_is_about_to_leave_is_told_that_its_end_was_seen() {
    let (_agent, guest, _dir) = rogue(GuestState::Exited { code: 0 }).await;
    let mut heard = Heard::new(guest);
    assert!(matches!(heard.message().await, Some((LOG, HostMessage::Logs { .. }))), "the log comes first");
    assert_eq!(heard.message().await, Some((CONTROL, HostMessage::StateSeen)));
    assert_eq!(heard.message().await, None, "once");

    let (_agent, guest, _dir) = rogue(GuestState::Ready).await;
    let mut heard = Heard::new(guest);
    assert!(matches!(heard.message().await, Some((LOG, HostMessage::Logs { .. }))));
    assert_eq!(heard.message().await, None, "a guest that stays is not waited for");
    let state = GuestState::Failed { message: "no such program".to_owned() };
    heard.guest.write_all(&say(&GuestMessage::State { state })).await.unwrap();
    assert_eq!(heard.message().await, Some((CONTROL, HostMessage::StateSeen)));
}

#[tokio::test(start_paused = true)]
async fn a_process_that_nobody_listens_to_is_reset() {
    let (agent, guest, _dir) = rogue(GuestState::Ready).await;
    let starting = tokio::spawn(async move { agent.exec(exec(&["cat"])).await });
    let mut heard = Heard::new(guest);
    while !matches!(heard.message().await, Some((_, HostMessage::Exec(_)))) {}
    heard.guest.write_all(&frame(Kind::Message, LOG + 1, b"{\"type\":\"started\"}")).await.unwrap();
    let session = within(starting).await.unwrap().unwrap();
    let ExecSession { input, output } = session;
    drop(output);
    assert_eq!(heard.frame().await, Some((Kind::Reset, LOG + 1, Vec::new())));
    // The stream is over: nothing more is said on it.
    drop(input);
    assert_eq!(heard.frame().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_process_whose_stream_the_guest_resets_has_ended() {
    let (agent, guest, _dir) = rogue(GuestState::Ready).await;
    let starting = tokio::spawn(async move { (agent.exec(exec(&["cat"])).await, agent) });
    let mut heard = Heard::new(guest);
    while !matches!(heard.message().await, Some((_, HostMessage::Exec(_)))) {}
    heard.guest.write_all(&frame(Kind::Message, LOG + 1, b"{\"type\":\"started\"}")).await.unwrap();
    let (session, _agent) = within(starting).await.unwrap();
    let mut session = session.unwrap();
    heard.guest.write_all(&frame(Kind::Reset, LOG + 1, &[])).await.unwrap();
    assert_eq!(within(session.output.recv()).await, None);
}

#[tokio::test(start_paused = true)]
async fn credit_that_was_never_spent_is_refused() {
    let (agent, guest, _dir) = rogue(GuestState::Ready).await;
    let starting = tokio::spawn(async move { (agent.exec(exec(&["cat"])).await, agent) });
    let mut heard = Heard::new(guest);
    while !matches!(heard.message().await, Some((_, HostMessage::Exec(_)))) {}
    heard.guest.write_all(&frame(Kind::Message, LOG + 1, b"{\"type\":\"started\"}")).await.unwrap();
    let (session, agent) = within(starting).await.unwrap();
    let _session = session.unwrap();
    heard.guest.write_all(&frame(Kind::Credit, LOG + 1, &1_u32.to_le_bytes())).await.unwrap();
    within(agent.closed()).await;
}

/// An agent whose log takes nothing: it is full, and cannot be rotated.
async fn clogged() -> (Agent, DuplexStream, Dir) {
    let (host, mut guest) = tokio::io::duplex(4 << 20);
    let dir = Dir::new();
    std::fs::write(dir.log(), "full").unwrap();
    std::fs::create_dir_all(dir.0.path().join("log.1/in the way")).unwrap();
    let connecting = tokio::spawn(Agent::connect(Box::new(host), LogSink::new(dir.log(), 5)));
    let mut preamble = [0; 24];
    guest.read_exact(&mut preamble).await.unwrap();
    let mut out = Vec::new();
    encode_preamble(&mut out, Side::Guest, preamble[8..].try_into().unwrap());
    let (boot_id, state) = ("0a".to_owned(), GuestState::Ready);
    out.extend(say(&GuestMessage::HelloAck { version: VERSION, boot_id, state }));
    guest.write_all(&out).await.unwrap();
    (within(connecting).await.unwrap().unwrap(), guest, dir)
}

#[tokio::test(start_paused = true)]
async fn a_log_that_is_not_taken_is_bounded() {
    let (agent, mut guest, _dir) = clogged().await;
    let piece = 16 << 10;
    let fits = WINDOW as usize / (piece + HEADER);
    for _ in 0..fits {
        guest.write_all(&frame(Kind::Stdout, LOG, &vec![b'x'; piece])).await.unwrap();
    }
    assert!(timeout(Duration::from_secs(60), agent.closed()).await.is_err(), "its credit covers that");
    guest.write_all(&frame(Kind::Stdout, LOG, &vec![b'x'; piece])).await.unwrap();
    within(agent.closed()).await;

    // And a flood of words about it, which cost a header each.
    let (agent, mut guest, _dir) = clogged().await;
    guest.write_all(&frame(Kind::Stdout, LOG, b"xx")).await.unwrap();
    let word = frame(Kind::Message, LOG, b"{\"type\":\"logsFrom\",\"offset\":7}");
    guest.write_all(&word.repeat(WINDOW as usize / HEADER)).await.unwrap();
    within(agent.closed()).await;
}

#[tokio::test(start_paused = true)]
async fn a_log_that_nobody_keeps_is_taken_all_the_same() {
    let (commands, mut told) = mpsc::unbounded_channel();
    let (chunks, queue) = mpsc::unbounded_channel();
    chunks.send(Chunk::Data(Bytes::from_static(b"hello"))).unwrap();
    drop(chunks);
    let log = Log::open(LogSink::nowhere(), "0a".to_owned()).await.unwrap();
    within(log.run(queue, commands.downgrade(), LOG)).await;
    assert!(
        matches!(told.recv().await, Some(Command::Credit { stream: LOG, amount }) if amount == vmlet_wire::cost(5))
    );
}

async fn refused(dir: &Dir) -> bool {
    matches!(Log::open(dir.sink(), "0a".to_owned()).await, Err(AgentError::Log { .. }))
}

#[tokio::test]
async fn a_log_is_a_file_of_its_own() {
    let dir = Dir::new();
    assert!(!refused(&dir).await);
    std::fs::hard_link(dir.log(), dir.0.path().join("another name")).unwrap();
    assert!(refused(&dir).await, "what is written there may be another's");
    std::fs::remove_file(dir.log()).unwrap();
    std::os::unix::fs::symlink("another name", dir.log()).unwrap();
    assert!(refused(&dir).await, "a link is not followed");
    std::fs::remove_file(dir.log()).unwrap();
    nix::unistd::mkfifo(&dir.log(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let _reader = nix::fcntl::open(
        &dir.log(),
        nix::fcntl::OFlag::O_RDONLY | nix::fcntl::OFlag::O_NONBLOCK,
        nix::sys::stat::Mode::empty(),
    );
    assert!(refused(&dir).await, "a pipe keeps nothing");
}

/// Where a log of this boot goes on.
async fn continued(dir: &Dir, limit: u64) -> u64 {
    Log::open(LogSink::new(dir.log(), limit), "0a".to_owned()).await.unwrap().offset()
}

/// Writes these to a log of so many bytes at most.
async fn written(dir: &Dir, limit: u64, chunks: Vec<Chunk>) -> u64 {
    let (commands, _told) = mpsc::unbounded_channel();
    let (sender, queue) = mpsc::unbounded_channel();
    chunks.into_iter().for_each(|chunk| sender.send(chunk).unwrap());
    drop(sender);
    let log = Log::open(LogSink::new(dir.log(), limit), "0a".to_owned()).await.unwrap();
    log.run(queue, commands.downgrade(), LOG).await;
    continued(dir, limit).await
}

fn data(text: &str) -> Chunk {
    Chunk::Data(Bytes::copy_from_slice(text.as_bytes()))
}

#[tokio::test]
async fn a_log_is_full_at_its_limit_and_not_before() {
    let dir = Dir::new();
    let older = dir.0.path().join("log.1");
    assert_eq!(written(&dir, 10, vec![data("0123456789ab")]).await, 12);
    assert!(!older.exists(), "nothing comes before what is too long by itself");
    assert_eq!(written(&dir, 22, vec![data("0123456789")]).await, 22);
    assert!(!older.exists(), "it is just full");
    assert_eq!(written(&dir, 22, vec![data("x")]).await, 23);
    assert_eq!(std::fs::read(&older).unwrap().len(), 22);
    assert_eq!(std::fs::read(dir.log()).unwrap(), b"x");
}

#[tokio::test]
async fn after_a_gap_the_count_goes_on_from_its_end() {
    let dir = Dir::new();
    let chunks = vec![data("one\n"), Chunk::From(100), data("two\n"), Chunk::From(104), data("three\n")];
    assert_eq!(written(&dir, 1000, chunks).await, 110);
    let note = "one\n\n[vmlet: 96 bytes of output were lost here]\ntwo\nthree\n";
    assert_eq!(std::fs::read_to_string(dir.log()).unwrap(), note, "one gap, one note");
    // The note counts for the limit: 4 and 44 bytes, and 4 more are too many.
    let dir = Dir::new();
    assert_eq!(written(&dir, 51, vec![data("one\n"), Chunk::From(100), data("two\n")]).await, 104);
    assert_eq!(std::fs::read(dir.log()).unwrap(), b"two\n");
}

#[tokio::test]
async fn a_guest_that_counts_anew_is_followed_without_a_note() {
    let dir = Dir::new();
    assert_eq!(written(&dir, 1000, vec![data("one\n"), Chunk::From(1), data("two\n")]).await, 5);
    assert_eq!(std::fs::read(dir.log()).unwrap(), b"one\ntwo\n");
}

#[tokio::test]
async fn an_older_log_of_another_file_does_not_count() {
    let dir = Dir::new();
    assert_eq!(written(&dir, 1000, vec![data("0123456789")]).await, 10);
    std::fs::rename(dir.log(), dir.0.path().join("moved")).unwrap();
    std::fs::write(dir.0.path().join("log.1"), "not what was written").unwrap();
    assert_eq!(
        continued(&dir, 1000).await,
        10,
        "what the anchor says, and nothing of a file that it does not know"
    );
}

#[tokio::test]
async fn an_anchor_is_read_to_a_bound() {
    let dir = Dir::new();
    assert_eq!(written(&dir, 1000, vec![data("hello")]).await, 5);
    let place = dir.0.path().join("log.anchor");
    let anchor = std::fs::read_to_string(&place).unwrap();
    std::fs::write(&place, format!("{}{anchor}", " ".repeat(4096 - anchor.len()))).unwrap();
    assert_eq!(continued(&dir, 1000).await, 5);
    std::fs::write(&place, format!("{}{anchor}", " ".repeat(4096))).unwrap();
    assert_eq!(continued(&dir, 1000).await, 0, "the VMM's user may have written it, without end");
}
