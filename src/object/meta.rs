//! Object identity: kinds, names, keys, metadata.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{DEFAULT_NAMESPACE, Effect, Shared, Violation};

/// A random identity, minted when a name is first seen. Every runtime artefact is keyed by it, so a
/// deleted and re-created object shares nothing with its predecessor.
pub type Uid = Uuid;

/// The kinds of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Kind {
    /// An OCI image made bootable. Orders before the VMs that use it.
    Image,
    /// A virtual machine.
    #[serde(rename = "VM")]
    Vm,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 2] = [Kind::Image, Kind::Vm];

    /// As in `kind:`.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Image => "Image",
            Kind::Vm => "VM",
        }
    }

    /// As in API paths.
    pub fn plural(self) -> &'static str {
        match self {
            Kind::Image => "images",
            Kind::Vm => "vms",
        }
    }

    /// As in `vm/web`.
    pub fn singular(self) -> &'static str {
        match self {
            Kind::Image => "image",
            Kind::Vm => "vm",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Kind {
    type Err = String;

    /// Accepts what kubectl would: kind, singular or plural, in any case.
    fn from_str(text: &str) -> Result<Self, String> {
        let lower = text.to_ascii_lowercase();
        Kind::ALL
            .into_iter()
            .find(|kind| lower == kind.singular() || lower == kind.plural())
            .ok_or_else(|| format!("unknown kind {text:?}; kinds are vm (vms) and image (images)"))
    }
}

/// What identifies an object among those that exist now: one name, one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectKey {
    /// The object's kind.
    pub kind: Kind,
    /// The object's namespace.
    pub namespace: String,
    /// The object's name.
    pub name: String,
}

impl ObjectKey {
    /// A key from its parts.
    pub fn new(kind: Kind, namespace: impl Into<String>, name: impl Into<String>) -> Self {
        ObjectKey { kind, namespace: namespace.into(), name: name.into() }
    }
}

/// `vm/web`, or `vm/ci/web` outside the default namespace.
impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace == DEFAULT_NAMESPACE {
            write!(f, "{}/{}", self.kind.singular(), self.name)
        } else {
            write!(f, "{}/{}/{}", self.kind.singular(), self.namespace, self.name)
        }
    }
}

impl FromStr for ObjectKey {
    type Err = String;

    /// Accepts what [`Display`](fmt::Display) writes: `vm/web`, `vm/ci/web`.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.splitn(3, '/');
        let parts = (parts.next().unwrap_or_default(), parts.next(), parts.next());
        let (kind, namespace, name) = match parts {
            (kind, Some(name), None) => (kind, DEFAULT_NAMESPACE, name),
            (kind, Some(namespace), Some(name)) => (kind, namespace, name),
            (_, None, _) => {
                return Err(format!("{text:?} names no object; write for example vm/web or vm/ci/web"));
            }
        };
        Ok(ObjectKey::new(kind.parse()?, namespace, name))
    }
}

/// Name and bookkeeping of an object. Manifests set the first four fields; vmlet sets the others and
/// ignores them in manifests, so that the output of `vmlet get -o yaml` is a valid manifest.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ObjectMeta {
    /// Unique per kind and namespace: a DNS label (RFC 1123), at most 63 characters.
    #[schemars(extend("x-edit" = Effect::Immutable))]
    pub name: String,
    /// A DNS label; `default` when absent.
    #[serde(default = "default_namespace")]
    #[schemars(extend("x-edit" = Effect::Immutable))]
    pub namespace: String,
    /// Free key-value pairs to select by.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("x-edit" = Effect::Live))]
    pub labels: Shared<BTreeMap<String, String>>,
    /// Free key-value pairs for tools.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("x-edit" = Effect::Live))]
    pub annotations: Shared<BTreeMap<String, String>>,
    /// Set by vmlet: random, new for each creation of a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub uid: Option<Uid>,
    /// Set by vmlet: counts changes of the spec only.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub generation: i64,
    /// Set by vmlet: changes with every change of the object.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
    /// Set by vmlet: when the object was first seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub creation_timestamp: Option<Timestamp>,
    /// Set by vmlet: deletion was asked for. One-way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub deletion_timestamp: Option<Timestamp>,
    /// Set by vmlet: what must be cleaned up before the record goes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub finalizers: Vec<String>,
}

fn default_namespace() -> String {
    DEFAULT_NAMESPACE.to_owned()
}

fn is_zero(value: &i64) -> bool {
    *value == 0
}

impl ObjectMeta {
    pub(super) fn check(&self, found: &mut Vec<Violation>) {
        for (path, name) in [("metadata.name", &self.name), ("metadata.namespace", &self.namespace)] {
            if let Err(message) = validate_name(name) {
                found.push(Violation::new(path, message));
            }
        }
        for (path, map) in [("metadata.labels", &self.labels), ("metadata.annotations", &self.annotations)] {
            if map.keys().any(|key| key.is_empty() || key.len() > 317) {
                found.push(Violation::new(path, "keys have 1 to 317 characters"));
            }
        }
        for (key, value) in self.labels.iter() {
            if value.len() > 63 {
                found.push(Violation::new(
                    format!("metadata.labels.{key}"),
                    "a label's value has at most 63 characters",
                ));
            }
        }
    }
}

/// Checks a DNS label (RFC 1123): it names folders' contents, hosts and API paths.
///
/// # Errors
/// A sentence that says what a name may look like.
pub fn validate_name(name: &str) -> Result<(), String> {
    let bytes = name.as_bytes();
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let valid = (1..=63).contains(&bytes.len())
        && bytes.iter().all(|byte| alphanumeric(byte) || *byte == b'-')
        && bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric);
    if valid {
        Ok(())
    } else {
        Err(format!(
            "{name:?} is not a DNS label: use 1 to 63 of a-z, 0-9 and '-', starting and ending with a letter or digit"
        ))
    }
}
