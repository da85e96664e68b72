//! The steps of a VM.

use tokio::time::Instant;

use crate::image::Source;
use crate::reconcile::step::{self, Steps};
use crate::store::PinnedImage;

/// A step of a VM, and what to tell people while it is not done.
pub(in crate::reconcile) type Plan = step::Plan<Step>;

/// A step that failed.
pub(in crate::reconcile) type Failure = step::Failure<Step>;

/// The steps.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::reconcile) enum Step {
    /// Nothing before a wake-up or this time.
    Wait(Option<Instant>),
    /// Ask the registry for the digest of the spec's reference.
    Resolve(Source),
    /// Find the digest of the spec's reference among what is on the host.
    Find(Source),
    /// Record the digest that the VM is to run. It keeps the base disk from now on.
    Pin(PinnedImage),
    /// Take a share in the digest's pull.
    Pull(PinnedImage),
    /// Discard what the present reservation made and the new one does not fit, then claim anew.
    /// `impatient`: no VM of lower rank is to pass this one any more.
    Reserve { discard_disk: bool, impatient: bool },
    /// Give back memory and processors, and the place in line for them.
    Relinquish,
    /// Get in line for a boot permit.
    Queue,
    /// Make the devices, start the VMM.
    Boot,
    /// Record that the VM is stopping, and why.
    Stop { why: String },
    /// Ask the guest to shut down.
    Ask,
    /// Kill the VMM.
    Kill { why: String },
    /// Record the end of the process. `rerun`: whether it is to be started again.
    RecordExit { rerun: bool, failed: bool },
    /// Remove tap, folder and disk, then the reservation.
    TearDown,
    /// Remove the record.
    Remove,
}

impl Steps for Step {
    fn wait(until: Option<Instant>) -> Self {
        Step::Wait(until)
    }

    fn name(&self) -> &'static str {
        match self {
            Step::Wait(_) => "wait",
            Step::Resolve(_) => "resolve",
            Step::Find(_) => "find",
            Step::Pin(_) => "pin",
            Step::Pull(_) => "pull",
            Step::Reserve { .. } => "reserve",
            Step::Queue => "queue",
            Step::Relinquish => "relinquish",
            Step::Boot => "boot",
            Step::Stop { .. } => "stop",
            Step::Ask => "ask",
            Step::Kill { .. } => "kill",
            Step::RecordExit { .. } => "record_exit",
            Step::TearDown => "tear_down",
            Step::Remove => "remove",
        }
    }
}
