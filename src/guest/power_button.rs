//! The machine's power button, where the kernel makes an input device of it (modules `button` and
//! `evdev`).

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::libc;

/// An event's type, code and value when the button goes down: EV_KEY, KEY_POWER, 1
/// (linux/input-event-codes.h).
const PRESSED: (u16, u16, i32) = (1, 116, 1);

/// More input devices than this are not looked at.
const MAX_DEVICES: usize = 8;

/// Events taken in one go.
const BATCH: usize = 16;

/// All input devices: the kernel does not say which is the button.
pub(crate) struct PowerButton(Vec<File>);

impl PowerButton {
    pub(crate) fn open() -> Self {
        let entries = fs::read_dir("/dev/input").into_iter().flatten().flatten();
        let events = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("event"));
        let open = |entry: fs::DirEntry| {
            OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(entry.path()).ok()
        };
        PowerButton(events.filter_map(open).take(MAX_DEVICES).collect())
    }

    /// Readable when something was pressed.
    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().map(AsFd::as_fd)
    }

    /// Takes what was pressed; whether the button was.
    pub(crate) fn pressed(&mut self) -> bool {
        let mut pressed = false;
        let mut buffer = [0; size_of::<libc::input_event>() * BATCH];
        self.0.retain_mut(|device| match device.read(&mut buffer) {
            Ok(length) => {
                pressed |= contains_press(&buffer[..length]);
                length > 0
            }
            Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
        });
        pressed
    }
}

fn contains_press(events: &[u8]) -> bool {
    // struct input_event: a timeval, then type (u16), code (u16) and value (i32).
    let (event, time) = (size_of::<libc::input_event>(), size_of::<libc::timeval>());
    events.chunks_exact(event).any(|event| {
        let [t0, t1, c0, c1, value @ ..] = &event[time..] else { return false };
        let value = value.try_into().map(i32::from_ne_bytes).unwrap_or_default();
        (u16::from_ne_bytes([*t0, *t1]), u16::from_ne_bytes([*c0, *c1]), value) == PRESSED
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: u16, code: u16, value: i32) -> Vec<u8> {
        [&[0; 16][..], &kind.to_ne_bytes(), &code.to_ne_bytes(), &value.to_ne_bytes()].concat()
    }

    #[test]
    fn only_the_power_key_going_down_counts() {
        assert!(contains_press(&[event(0, 0, 0), event(1, 116, 1), event(0, 0, 0)].concat()));
        assert!(!contains_press(&event(1, 116, 0)));
        assert!(!contains_press(&event(1, 30, 1)));
        assert!(!contains_press(&event(1, 116, 1)[..20]));
    }
}
