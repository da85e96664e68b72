//! A guest's end of a link: the real protocol, spoken by the process' course of time.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};
use vmlet_wire::GuestState;

use super::{State, World};
use crate::agent::{FakeGuest, FakeScript};
use crate::hypervisor::GuestStream;

/// How late at most the host hears what a guest says.
const LATE: Duration = Duration::from_secs(3);
/// How long a link that is to break lasts at most.
const LINK: Duration = Duration::from_secs(60);

/// The host's end of a new link to the guest of a process that has said its first word. None if it has
/// ended.
pub(super) fn link(world: &Arc<World>, pid: u32) -> Option<GuestStream> {
    let script = FakeScript { answers: true, obeys_shutdown: false };
    let (guest, breaks) = {
        let mut state = world.lock();
        let said = state.processes.get(pid)?.guest(state.now())?;
        let guest = FakeGuest::new(script);
        guest.set_state(said);
        let broken_links = state.trouble.broken_links;
        let breaks = state.chance(broken_links).then(|| state.while_(LINK));
        (guest, breaks)
    };
    let stream = guest.connect();
    tokio::spawn(accompany(world.clone(), pid, guest, breaks));
    Some(stream)
}

/// Tells the link what its guest does, and the world what the guest is asked, until either ends.
async fn accompany(world: Arc<World>, pid: u32, guest: FakeGuest, breaks: Option<Duration>) {
    let broken = async {
        match breaks {
            Some(after) => sleep(after).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        () = broken => {}
        () = follow(&world, pid, &guest) => {}
    }
    guest.power_off();
}

async fn follow(world: &World, pid: u32, guest: &FakeGuest) {
    let Some(mut changed) = world.lock().processes.get(pid).map(|process| process.changed.subscribe()) else {
        return;
    };
    let mut asked = false;
    // When what the guest says arrives, if that is not at once.
    let mut arrives: Option<(GuestState, Instant)> = None;
    loop {
        let next = {
            let mut state = world.lock();
            let now = state.now();
            let Some(process) = state.processes.get(pid).filter(|process| process.runs(now)) else { return };
            let Some(said) = process.guest(now) else { return };
            let changes = process.next_change(now).map(|at| Instant::now() + (at - now));
            if *guest.state().borrow() == said {
                changes
            } else {
                let late = match &arrives {
                    Some((awaited, at)) if *awaited == said => *at,
                    _ => Instant::now() + state.lateness(),
                };
                if late <= Instant::now() {
                    guest.set_state(said);
                    arrives = None;
                    changes
                } else {
                    arrives = Some((said, late));
                    Some(changes.map_or(late, |changes| changes.min(late)))
                }
            }
        };
        tokio::select! {
            biased;
            ended = changed.changed() => if ended.is_err() { return },
            _ = guest.shutdown_requested(), if !asked => {
                asked = true;
                world.ask_shutdown(pid);
            }
            () = at(next) => {}
        }
    }
}

/// Resolves at the instant, or never.
pub(super) async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

impl State {
    /// How late the next word of a guest is heard.
    fn lateness(&mut self) -> Duration {
        let late = self.trouble.late;
        if self.chance(late) { self.while_(LATE) } else { Duration::ZERO }
    }
}

impl World {
    fn ask_shutdown(&self, pid: u32) {
        let mut state = self.lock();
        let now = state.now();
        if let Some(process) = state.processes.get_mut(pid) {
            process.shutdown.get_or_insert(now);
            process.changed.send_replace(());
        }
    }
}
