//! The engine: brings every object to its spec, and keeps it there.
//!
//! # Flow
//! The `supervisor` runs one `task` an object. A task looks at its record and at the world,
//! decides by a pure plan, publishes the status, and takes at most one step; then it looks again.
//!
//! # Guarantees
//! - One task an object; tasks share no guard but the store's transactions and the maps of
//!   `world` and `pulls`, which are held for a look-up.
//! - Waiting for a permit, a pull, a boot or a stop happens outside of any step: an edit or a deletion
//!   is acted upon at once.
//! - Every step is preceded by a flushed record of what it may leave behind, and can be repeated.
//! - Dropping the engine leaves every VM as it is; a new engine adopts them by their records.

mod attempts;
mod backoff;
mod clock;
mod collector;
mod conditions;
mod dependents;
mod entropy;
mod image;
mod meters;
mod pace;
mod present;
mod promotion;
mod pulls;
mod recovery;
mod room;
mod step;
mod storage;
mod supervisor;
mod task;
mod track;
mod vm;
mod world;

use std::path::PathBuf;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

pub use self::backoff::BackoffPolicy;
pub use self::clock::Clock;
pub use self::collector::Retention;
pub use self::entropy::Entropy;
pub use self::recovery::RecoveryError;
pub use self::room::{HostRoom, Room, Space};
pub use self::vm::{due_stop, reruns, restarting};
pub use self::world::{Parts, Settings};

use self::world::World;
use crate::agent::Agent;
use crate::hypervisor::{DriverError, GuestStream};
use crate::object::Uid;
use crate::store::Store;
use crate::timeline::Recorder;

/// The engine's handle.
#[derive(Clone)]
pub struct Engine {
    world: Arc<World>,
}

impl Engine {
    /// An engine over a store and a world. Nothing happens before [`Engine::run`].
    pub fn new(store: Store, parts: Parts, settings: Settings) -> Self {
        Engine { world: Arc::new(World::new(store, parts, settings)) }
    }

    /// Accounts for what an earlier engine left, then reconciles until cancelled. VMs keep running
    /// afterwards.
    ///
    /// # Errors
    /// When left-overs cannot be removed.
    pub async fn run(&self, cancel: CancellationToken) -> Result<(), RecoveryError> {
        recovery::recover(&self.world).await?;
        let world = self.world.clone();
        let collect = collector::run(world.clone());
        tokio::select! {
            biased;
            () = cancel.cancelled() => {}
            () = supervisor::run(world) => {}
            () = collect => {}
        }
        Ok(())
    }

    /// The agent of a VM whose guest is connected.
    pub fn agent(&self, uid: Uid) -> Option<Agent> {
        self.world.agent(uid)
    }

    /// What runs VMs, for people: `qemu, tcg`.
    pub fn driver(&self) -> String {
        self.world.driver.title()
    }

    /// What overlapped with what.
    pub fn recorder(&self) -> &Recorder {
        &self.world.recorder
    }

    /// A VM's folder, whether it exists or not.
    pub fn vm_dir(&self, uid: Uid) -> PathBuf {
        self.world.vm_dir(uid)
    }

    /// A connection to a VM's console.
    ///
    /// # Errors
    /// When the VM does not run, or has no console.
    pub async fn console(&self, uid: Uid) -> Result<GuestStream, DriverError> {
        self.world.driver.console(&self.world.vm_dir(uid)).await
    }
}
