//! What an edit changes, field by field, with the effect of each.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{AnyObject, Effect, ImageSpec, Kind, VmSpec, effect_of};

/// One changed field.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FieldChange {
    /// The field, from spec or metadata on: `memory`, `network.ports`, `env[PATH].value`, `labels.tier`.
    pub field: String,
    /// Its value before; null when it was absent.
    pub from: Value,
    /// Its value after; null when it is gone.
    pub to: Value,
    /// What the change does.
    pub effect: Effect,
}

impl FieldChange {
    /// The spec's field that the change is in: `network` of `network.ports`.
    pub fn top(&self) -> &str {
        self.field.split(['.', '[']).next().unwrap_or_default()
    }
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

/// The fields in which two VM specs differ; none means that they are equal.
pub fn vm_changes(old: &VmSpec, new: &VmSpec) -> Vec<FieldChange> {
    Comparison::of(Kind::Vm, "spec.", &to_value(old), &to_value(new))
}

/// The fields in which two image specs differ; none means that they are equal.
pub fn image_changes(old: &ImageSpec, new: &ImageSpec) -> Vec<FieldChange> {
    Comparison::of(Kind::Image, "spec.", &to_value(old), &to_value(new))
}

/// The fields that a source writes (spec, labels, annotations) in which two objects of one kind differ.
pub fn object_changes(old: &AnyObject, new: &AnyObject) -> Vec<FieldChange> {
    let mut changes = match (old, new) {
        (AnyObject::Vm(old), AnyObject::Vm(new)) => vm_changes(&old.spec, &new.spec),
        (AnyObject::Image(old), AnyObject::Image(new)) => image_changes(&old.spec, &new.spec),
        _ => Vec::new(),
    };
    let metadata = |object: &AnyObject| {
        let metadata = object.metadata();
        json!({"labels": metadata.labels, "annotations": metadata.annotations})
    };
    changes.extend(Comparison::of(old.key().kind, "metadata.", &metadata(old), &metadata(new)));
    changes
}

/// The effect of a whole edit; none if nothing changed.
pub fn strongest(changes: &[FieldChange]) -> Option<Effect> {
    changes.iter().map(|change| change.effect).max()
}

fn to_value<T: Serialize>(spec: &T) -> Value {
    serde_json::to_value(spec).expect("specs are plain data with string keys")
}

/// A walk over two values at once.
struct Comparison {
    kind: Kind,
    /// The part of the object that is compared: `spec.`.
    part: &'static str,
    changes: Vec<FieldChange>,
}

impl Comparison {
    fn of(kind: Kind, part: &'static str, old: &Value, new: &Value) -> Vec<FieldChange> {
        let mut comparison = Comparison { kind, part, changes: Vec::new() };
        comparison.values("", old, new);
        comparison.changes
    }

    fn values(&mut self, path: &str, old: &Value, new: &Value) {
        let none = Map::new();
        match (old, new) {
            _ if old == new => {}
            (Value::Object(old), Value::Object(new)) => self.fields(path, old, new),
            // One that is empty says something by being there.
            (Value::Object(old), Value::Null) if !old.is_empty() => self.fields(path, old, &none),
            (Value::Null, Value::Object(new)) if !new.is_empty() => self.fields(path, &none, new),
            (Value::Array(before), Value::Array(after)) => match (by_name(before), by_name(after)) {
                (Some(before), Some(after)) if before != after => self.named(path, &before, &after),
                _ => self.change(path, old, new),
            },
            _ => self.change(path, old, new),
        }
    }

    fn fields(&mut self, path: &str, old: &Map<String, Value>, new: &Map<String, Value>) {
        let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        for name in names {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            let value = |of: &Map<String, Value>| of.get(name).cloned().unwrap_or_default();
            self.values(&path, &value(old), &value(new));
        }
    }

    fn named(&mut self, path: &str, old: &BTreeMap<&str, &Value>, new: &BTreeMap<&str, &Value>) {
        let names: BTreeSet<&&str> = old.keys().chain(new.keys()).collect();
        for name in names {
            let path = format!("{path}[{name}]");
            match (old.get(*name), new.get(*name)) {
                (Some(old), Some(new)) => self.values(&path, old, new),
                (old, new) => self.change(&path, old.unwrap_or(&&Value::Null), new.unwrap_or(&&Value::Null)),
            }
        }
    }

    fn change(&mut self, field: &str, from: &Value, to: &Value) {
        // A field without an effect is a bug that the tests catch; the most careful one is right then.
        let effect = effect_of(self.kind, &format!("{}{field}", self.part)).unwrap_or(Effect::Recreate);
        self.changes.push(FieldChange {
            field: field.to_owned(),
            from: from.clone(),
            to: to.clone(),
            effect,
        });
    }
}

/// A list's items by their names, if all of them have one of their own: then their order is not told.
fn by_name(list: &[Value]) -> Option<BTreeMap<&str, &Value>> {
    let named: BTreeMap<&str, &Value> =
        list.iter().map(|item| Some((item.get("name")?.as_str()?, item))).collect::<Option<_>>()?;
    (named.len() == list.len()).then_some(named)
}
