//! What a simulation starts from.

use std::time::Duration;

use super::trouble::Trouble;
use crate::manifest::MassDeleteSettings;
use crate::object::Quantity;
use crate::reconcile::{BackoffPolicy, Retention, Settings};
use crate::store::Capacity;

/// The daemon's settings and the world's mood.
#[derive(Clone, Debug)]
pub struct Options {
    /// The engine's settings. Its folders are names only.
    pub settings: Settings,
    /// The guard against mass deletion.
    pub mass_delete: MassDeleteSettings,
    /// Changes that the store keeps for watchers: few make watches expire.
    pub history: usize,
    /// Trouble by chance.
    pub trouble: Trouble,
    /// What a crash leaves of what was written but not flushed.
    pub unflushed: Unflushed,
    /// How long nobody runs after the daemon has died by itself.
    pub down: Duration,
    /// Whether the timeline tells of each effect on the host.
    pub tell_effects: bool,
}

/// What a crash leaves of the batches that were written but not flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unflushed {
    /// Nothing.
    Lost,
    /// The first ones, as many as chance has it.
    Chance,
    /// All.
    Kept,
}

impl Default for Options {
    /// A host with room for everything, a bridge, and no trouble; base disks go at once when nothing refers
    /// to them.
    fn default() -> Self {
        let subnet = "10.63.0.0/16".parse().expect("a network");
        Options {
            settings: Settings {
                vms: "/simulated/vms".into(),
                max_pulls: 4,
                max_boots: 8,
                subnet: Some(subnet),
                resolvers: Vec::new(),
                vmm_users: Some(2_000_000..2_010_000),
                capacity: Capacity {
                    memory: Quantity::mebibytes(1 << 30),
                    cpus: u32::MAX,
                    disk: Quantity::mebibytes(1 << 40),
                },
                boot_timeout: Duration::from_secs(60),
                backoff: BackoffPolicy { first: Duration::from_secs(1), longest: Duration::from_secs(300) },
                retention: Retention { grace: Duration::ZERO, low: 10, high: 15 },
                log_limit: None,
                patience: Duration::from_secs(120),
            },
            mass_delete: MassDeleteSettings::default(),
            history: 8192,
            trouble: Trouble::NONE,
            unflushed: Unflushed::Chance,
            down: Duration::from_secs(1),
            tell_effects: false,
        }
    }
}
