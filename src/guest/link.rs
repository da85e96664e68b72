//! The guest's end of the byte stream: a virtio-serial port, its decoder and its output buffer.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use nix::libc;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use vmlet_wire::{
    Decoder, GuestMessage, Item, Kind, Nonce, Side, WireError, encode, encode_message, encode_preamble,
};

use crate::failure::{During, Failure};

/// The port's name, which the VMM sets.
const NAME: &str = "dev.vmlet.link";

/// While more than this waits to be sent, nothing is read and no data is added, so that the buffer
/// stays bounded whatever the host does.
const OUTPUT_LIMIT: usize = 128 << 10;

/// The byte stream.
pub(crate) struct Link {
    port: File,
    /// Edge-triggered: a port whose host is gone is ready (HUP) for good, and only a change matters.
    changes: Epoll,
    decoder: Decoder,
    output: VecDeque<u8>,
    nonce: Option<Nonce>,
    hung_up: bool,
}

/// What came in.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// A host begins a connection; earlier ones are over.
    Connected,
    /// The host is gone, or broke the protocol.
    Disconnected,
    /// A frame of the connection.
    Frame(vmlet_wire::Frame),
}

impl Link {
    /// Opens the port, if the machine has it.
    pub(crate) fn open() -> Result<Self, Failure> {
        let path = find_port().ok_or_else(|| Failure::new(format!("the machine has no port {NAME}")))?;
        let port = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&path)
            .during(|| format!("open {}", path.display()))?;
        let watch = || -> nix::Result<Epoll> {
            let changes = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
            let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
            changes.add(&port, EpollEvent::new(flags, 0))?;
            Ok(changes)
        };
        let changes = watch().during(|| format!("watch {}", path.display()))?;
        let decoder = Decoder::new(Side::Host, None);
        Ok(Link { port, changes, decoder, output: VecDeque::new(), nonce: None, hung_up: false })
    }

    /// Readable when something about the port changed.
    pub(crate) fn changes(&self) -> BorrowedFd<'_> {
        self.changes.0.as_fd()
    }

    /// Whether a host is connected, as far as is known.
    pub(crate) fn connected(&self) -> bool {
        self.nonce.is_some()
    }

    /// Whether nobody is at the other end.
    pub(crate) fn host_is_absent(&self) -> bool {
        self.hung_up
    }

    /// Whether all output has been taken by the machine.
    pub(crate) fn flushed(&self) -> bool {
        self.output.is_empty()
    }

    /// Whether more data may be added.
    pub(crate) fn has_room(&self) -> bool {
        self.output.len() < OUTPUT_LIMIT
    }

    /// Reads what is there, a bounded piece at a time; the second value says whether there may be
    /// more.
    pub(crate) fn receive(&mut self) -> (Vec<Incoming>, bool) {
        let mut events = [EpollEvent::empty()];
        // Takes note of the edge; what changed is found out by trying.
        let _ = self.changes.wait(&mut events, EpollTimeout::ZERO);
        let mut incoming = Vec::new();
        if !self.has_room() {
            return (incoming, false);
        }
        let mut buffer = [0; 32 << 10];
        let read = self.port.read(&mut buffer);
        self.hung_up = matches!(read, Ok(0));
        let more = match read {
            Ok(0) => {
                self.decoder.clear();
                self.disconnect(&mut incoming);
                false
            }
            Ok(length) => {
                self.decoder.push(&buffer[..length]);
                self.decode(&mut incoming);
                true
            }
            Err(_) => false,
        };
        (incoming, more)
    }

    fn decode(&mut self, incoming: &mut Vec<Incoming>) {
        loop {
            match self.decoder.next_item() {
                Ok(Some(Item::Preamble(nonce))) => {
                    // A repeated Hello is answered again; what is on its way stays whole.
                    if self.nonce != Some(nonce) {
                        self.output.clear();
                        self.nonce = Some(nonce);
                    }
                    incoming.push(Incoming::Connected);
                }
                Ok(Some(Item::Frame(frame))) => incoming.push(Incoming::Frame(frame)),
                Ok(None) => return,
                Err(_) => self.disconnect(incoming),
            }
        }
    }

    /// Ends the connection: the host broke the protocol. Only a new Hello is listened to.
    pub(crate) fn reject(&mut self) {
        self.decoder.hunt();
        self.disconnect(&mut Vec::new());
    }

    fn disconnect(&mut self, incoming: &mut Vec<Incoming>) {
        self.output.clear();
        if self.nonce.take().is_some() {
            incoming.push(Incoming::Disconnected);
        }
    }

    /// Answers a Hello.
    pub(crate) fn greet(&mut self, message: &GuestMessage) {
        if let Some(nonce) = self.nonce {
            encode_preamble(&mut self.output, Side::Guest, &nonce);
            self.send(vmlet_wire::CONTROL, message);
        }
    }

    /// Sends a message, if a host is connected.
    pub(crate) fn send(&mut self, stream: u32, message: &GuestMessage) {
        if !self.connected() {
            return;
        }
        if let Err(WireError::TooLong(_)) = encode_message(&mut self.output, stream, message) {
            encode(&mut self.output, Kind::Reset, stream, &[]);
        }
    }

    /// Sends a frame other than a message, if a host is connected.
    pub(crate) fn send_frame(&mut self, kind: Kind, stream: u32, payload: &[u8]) {
        if self.connected() {
            encode(&mut self.output, kind, stream, payload);
        }
    }

    /// Writes as much as the machine takes.
    pub(crate) fn flush(&mut self) {
        while !self.output.is_empty() {
            let (first, _) = self.output.as_slices();
            match self.port.write(first) {
                Ok(0) => return,
                Ok(length) => drop(self.output.drain(..length)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Full, or the host is gone: the next change tells.
                Err(_) => return,
            }
        }
    }
}

/// `/sys/class/virtio-ports/vport1p1/name` holds the name of `/dev/vport1p1`.
fn find_port() -> Option<PathBuf> {
    fs::read_dir("/sys/class/virtio-ports").ok()?.flatten().find_map(|entry| {
        let name = fs::read_to_string(entry.path().join("name")).ok()?;
        (name.trim() == NAME).then(|| PathBuf::from("/dev").join(entry.file_name()))
    })
}
