//! What an edit of each field does: declared beside the field, read from there by everybody.
//!
//! In: the `x-edit` extension of the fields' schemas. Out: [`effect_of`] a path. Guaranteed: every field
//! of a spec has an effect, its own or that of the field around it; a field without one ends the first
//! look-up of its kind, and with it the tests.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Image, Kind, Vm};

/// The schema extension that holds a field's [`Effect`].
const EXTENSION: &str = "x-edit";

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
    /// The field is the object's identity: with another value it is another object.
    Immutable,
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Effect::Live => "live",
            Effect::Restart => "restart",
            Effect::Recreate => "recreate",
            Effect::Immutable => "immutable",
        })
    }
}

/// What an edit of a field does, by its path in the object: `spec.network.ports`, `metadata.labels.tier`.
/// None for what vmlet itself writes.
pub fn effect_of(kind: Kind, path: &str) -> Option<Effect> {
    static VM: LazyLock<Effects> = LazyLock::new(|| Effects::of(&schemars::schema_for!(Vm).to_value()));
    static IMAGE: LazyLock<Effects> = LazyLock::new(|| Effects::of(&schemars::schema_for!(Image).to_value()));
    match kind {
        Kind::Vm => VM.find(path),
        Kind::Image => IMAGE.find(path),
    }
}

/// The effects that fields declare themselves, by path.
struct Effects(BTreeMap<String, Effect>);

impl Effects {
    /// # Panics
    /// If a field of the spec has no effect.
    fn of(schema: &Value) -> Effects {
        let mut effects = Effects(BTreeMap::new());
        for part in ["metadata", "spec"] {
            effects.collect(&schema["properties"][part], &schema["$defs"], part);
        }
        effects
    }

    fn collect(&mut self, schema: &Value, defs: &Value, path: &str) {
        if let Some(effect) = schema.get(EXTENSION) {
            let effect = Effect::deserialize(effect).expect("fields declare their effects as `Effect`s");
            self.0.insert(path.to_owned(), effect);
        }
        let inner = resolve(schema, defs);
        for (name, field) in inner["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            self.collect(field, defs, &path);
            assert!(
                !path.starts_with("spec.") || self.find(&path).is_some(),
                "{path} declares no {EXTENSION}"
            );
        }
    }

    /// A field without an effect of its own has that of the field around it.
    fn find(&self, path: &str) -> Option<Effect> {
        fn around<'a>(path: &&'a str) -> Option<&'a str> {
            path.rfind(['.', '[']).map(|end| &path[..end])
        }
        std::iter::successors(Some(path), around).find_map(|path| self.0.get(path).copied())
    }
}

/// The definition that a schema refers to: directly, or as its list's items.
fn resolve<'a>(schema: &'a Value, defs: &'a Value) -> &'a Value {
    let reference = |schema: &'a Value| {
        let either = schema["anyOf"].as_array().and_then(|choices| choices.first());
        schema.get("$ref").or_else(|| either?.get("$ref")).and_then(Value::as_str)
    };
    let schema = schema.get("items").unwrap_or(schema);
    let name = reference(schema).and_then(|reference| reference.strip_prefix("#/$defs/"));
    name.map_or(schema, |name| &defs[name])
}
