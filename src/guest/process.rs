//! Starting a process: everything between fork and exec.
//!
//! The guest is one thread, so a forked child may run any code. The child tells its parent through
//! a close-on-exec pipe why it could not start; a closed pipe without a word is success.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::{ForkResult, Gid, Pid, Uid, chdir, execve, fork, pipe2, setgid, setgroups, setsid, setuid};

use crate::failure::{During, Failure};
use crate::{cgroup, signals, users};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What to start, and how.
pub(crate) struct Command<'a> {
    pub(crate) argv: &'a [String],
    /// `NAME=value`; of two with one name the later counts.
    pub(crate) env: Vec<String>,
    /// `/` when absent.
    pub(crate) cwd: Option<&'a str>,
    /// Makes `cwd` if it is missing, as image runtimes do.
    pub(crate) make_cwd: bool,
    pub(crate) user: Option<&'a str>,
    pub(crate) stdio: Stdio,
    pub(crate) place: Place<'a>,
}

/// The child's standard streams.
pub(crate) enum Stdio {
    Streams {
        stdin: OwnedFd,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
    /// The far side of a terminal, which becomes the controlling one.
    Terminal(OwnedFd),
    /// The console, as it is.
    Inherit,
}

/// Where a process runs.
pub(crate) enum Place<'a> {
    /// In the guest's own namespaces.
    Here,
    /// As PID 1 of a new pid namespace, with a mount namespace of its own.
    NewInit,
    /// Beside an init.
    Join(&'a Namespaces),
}

/// The namespaces of an init system.
pub(crate) struct Namespaces {
    pid: File,
    mount: File,
}

impl Namespaces {
    pub(crate) fn of(pid: Pid) -> io::Result<Self> {
        Ok(Namespaces {
            pid: File::open(format!("/proc/{pid}/ns/pid"))?,
            mount: File::open(format!("/proc/{pid}/ns/mnt"))?,
        })
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum End {
    Code(i32),
    Signal(i32),
}

impl End {
    /// As shells report it.
    pub(crate) fn code(self) -> i32 {
        match self {
            End::Code(code) => code,
            End::Signal(signal) => 128 + signal,
        }
    }
}

/// Reaps a child that ended, if there is one. Plain waitpid(2): nix's has no word for an end by a
/// real-time signal.
pub(crate) fn reap() -> Option<(Pid, End)> {
    let mut status = 0;
    // SAFETY: waitpid writes the status that it is given.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    let end = if libc::WIFSIGNALED(status) {
        End::Signal(libc::WTERMSIG(status))
    } else {
        End::Code(libc::WEXITSTATUS(status))
    };
    (pid > 0).then(|| (Pid::from_raw(pid), end))
}

/// Starts a process in a session of its own.
pub(crate) fn spawn(command: Command) -> Result<Pid, Failure> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)
        .map(|(reader, writer)| (File::from(reader), File::from(writer)))
        .during(|| "make a pipe".to_owned())?;
    let own = File::open("/proc/self/ns/pid").during(|| "open the own pid namespace".to_owned())?;
    match command.place {
        Place::Here => Ok(()),
        Place::NewInit => unshare(CloneFlags::CLONE_NEWPID),
        Place::Join(namespaces) => setns(&namespaces.pid, CloneFlags::CLONE_NEWPID),
    }
    .during(|| "enter a pid namespace".to_owned())?;
    // SAFETY: this process has one thread, so the child's copy of it is whole.
    let forked = unsafe { fork() };
    let forked = match forked {
        Ok(ForkResult::Child) => {
            drop(reader);
            let failure = match become_command(&command) {
                Ok(never) => match never {},
                Err(failure) => failure,
            };
            let mut writer = writer;
            let _ = writer.write_all(format!("{} {}", failure.code, failure.message).as_bytes());
            // SAFETY: ends the child without running the parent's exit handlers.
            unsafe { libc::_exit(failure.code) }
        }
        Ok(ForkResult::Parent { child }) => Ok(child),
        Err(error) => Err(error),
    };
    // The namespace for children is this process's own again.
    setns(&own, CloneFlags::CLONE_NEWPID).during(|| "leave a pid namespace".to_owned())?;
    let child = forked.during(|| "fork".to_owned())?;
    drop(writer);
    let mut report = String::new();
    let _ = reader.take(4096).read_to_string(&mut report);
    match report.split_once(' ') {
        None => Ok(child),
        Some((code, message)) => {
            Err(Failure { message: message.to_owned(), code: code.parse().unwrap_or(125) })
        }
    }
}

enum Never {}

fn become_command(command: &Command) -> Result<Never, Failure> {
    signals::unblock().during(|| "unblock signals".to_owned())?;
    // SAFETY: restores a default; Rust ignores SIGPIPE, and ignored signals stay so through exec.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
    // The guest itself is exempt from the OOM killer; its children are not.
    let _ = fs::write("/proc/self/oom_score_adj", "0");
    let is_init = matches!(command.place, Place::NewInit);
    if !is_init {
        setsid().during(|| "make a session".to_owned())?;
    }
    match command.place {
        Place::Here => {}
        Place::NewInit => enter_own_mounts()?,
        Place::Join(namespaces) => join(namespaces)?,
    }
    take_stdio(&command.stdio)?;
    let identity = users::look_up(command.user)?;
    if let Stdio::Terminal(terminal) = &command.stdio {
        let _ = nix::unistd::fchown(terminal, Some(Uid::from_raw(identity.uid)), None);
    }
    let cwd = command.cwd.unwrap_or("/");
    if command.make_cwd && !Path::new(cwd).is_dir() {
        fs::create_dir_all(cwd).during(|| format!("make the working directory {cwd}"))?;
    }
    chdir(cwd).during(|| format!("enter the working directory {cwd}"))?;
    let groups: Vec<Gid> = identity.groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups).during(|| "set the groups".to_owned())?;
    setgid(Gid::from_raw(identity.gid)).during(|| format!("become group {}", identity.gid))?;
    setuid(Uid::from_raw(identity.uid)).during(|| format!("become user {}", identity.uid))?;
    let env = environment(&command.env, &identity.home, matches!(command.stdio, Stdio::Terminal(_)));
    execute(command.argv, &env)
}

/// A mount namespace whose /proc shows the new pid namespace.
fn enter_own_mounts() -> Result<(), Failure> {
    let doing = || "make a mount namespace".to_owned();
    unshare(CloneFlags::CLONE_NEWNS).during(doing)?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).during(doing)?;
    umount2("/proc", MntFlags::MNT_DETACH).during(|| "unmount /proc".to_owned())?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, None::<&str>).during(|| "mount /proc".to_owned())
}

fn join(namespaces: &Namespaces) -> Result<(), Failure> {
    // Without a group of its own it stays in the guest's.
    let _ = cgroup::enter_execs();
    setns(&namespaces.mount, CloneFlags::CLONE_NEWNS)
        .during(|| "enter the init system's mount namespace".to_owned())
}

fn take_stdio(stdio: &Stdio) -> Result<(), Failure> {
    let install = |fd: BorrowedFd, target: RawFd| -> Result<(), Failure> {
        // SAFETY: dup2 takes any numbers; the standard streams are nobody's OwnedFd.
        if unsafe { libc::dup2(fd.as_raw_fd(), target) } < 0 {
            return Err(Failure::new(format!(
                "cannot set up stream {target}: {}",
                io::Error::last_os_error()
            )));
        }
        Ok(())
    };
    match stdio {
        Stdio::Streams { stdin, stdout, stderr } => {
            install(stdin.as_fd(), 0)?;
            install(stdout.as_fd(), 1)?;
            install(stderr.as_fd(), 2)
        }
        Stdio::Terminal(terminal) => {
            // SAFETY: TIOCSCTTY takes an integer; 0 asks politely.
            if unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) } < 0 {
                return Err(Failure::new(format!(
                    "cannot take the terminal: {}",
                    io::Error::last_os_error()
                )));
            }
            (0..3).try_for_each(|target| install(terminal.as_fd(), target))
        }
        Stdio::Inherit => Ok(()),
    }
}

/// The given variables with defaults for those that programs rely on.
fn environment(given: &[String], home: &str, terminal: bool) -> Vec<String> {
    let mut env: Vec<String> = Vec::new();
    let defaults = [
        Some(format!("PATH={DEFAULT_PATH}")),
        Some(format!("HOME={home}")),
        terminal.then(|| "TERM=xterm".to_owned()),
    ];
    for variable in defaults.into_iter().flatten().chain(given.iter().cloned()) {
        let name = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
        env.retain(|earlier| name(earlier) != name(&variable));
        env.push(variable);
    }
    env
}

/// Replaces this process. A command without a slash is looked up in PATH, within the root.
fn execute(argv: &[String], env: &[String]) -> Result<Never, Failure> {
    let program = argv.first().filter(|program| !program.is_empty());
    let program = program.ok_or_else(|| Failure::new("there is no command to run"))?;
    let strings = |texts: &[String]| -> Result<Vec<CString>, Failure> {
        texts.iter().map(|text| CString::new(text.as_str()).during(|| format!("pass on {text:?}"))).collect()
    };
    let (arguments, variables) = (strings(argv)?, strings(env)?);
    let mut worst = nix::Error::ENOENT;
    for candidate in candidates(program, env) {
        let path = CString::new(candidate).during(|| format!("run {program:?}"))?;
        let Err(error) = execve(&path, &arguments, &variables);
        // As shells do: what is there but cannot be run is worth more than what is not there.
        if !matches!(error, nix::Error::ENOENT | nix::Error::ENOTDIR) {
            worst = error;
        }
    }
    let (code, hint) = match worst {
        nix::Error::ENOENT => (127, "it, or the interpreter that it names, is not in the image"),
        nix::Error::EACCES => (126, "it is not executable for this user"),
        nix::Error::ENOEXEC => (126, "it is no program for this machine and names no interpreter"),
        other => (126, other.desc()),
    };
    Err(Failure { message: format!("cannot run {program:?}: {hint}"), code })
}

fn candidates(program: &str, env: &[String]) -> Vec<String> {
    if program.contains('/') {
        return vec![program.to_owned()];
    }
    let path = env.iter().find_map(|variable| variable.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    let in_dir = |dir: &str| format!("{}/{program}", if dir.is_empty() { "." } else { dir });
    path.split(':').map(in_dir).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn the_environment_has_defaults_and_later_values_win() {
        assert_eq!(
            environment(&words(&["A=1", "HOME=/x", "A=2"]), "/root", true),
            [&format!("PATH={DEFAULT_PATH}"), "TERM=xterm", "HOME=/x", "A=2"]
        );
    }

    #[test]
    fn commands_are_looked_up_in_the_given_path() {
        assert_eq!(candidates("./run", &[]), ["./run"]);
        assert_eq!(candidates("ls", &words(&["PATH=/a::/b"])), ["/a/ls", "./ls", "/b/ls"]);
        assert_eq!(candidates("ls", &[])[0], "/usr/local/sbin/ls");
    }
}
