//! What a VM's task sees of the world before it decides: data only.

use jiff::Timestamp;
use tokio::time::Instant;
use vmlet_wire::GuestState;

use super::step::Failure;
use crate::hypervisor::VmmExit;
use crate::image::{ImageConfig, Source};
use crate::object::{NetworkMode, PullPolicy};
use crate::reconcile::pulls::PullState;
use crate::store::{PinnedImage, Standing};

/// The observed half of a decision; the recorded half is the store's record.
#[derive(Clone, Debug)]
pub(in crate::reconcile) struct Observed {
    /// The end of the recorded process, if it has ended.
    pub exit: Option<VmmExit>,
    /// Since when the recorded process is being stopped, if it is.
    pub stopping: Option<Instant>,
    /// Why this daemon killed the recorded process, if it did.
    pub killed: Option<String>,
    /// The guest's end of the link.
    pub guest: Guest,
    /// The last state that this process's guest reported, link or not.
    pub last: Option<GuestState>,
    /// The image that the spec asks for.
    pub image: ImageView,
    /// Whether this VM holds one of the boot permits.
    pub permit: bool,
    /// Whether this daemon has asked the guest to shut down.
    pub asked: bool,
    /// The last failed step, until a step succeeds or the spec changes.
    pub failure: Option<Failure>,
    /// When the gate of the backoff opens, if it is closed.
    pub closed_until: Option<Instant>,
    /// The same for people.
    pub next_try: Option<Timestamp>,
    /// The network of VMs that ask for none in particular.
    pub default_network: NetworkMode,
    /// Why the VMs that this one depends on keep it from being started.
    pub dependency: Option<String>,
    /// The line for memory, processors and disk space, if the VM stands in it.
    pub line: Option<LineView>,
    /// The recorded process was of an earlier boot of the host.
    pub rebooted: bool,
}

/// The VM in line for memory, processors and disk space.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::reconcile) enum LineView {
    /// It waits.
    Waits {
        /// Where it stands.
        standing: Standing,
        /// Since when.
        since: Instant,
        /// It is not passed any more.
        impatient: bool,
    },
    /// Its turn has come, or its claim is void: claim again.
    Called,
}

/// The guest, as far as the link tells.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::reconcile) enum Guest {
    /// No link. `ever`: there was one to this process, perhaps to an earlier daemon. `since`: when
    /// this daemon began to watch the process.
    Silent { ever: bool, since: Instant },
    /// The link is up. `since`: when this state was first seen.
    Connected { state: GuestState, since: Instant },
}

/// The image that the spec asks for.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "one exists at a time, for one decision")]
pub(in crate::reconcile) enum ImageView {
    /// The spec's own source has no digest yet.
    Unresolved { source: Source, policy: PullPolicy },
    /// The named `Image` object is not there or not ready.
    Waiting { reason: String, message: String },
    /// The digest is known.
    Known {
        pin: PinnedImage,
        policy: PullPolicy,
        /// Whether the registry was asked since the VM ran last.
        asked: bool,
        /// The image's config, when the base disk is ready.
        disk: Option<ImageConfig>,
        /// The pull that this VM shares in.
        pull: Option<PullState>,
        /// Whether this VM pulls by itself, not its `Image` object.
        direct: bool,
    },
}
