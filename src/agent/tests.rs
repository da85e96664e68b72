//! The agent against a scripted guest, and against one that breaks the protocol.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::timeout;
use vmlet_wire::{
    CONTROL, GuestMessage, Kind, Side, VERSION, WINDOW, encode, encode_message, encode_preamble,
};

use super::*;

mod rules;

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Dir(tempfile::tempdir().unwrap())
    }

    fn log(&self) -> PathBuf {
        self.0.path().join("log")
    }

    fn sink(&self) -> LogSink {
        LogSink::new(self.log(), DEFAULT_LOG_LIMIT)
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(30), future).await.expect("it takes far less")
}

async fn connect(guest: &FakeGuest, dir: &Dir) -> Agent {
    within(Agent::connect(guest.connect(), dir.sink())).await.unwrap()
}

fn exec(words: &[&str]) -> ExecRequest {
    let argv = words.iter().map(|word| (*word).to_owned()).collect();
    ExecRequest { argv, stdin: true, ..Default::default() }
}

/// Waits for the file to hold exactly this, polling on the test's (paused) clock.
async fn logged(dir: &Dir, expected: &str) {
    within(async {
        while std::fs::read_to_string(dir.log()).unwrap_or_default() != expected {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn states_and_the_end_of_the_link_are_seen() {
    let (guest, dir) = (FakeGuest::new(FakeScript::default()), Dir::new());
    let agent = connect(&guest, &dir).await;
    let mut state = agent.guest();
    assert_eq!(*state.borrow(), GuestState::Starting);
    guest.set_state(GuestState::Running { pid: 7 });
    within(state.wait_for(|state| *state == GuestState::Running { pid: 7 })).await.unwrap();
    guest.set_state(GuestState::Exited { code: 3 });
    within(state.wait_for(|state| *state == GuestState::Exited { code: 3 })).await.unwrap();
    guest.power_off();
    within(agent.closed()).await;
    within(agent.closed()).await;
    assert!(matches!(agent.stats().await, Err(AgentError::Closed)));
    assert!(state.changed().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_is_acknowledged_whether_or_not_it_is_obeyed() {
    for obeys_shutdown in [true, false] {
        let script = FakeScript { obeys_shutdown, ..Default::default() };
        let (guest, dir) = (FakeGuest::new(script), Dir::new());
        guest.set_state(GuestState::Ready);
        let agent = connect(&guest, &dir).await;
        within(agent.shutdown(9)).await.unwrap();
        assert_eq!(within(guest.shutdown_requested()).await, 9);
        assert_eq!(*guest.state().borrow() == GuestState::Exited { code: 0 }, obeys_shutdown);
    }
}

#[tokio::test(start_paused = true)]
async fn execs_have_input_output_and_an_exit_code() {
    let (guest, dir) = (FakeGuest::new(FakeScript::default()), Dir::new());
    let agent = connect(&guest, &dir).await;
    let ExecSession { input, mut output } = agent.exec(exec(&["cat"])).await.unwrap();
    let sent = vec![b'x'; 3 * WINDOW as usize];
    let sender = tokio::spawn(async move {
        input.send(sent.into()).await.unwrap();
        input.close();
    });
    let mut received = 0;
    let code = loop {
        match within(output.recv()).await.unwrap() {
            ExecOutput::Stdout(data) => received += data.len(),
            ExecOutput::Stderr(_) => panic!("cat has no errors"),
            ExecOutput::Exit(code) => break code,
        }
    };
    sender.await.unwrap();
    assert_eq!((received, code), (3 * WINDOW as usize, 0));
    assert_eq!(output.recv().await, None);

    let mut failing = agent.exec(exec(&["exit", "3"])).await.unwrap();
    assert_eq!(failing.output.recv().await, Some(ExecOutput::Exit(3)));
    let refused = agent.exec(exec(&["vi"])).await.unwrap_err();
    assert_eq!(refused.to_string(), "the guest refused: a fake guest cannot run [\"vi\"]");
}

#[tokio::test(start_paused = true)]
async fn a_stuck_reader_holds_up_nobody() {
    let (guest, dir) = (FakeGuest::new(FakeScript::default()), Dir::new());
    let agent = connect(&guest, &dir).await;
    let stuck = agent.exec(exec(&["yes"])).await.unwrap();
    let mut other = agent.exec(exec(&["cat"])).await.unwrap();
    other.input.send(Bytes::from_static(b"hello")).await.unwrap();
    assert_eq!(within(other.output.recv()).await, Some(ExecOutput::Stdout(Bytes::from_static(b"hello"))));
    guest.print(b"a line\n");
    logged(&dir, "a line\n").await;
    within(agent.stats()).await.unwrap();
    drop(stuck);
}

#[tokio::test(start_paused = true)]
async fn the_number_of_processes_is_limited_and_dropping_frees() {
    let (guest, dir) = (FakeGuest::new(FakeScript::default()), Dir::new());
    let agent = connect(&guest, &dir).await;
    let mut sessions = Vec::new();
    for _ in 0..MAX_EXECS {
        sessions.push(agent.exec(exec(&["cat"])).await.unwrap());
    }
    assert!(matches!(agent.exec(exec(&["cat"])).await, Err(AgentError::Busy)));
    sessions.pop();
    agent.exec(exec(&["cat"])).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_log_neither_loses_nor_repeats_over_connections() {
    let (guest, dir) = (FakeGuest::new(FakeScript::default()), Dir::new());
    guest.print(b"one\n");
    let first = connect(&guest, &dir).await;
    logged(&dir, "one\n").await;
    drop(first);
    guest.print(b"two\n");
    let _second = connect(&guest, &dir).await;
    guest.print(b"three\n");
    logged(&dir, "one\ntwo\nthree\n").await;
    let long = "x".repeat(5 * WINDOW as usize);
    guest.print(long.as_bytes());
    logged(&dir, &format!("one\ntwo\nthree\n{long}")).await;
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_never_answers_is_waited_for_as_long_as_the_caller_likes() {
    let guest = FakeGuest::new(FakeScript { answers: false, ..Default::default() });
    let dir = Dir::new();
    let connecting = Agent::connect(guest.connect(), dir.sink());
    assert!(timeout(Duration::from_secs(600), connecting).await.is_err());
    guest.power_off();
    let connecting = Agent::connect(guest.connect(), dir.sink());
    assert!(matches!(within(connecting).await, Err(AgentError::Closed | AgentError::Io(_))));
}

#[tokio::test(start_paused = true)]
async fn requests_that_do_not_fit_are_refused_here() {
    let (guest, dir) = (FakeGuest::new(FakeScript::default()), Dir::new());
    let agent = connect(&guest, &dir).await;
    let long = agent.exec(exec(&[&"x".repeat(64 << 10)])).await;
    assert!(matches!(long, Err(AgentError::TooLong(_))));
}

/// A guest by hand: waits for a Hello, then says what it likes.
async fn rogue(state: GuestState) -> (Agent, DuplexStream, Dir) {
    let (host, mut guest) = tokio::io::duplex(1 << 20);
    let dir = Dir::new();
    let sink = dir.sink();
    let connecting = tokio::spawn(Agent::connect(Box::new(host), sink));
    // The Hello's preamble: eight bytes of magic and the nonce.
    let mut preamble = [0; 24];
    guest.read_exact(&mut preamble).await.unwrap();
    let mut out = b"left over from an earlier connection".to_vec();
    encode_preamble(&mut out, Side::Guest, preamble[8..].try_into().unwrap());
    let boot_id = "0a-1b".to_owned();
    encode_message(&mut out, CONTROL, &GuestMessage::HelloAck { version: VERSION, boot_id, state }).unwrap();
    guest.write_all(&out).await.unwrap();
    (within(connecting).await.unwrap().unwrap(), guest, dir)
}

async fn closes_at(bytes: Vec<u8>) {
    let (agent, mut guest, _dir) = rogue(GuestState::Ready).await;
    guest.write_all(&bytes).await.unwrap();
    within(agent.closed()).await;
}

fn frame(kind: Kind, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(&mut bytes, kind, stream, payload);
    bytes
}

/// The agent's log is its first stream.
const LOG: u32 = 1;

#[tokio::test(start_paused = true)]
async fn a_guest_that_breaks_the_protocol_has_its_link_closed() {
    closes_at(vec![0x55; 64]).await;
    closes_at(frame(Kind::Stdin, LOG, b"x")).await;
    closes_at(frame(Kind::Message, CONTROL, b"{}")).await;
    closes_at(frame(Kind::Message, CONTROL, b"{\"type\":\"started\"}")).await;
    closes_at(frame(Kind::Credit, LOG, b"abc")).await;
    closes_at(frame(Kind::Message, LOG, b"{\"type\":\"exited\",\"code\":0}")).await;
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_overruns_its_credit_has_its_link_closed() {
    let (agent, mut guest, _dir) = rogue(GuestState::Ready).await;
    let mut session = tokio::spawn({
        let agent = agent.clone();
        async move { agent.exec(exec(&["anything"])).await }
    });
    // Streams count up: the log's, then the exec's.
    let mut flood = frame(Kind::Message, LOG + 1, b"{\"type\":\"started\"}");
    for _ in 0..=WINDOW as usize / (16 << 10) {
        flood.extend(frame(Kind::Stdout, LOG + 1, &[0; 16 << 10]));
    }
    tokio::task::yield_now().await;
    guest.write_all(&flood).await.unwrap();
    let session = within(&mut session).await.unwrap();
    within(agent.closed()).await;
    drop(session);
}

#[tokio::test(start_paused = true)]
async fn texts_of_a_guest_are_cut_and_cleaned() {
    let message = format!("a\x1b[31m\n{}", "é".repeat(1000));
    let (agent, _guest, _dir) = rogue(GuestState::Failed { message }).await;
    let GuestState::Failed { message } = agent.guest().borrow().clone() else { panic!("it failed") };
    assert!(message.starts_with("a [31m é"), "{message}");
    assert!(message.len() <= MAX_TEXT && !message.contains(char::is_control));
}

#[tokio::test(start_paused = true)]
async fn a_request_without_an_answer_times_out() {
    let (agent, _guest, _dir) = rogue(GuestState::Ready).await;
    assert!(matches!(agent.stats().await, Err(AgentError::TimedOut)));
    assert!(matches!(agent.exec(exec(&["x"])).await, Err(AgentError::TimedOut)));
}
