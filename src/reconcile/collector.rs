//! Removes base disks that nothing refers to.
//!
//! One task, so that a digest which is pulled again right after its removal is never removed by a
//! second collector that still has it on its list. The guard covers the reference check and the
//! record only (`Store::condemn_disks`); the files go unguarded.

use std::sync::Arc;
use std::time::Duration;

use super::backoff::Backoff;
use super::world::World;
use crate::image::Digest;

/// Collects whenever it is notified, and again after a wait for as long as something is left.
pub(super) async fn run(world: Arc<World>) {
    let mut backoff = Backoff::new(world.settings.backoff, world.entropy.clone());
    loop {
        world.collector.notified().await;
        while let Err(error) = collect(&world).await {
            tracing::error!(error, "unreferenced base disks were not removed; tried again");
            let now = world.clock.now();
            let wait = Duration::try_from(backoff.fail(now).duration_since(now)).unwrap_or_default();
            // What comes meanwhile is collected with the rest.
            let _ = tokio::time::timeout(wait, world.collector.notified()).await;
        }
        backoff.reset();
    }
}

/// Removes what it can; the last error tells that something was left.
async fn collect(world: &World) -> Result<(), String> {
    let mut outcome = Ok(());
    for digest in world.store.condemn_disks().await.map_err(|error| error.to_string())? {
        match remove(world, &digest).await {
            Ok(()) => tracing::info!(%digest, "base disk removed"),
            Err(error) => outcome = Err(error),
        }
    }
    outcome
}

async fn remove(world: &World, digest: &Digest) -> Result<(), String> {
    world.images.remove(digest).await.map_err(|error| error.to_string())?;
    world.store.forget_disk(digest).await.map_err(|error| error.to_string())
}
