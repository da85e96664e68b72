//! Removes base disks that nothing refers to.
//!
//! One task, so that a digest which is pulled again right after its removal is never removed by a
//! second collector that still has it on its list. The guard covers the reference check and the
//! record only (`Store::condemn_disks`); the files go unguarded.

use std::sync::Arc;

use tokio::sync::Notify;

use crate::image::Images;
use crate::store::Store;

/// Collects whenever it is notified.
pub(super) async fn run(store: Store, images: Arc<dyn Images>, wake: Arc<Notify>) {
    loop {
        wake.notified().await;
        if let Err(error) = collect(&store, images.as_ref()).await {
            tracing::error!(
                error,
                "unreferenced base disks were not removed; tried again at the next change"
            );
        }
    }
}

async fn collect(store: &Store, images: &dyn Images) -> Result<(), String> {
    for digest in store.condemn_disks().await.map_err(|error| error.to_string())? {
        images.remove(&digest).await.map_err(|error| error.to_string())?;
        store.forget_disk(&digest).await.map_err(|error| error.to_string())?;
        tracing::info!(%digest, "base disk removed");
    }
    Ok(())
}
