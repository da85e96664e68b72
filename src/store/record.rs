//! What the store holds: one record an object, one a base disk.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::declaration::{Origin, Problem, Rivals};
use crate::boot::{Boot, KernelChoice};
use crate::hypervisor::ProcessIdentity;
use crate::image::{Digest, ImageConfig, Source};
use crate::network::Nic;
use crate::object::{AnyObject, Image, LastExit, ObjectKey, ObjectMeta, Quantity, Shared, Vm, VmSpec};

/// A record of either kind: a snapshot, cheap to clone.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A virtual machine's.
    Vm(Arc<VmRecord>),
    /// An image's.
    Image(Arc<ImageRecord>),
}

impl Record {
    /// The object as the API shows it.
    pub fn object(&self) -> AnyObject {
        match self {
            Record::Vm(record) => AnyObject::Vm(record.object.clone()),
            Record::Image(record) => AnyObject::Image(record.object.clone()),
        }
    }

    /// The object's metadata.
    pub fn metadata(&self) -> &ObjectMeta {
        match self {
            Record::Vm(record) => &record.object.metadata,
            Record::Image(record) => &record.object.metadata,
        }
    }

    /// Kind, namespace and name.
    pub fn key(&self) -> ObjectKey {
        match self {
            Record::Vm(record) => record.object.key(),
            Record::Image(record) => record.object.key(),
        }
    }

    /// Where the object is declared.
    pub fn origin(&self) -> &Origin {
        match self {
            Record::Vm(record) => &record.origin,
            Record::Image(record) => &record.origin,
        }
    }

    /// What is wrong with the declaration, if anything: by its own source, else by others.
    pub fn problem(&self) -> Option<&Problem> {
        self.problems().next()
    }

    /// All that is wrong with the declaration; what its own source says comes first.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        let (own, rivals) = match self {
            Record::Vm(record) => (&record.problem, &record.rivals),
            Record::Image(record) => (&record.problem, &record.rivals),
        };
        own.iter().chain(rivals.values())
    }

    /// What the object's own source says is wrong.
    pub fn own_problem(&self) -> Option<&Problem> {
        match self {
            Record::Vm(record) => record.problem.as_ref(),
            Record::Image(record) => record.problem.as_ref(),
        }
    }

    /// What the object holds of the host; images hold nothing.
    pub fn reservation(&self) -> Option<&Reservation> {
        match self {
            Record::Vm(record) => record.reservation.as_ref(),
            Record::Image(_) => None,
        }
    }

    /// The image whose disk the object keeps.
    pub fn pinned(&self) -> Option<&PinnedImage> {
        match self {
            Record::Vm(record) => record.image.as_ref(),
            Record::Image(record) => record.image.as_ref(),
        }
    }

    pub(super) fn metadata_mut(&mut self) -> &mut ObjectMeta {
        match self {
            Record::Vm(record) => &mut Arc::make_mut(record).object.metadata,
            Record::Image(record) => &mut Arc::make_mut(record).object.metadata,
        }
    }

    pub(super) fn set_origin(&mut self, origin: Origin) {
        match self {
            Record::Vm(record) => Arc::make_mut(record).origin = origin,
            Record::Image(record) => Arc::make_mut(record).origin = origin,
        }
    }

    pub(super) fn set_problem(&mut self, problem: Option<Problem>) {
        match self {
            Record::Vm(record) => Arc::make_mut(record).problem = problem,
            Record::Image(record) => Arc::make_mut(record).problem = problem,
        }
    }

    pub(super) fn rivals_mut(&mut self) -> &mut Rivals {
        match self {
            Record::Vm(record) => &mut Arc::make_mut(record).rivals,
            Record::Image(record) => &mut Arc::make_mut(record).rivals,
        }
    }

    pub(super) fn set_version(&mut self, version: u64) {
        self.metadata_mut().resource_version = version.to_string();
    }
}

/// Everything known of a VM. Written by three: its source (`object.spec`, `origin`, `problem`), the
/// reserve and release transactions (`reservation`), and its reconcile task (the rest).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VmRecord {
    /// The object as the API shows it.
    pub object: Vm,
    /// Where it is declared.
    pub origin: Origin,
    /// What is wrong with the declaration; the spec is then the last good one.
    pub problem: Option<Problem>,
    /// What other sources say, which declare it too.
    #[serde(skip)]
    pub rivals: Rivals,
    /// What the VM holds on the host. While there is one, artefacts may exist: folder, disk, tap.
    pub reservation: Option<Reservation>,
    /// The image that the VM runs or waits for, once its source is resolved. It keeps the disk.
    pub image: Option<PinnedImage>,
    /// The VMM process.
    pub run: Run,
    /// How often a VMM process was started, all in all.
    pub starts: u32,
    /// How the last run ended.
    pub last_exit: Option<LastExit>,
    /// Of the promotion that reads the VM's private disk: the name of its folder. The VM is not started
    /// meanwhile. Cleared at start-up: none outlives its daemon.
    #[serde(default)]
    pub promotion: Option<Uuid>,
}

/// Everything known of an image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// The object as the API shows it.
    pub object: Image,
    /// Where it is declared.
    pub origin: Origin,
    /// What is wrong with the declaration; the spec is then the last good one.
    pub problem: Option<Problem>,
    /// What other sources say, which declare it too.
    #[serde(skip)]
    pub rivals: Rivals,
    /// What the source was resolved to. It keeps the disk.
    pub image: Option<PinnedImage>,
}

impl VmRecord {
    /// A VM that was declared, and of which nothing has come yet.
    pub fn new(object: Vm, origin: Origin) -> Self {
        VmRecord {
            object,
            origin,
            problem: None,
            rivals: Rivals::new(),
            reservation: None,
            image: None,
            run: Run::Idle,
            starts: 0,
            last_exit: None,
            promotion: None,
        }
    }

    /// All that is wrong with the declaration; what its own source says comes first.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.problem.iter().chain(self.rivals.values())
    }
}

impl ImageRecord {
    /// An image that was declared, and of which nothing has come yet.
    pub fn new(object: Image, origin: Origin) -> Self {
        ImageRecord { object, origin, problem: None, rivals: Rivals::new(), image: None }
    }

    /// All that is wrong with the declaration; what its own source says comes first.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.problem.iter().chain(self.rivals.values())
    }

    /// The pin, if it is what the spec asks for by now.
    pub fn current(&self) -> Option<&PinnedImage> {
        let spec = &self.object.spec;
        let source = spec.source.chosen(&self.object.metadata.namespace);
        let pin = self.image.as_ref().filter(|pin| Some(&pin.source) == source.as_ref())?;
        let choice = pin.kernel.as_ref().map(|kernel| &kernel.choice);
        (choice == spec.kernel().as_ref()).then_some(pin)
    }
}

/// A source and what it was resolved to. A new source is resolved anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinnedImage {
    /// As the spec (the VM's, or its Image object's) names it.
    pub source: Source,
    /// What it was resolved to.
    pub digest: Digest,
    /// The kernel; none is the host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<Box<PinnedKernel>>,
}

impl PinnedImage {
    /// The base disks that it keeps.
    pub fn disks(&self) -> impl Iterator<Item = &Digest> {
        let kernel = self.kernel.as_ref().and_then(|kernel| kernel.disk.as_ref());
        std::iter::once(&self.digest).chain(kernel)
    }

    /// What a VM of it boots; none while its kernel is being made.
    pub fn boot(&self) -> Option<Boot> {
        self.kernel.as_ref().map_or_else(|| Some(Boot::default()), |kernel| kernel.boot.clone())
    }
}

/// A choice of a kernel and what it came to. A new choice is made anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinnedKernel {
    /// As the image's spec says.
    pub choice: KernelChoice,
    /// The image that the kernel is in, if it is another one. It keeps the disk.
    pub disk: Option<Digest>,
    /// What VMs boot; none while it is being made.
    pub boot: Option<Boot>,
}

/// What a VM holds of the host's scarce things. Owned by the VM's uid, gone with its record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// The base disk that the VM's private disk belongs to.
    pub image: Digest,
    /// The network device: address, MAC, tap, host ports.
    pub nic: Option<Nic>,
    /// The user that the VMM runs as, one for each VM; none when the daemon cannot change users.
    pub vmm_user: Option<u32>,
    /// Memory; none while the VM neither runs nor is about to.
    pub memory: Quantity,
    /// Virtual processors; none likewise.
    #[serde(default)]
    pub cpus: u32,
    /// The private disk's full length.
    pub disk: Quantity,
}

impl Reservation {
    /// Whether there is something to run on, not only what a VM keeps while it does not run.
    pub fn can_run(&self) -> bool {
        self.memory.as_bytes() > 0
    }

    /// The leased address, if the VM is on the bridge.
    pub fn address(&self) -> Option<Ipv4Addr> {
        match self.nic.as_ref()?.link {
            crate::network::Link::Bridge { address, .. } => Some(address),
            crate::network::Link::User => None,
        }
    }
}

/// A VM's process, from the record that precedes it to the record of its end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "state")]
pub enum Run {
    /// No process exists.
    Idle,
    /// The process exists, or ended unseen. Written before the process may have any effect.
    #[serde(rename_all = "camelCase")]
    Up {
        /// Which process.
        process: ProcessIdentity,
        /// The spec that it was started with.
        spec: Shared<VmSpec>,
        /// What it booted.
        #[serde(default)]
        boot: Boot,
        /// When it was started.
        since: Timestamp,
        /// Why and since when it is being stopped.
        stopping: Option<Stopping>,
    },
    /// No process exists, and by the run policy none is started until the spec changes.
    Ended {
        /// The spec that ran.
        spec: Shared<VmSpec>,
    },
}

/// A stop under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopping {
    /// When the guest was asked to shut down.
    pub since: Timestamp,
    /// Why, for people: `deleted`, `memory changed`, `runPolicy is Halted`.
    pub why: String,
}

/// A base disk by digest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DiskRecord {
    /// The image's manifest digest.
    pub digest: Digest,
    /// How far it is.
    pub state: DiskState,
    /// Since when nothing refers to it; none while something does, or before it is ready.
    #[serde(default)]
    pub unused: Option<Unused>,
}

/// A base disk's time without users.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unused {
    /// When the last reference went, or the disk was last asked for by somebody without one.
    pub since: Timestamp,
    /// What it was last wanted as, for people.
    pub source: Option<String>,
}

impl DiskRecord {
    /// Whether VMs can run on it.
    pub fn is_ready(&self) -> bool {
        matches!(self.state, DiskState::Ready { .. })
    }

    /// Where it is, once it is ready.
    pub fn path(&self) -> Option<&Path> {
        match &self.state {
            DiskState::Ready { path, .. } => Some(path),
            DiskState::Installing { .. } | DiskState::Removing => None,
        }
    }
}

/// The life of a base disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "state")]
pub enum DiskState {
    /// Somebody is renaming a staged disk into its place.
    Installing {
        /// Who: random, one for each attempt.
        claim: Uuid,
    },
    /// It is in its place, complete.
    Ready {
        /// The disk's path.
        path: PathBuf,
        /// The disk's length.
        size: Quantity,
        /// What the image says about its process.
        config: ImageConfig,
    },
    /// Nobody refers to it; its files are being removed.
    Removing,
}
