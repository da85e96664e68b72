//! The daemon: today it serves the API over an empty store.

use std::path::PathBuf;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::agent::Agent;
use crate::api::{self, Guests};
use crate::config::Settings;
use crate::object::Uid;
use crate::store::Store;

/// No VM runs.
struct Nobody(PathBuf);

impl Guests for Nobody {
    fn agent(&self, _: Uid) -> Option<Agent> {
        None
    }

    fn vm_dir(&self, uid: Uid) -> PathBuf {
        self.0.join("vms").join(uid.to_string())
    }
}

/// Runs until it is asked to stop.
///
/// # Errors
/// When the socket cannot be had.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    let listener = api::bind(&settings.socket).await?;
    let cancel = CancellationToken::new();
    let _stop = cancel.clone().drop_guard();
    let (store, _backend) = Store::in_memory();
    tokio::select! {
        served = api::serve(listener, store, Arc::new(Nobody(settings.state)), cancel) => Ok(served?),
        asked = tokio::signal::ctrl_c() => Ok(asked?),
    }
}
