//! The gate: how a VMM starts without a moment in which it runs unrecorded.
//!
//! The daemon starts itself again as a gate, which waits on its standard input for one
//! [`Command`]. The daemon records the gate's [`ProcessIdentity`], then writes the command; the gate drops
//! what it may not keep and executes the VMM in its own place: same pid, same start time. If the daemon
//! dies before the command is complete, the gate reads the end of its input and ends without effects.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;

use super::{ProcessIdentity, process};

/// The hidden subcommand that makes this binary a gate.
pub const SUBCOMMAND: &str = "__gate";

/// The longest command in bytes of JSON. Real ones are about 4 KiB.
const MAX_COMMAND: usize = 256 << 10;
/// The gate's exit code if it could not become the VMM; it says why on its standard error.
const FAILED: i32 = 127;

/// What a gate shall become. Its environment is empty, its standard input `/dev/null`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// The program, an absolute path.
    pub program: PathBuf,
    /// Its arguments, without its own name.
    pub args: Vec<String>,
    /// Its working directory.
    pub dir: PathBuf,
    /// Files that it gets opened, read-only, as descriptors [`FIRST_FILE`] and on; opened with the gate's
    /// rights, so the user below needs no way to them.
    pub files: Vec<PathBuf>,
    /// The user to become; none stays as is.
    pub user: Option<User>,
    /// The most open descriptors (RLIMIT_NOFILE), unless the limit is lower already.
    pub open_files: u64,
}

/// The descriptor of the first of [`Command::files`].
pub const FIRST_FILE: i32 = 3;

/// An unprivileged user.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// A process that waits at its gate. Dropping it ends the process.
#[derive(Debug)]
pub struct Gate {
    identity: ProcessIdentity,
    /// None once released.
    input: Option<pipe::Sender>,
}

impl Gate {
    /// Starts a gate. `helper` is this very binary; `log` becomes standard output and error, of the
    /// gate and of what it becomes. Must be called on a tokio runtime.
    pub fn spawn(helper: &Path, log: File) -> io::Result<Gate> {
        let (input, output) = pipe::pipe()?;
        // The standard library neither kills nor reaps a dropped Child: that is this module's part.
        let child = std::process::Command::new(helper)
            .arg0("vmlet")
            .arg(SUBCOMMAND)
            .env_clear()
            .stdin(Stdio::from(output.into_blocking_fd()?))
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        // It cannot be reaped by anyone else, so the pid is its own, even if it has ended.
        let identity = ProcessIdentity::of(child.id())?
            .ok_or_else(|| io::Error::other("the gate ended before it could be looked at"))?;
        Ok(Gate { identity, input: Some(input) })
    }

    /// The process, which keeps this identity when released.
    pub fn process(&self) -> &ProcessIdentity {
        &self.identity
    }

    /// Lets the process become `command`. Whether that worked shows in its exit and in its log. A
    /// dropped future leaves no process behind.
    pub async fn release(mut self, command: &Command) -> io::Result<()> {
        let body = serde_json::to_vec(command)?;
        if body.len() > MAX_COMMAND {
            return Err(io::Error::other(format!("the command line is over {MAX_COMMAND} bytes")));
        }
        let mut message = (body.len() as u32).to_be_bytes().to_vec();
        message.extend(body);
        let input = self.input.as_mut().expect("only release takes it");
        input.write_all(&message).await?;
        // Whole in the pipe: from here on the process runs whatever happens to this daemon.
        self.input = None;
        Ok(())
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        if self.input.take().is_none() {
            return;
        }
        // At its gate a process is blocked in a read: killing and reaping it takes microseconds.
        if let Err(error) = process::kill_blocking(&self.identity) {
            tracing::warn!(pid = self.identity.pid, %error, "cannot end a gate; it ends by itself");
        }
    }
}

/// The gate's side. Never returns: the process becomes the VMM or ends.
pub fn main() -> ! {
    let code = match run() {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("vmlet gate: {error}");
            FAILED
        }
    };
    std::process::exit(code);
}

/// Returns if the input ended early; otherwise only with an error.
fn run() -> Result<(), String> {
    // A session of its own: no terminal, no signals that are meant for the daemon's group.
    let _ = nix::unistd::setsid();
    match read_command(io::stdin().lock())? {
        Some(command) => Err(become_command(&command)),
        None => Ok(()),
    }
}

/// Reads a length (4 bytes, big-endian) and that many bytes of JSON; none if the input ends early.
fn read_command(mut input: impl Read) -> Result<Option<Command>, String> {
    let mut length = [0; 4];
    if !read_whole(&mut input, &mut length)? {
        return Ok(None);
    }
    let length = u32::from_be_bytes(length) as usize;
    if length > MAX_COMMAND {
        return Err(format!("a command of {length} bytes; at most {MAX_COMMAND} are allowed"));
    }
    let mut body = vec![0; length];
    if !read_whole(&mut input, &mut body)? {
        return Ok(None);
    }
    serde_json::from_slice(&body).map(Some).map_err(|error| format!("not a command: {error}"))
}

fn read_whole(input: &mut impl Read, buffer: &mut [u8]) -> Result<bool, String> {
    match input.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(format!("cannot read standard input: {error}")),
    }
}

/// Drops everything that the VMM may not keep and executes it. Returns why that failed.
fn become_command(command: &Command) -> String {
    if let Err(message) = confine(command) {
        return message;
    }
    let error = std::process::Command::new(&command.program).args(&command.args).env_clear().exec();
    format!("cannot execute {}: {error}", command.program.display())
}

fn confine(command: &Command) -> Result<(), String> {
    let context = |what: &'static str| move |error: nix::errno::Errno| format!("cannot {what}: {error}");
    close_all_but_standard();
    open_files(&command.files)?;
    nix::unistd::chdir(&command.dir)
        .map_err(|error| format!("cannot enter {}: {error}", command.dir.display()))?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    forget_oom_protection()?;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(context("read the limit of open files"))?;
    let open_files = command.open_files.min(hard);
    setrlimit(Resource::RLIMIT_NOFILE, open_files, open_files).map_err(context("limit open files"))?;
    // A core would hold the guest's memory.
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(context("forbid core dumps"))?;
    if let Some(user) = &command.user {
        become_user(user).map_err(|error| {
            format!(
                "cannot become user {}: {error}; run the daemon as root, or VMs as its own user",
                user.uid
            )
        })?;
    }
    rustix::thread::set_no_new_privs(true).map_err(|error| format!("cannot set no_new_privs: {error}"))?;
    let null = File::open("/dev/null").map_err(|error| format!("cannot open /dev/null: {error}"))?;
    rustix::stdio::dup2_stdin(null).map_err(|error| format!("cannot replace standard input: {error}"))
}

/// The order matters: without root, groups cannot be changed any more.
fn become_user(user: &User) -> nix::Result<()> {
    let groups: Vec<Gid> = user.groups.iter().copied().map(Gid::from_raw).collect();
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    nix::unistd::setgroups(&groups)?;
    nix::unistd::setresgid(gid, gid, gid)?;
    nix::unistd::setresuid(uid, uid, uid)
}

/// Rust opens everything close-on-exec; this is for what others may have left open.
fn close_all_but_standard() {
    // SAFETY: a gate has one thread and holds no descriptor but the standard three at this point.
    // The system call is made by number because older C libraries lack it; a kernel without it
    // (before 5.9) fails it, which leaves close-on-exec.
    unsafe { nix::libc::syscall(nix::libc::SYS_close_range, FIRST_FILE as u32, u32::MAX, 0) };
}

/// Opens the files as descriptors 3, 4, …, to be inherited.
fn open_files(files: &[PathBuf]) -> Result<(), String> {
    for (number, path) in (FIRST_FILE..).zip(files) {
        let file = rustix::fs::open(path, OFlags::RDONLY, Mode::empty())
            .map_err(|error| format!("cannot open {}: {error}", path.display()))?;
        if file.as_raw_fd() != number {
            return Err(format!("{} became descriptor {}, not {number}", path.display(), file.as_raw_fd()));
        }
        let _kept_open = file.into_raw_fd();
    }
    Ok(())
}

/// A service manager may protect the daemon from the out-of-memory killer; VMs do not inherit that.
fn forget_oom_protection() -> Result<(), String> {
    const FILE: &str = "/proc/self/oom_score_adj";
    let context = |error: io::Error| format!("{FILE}: {error}");
    let score = std::fs::read_to_string(FILE).map_err(context)?;
    if is_protected(&score) {
        std::fs::write(FILE, "0").map_err(context)?;
    }
    Ok(())
}

/// Whether a process of this score, as proc(5) has it, is spared for longer than others.
fn is_protected(score: &str) -> bool {
    score.starts_with('-')
}

/// Whether this process was started as a gate.
pub(super) fn is_asked_for(argument: &OsString) -> bool {
    argument == SUBCOMMAND
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protection_is_a_score_below_zero() {
        assert_eq!(["-1000\n", "-1\n", "0\n", "300\n"].map(is_protected), [true, true, false, false]);
    }
}
