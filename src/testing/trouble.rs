//! What goes wrong in a scripted world, by chance or by order.

use std::sync::Arc;
use std::time::Duration;

use super::images::ImageScript;
use crate::manifest::Snapshot;
use crate::object::ObjectKey;

/// How the VMs of one name behave.
#[derive(Clone, Debug)]
pub struct VmScript {
    /// From the VMM's start until the guest's first word.
    pub boot: Duration,
    /// From the guest's first word until the workload is ready.
    pub workload: Duration,
    /// So many boots say no word, ever, before one succeeds.
    pub hangs: u32,
    /// So many boots end in a kernel panic before one succeeds.
    pub panics: u32,
    /// The workload ends by itself.
    pub exit: Option<WorkloadExit>,
    /// The guest ignores shutdowns and the power button: it has to be killed.
    pub deaf: bool,
}

/// A workload that ends by itself.
#[derive(Clone, Copy, Debug)]
pub struct WorkloadExit {
    /// How long it runs.
    pub after: Duration,
    /// Its exit code.
    pub code: i32,
    /// So many runs end, the later ones do not; none ends every one.
    pub times: Option<u32>,
}

impl Default for VmScript {
    /// Boots in a second, is ready a tenth later, runs on, and shuts down when asked.
    fn default() -> Self {
        VmScript {
            boot: Duration::from_secs(1),
            workload: Duration::from_millis(100),
            hangs: 0,
            panics: 0,
            exit: None,
            deaf: false,
        }
    }
}

/// How the effects of one name go, whatever chance has in store: for a world that misbehaves to order.
#[derive(Clone, Copy, Debug, Default)]
pub struct EffectScript {
    /// How long each takes before it takes place, if that is to be more than chance has it.
    pub takes: Duration,
    /// So many fail before one succeeds.
    pub failures: u32,
    /// Those that fail take place nevertheless.
    pub done: bool,
    /// Those that fail say that no retry mends it.
    pub lasting: bool,
    /// So many panic before one does not.
    pub panics: u32,
}

/// Trouble by chance. Each share is a probability from 0 to 1; all of it follows from the seed.
#[derive(Clone, Copy, Debug)]
pub struct Trouble {
    /// Effects that take their time.
    pub slow: f64,
    /// How long they take at most.
    pub longest: Duration,
    /// Effects that fail, before or after they took place.
    pub failures: f64,
    /// Failures that no retry mends.
    pub lasting: f64,
    /// Flushes of the store that take their time.
    pub slow_flushes: f64,
    /// Writes of the store that fail: the store stops, and the daemon is started again.
    pub store_faults: f64,
    /// Moments before or after an effect, a write or a flush at which the daemon is killed. What was
    /// written but not flushed is kept or lost.
    pub crashes: f64,
    /// Boots that say no word, ever.
    pub hangs: f64,
    /// Boots that end in a kernel panic.
    pub panics: f64,
    /// Workloads that end by themselves.
    pub exits: f64,
    /// Guests that ignore shutdowns.
    pub deaf: f64,
    /// Guests that stay up after their workload has ended: they have to be killed.
    pub lingering: f64,
    /// Processes that take their time to die when they are killed, as one does that waits for a disk.
    pub undying: f64,
    /// Links to guests that break after a while.
    pub broken_links: f64,
    /// News of guests that are late: what they say, and that their process has ended.
    pub late: f64,
}

impl Trouble {
    /// None: everything succeeds at once.
    pub const NONE: Trouble = Trouble {
        slow: 0.0,
        longest: Duration::ZERO,
        failures: 0.0,
        lasting: 0.0,
        slow_flushes: 0.0,
        store_faults: 0.0,
        crashes: 0.0,
        hangs: 0.0,
        panics: 0.0,
        exits: 0.0,
        deaf: 0.0,
        lingering: 0.0,
        undying: 0.0,
        broken_links: 0.0,
        late: 0.0,
    };

    /// Everything takes a moment, in another order each time; nothing fails.
    pub const SHUFFLED: Trouble =
        Trouble { slow: 0.5, longest: Duration::from_secs(2), slow_flushes: 0.3, late: 0.3, ..Trouble::NONE };

    /// Everything that can go wrong does, often.
    pub const ROUGH: Trouble = Trouble {
        failures: 0.08,
        lasting: 0.02,
        store_faults: 0.001,
        crashes: 0.01,
        hangs: 0.08,
        panics: 0.08,
        exits: 0.15,
        deaf: 0.1,
        lingering: 0.05,
        undying: 0.1,
        broken_links: 0.1,
        ..Trouble::SHUFFLED
    };
}

/// Something that is done to a simulation at a set time.
#[derive(Clone, Debug)]
pub enum Action {
    /// A file of the manifests folder gets this text.
    Write {
        /// Its path below the folder.
        path: String,
        /// Its text.
        text: String,
    },
    /// A file of the manifests folder goes.
    Remove {
        /// Its path below the folder.
        path: String,
    },
    /// These files are put into the manifests folder, in the place of those of the same paths.
    Apply(Arc<Snapshot>),
    /// The whole folder is replaced.
    Replace(Arc<Snapshot>),
    /// The daemon is killed and started again.
    Crash {
        /// How long nobody runs.
        down: Duration,
    },
    /// The host loses its power: the daemon and every VM end; the daemon is started after `down`.
    Reboot {
        /// How long the host is down.
        down: Duration,
    },
    /// The store's next write fails, as on a full disk.
    FailStore,
    /// Every write of the store fails from now on, for so long: the disk is full.
    FillStore {
        /// How long.
        lasts: Duration,
    },
    /// The room on the state folder's file system, in bytes, from now on.
    Room {
        /// The file system's size.
        total: u64,
        /// What things other than base disks take of it.
        taken: u64,
    },
    /// The VMM of a VM dies of a signal, if it runs.
    KillVmm(ObjectKey),
    /// The workload of a VM ends with this exit code, if it runs.
    EndWorkload(ObjectKey, i32),
    /// An image reference behaves so from now on.
    ScriptImage(String, ImageScript),
    /// Trouble by chance from now on.
    Trouble(Box<Trouble>),
}
