//! A process that the host runs beside the workload, with its streams.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::libc;
use nix::poll::{PollFd, PollFlags};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, pipe2};
use vmlet_wire::{ExecRequest, GuestMessage, Kind, Overrun, Receiving, Sending, TtySize, cost};

use crate::failure::{During, Failure};
use crate::link::Link;
use crate::process::{Command, End, Stdio, spawn};
use crate::workload::{Workload, set_nonblocking};

/// The most that is read from a process at a time, so that processes take turns.
const PIECE: usize = 16 << 10;

/// What ends the input of a terminal's reader: control-D (termios(3), VEOF).
const END_OF_INPUT: u8 = 4;

/// A process with its streams. All of its descriptors are non-blocking.
pub(crate) struct Exec {
    pid: Pid,
    stdin: Option<File>,
    outputs: [(Kind, Option<File>); 2],
    terminal: Option<File>,
    /// Each piece with the credit that is due for it.
    input: VecDeque<(u32, Vec<u8>)>,
    /// Bytes of the first input that are written.
    written: usize,
    /// Whether the end of the input follows what is queued.
    closing: bool,
    sending: Sending,
    receiving: Receiving,
    end: Option<End>,
}

impl Exec {
    pub(crate) fn start(request: &ExecRequest, workload: &Workload) -> Result<Self, Failure> {
        let streams = match request.tty {
            Some(size) => Streams::terminal(size),
            None => Streams::pipes(request.stdin),
        };
        let streams = streams.during(|| "make the process's streams".to_owned())?;
        let spec = workload.spec();
        let pid = spawn(Command {
            argv: &request.argv,
            env: spec.env.iter().chain(&request.env).cloned().collect(),
            cwd: request.cwd.as_deref().or(spec.working_dir.as_deref()),
            make_cwd: false,
            user: request.user.as_deref().or(spec.user.as_deref()),
            stdio: streams.child,
            place: workload.place(),
        })?;
        let mut exec = Exec {
            pid,
            stdin: streams.stdin,
            outputs: [(Kind::Stdout, Some(streams.stdout)), (Kind::Stderr, streams.stderr)],
            terminal: streams.terminal,
            input: VecDeque::new(),
            written: 0,
            closing: false,
            sending: Sending::default(),
            receiving: Receiving::default(),
            end: None,
        };
        if !request.stdin && exec.terminal.is_none() {
            exec.stdin = None;
        }
        Ok(exec)
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// The process was reaped.
    pub(crate) fn ended(&mut self, end: End) {
        self.end = Some(end);
        self.stdin = None;
    }

    /// Input from the host.
    pub(crate) fn take_input(&mut self, payload: Vec<u8>) -> Result<(), Overrun> {
        self.receiving.take(payload.len())?;
        self.input.push_back((cost(payload.len()), payload));
        Ok(())
    }

    /// No more input follows.
    pub(crate) fn close_input(&mut self) {
        if self.terminal.is_some() && !self.closing {
            // A terminal has no half close. This byte is not the host's: no credit is due for it.
            self.input.push_back((0, vec![END_OF_INPUT]));
        }
        self.closing = true;
    }

    pub(crate) fn credit(&mut self, amount: u32) -> Result<(), Overrun> {
        self.sending.credit(amount)
    }

    pub(crate) fn resize(&self, size: TtySize) {
        if let Some(terminal) = &self.terminal {
            // The process only sees its old size if this fails.
            let _ = set_size(terminal, size);
        }
    }

    pub(crate) fn signal(&self, number: i32) {
        if self.end.is_none() && (1..=libc::SIGRTMAX()).contains(&number) {
            // SAFETY: the pid is a child that has not been reaped. Signal numbers beyond nix's enum
            // are wanted.
            unsafe { libc::kill(self.pid.as_raw(), number) };
        }
    }

    /// Ends the process and its group: the host does not want it any more.
    pub(crate) fn kill(&self) {
        if self.end.is_none() {
            let _ = killpg(self.pid, Signal::SIGKILL);
            let _ = kill(self.pid, Signal::SIGKILL);
        }
    }

    /// What this process makes it worth waking up for.
    pub(crate) fn interests<'a>(&'a self, link: &Link, fds: &mut Vec<PollFd<'a>>) {
        if let Some(stdin) = self.stdin.as_ref().filter(|_| !self.input.is_empty()) {
            fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLOUT));
        }
        if self.sending.room() > 0 && link.has_room() {
            let outputs = self.outputs.iter().filter_map(|(_, file)| file.as_ref());
            fds.extend(outputs.map(|file| PollFd::new(file.as_fd(), PollFlags::POLLIN)));
        }
    }

    /// Moves what can be moved without waiting. True when the process and its output are at an end,
    /// of which the host has then been told.
    pub(crate) fn pump(&mut self, stream: u32, link: &mut Link) -> bool {
        self.pump_input(stream, link);
        for index in 0..self.outputs.len() {
            self.pump_output(index, stream, link);
        }
        match self.end {
            Some(end) if self.outputs.iter().all(|(_, file)| file.is_none()) => {
                link.send(stream, &GuestMessage::Exited { code: end.code() });
                true
            }
            _ => false,
        }
    }

    fn pump_input(&mut self, stream: u32, link: &mut Link) {
        while let Some((credit, first)) = self.input.front() {
            // A process that does not read its input any more has it thrown away.
            let written = match &mut self.stdin {
                None => first.len(),
                Some(stdin) => match stdin.write(&first[self.written..]) {
                    Ok(length) => self.written + length,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                    Err(_) => {
                        self.stdin = None;
                        first.len()
                    }
                },
            };
            self.written = written;
            if written >= first.len() {
                let credit = *credit;
                if credit > 0 {
                    self.receiving.grant(credit);
                    link.send_frame(Kind::Credit, stream, &credit.to_le_bytes());
                }
                self.input.pop_front();
                self.written = 0;
            }
        }
        if self.closing && self.terminal.is_none() {
            self.stdin = None;
        }
    }

    fn pump_output(&mut self, index: usize, stream: u32, link: &mut Link) {
        let (kind, file) = &mut self.outputs[index];
        let Some(output) = file else { return };
        let limit = self.sending.room().min(PIECE);
        if limit == 0 || !link.has_room() {
            return;
        }
        let mut buffer = [0; PIECE];
        match output.read(&mut buffer[..limit]) {
            Ok(length) if length > 0 => {
                self.sending.spend(length);
                link.send_frame(*kind, stream, &buffer[..length]);
            }
            // After the process's end this is all of its output, even if a child of it holds the
            // stream open.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && self.end.is_none() => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            _ => *file = None,
        }
    }
}

/// Both sides of a process's streams.
struct Streams {
    child: Stdio,
    stdin: Option<File>,
    stdout: File,
    stderr: Option<File>,
    terminal: Option<File>,
}

impl Streams {
    fn pipes(with_stdin: bool) -> io::Result<Self> {
        let pipe = || pipe2(OFlag::O_CLOEXEC);
        let (stdout, child_stdout) = pipe()?;
        let (stderr, child_stderr) = pipe()?;
        set_nonblocking(&stdout)?;
        set_nonblocking(&stderr)?;
        let (child_stdin, stdin): (OwnedFd, _) = if with_stdin {
            let (child_stdin, stdin) = pipe()?;
            set_nonblocking(&stdin)?;
            (child_stdin, Some(stdin.into()))
        } else {
            (File::open("/dev/null")?.into(), None)
        };
        Ok(Streams {
            child: Stdio::Streams { stdin: child_stdin, stdout: child_stdout, stderr: child_stderr },
            stdin,
            stdout: stdout.into(),
            stderr: Some(stderr.into()),
            terminal: None,
        })
    }

    fn terminal(size: TtySize) -> io::Result<Self> {
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let near = posix_openpt(flags)?;
        grantpt(&near)?;
        unlockpt(&near)?;
        let mut far = OpenOptions::new();
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut far, libc::O_NOCTTY);
        let far = far.read(true).write(true).open(ptsname_r(&near)?)?;
        let near = File::from(OwnedFd::from(near));
        set_size(&near, size)?;
        Ok(Streams {
            child: Stdio::Terminal(far.into()),
            stdin: Some(near.try_clone()?),
            stdout: near.try_clone()?,
            stderr: None,
            terminal: Some(near),
        })
    }
}

/// The kernel sends SIGWINCH to the terminal's foreground (ioctl_tty(2), TIOCSWINSZ).
fn set_size(terminal: &File, size: TtySize) -> io::Result<()> {
    let size = libc::winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads a winsize.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
