//! The `Image` kind: where an image comes from and the base disk made of it.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Condition, Effect, Object, PullProgress, Quantity, Violation};
use crate::image::{Reference, Source};

/// An OCI image, pulled and made into a read-only base disk that VMs share.
pub type Image = Object<ImageSpec, ImageStatus>;

/// What image is wanted.
// An edit touches nothing that runs by itself: VMs follow when the new image is ready.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImageSpec {
    /// Where the image comes from.
    #[schemars(extend("x-edit" = Effect::Live))]
    pub source: ImageSource,
}

/// Where an image comes from: exactly one of the fields.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImageSource {
    /// A registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oci: Option<OciSource>,
}

impl ImageSource {
    /// The field that is set. A spec that keeps to the rules has exactly one.
    pub fn chosen(&self) -> Option<Source> {
        self.oci.as_ref().map(|oci| Source::Oci(oci.reference.clone()))
    }
}

/// An image in a registry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OciSource {
    /// `registry/repository:tag` or `registry/repository@sha256:…`. Registries on a loopback address are
    /// spoken to over plain http.
    pub reference: String,
    /// When the registry is asked.
    #[serde(default, skip_serializing_if = "PullPolicy::is_default")]
    pub pull_policy: PullPolicy,
}

/// When a registry is asked for an image, as the kubelet means it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PullPolicy {
    /// Once for each generation of the spec; what is on the host since then is used.
    #[default]
    IfNotPresent,
    /// What the reference stands for now, before each start of a VM; pulled if it is another image. VMs
    /// that run stay as they are. A registry that does not answer keeps VMs from being started.
    Always,
    /// Never: the base disk must be on the host, by another VM or Image of the same reference.
    Never,
}

impl PullPolicy {
    /// Whether it is the one that is meant where none is written.
    pub(super) fn is_default(&self) -> bool {
        *self == PullPolicy::default()
    }
}

impl ImageSpec {
    /// When the image's registry is asked.
    pub fn pull_policy(&self) -> PullPolicy {
        self.source.oci.as_ref().map_or_else(PullPolicy::default, |oci| oci.pull_policy)
    }

    pub(super) fn check(&self, found: &mut Vec<Violation>) {
        let ImageSource { oci } = &self.source;
        if oci.is_none() {
            found.push(Violation::new("spec.source", "set `oci` (an image in a registry)"));
        }
        if let Some(oci) = oci {
            check_reference("spec.source.oci.reference", &oci.reference, found);
        }
    }
}

pub(super) fn check_reference(path: &str, text: &str, found: &mut Vec<Violation>) {
    if let Err(error) = text.parse::<Reference>() {
        found.push(Violation::new(path, error.to_string()));
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
    /// The manifest digest for this host's platform: `sha256:…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// The base disk, once it is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskStatus>,
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
            progress: None,
            pull: None,
            next_retry_time: None,
        }
    }
}
