//! A terminal for the command line to sit at.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Instant;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::host::PATIENCE;

/// A process on a terminal of its own, and the person in front of it.
pub(crate) struct Terminal {
    near: File,
    child: Child,
    output: Receiver<Vec<u8>>,
    /// What was printed and not yet waited for.
    seen: String,
}

/// How a terminal is set (termios(3)).
pub(crate) type Modes = [String; 4];

impl Terminal {
    /// Starts a command on a terminal of this many rows and columns.
    pub(crate) fn start(command: &mut Command, size: (u16, u16)) -> Self {
        let near = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&near).unwrap();
        unlockpt(&near).unwrap();
        let path = ptsname(&near, Vec::new()).unwrap().into_string().unwrap();
        let near = File::from(near);
        resize(&near, size);
        let mut far = OpenOptions::new();
        let far = far.read(true).write(true).custom_flags(nix::libc::O_NOCTTY).open(path).unwrap();
        command.stdin(far.try_clone().unwrap()).stdout(far.try_clone().unwrap()).stderr(far);
        // SAFETY: between fork and exec only system calls are made.
        unsafe {
            command.pre_exec(|| {
                rustix::process::setsid()?;
                rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
                Ok(())
            })
        };
        let child = command.spawn().unwrap();
        // The parent's copies of the far side go: its reader is to see the child's end.
        command.stdin(std::process::Stdio::null());
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let (sender, output) = channel();
        let mut reader = near.try_clone().unwrap();
        std::thread::spawn(move || {
            let mut block = [0; 4096];
            while let Ok(length @ 1..) = reader.read(&mut block) {
                if sender.send(block[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        Terminal { near, child, output, seen: String::new() }
    }

    /// Presses keys.
    pub(crate) fn press(&mut self, keys: &str) {
        self.near.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until a text is printed, and forgets what was printed before its end.
    pub(crate) fn expect(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(place) = self.seen.find(text) {
                self.seen.drain(..place + text.len());
                return;
            }
            match self.output.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(more) => self.seen += &String::from_utf8_lossy(&more),
                Err(RecvTimeoutError::Timeout) => panic!("{text:?} does not come: {:?}", self.seen),
                Err(RecvTimeoutError::Disconnected) => panic!("{text:?} did not come: {:?}", self.seen),
            }
        }
    }

    /// Changes the window's size, as a window manager does.
    pub(crate) fn resize(&self, size: (u16, u16)) {
        resize(&self.near, size);
    }

    /// How the terminal is set now.
    pub(crate) fn modes(&self) -> Modes {
        let modes = tcgetattr(&self.near).unwrap();
        [
            format!("{:?}", modes.input_modes),
            format!("{:?}", modes.output_modes),
            format!("{:?}", modes.control_modes),
            format!("{:?}", modes.local_modes),
        ]
    }

    /// Whether keys go to the process one by one, and none is acted upon here.
    pub(crate) fn is_raw(&self) -> bool {
        let local = tcgetattr(&self.near).unwrap().local_modes;
        !local.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    /// The process's pid.
    pub(crate) fn pid(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(self.child.id().try_into().unwrap())
    }

    /// Waits for the process's end. Returns what else it printed.
    pub(crate) fn end(&mut self) -> (ExitStatus, String) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.output.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(more) => self.seen += &String::from_utf8_lossy(&more),
                // Nobody holds the far side any more.
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("it does not end: {:?}", self.seen),
            }
        }
        (self.child.wait().unwrap(), std::mem::take(&mut self.seen))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn resize(terminal: &File, (rows, columns): (u16, u16)) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).unwrap();
}
