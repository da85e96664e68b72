//! What reconcile tasks share: the store, the world behind its traits, limits and settings.

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ipnet::Ipv4Net;
use tokio::sync::{Notify, Semaphore};

use super::backoff::BackoffPolicy;
use super::clock::Clock;
use super::entropy::Entropy;
use super::pulls::Pulls;
use crate::agent::Agent;
use crate::hypervisor::Driver;
use crate::image::Images;
use crate::network::Network;
use crate::object::{NetworkMode, ObjectKey, Uid};
use crate::store::{Capacity, Severity, Store};

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
    /// Bytes of a VM's log file before it is rotated; none keeps no logs.
    pub log_limit: Option<u64>,
}

/// The parts of the world behind traits: real, or scripted.
pub struct Parts {
    /// Where images come from.
    pub images: Arc<dyn Images>,
    /// What runs VMs.
    pub driver: Arc<dyn Driver>,
    /// How VMs are connected.
    pub network: Arc<dyn Network>,
    /// What time it is.
    pub clock: Clock,
    /// Where jitter and claims come from.
    pub entropy: Entropy,
}

pub(super) struct World {
    pub(super) store: Store,
    pub(super) images: Arc<dyn Images>,
    pub(super) driver: Arc<dyn Driver>,
    pub(super) network: Arc<dyn Network>,
    pub(super) clock: Clock,
    pub(super) entropy: Entropy,
    pub(super) settings: Settings,
    pub(super) pulls: Pulls,
    pub(super) boots: Arc<Semaphore>,
    /// Wakes the collector of base disks.
    pub(super) collector: Arc<Notify>,
    /// Guards the map only. The agents of connected guests, for the API.
    agents: Mutex<HashMap<Uid, Agent>>,
}

impl World {
    pub(super) fn new(store: Store, parts: Parts, settings: Settings) -> Self {
        let Parts { images, driver, network, clock, entropy } = parts;
        let collector = Arc::new(Notify::new());
        World {
            pulls: Pulls::new(
                images.clone(),
                store.clone(),
                settings.max_pulls,
                settings.backoff,
                clock,
                entropy.clone(),
                collector.clone(),
            ),
            boots: Arc::new(Semaphore::new(settings.max_boots.max(1))),
            collector,
            agents: Mutex::default(),
            store,
            images,
            driver,
            network,
            clock,
            entropy,
            settings,
        }
    }

    pub(super) fn vm_dir(&self, uid: Uid) -> PathBuf {
        self.settings.vms.join(uid.to_string())
    }

    pub(super) fn agent(&self, uid: Uid) -> Option<Agent> {
        self.agents.lock().unwrap_or_else(PoisonError::into_inner).get(&uid).cloned()
    }

    pub(super) fn set_agent(&self, uid: Uid, agent: Option<Agent>) {
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        match agent {
            Some(agent) => agents.insert(uid, agent),
            None => agents.remove(&uid),
        };
    }

    /// The network of VMs that ask for none in particular.
    pub(super) fn default_network(&self) -> NetworkMode {
        if self.settings.subnet.is_some() { NetworkMode::Bridge } else { NetworkMode::User }
    }

    pub(super) fn event(&self, key: &ObjectKey, uid: Uid, severity: Severity, reason: &str, message: &str) {
        self.store.record_event(key, Some(uid), severity, reason, message, self.clock.now());
    }
}
