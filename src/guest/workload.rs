//! The workload: an init system of the image, or one supervised command.

use std::fs::{self, File};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::cmsg_space;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, UnixCredentials, bind,
    recvmsg, setsockopt, socket, sockopt,
};
use nix::unistd::{Pid, pipe2};
use vmlet_wire::GuestState;

use crate::cgroup;
use crate::console;
use crate::failure::{During, Failure};
use crate::init_system::{self, InitSystem};
use crate::process::{Command, End, Namespaces, Place, Stdio, spawn};
use crate::signals;

/// An abstract socket (unix(7)): the init's own mounts cannot hide it.
const NOTIFY: &str = "vmlet-notify";

/// Notifications taken in one go: anybody may send them, without end.
const NOTIFY_BATCH: usize = 64;

/// What runs in this VM.
pub(crate) struct Workload {
    pub(crate) pid: Pid,
    pub(crate) kind: Running,
    spec: vmlet_wire::Workload,
}

/// The two ways to run.
pub(crate) enum Running {
    Init {
        system: InitSystem,
        namespaces: Namespaces,
        /// Systemd's word that the default target is reached; none for others.
        notify: Option<Notify>,
    },
    Command {
        /// Its standard output and error.
        output: File,
    },
}

impl Workload {
    pub(crate) fn start(spec: &vmlet_wire::Workload) -> Result<Self, Failure> {
        let init = if spec.prefer_init { init_system::detect(Path::new("/")) } else { None };
        match init {
            Some(system) => Self::start_init(system, spec),
            None => Self::start_command(spec),
        }
    }

    fn start_init(system: InitSystem, spec: &vmlet_wire::Workload) -> Result<Self, Failure> {
        let mut env = spec.env.clone();
        let notify = match system {
            InitSystem::Systemd(_) => {
                mask_console_logins();
                env.push(format!("NOTIFY_SOCKET=@{NOTIFY}"));
                Some(Notify::bind().during(|| "listen for the init system's readiness".to_owned())?)
            }
            InitSystem::Other(_) => None,
        };
        let pid = spawn(Command {
            argv: &[system.path().display().to_string()],
            env,
            cwd: None,
            make_cwd: false,
            user: None,
            stdio: Stdio::Inherit,
            place: Place::NewInit,
        })?;
        let namespaces = Namespaces::of(pid).during(|| "open the init system's namespaces".to_owned())?;
        if let Err(error) = cgroup::leave_root() {
            console::say(format!("cannot leave the root cgroup: {error}"));
        }
        Ok(Workload { pid, kind: Running::Init { system, namespaces, notify }, spec: spec.clone() })
    }

    fn start_command(spec: &vmlet_wire::Workload) -> Result<Self, Failure> {
        if spec.argv.is_empty() {
            return Err(Failure::new(
                "there is nothing to run: the image has no init system and no entrypoint; set spec.command",
            ));
        }
        let (output, stdout) = pipe2(OFlag::O_CLOEXEC).during(|| "make a pipe".to_owned())?;
        set_nonblocking(&output).during(|| "set a pipe up".to_owned())?;
        let stderr = stdout.try_clone().during(|| "duplicate a pipe".to_owned())?;
        let stdin: OwnedFd = File::open("/dev/null").during(|| "open /dev/null".to_owned())?.into();
        let pid = spawn(Command {
            argv: &spec.argv,
            env: spec.env.clone(),
            cwd: spec.working_dir.as_deref(),
            make_cwd: true,
            user: spec.user.as_deref(),
            stdio: Stdio::Streams { stdin, stdout, stderr },
            place: Place::Here,
        })?;
        Ok(Workload { pid, kind: Running::Command { output: output.into() }, spec: spec.clone() })
    }

    /// The state right after the start.
    pub(crate) fn state(&self) -> GuestState {
        match self.kind {
            Running::Init { notify: Some(_), .. } => {
                GuestState::Running { pid: self.pid.as_raw().unsigned_abs() }
            }
            // There is nothing further to wait for.
            _ => GuestState::Ready,
        }
    }

    /// What its image gives every process.
    pub(crate) fn spec(&self) -> &vmlet_wire::Workload {
        &self.spec
    }

    /// Where an exec runs.
    pub(crate) fn place(&self) -> Place<'_> {
        match &self.kind {
            Running::Init { namespaces, .. } => Place::Join(namespaces),
            Running::Command { .. } => Place::Here,
        }
    }

    /// Asks it to end.
    pub(crate) fn stop(&self) {
        let signal = match &self.kind {
            Running::Init { system: InitSystem::Systemd(_), .. } => libc::SIGRTMIN() + 4,
            Running::Init { system: InitSystem::Other(_), .. } => libc::SIGPWR,
            Running::Command { .. } => {
                self.spec.stop_signal.as_deref().and_then(signals::number).unwrap_or(libc::SIGTERM)
            }
        };
        // SAFETY: the pid is a child that has not been reaped. Signal numbers beyond nix's enum are
        // wanted.
        unsafe { libc::kill(self.pid.as_raw(), signal) };
    }

    /// Ends it.
    pub(crate) fn kill(&self) {
        let _ = kill(self.pid, Signal::SIGKILL);
    }

    /// The exit code that its end stands for.
    pub(crate) fn exit_code(&self, end: End) -> i32 {
        match (&self.kind, end) {
            // How the kernel ends an init that powered off or rebooted its pid namespace
            // (pid_namespaces(7), reboot(2)).
            (Running::Init { .. }, End::Signal(libc::SIGINT | libc::SIGHUP)) => 0,
            (_, end) => end.code(),
        }
    }
}

pub(crate) fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Without udev no device unit ever becomes active, and systemd would wait 90 s for the console's,
/// to start a login on it. A mask in /run lasts as long as the machine runs.
fn mask_console_logins() {
    let udev = ["/lib/systemd/systemd-udevd", "/usr/lib/systemd/systemd-udevd"];
    if udev.iter().any(|path| Path::new(path).exists()) {
        return;
    }
    let units = Path::new("/run/systemd/system");
    let masked =
        fs::create_dir_all(units).and_then(|()| symlink("/dev/null", units.join("serial-getty@.service")));
    if let Err(error) = masked {
        console::say(format!("cannot mask logins on the console: {error}"));
    }
}

/// Receives sd_notify(3) messages.
pub(crate) struct Notify(OwnedFd);

impl Notify {
    fn bind() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
        setsockopt(&socket, sockopt::PassCred, &true)?;
        bind(socket.as_raw_fd(), &UnixAddr::new_abstract(NOTIFY.as_bytes())?)?;
        Ok(Notify(socket))
    }

    /// Takes what was sent; whether `init` said that it is ready. Others may send, and do not count.
    pub(crate) fn ready(&self, init: Pid) -> bool {
        let mut ready = false;
        let mut buffer = [0; 4096];
        for _ in 0..NOTIFY_BATCH {
            let Some((sender, length)) = self.receive(&mut buffer) else { break };
            let mut lines = buffer[..length].split(|byte| *byte == b'\n');
            ready |= sender == init.as_raw() && lines.any(|line| line == b"READY=1");
        }
        ready
    }

    fn receive(&self, buffer: &mut [u8]) -> Option<(i32, usize)> {
        let mut space = cmsg_space!(UnixCredentials);
        let mut slices = [IoSliceMut::new(buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(self.0.as_raw_fd(), &mut slices, Some(&mut space), flags).ok()?;
        let sender = message.cmsgs().ok()?.find_map(|control| match control {
            ControlMessageOwned::ScmCredentials(credentials) => Some(credentials.pid()),
            _ => None,
        });
        Some((sender.unwrap_or_default(), message.bytes))
    }
}

impl AsFd for Notify {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
