//! A guest without a VM, for simulations: it speaks the real protocol over an in-memory pipe.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::sync::watch;
use uuid::Uuid;
use vmlet_wire::{
    CONTROL, Decoder, ExecRequest, Frame, GuestMessage, GuestState, GuestStats, HostMessage, Item, Kind,
    Nonce, Receiving, Sending, Side, VERSION, encode, encode_message, encode_preamble,
};

use super::receive::receive;
use crate::hypervisor::GuestStream;

/// Bytes that are under way in each direction of the pipe.
const PIPE: usize = 64 << 10;

/// How a fake guest behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FakeScript {
    /// Whether it answers at all; otherwise it takes everything and says nothing.
    pub answers: bool,
    /// Whether a shutdown ends its workload, at once and with exit code 0; otherwise it is
    /// acknowledged only.
    pub obeys_shutdown: bool,
}

impl Default for FakeScript {
    fn default() -> Self {
        FakeScript { answers: true, obeys_shutdown: true }
    }
}

/// A guest by script. Clones are the same guest. Its states are set from outside; its time is
/// tokio's, and it never waits for any. It runs `cat`, `yes` and `exit CODE`.
#[derive(Clone, Debug)]
pub struct FakeGuest {
    script: FakeScript,
    boot_id: String,
    state: Arc<watch::Sender<GuestState>>,
    log: Arc<watch::Sender<Vec<u8>>>,
    shutdown: Arc<watch::Sender<Option<u32>>>,
    power: Arc<watch::Sender<bool>>,
}

impl FakeGuest {
    /// A guest that has just booted: its state is Starting.
    pub fn new(script: FakeScript) -> Self {
        FakeGuest {
            script,
            boot_id: Uuid::new_v4().to_string(),
            state: Arc::new(watch::Sender::new(GuestState::Starting)),
            log: Arc::default(),
            shutdown: Arc::default(),
            power: Arc::new(watch::Sender::new(true)),
        }
    }

    /// Moves it to another state, of which a connected host is told.
    pub fn set_state(&self, state: GuestState) {
        self.state.send_replace(state);
    }

    /// Its state, for those who wait for its end.
    pub fn state(&self) -> watch::Receiver<GuestState> {
        self.state.subscribe()
    }

    /// Its workload prints something.
    pub fn print(&self, output: &[u8]) {
        self.log.send_modify(|log| log.extend_from_slice(output));
    }

    /// Resolves when a host has asked for its shutdown, with the grace in seconds.
    pub async fn shutdown_requested(&self) -> u32 {
        let mut receiver = self.shutdown.subscribe();
        let requested = receiver.wait_for(Option::is_some).await;
        requested.ok().and_then(|grace| *grace).expect("this guest holds the sender")
    }

    /// Ends it: its links hang up, now and in future.
    pub fn power_off(&self) {
        self.power.send_replace(false);
    }

    /// The host's end of a new link. As with a real port, any number may follow each other.
    pub fn connect(&self) -> GuestStream {
        let (host, guest) = tokio::io::duplex(PIPE);
        tokio::spawn(Session::new(self.clone()).run(guest));
        Box::new(host)
    }
}

/// One link of a fake guest.
struct Session {
    guest: FakeGuest,
    output: Vec<u8>,
    nonce: Option<Nonce>,
    follower: Option<(u32, usize, Sending)>,
    execs: BTreeMap<u32, Exec>,
}

struct Exec {
    program: Program,
    sending: Sending,
    receiving: Receiving,
}

enum Program {
    /// With what it has read and not yet written, and whether its input has ended.
    Cat {
        held: Vec<u8>,
        closed: bool,
    },
    Yes,
}

/// The host broke the protocol, or is gone.
struct Over;

impl Session {
    fn new(guest: FakeGuest) -> Self {
        Session { guest, output: Vec::new(), nonce: None, follower: None, execs: BTreeMap::new() }
    }

    /// Serves the link until either end hangs up.
    async fn run(mut self, link: DuplexStream) {
        let mut power = self.guest.power.subscribe();
        tokio::select! {
            biased;
            _ = power.wait_for(|on| !on) => {}
            _ = self.serve(link) => {}
        }
    }

    async fn serve(&mut self, mut link: DuplexStream) -> Result<(), Over> {
        let mut state = self.guest.state.subscribe();
        let mut log = self.guest.log.subscribe();
        let mut decoder = Decoder::new(Side::Host, None);
        loop {
            tokio::select! {
                biased;
                _ = state.changed() => {
                    let state = state.borrow_and_update().clone();
                    self.send(CONTROL, &GuestMessage::State { state });
                }
                _ = log.changed() => drop(log.borrow_and_update()),
                received = receive(&mut link, &mut decoder) => match received {
                    Ok(length) if length > 0 => {}
                    _ => return Err(Over),
                },
            }
            // A malformed frame makes the decoder hunt for the next Hello: that is how padding ends.
            while let Some(item) = decoder.next_item().transpose() {
                match item {
                    Ok(Item::Preamble(nonce)) => self.nonce = Some(nonce),
                    Ok(Item::Frame(frame)) => self.handle(frame)?,
                    Err(_) => {}
                }
            }
            self.pump();
            if self.guest.script.answers {
                link.write_all(&self.output).await.map_err(|_| Over)?;
            }
            self.output.clear();
        }
    }

    fn send(&mut self, stream: u32, message: &GuestMessage) {
        if self.nonce.is_some() {
            encode_message(&mut self.output, stream, message).expect("its messages are short");
        }
    }

    fn handle(&mut self, frame: Frame) -> Result<(), Over> {
        let Frame { kind, stream, payload } = frame;
        match kind {
            Kind::Message => {
                let message = serde_json::from_slice(&payload).map_err(|_| Over)?;
                self.handle_message(stream, message);
            }
            Kind::Stdin => {
                if let Some(Exec { program: Program::Cat { held, .. }, receiving, .. }) =
                    self.execs.get_mut(&stream)
                {
                    receiving.take(payload.len()).map_err(|_| Over)?;
                    held.extend(payload);
                }
            }
            Kind::Credit => {
                let amount = payload.as_slice().try_into().map(u32::from_le_bytes).map_err(|_| Over)?;
                match (&mut self.follower, self.execs.get_mut(&stream)) {
                    (_, Some(exec)) => exec.sending.credit(amount).map_err(|_| Over)?,
                    (Some((id, _, sending)), _) if *id == stream => {
                        sending.credit(amount).map_err(|_| Over)?
                    }
                    _ => {}
                }
            }
            Kind::Reset => drop(self.execs.remove(&stream)),
            Kind::Stdout | Kind::Stderr => return Err(Over),
        }
        Ok(())
    }

    fn handle_message(&mut self, stream: u32, message: HostMessage) {
        match message {
            HostMessage::Hello { .. } => {
                let Some(nonce) = self.nonce else { return };
                encode_preamble(&mut self.output, Side::Guest, &nonce);
                let state = self.guest.state.borrow().clone();
                let boot_id = self.guest.boot_id.clone();
                self.send(CONTROL, &GuestMessage::HelloAck { version: VERSION, boot_id, state });
            }
            HostMessage::Logs { from_offset } => {
                let offset = from_offset.min(self.guest.log.borrow().len() as u64);
                let mut sending = Sending::default();
                sending.spend(0);
                self.follower = Some((stream, offset as usize, sending));
                self.send(stream, &GuestMessage::LogsFrom { offset });
            }
            HostMessage::Stats => self.send(stream, &GuestMessage::Stats(GuestStats::default())),
            HostMessage::Shutdown { grace_seconds } => {
                self.send(stream, &GuestMessage::ShuttingDown);
                self.guest.shutdown.send_replace(Some(grace_seconds));
                if self.guest.script.obeys_shutdown {
                    self.guest.set_state(GuestState::Exited { code: 0 });
                }
            }
            HostMessage::Exec(request) => self.start(stream, &request),
            HostMessage::StdinClosed => {
                if let Some(Exec { program: Program::Cat { closed, .. }, .. }) = self.execs.get_mut(&stream) {
                    *closed = true;
                }
            }
            HostMessage::StateSeen | HostMessage::Resize(_) | HostMessage::Signal { .. } => {}
        }
    }

    fn start(&mut self, stream: u32, request: &ExecRequest) {
        let words: Vec<&str> = request.argv.iter().map(String::as_str).collect();
        let program = match words[..] {
            ["cat"] => Program::Cat { held: Vec::new(), closed: false },
            ["yes"] => Program::Yes,
            ["exit", code] => {
                self.send(stream, &GuestMessage::Started);
                let code = code.parse().unwrap_or(2);
                return self.send(stream, &GuestMessage::Exited { code });
            }
            _ => {
                let message = format!("a fake guest cannot run {words:?}");
                return self.send(stream, &GuestMessage::Refused { message });
            }
        };
        self.send(stream, &GuestMessage::Started);
        self.execs
            .insert(stream, Exec { program, sending: Sending::default(), receiving: Receiving::default() });
    }

    /// Sends the log and endless output as far as credit goes.
    fn pump(&mut self) {
        if let Some((stream, next, sending)) = &mut self.follower {
            let log = self.guest.log.borrow();
            while *next < log.len() && sending.room() > 0 {
                let piece = &log[*next..log.len().min(*next + sending.room().min(16 << 10))];
                encode(&mut self.output, Kind::Stdout, *stream, piece);
                sending.spend(piece.len());
                *next += piece.len();
            }
        }
        let mut ended = Vec::new();
        for (stream, exec) in &mut self.execs {
            if exec.pump(*stream, &mut self.output) {
                ended.push(*stream);
            }
        }
        for stream in ended {
            self.execs.remove(&stream);
            self.send(stream, &GuestMessage::Exited { code: 0 });
        }
    }
}

impl Exec {
    /// Writes as far as credit goes; whether that was all there will ever be.
    fn pump(&mut self, stream: u32, output: &mut Vec<u8>) -> bool {
        while self.sending.room() > 0 {
            let limit = self.sending.room().min(8 << 10);
            let piece = match &mut self.program {
                Program::Yes => vec![b'y'; limit],
                Program::Cat { held, .. } => held.drain(..held.len().min(limit)).collect(),
            };
            if piece.is_empty() {
                break;
            }
            encode(output, Kind::Stdout, stream, &piece);
            self.sending.spend(piece.len());
        }
        let Program::Cat { held, closed } = &self.program else { return false };
        if held.is_empty() {
            let amount = self.receiving.settle();
            if amount > 0 {
                encode(output, Kind::Credit, stream, &amount.to_le_bytes());
            }
        }
        held.is_empty() && *closed
    }
}
