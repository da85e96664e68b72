//! The watch over a recorded process: its end, and the link to its guest.
//!
//! In: who the process is. Out: its exit, once, and what the link tells; [`Process::changed`] wakes the task
//! for either. Dropping it ends the watch, never the process.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use vmlet_wire::GuestState;

use super::link::{Link, LinkState};
use super::state::Guest;
use crate::agent::{Agent, LOG_FILE, LogSink};
use crate::hypervisor::{ProcessIdentity, VmmExit};
use crate::object::Uid;
use crate::reconcile::clock::Clock;
use crate::reconcile::world::World;

/// The signal that kills (signal(7)).
const SIGKILL: i32 = 9;

/// A process that is watched.
pub(super) struct Process {
    link: Link,
    waiting: BoxFuture<'static, VmmExit>,
    exit: Option<VmmExit>,
    /// Why this task killed it, if it did.
    pub(super) killed: Option<String>,
    /// Whether the guest has ever been heard of.
    ever: bool,
    /// When the watch began.
    since: Instant,
    /// Since when it is being stopped.
    stopping: Option<Instant>,
}

impl Process {
    /// Begins to watch a VM's process. `heard`: an earlier daemon heard of its guest.
    pub(super) fn watch(world: &World, uid: Uid, process: &ProcessIdentity, heard: bool) -> Self {
        let (driver, dir) = (world.driver.clone(), world.vm_dir(uid));
        let logs = match world.settings.log_limit {
            Some(limit) => LogSink::new(dir.join(LOG_FILE), limit),
            None => LogSink::nowhere(),
        };
        let link = Link::start(driver.clone(), dir.clone(), logs);
        let identity = process.clone();
        let waiting = async move { driver.exited(&dir, &identity).await }.boxed();
        Process {
            link,
            waiting,
            exit: None,
            killed: None,
            ever: heard,
            since: Instant::now(),
            stopping: None,
        }
    }

    /// The guest as the link shows it, the way to talk to it, and the last state that it reported.
    pub(super) fn guest(&mut self) -> (Guest, Option<Agent>, Option<GuestState>) {
        let LinkState { up, last } = self.link.look();
        self.ever |= last.is_some();
        match up {
            Some((agent, state, since)) => (Guest::Connected { state, since }, Some(agent), last),
            None => (Guest::Silent { ever: self.ever, since: self.since }, None, last),
        }
    }

    /// Since when the process is being stopped, as recorded. What an earlier daemon recorded is in the past,
    /// whatever the wall clock says: the grace period can be over too soon then, but never grow.
    pub(super) fn stopping(&mut self, recorded: Timestamp, clock: &Clock) -> Instant {
        *self.stopping.get_or_insert_with(|| clock.instant_of(recorded).min(Instant::now()))
    }

    /// For how long it has been watched.
    pub(super) fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// The end of the process, if it has come.
    pub(super) fn poll_exit(&mut self) -> Option<VmmExit> {
        if self.exit.is_none() {
            self.exit = (&mut self.waiting).now_or_never();
        }
        self.exit.clone()
    }

    /// Waits for the end of a process that was killed. Who killed it has reaped it: the exit does not
    /// tell any more how it came about.
    pub(super) async fn await_killed(&mut self, why: &str) {
        self.killed = Some(why.to_owned());
        if self.exit.is_none() {
            let exit = (&mut self.waiting).await;
            let signal = exit.signal.or_else(|| exit.code.is_none().then_some(SIGKILL));
            self.exit = Some(VmmExit { signal, ..exit });
        }
    }

    /// Resolves when the process ends, or the link has something new. Cancel-safe.
    pub(super) async fn changed(&mut self) {
        if self.exit.is_some() {
            return self.link.changed().await;
        }
        tokio::select! {
            biased;
            exit = &mut self.waiting => self.exit = Some(exit),
            () = self.link.changed() => {}
        }
    }
}
