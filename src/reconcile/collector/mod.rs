//! Removes base disks that nothing refers to: after their grace, sooner when room is wanted, at once when
//! somebody asks. Layers that are kept for later pulls go before them when room is wanted.
//!
//! In: what the `bell` tells, the time, the room. Out: disks that are gone. Guaranteed: one task removes, so
//! that a digest which is pulled again right after its removal is never removed by a second one that still
//! has it on its list; a disk that was used since it was looked at stays (`Store::condemn_disks` rechecks);
//! the guard covers that check and the record only, and the files go unguarded. It sleeps until the next
//! grace ends; only while a disk is in its grace, or a layer is kept, it looks at the room now and then.

mod bell;
mod plan;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

pub(super) use self::bell::Bell;
pub use self::plan::Retention;

use self::bell::Wish;
use self::plan::{Reason, Seen, plan};
use super::backoff::Backoff;
use super::task::sleep_until;
use super::world::World;
use crate::image::Digest;
use crate::storage::{RemovalError, Removed};
use crate::store::{DiskRecord, DiskState};

/// How often the room is looked at while something could make some.
const LOOK: Duration = Duration::from_secs(30);

/// Collects for ever.
pub(super) async fn run(world: Arc<World>) {
    let backoff = Backoff::new(world.settings.backoff, world.entropy.clone());
    let mut collector = Collector { world: world.clone(), backoff, pressed: false };
    loop {
        let pause = collector.turn().await;
        tokio::select! {
            biased;
            () = world.collector.rung() => {}
            () = sleep_until(pause.until) => {}
            () = tokio::time::sleep(LOOK), if pause.watch => {}
        }
    }
}

struct Collector {
    world: Arc<World>,
    backoff: Backoff,
    /// Whether room is wanted: from the low mark on, up to the high one.
    pressed: bool,
}

/// How long there is nothing to do.
struct Pause {
    until: Option<Instant>,
    watch: bool,
}

impl Collector {
    async fn turn(&mut self) -> Pause {
        let orders = self.world.collector.take();
        for wish in orders.wishes {
            self.grant(wish).await;
        }
        match self.collect(orders.starved).await {
            Ok(pause) => {
                self.backoff.reset();
                pause
            }
            Err(error) => {
                tracing::error!(error, "unused base disks were not removed; tried again");
                self.backoff.fail();
                Pause { until: self.backoff.closed_until(), watch: false }
            }
        }
    }

    /// Removes what is to go. An error says that something was left; then nothing more goes: what gives no
    /// room is no reason to remove the next one.
    async fn collect(&mut self, mut starved: bool) -> Result<Pause, String> {
        for disk in self.world.store.disks() {
            if disk.state == DiskState::Removing {
                self.remove(&disk.digest, Reason::Unfinished).await?;
            }
        }
        // Those that running pulls use stay, which is not known before.
        let mut stuck = false;
        loop {
            let plan = plan(&self.world.settings.retention, &self.look(starved, stuck).await?);
            self.pressed = plan.pressed;
            if let Some(left) = plan.layers {
                let removed = self.world.images.prune_blobs(left).await.map_err(|error| error.to_string())?;
                tracing::info!(bytes = removed, reason = Reason::DiskPressure.word(), "kept layers removed");
                stuck = removed == 0;
                continue;
            }
            if plan.remove.is_empty() {
                let until = plan.next.map(|next| self.world.clock.instant_of(next));
                return Ok(Pause { until, watch: plan.watch });
            }
            starved = false;
            let unused: Vec<_> =
                plan.remove.iter().map(|(digest, since, _)| (digest.clone(), *since)).collect();
            let condemned = self.world.store.condemn_disks(&unused).await;
            let condemned = condemned.map_err(|error| error.to_string())?;
            for (digest, _, reason) in &plan.remove {
                if condemned.contains(digest) {
                    self.remove(digest, *reason).await?;
                }
            }
        }
    }

    async fn look(&self, starved: bool, stuck: bool) -> Result<Seen, String> {
        let world = &self.world;
        let layers = match stuck {
            true => 0,
            false => {
                let kept = world.images.blobs().await.map_err(|error| error.to_string())?;
                kept.iter().map(|blob| blob.size).sum()
            }
        };
        let disks = world.store.disks().into_iter().filter(DiskRecord::is_ready);
        let unused: Vec<_> =
            disks.filter_map(|disk| Some((disk.digest, disk.unused.map(|unused| unused.since)?))).collect();
        // With nothing to give, nobody need know.
        let space = if unused.is_empty() && layers == 0 { None } else { world.room.space() };
        Ok(Seen { unused, layers, now: world.clock.now(), space, pressed: self.pressed, starved })
    }

    /// The files, then the record that said that they may exist.
    async fn remove(&self, digest: &Digest, reason: Reason) -> Result<(), String> {
        let world = &self.world;
        // That the disk goes may be another's transaction, which nobody waited for yet.
        world.store.settled().await.map_err(|error| error.to_string())?;
        world.images.remove(digest).await.map_err(|error| error.to_string())?;
        world.store.forget_disk(digest).await.map_err(|error| error.to_string())?;
        world.meters.collection(reason.word());
        tracing::info!(%digest, reason = reason.word(), "base disk removed");
        Ok(())
    }

    async fn grant(&self, wish: Wish) {
        // Whoever asked may have gone: it is done all the same.
        match wish {
            Wish::Disk(digest, reply) => _ = reply.send(self.remove_now(digest).await),
            Wish::Unused(reply) => {
                let mut removed = Ok(Vec::new());
                let unused = self.world.store.disks().into_iter();
                for disk in unused.filter(|disk| disk.is_ready() && disk.unused.is_some()) {
                    match (self.remove_now(disk.digest).await, &mut removed) {
                        (Ok(disk), Ok(removed)) => removed.push(disk),
                        // It came into use meanwhile.
                        (Err(RemovalError::Refused(_)), _) => {}
                        (Err(error), removed) => *removed = Err(error),
                        (_, Err(_)) => {}
                    }
                }
                _ = reply.send(removed);
            }
        }
    }

    async fn remove_now(&self, digest: Digest) -> Result<Removed, RemovalError> {
        let world = &self.world;
        let path = world.store.disk(&digest).and_then(|disk| disk.path().map(ToOwned::to_owned));
        let allocated = path.map_or(0, |path| world.room.taken(&path));
        world.store.condemn_disk(&digest).await?;
        match self.remove(&digest, Reason::Requested).await {
            Ok(()) => Ok(Removed { digest, allocated }),
            Err(why) => Err(RemovalError::Files { digest, why }),
        }
    }
}
