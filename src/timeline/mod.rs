//! What overlapped with what: who was in which phase from when to when.
//!
//! In: [`Recorder::open`] by reconcile tasks and pulls, [`OpenSpan::end`] when a phase is over. Out: a
//! [`Timeline`], and a [`Chart`] of it as text or SVG. Guaranteed: bounded memory, whatever happens;
//! a span that nobody ends is ended as cancelled; recording holds its guard for a push.

mod chart;
mod recorder;
mod svg;
mod text;

#[cfg(test)]
mod tests;

pub use chart::Chart;
pub use recorder::{OpenSpan, Recorder};
pub use svg::svg;
pub use text::text;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::object::ObjectKey;

/// The spans that are remembered, at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Timeline {
    /// The moment.
    pub now: Timestamp,
    /// How many ended spans were forgotten to make room.
    pub forgotten: u64,
    /// The spans, by their start.
    pub spans: Vec<Span>,
}

/// A phase of something.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Span {
    /// Whose phase it is.
    #[serde(flatten)]
    pub subject: Subject,
    /// The phase.
    pub phase: Phase,
    /// When it began.
    pub start: Timestamp,
    /// When it was over; none if it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<Timestamp>,
    /// How it ended; none if it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// What people should know: the image that is waited for, why something stops, why it failed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// The image that an object waits for: its pull is a subject of its own, shared by all who wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub awaits: Option<String>,
}

/// Whose phases are recorded.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Subject {
    /// A VM or an image.
    Object(ObjectKey),
    /// The one pull of a digest.
    Pull {
        /// The reference that is pulled.
        reference: String,
        /// The manifest's digest.
        digest: String,
    },
}

/// The phases: of pulls, of images and VMs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Phase {
    /// Asking the registry what a reference stands for.
    Resolve,
    /// Waiting for an image that is being pulled.
    ImageWait,
    /// A pull waits for its permit.
    PullWait,
    /// A pull downloads layers and builds the disk, at once.
    Pull,
    /// A pull puts the disk into its place and publishes it.
    Install,
    /// Waiting for something else: room on the host, another VM, a name.
    Blocked,
    /// Claiming address, ports, memory and disk, the flush included.
    Reserve,
    /// Waiting for a boot permit.
    BootWait,
    /// Making disks and devices, up to the start of the VMM.
    Prepare,
    /// From the VMM's start to the guest's first word.
    Boot,
    /// From the guest's first word until the workload is ready.
    Workload,
    /// It is as it should be.
    Ready,
    /// Shutting down, or ending.
    Stop,
    /// Removing what it held.
    TearDown,
    /// Waiting after a failure.
    Backoff,
}

impl Phase {
    /// Every phase, in the order of a life.
    pub const ALL: [Phase; 15] = [
        Phase::Resolve,
        Phase::ImageWait,
        Phase::PullWait,
        Phase::Pull,
        Phase::Install,
        Phase::Blocked,
        Phase::Reserve,
        Phase::BootWait,
        Phase::Prepare,
        Phase::Boot,
        Phase::Workload,
        Phase::Ready,
        Phase::Stop,
        Phase::TearDown,
        Phase::Backoff,
    ];

    /// As metrics' labels write it.
    pub fn label(self) -> &'static str {
        match self {
            Phase::Resolve => "resolve",
            Phase::ImageWait => "image_wait",
            Phase::PullWait => "pull_wait",
            Phase::Pull => "pull",
            Phase::Install => "install",
            Phase::Blocked => "blocked",
            Phase::Reserve => "reserve",
            Phase::BootWait => "boot_wait",
            Phase::Prepare => "prepare",
            Phase::Boot => "boot",
            Phase::Workload => "workload",
            Phase::Ready => "ready",
            Phase::Stop => "stop",
            Phase::TearDown => "tear_down",
            Phase::Backoff => "backoff",
        }
    }

    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Phase::ImageWait => "waits for image",
            Phase::PullWait => "waits for pull permit",
            Phase::Blocked => "waits",
            Phase::BootWait => "waits for boot permit",
            Phase::TearDown => "tear down",
            Phase::Backoff => "waits to retry",
            other => other.label(),
        }
    }

    /// Whether nothing is done in it.
    pub fn waits(self) -> bool {
        use Phase::{Backoff, Blocked, BootWait, ImageWait, PullWait};
        matches!(self, ImageWait | PullWait | Blocked | BootWait | Backoff)
    }

    /// Whether it is a state to stay in, rather than work or a wait on the way.
    pub fn lasts(self) -> bool {
        self == Phase::Ready
    }
}

/// How a phase ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It went on to the next.
    Done,
    /// It failed; the detail says why.
    Failed,
    /// Nobody wanted it any more, or the daemon ended.
    Cancelled,
}
