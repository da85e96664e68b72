//! The API types: `VM` and `Image` objects, one set for YAML, JSON and schema.
//!
//! Everything here is plain data with pure functions: no I/O, no clocks. An [`Object`] has a
//! `spec` (desired, written by its source) and a `status` (observed, written by its reconcile task).

mod change;
mod condition;
mod dependency;
mod effect;
mod image;
mod kernel;
mod meta;
mod period;
mod pull;
mod quantity;
mod shared;
mod source;
mod vm;

#[cfg(test)]
mod tests;

pub use change::{FieldChange, image_changes, object_changes, strongest, vm_changes};
pub use condition::{Condition, ConditionStatus, set_condition};
pub use dependency::{DependencyError, check_dependencies};
pub use effect::{Effect, effect_of};
pub use image::{DiskStatus, Image, ImageSpec, ImageStatus};
pub use kernel::{FileKernel, HostKernel, ImageKernel, InnerKernel, OciKernel};
pub use meta::{Kind, ObjectKey, ObjectMeta, Uid, validate_name};
pub use period::Period;
pub use pull::{Bytes, PullProgress};
pub use quantity::Quantity;
pub use shared::Shared;
pub use source::{BundleSource, FilesSource, ImageSource, OciLayoutSource, OciSource, PullPolicy};
pub use vm::{
    EnvVar, ImageRef, LastExit, Network, NetworkMode, Port, PortStatus, Protocol, RootDisk, RunPolicy,
    Timings, Vm, VmImageStatus, VmSpec, VmStatus,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The API group of both kinds.
pub const GROUP: &str = "vmlet.dev";
/// The one version of [`GROUP`] that exists.
pub const VERSION: &str = "v1alpha1";
/// `GROUP/VERSION`, as manifests write it.
pub const API_VERSION: &str = "vmlet.dev/v1alpha1";
/// The namespace of objects that name none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// A typed API object, as written in YAML and sent over the API.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Object<Spec, Status: Default> {
    /// `vmlet.dev/v1alpha1`.
    pub api_version: String,
    /// `VM` or `Image`.
    pub kind: Kind,
    /// Name, namespace, labels and what vmlet adds to them.
    pub metadata: ObjectMeta,
    /// What is wanted.
    pub spec: Shared<Spec>,
    /// What is there. Written by vmlet, ignored in manifests.
    #[serde(default)]
    pub status: Shared<Status>,
}

/// An object of either kind.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
#[allow(
    clippy::large_enum_variant,
    reason = "most objects are VMs, and few exist at a time: records hold theirs in Arcs"
)]
pub enum AnyObject {
    /// A virtual machine.
    Vm(Vm),
    /// An image made bootable.
    Image(Image),
}

impl AnyObject {
    /// Kind, namespace and name.
    pub fn key(&self) -> ObjectKey {
        match self {
            AnyObject::Vm(vm) => vm.key(),
            AnyObject::Image(image) => image.key(),
        }
    }

    /// The object's metadata.
    pub fn metadata(&self) -> &ObjectMeta {
        match self {
            AnyObject::Vm(vm) => &vm.metadata,
            AnyObject::Image(image) => &image.metadata,
        }
    }

    /// The object's metadata, to be changed.
    pub fn metadata_mut(&mut self) -> &mut ObjectMeta {
        match self {
            AnyObject::Vm(vm) => &mut vm.metadata,
            AnyObject::Image(image) => &mut image.metadata,
        }
    }

    /// The status' conditions.
    pub fn conditions(&self) -> &[Condition] {
        match self {
            AnyObject::Vm(vm) => &vm.status.conditions,
            AnyObject::Image(image) => &image.status.conditions,
        }
    }

    /// Rules that types alone cannot state: names, ranges, combinations.
    /// Each violation is a field path (`spec.network.ports[0].host`) and a message.
    pub fn violations(&self) -> Vec<Violation> {
        let mut found = Vec::new();
        self.metadata().check(&mut found);
        match self {
            AnyObject::Vm(vm) => vm.spec.check(&vm.metadata.name, &mut found),
            AnyObject::Image(image) => image.spec.check(&mut found),
        }
        found
    }
}

impl<Spec, Status: Default> Object<Spec, Status> {
    /// Kind, namespace and name.
    pub fn key(&self) -> ObjectKey {
        ObjectKey {
            kind: self.kind,
            namespace: self.metadata.namespace.clone(),
            name: self.metadata.name.clone(),
        }
    }
}

/// One broken rule of an otherwise well-typed object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Where: a dotted field path with indices.
    pub path: String,
    /// What is wrong and what would be right.
    pub message: String,
}

impl Violation {
    fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Violation { path: path.into(), message: message.into() }
    }
}
