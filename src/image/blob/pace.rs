//! Layers arrive no faster than they are used, while somebody is busy using them.
//!
//! A build that has bytes to work on needs the processor; one that waits for bytes leaves it to whoever
//! fetches some, of whatever layer. So a download that is far ahead of its readers pauses until a reader
//! waits, here or elsewhere. It never stops: a piece a second keeps the registry from hanging up.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Bytes that a layer may always be ahead of its readers.
const AHEAD: u64 = 8 << 20;
/// The longest pause before a piece.
const PAUSE: Duration = Duration::from_secs(1);

/// For all layers.
#[derive(Default)]
pub(super) struct Pace {
    /// Readers that wait for bytes.
    waiting: Mutex<usize>,
    /// Wakes the downloads that pause.
    go: Condvar,
}

impl Pace {
    /// Pauses a download that has written so much, unless there is reason to go on.
    pub(super) fn pause(&self, written: u64, read: impl Fn() -> u64, ended: impl Fn() -> bool) {
        let pausing = |waiting: &mut usize| *waiting == 0 && written > read() + AHEAD && !ended();
        // The lock is released while it waits.
        drop(self.go.wait_timeout_while(self.waiting(), PAUSE, pausing));
    }

    /// A reader got on.
    pub(super) fn read_on(&self) {
        // Under the lock, lest a download checks before and waits after.
        drop(self.waiting());
        self.go.notify_all();
    }

    /// A reader waits for bytes while `wait` runs.
    pub(super) fn hungry<R>(&self, wait: impl FnOnce() -> R) -> R {
        *self.waiting() += 1;
        self.go.notify_all();
        let result = wait();
        *self.waiting() -= 1;
        result
    }

    fn waiting(&self) -> MutexGuard<'_, usize> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    use std::sync::mpsc::{Receiver, channel};
    use std::thread;
    use std::time::Instant;

    use super::*;

    /// A reader, and the time for which the download paused.
    type Reader = fn(&Pace, &AtomicU64, &Receiver<Duration>) -> Duration;

    #[test]
    fn a_reader_that_gets_on_or_waits_wakes_downloads() {
        let gets_on: Reader = |pace, read, paused| {
            read.store(1, Relaxed);
            pace.read_on();
            paused.recv().unwrap()
        };
        let waits: Reader = |pace, _, paused| pace.hungry(|| paused.recv().unwrap());
        for reader in [gets_on, waits] {
            let wakes = || {
                let (pace, read) = (Pace::default(), AtomicU64::new(0));
                let ((begin, begun), (end, paused)) = (channel(), channel());
                let (pace, read) = (&pace, &read);
                thread::scope(|scope| {
                    scope.spawn(move || {
                        let since = Instant::now();
                        let look = || {
                            let seen = read.load(Relaxed);
                            let _ = begin.send(());
                            // Has looked, and does not wait yet: who wakes it now must not be too early.
                            thread::sleep(Duration::from_millis(20));
                            seen
                        };
                        pace.pause(AHEAD + 1, look, || false);
                        end.send(since.elapsed()).unwrap();
                    });
                    begun.recv().unwrap();
                    reader(pace, read, &paused) < PAUSE
                })
            };
            // On a busy machine a thread that was woken may run late; one that was not, always does.
            assert!((0..10).any(|_| wakes()));
        }
    }

    #[test]
    fn only_downloads_that_nobody_waits_for_pause() {
        let pace = Pace::default();
        let paused = |written, ended: bool| {
            let since = Instant::now();
            pace.pause(written, || 100, || ended);
            since.elapsed() >= PAUSE
        };
        assert!(paused(100 + AHEAD + 1, false));
        assert!(!paused(100 + AHEAD, false), "it is not far ahead");
        assert!(!paused(u64::MAX, true), "nothing more comes");
        assert!(!pace.hungry(|| paused(u64::MAX, false)), "a reader waits");
        assert!(paused(u64::MAX, false), "it has what it waited for");
    }
}
