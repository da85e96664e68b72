//! The `Image` kind: where an image comes from and the base disk made of it.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::kernel::ImageKernel;
use super::source::{ImageSource, PullPolicy};
use super::{Condition, Effect, Object, PullProgress, Quantity, Violation};
use crate::boot::{KernelChoice, KernelSource};

/// An image, fetched and made into a read-only base disk that VMs share.
pub type Image = Object<ImageSpec, ImageStatus>;

/// What image is wanted.
// An edit touches nothing that runs by itself: VMs follow when the new image, or its new kernel, is ready.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImageSpec {
    /// Where the image comes from.
    #[schemars(extend("x-edit" = Effect::Live))]
    pub source: ImageSource,
    /// Which kernel its VMs boot; the one that came with the source, or else the host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-edit" = Effect::Live))]
    pub kernel: Option<ImageKernel>,
}

impl ImageSpec {
    /// When the image's registry is asked.
    pub fn pull_policy(&self) -> PullPolicy {
        self.source.oci.as_ref().map_or_else(PullPolicy::default, |oci| oci.pull_policy)
    }

    /// What is to be made ready to boot; none if VMs boot the host's kernel as it is.
    pub fn kernel(&self) -> Option<KernelChoice> {
        let choice = self.kernel.as_ref().map(ImageKernel::choice).unwrap_or_default();
        let ImageSource { bundle, files, .. } = &self.source;
        let own = bundle.is_some() || files.as_ref().is_some_and(|files| files.kernel.is_some());
        let host = match choice.source {
            None => !own,
            Some(KernelSource::Host) => true,
            Some(_) => false,
        };
        (!host || choice.command_line.is_some()).then_some(choice)
    }

    pub(super) fn check(&self, found: &mut Vec<Violation>) {
        self.source.check(found);
        if let Some(kernel) = &self.kernel {
            kernel.check(found);
        }
    }
}

/// What is there of an image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImageStatus {
    /// One word for people: Pending, Pulling, Ready, Failed, Terminating.
    #[serde(default)]
    pub phase: String,
    /// `Ready`, and `Reconciling` or `Stalled` only when true.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// The generation that this status speaks of; -1 before the first look.
    #[serde(default = "never_observed")]
    pub observed_generation: i64,
    /// What the image is known by: `sha256:…`, of a registry's image the manifest for this host's platform.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// The base disk, once it is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskStatus>,
    /// The release of the kernel that VMs boot, unless it is the host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// How far the current pull is, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    /// The same in numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull: Option<PullProgress>,
    /// When a failed pull is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub next_retry_time: Option<Timestamp>,
}

/// A base disk: raw, ext4, read-only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DiskStatus {
    /// The disk's absolute path on the host.
    pub path: String,
    /// The disk's length.
    pub size: Quantity,
}

pub(super) fn never_observed() -> i64 {
    -1
}

impl Default for ImageStatus {
    fn default() -> Self {
        ImageStatus {
            phase: String::new(),
            conditions: Vec::new(),
            observed_generation: never_observed(),
            digest: None,
            disk: None,
            kernel: None,
            progress: None,
            pull: None,
            next_retry_time: None,
        }
    }
}
