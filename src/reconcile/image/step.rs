//! The steps of an image.

use tokio::time::Instant;

use crate::boot::KernelChoice;
use crate::image::{Digest, Source};
use crate::reconcile::step::{self, Steps};
use crate::store::{PinnedImage, PinnedKernel};

/// A step of an image, and what to tell people while it is not done.
pub(in crate::reconcile) type Plan = step::Plan<Step>;
/// A step that failed.
pub(in crate::reconcile) type Failure = step::Failure<Step>;

/// The steps.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::reconcile) enum Step {
    /// Nothing before a wake-up or this time.
    Wait(Option<Instant>),
    /// Find the source's digest.
    Resolve(Source),
    /// Record the digest of an image that is to be made. It keeps the disk from now on.
    Pin(PinnedImage),
    /// Find the source's digest among what is on the host.
    Find(Source),
    /// Take a share in the digest's pull.
    Pull { source: Source, digest: Digest },
    /// Find the digest of the image that the kernel is in.
    ResolveKernel { choice: KernelChoice, source: Source },
    /// Make boot files of the kernel.
    MakeKernel(PinnedKernel),
    /// Record a kernel that needs nothing.
    PinKernel(Option<PinnedKernel>),
    /// Remove the record unless a VM uses the image.
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
            Step::Pin(_) => "pin",
            Step::Find(_) => "find",
            Step::Pull { .. } => "pull",
            Step::ResolveKernel { .. } => "resolve_kernel",
            Step::MakeKernel(_) => "make_kernel",
            Step::PinKernel(_) => "pin_kernel",
            Step::Remove => "remove",
        }
    }
}
