//! What an edit of a spec does to the running object: one table, field by field.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{ImageSpec, VmSpec};

/// What a changed field does. Ordered: the strongest effect of an edit is the edit's effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Effect {
    /// Applied to the running object.
    Live,
    /// The VM is shut down and started again on its disk.
    Restart,
    /// The VM is shut down, its root disk deleted, and started anew.
    Recreate,
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Effect::Live => "live",
            Effect::Restart => "restart",
            Effect::Recreate => "recreate",
        })
    }
}

/// The effect of each top-level field of a VM's spec. A field that is not listed is a bug that the
/// tests catch.
pub(super) const VM_EFFECTS: [(&str, Effect); 14] = [
    ("image", Effect::Recreate),
    ("cpus", Effect::Restart),
    ("memory", Effect::Restart),
    ("rootDisk", Effect::Recreate),
    ("command", Effect::Restart),
    ("args", Effect::Restart),
    ("env", Effect::Restart),
    ("workingDir", Effect::Restart),
    ("user", Effect::Restart),
    ("network", Effect::Restart),
    ("runPolicy", Effect::Live),
    ("terminationGracePeriodSeconds", Effect::Live),
    ("priority", Effect::Live),
    ("dependsOn", Effect::Live),
];

/// One changed field.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FieldChange {
    /// The field, from the spec on: `memory`, `network`.
    pub field: String,
    /// Its value before; null when it was absent.
    pub from: Value,
    /// Its value after; null when it is gone.
    pub to: Value,
    /// What the change does.
    pub effect: Effect,
}

/// `memory 256Mi → 512Mi (restart)`
impl fmt::Display for FieldChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |value: &Value| match value {
            Value::Null => "(unset)".to_owned(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        write!(f, "{} {} → {} ({})", self.field, show(&self.from), show(&self.to), self.effect)
    }
}

/// What a change of a top-level field of a VM's spec does.
pub fn vm_effect(field: &str) -> Effect {
    VM_EFFECTS.iter().find(|(name, _)| *name == field).map_or(Effect::Recreate, |(_, effect)| *effect)
}

/// The fields in which two VM specs differ.
pub fn vm_changes(old: &VmSpec, new: &VmSpec) -> Vec<FieldChange> {
    changes(&to_value(old), &to_value(new), vm_effect)
}

/// The fields in which two image specs differ. An image's fields never touch what runs by
/// themselves: VMs follow when the new image is ready.
pub fn image_changes(old: &ImageSpec, new: &ImageSpec) -> Vec<FieldChange> {
    changes(&to_value(old), &to_value(new), |_| Effect::Live)
}

/// The effect of a whole edit; none if nothing changed.
pub fn strongest(changes: &[FieldChange]) -> Option<Effect> {
    changes.iter().map(|change| change.effect).max()
}

fn to_value<T: Serialize>(spec: &T) -> Value {
    serde_json::to_value(spec).expect("specs are plain data with string keys")
}

fn changes(old: &Value, new: &Value, effect: impl Fn(&str) -> Effect) -> Vec<FieldChange> {
    let empty = serde_json::Map::new();
    let (old, new) = (old.as_object().unwrap_or(&empty), new.as_object().unwrap_or(&empty));
    let mut fields: Vec<&String> = old.keys().chain(new.keys()).collect();
    fields.sort();
    fields.dedup();
    fields
        .into_iter()
        .filter(|field| old.get(*field) != new.get(*field))
        .map(|field| FieldChange {
            field: field.clone(),
            from: old.get(field).cloned().unwrap_or(Value::Null),
            to: new.get(field).cloned().unwrap_or(Value::Null),
            effect: effect(field),
        })
        .collect()
}
