//! What reconcile tasks share: the store, the world behind its traits, limits and settings.

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use tokio::sync::Semaphore;

use super::backoff::BackoffPolicy;
use super::clock::Clock;
use super::collector::{Bell, Retention};
use super::entropy::Entropy;
use super::meters::Meters;
use super::promotion::Promoter;
use super::pulls::{Pulls, Shop};
use super::room::Room;
use crate::agent::Agent;
use crate::boot::Kernels;
use crate::hypervisor::Driver;
use crate::image::Images;
use crate::metrics::Guarded;
use crate::network::Network;
use crate::object::{NetworkMode, ObjectKey, Uid};
use crate::store::{Capacity, Severity, Store};
use crate::timeline::Recorder;

/// How the engine behaves. Every field is a daemon setting.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The folder of the VMs' folders, each named by its uid.
    pub vms: PathBuf,
    /// Images pulled at once.
    pub max_pulls: usize,
    /// VMs booting at once.
    pub max_boots: usize,
    /// The bridge's subnet; none where there is no bridge.
    pub subnet: Option<Ipv4Net>,
    /// Resolvers for VMs on the bridge.
    pub resolvers: Vec<String>,
    /// Users for VMM processes, one for each VM; none leaves them as the daemon's.
    pub vmm_users: Option<Range<u32>>,
    /// What all VMs together may reserve.
    pub capacity: Capacity,
    /// How long smaller VMs may pass one that waits for memory, processors or disk space.
    pub patience: Duration,
    /// How long a boot may take until the guest is heard of.
    pub boot_timeout: Duration,
    /// How waits after failures grow.
    pub backoff: BackoffPolicy,
    /// How long base disks are kept that nothing refers to.
    pub retention: Retention,
    /// Bytes of a VM's log file before it is rotated; none keeps no logs.
    pub log_limit: Option<u64>,
}

/// The parts of the world behind traits: real, or scripted.
pub struct Parts {
    /// Where images come from.
    pub images: Arc<dyn Images>,
    /// What VMs boot.
    pub kernels: Arc<dyn Kernels>,
    /// What runs VMs.
    pub driver: Arc<dyn Driver>,
    /// How VMs are connected.
    pub network: Arc<dyn Network>,
    /// What time it is.
    pub clock: Clock,
    /// Where jitter and claims come from.
    pub entropy: Entropy,
    /// What room there is.
    pub room: Arc<dyn Room>,
}

pub(super) struct World {
    pub(super) store: Store,
    pub(super) images: Arc<dyn Images>,
    pub(super) kernels: Arc<dyn Kernels>,
    pub(super) driver: Arc<dyn Driver>,
    pub(super) network: Arc<dyn Network>,
    pub(super) clock: Clock,
    pub(super) entropy: Entropy,
    pub(super) room: Arc<dyn Room>,
    pub(super) settings: Settings,
    pub(super) pulls: Pulls,
    pub(super) boots: Arc<Semaphore>,
    /// Wakes the collector of base disks.
    pub(super) collector: Arc<Bell>,
    /// Guards the map only. The agents of connected guests, for the API.
    pub(super) agents: Guarded<HashMap<Uid, Agent>>,
    pub(super) recorder: Recorder,
    pub(super) meters: Arc<Meters>,
}

impl World {
    pub(super) fn new(store: Store, parts: Parts, settings: Settings) -> Self {
        let Parts { images, kernels, driver, network, clock, entropy, room } = parts;
        let collector = Arc::<Bell>::default();
        let (recorder, meters) = (Recorder::new(clock.clone()), Arc::new(Meters::default()));
        World {
            pulls: Pulls::new(Shop {
                images: images.clone(),
                promoter: Promoter {
                    store: store.clone(),
                    kernels: kernels.clone(),
                    driver: driver.clone(),
                    vms: settings.vms.clone(),
                    backoff: settings.backoff,
                    entropy: entropy.clone(),
                },
                store: store.clone(),
                permits: Semaphore::new(settings.max_pulls.max(1)),
                backoff: settings.backoff,
                clock: clock.clone(),
                entropy: entropy.clone(),
                collector: collector.clone(),
                recorder: recorder.clone(),
                meters: meters.clone(),
            }),
            boots: Arc::new(Semaphore::new(settings.max_boots.max(1))),
            collector,
            agents: Guarded::default(),
            recorder,
            meters,
            store,
            images,
            kernels,
            driver,
            network,
            clock,
            entropy,
            room,
            settings,
        }
    }

    pub(super) fn vm_dir(&self, uid: Uid) -> PathBuf {
        self.settings.vms.join(uid.to_string())
    }

    pub(super) fn agent(&self, uid: Uid) -> Option<Agent> {
        self.agents.with(|agents| agents.get(&uid).cloned())
    }

    pub(super) fn set_agent(&self, uid: Uid, agent: Option<Agent>) {
        let replaced = self.agents.with(|agents| match agent {
            Some(agent) => agents.insert(uid, agent),
            None => agents.remove(&uid),
        });
        // Closed outside the guard, if it was the last handle.
        drop(replaced);
    }

    /// The network of VMs that ask for none in particular.
    pub(super) fn default_network(&self) -> NetworkMode {
        if self.settings.subnet.is_some() { NetworkMode::Bridge } else { NetworkMode::User }
    }

    pub(super) fn event(&self, key: &ObjectKey, uid: Uid, severity: Severity, reason: &str, message: &str) {
        self.store.record_event(key, Some(uid), severity, reason, message, self.clock.now());
    }
}
