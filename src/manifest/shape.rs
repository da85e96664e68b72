//! The shape of each kind: its fields, their types, defaults and meanings.
//!
//! Derived from the API types' JSON schema, and the one base of everything that must agree with them:
//! the check of manifests, the reference page, the CRDs.

use std::sync::LazyLock;

use schemars::JsonSchema;
use serde_json::{Map, Value};

use crate::object::{Image, Kind, Vm};

/// A type, with what the field that has it means.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Shape {
    /// The field's description if it has one, else the type's.
    pub description: String,
    /// What absence means, if it can be said as a value.
    pub default: Option<Value>,
    pub form: Form,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Form {
    /// Named fields, in the order of the type.
    Object(Vec<Field>),
    List(Box<Shape>),
    /// Free names.
    Map(Box<Shape>),
    Text,
    /// An IPv4 address as text.
    Ipv4,
    /// A length of time as text.
    Period,
    /// `vm/web`.
    ObjectKey,
    /// A whole number in a range, ends included.
    Integer {
        min: i64,
        max: i64,
    },
    /// A number of bytes as number or text.
    Quantity,
    Boolean,
    /// One of some words.
    Choice(Vec<Word>),
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Field {
    pub name: String,
    pub required: bool,
    pub shape: Shape,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Word {
    pub word: String,
    pub description: String,
}

impl Shape {
    /// The fields; none for everything that is not an object.
    pub(super) fn fields(&self) -> &[Field] {
        match &self.form {
            Form::Object(fields) => fields,
            _ => &[],
        }
    }

    /// A field's shape, by name.
    pub(super) fn field(&self, name: &str) -> Option<&Shape> {
        self.fields().iter().find(|field| field.name == name).map(|field| &field.shape)
    }
}

/// The shape of a kind's objects.
pub(super) fn of(kind: Kind) -> &'static Shape {
    static VM: LazyLock<Shape> = LazyLock::new(|| from_json_schema(&json_schema(Kind::Vm)));
    static IMAGE: LazyLock<Shape> = LazyLock::new(|| from_json_schema(&json_schema(Kind::Image)));
    match kind {
        Kind::Vm => &VM,
        Kind::Image => &IMAGE,
    }
}

/// The JSON schema (draft 2020-12) of a kind's manifests.
pub(super) fn json_schema(kind: Kind) -> Value {
    match kind {
        Kind::Vm => schemars::schema_for!(Vm),
        Kind::Image => schemars::schema_for!(Image),
    }
    .to_value()
}

/// The shape of a type of ours.
pub(super) fn of_type<T: JsonSchema>() -> Shape {
    from_json_schema(&schemars::schema_for!(T).to_value())
}

fn from_json_schema(root: &Value) -> Shape {
    shape(root, &root["$defs"])
}

/// # Panics
/// On a construct that the API types did not use when this was written; the tests derive every kind.
fn shape(schema: &Value, defs: &Value) -> Shape {
    let description = schema["description"].as_str().unwrap_or_default().replace('\n', " ");
    let default = schema.get("default").cloned();
    if let Some(target) = target(schema) {
        let inner = shape(&defs[target], defs);
        return Shape {
            description: if description.is_empty() { inner.description } else { description },
            default: default.or(inner.default),
            form: inner.form,
        };
    }
    Shape { description, default, form: form(schema, defs) }
}

/// The definition that a schema refers to: `$ref`, or `anyOf` of it and null.
fn target(schema: &Value) -> Option<&str> {
    let reference = schema.get("$ref").or_else(|| schema["anyOf"].as_array()?.first()?.get("$ref"))?;
    reference.as_str()?.strip_prefix("#/$defs/")
}

fn form(schema: &Value, defs: &Value) -> Form {
    if schema.get("x-kubernetes-int-or-string").is_some() {
        return Form::Quantity;
    }
    if let Some(words) = words(schema) {
        return Form::Choice(words);
    }
    let inner = |name: &str| Box::new(shape(&schema[name], defs));
    let one = schema["type"].as_array().and_then(|types| types.first()).unwrap_or(&schema["type"]);
    match one.as_str() {
        Some("object") if schema["additionalProperties"].is_object() => {
            Form::Map(inner("additionalProperties"))
        }
        Some("object") => Form::Object(fields(schema, defs)),
        Some("array") => Form::List(inner("items")),
        Some("string") if schema["format"] == "ipv4" => Form::Ipv4,
        Some("string") if schema["format"] == "period" => Form::Period,
        Some("string") if schema["format"] == "object" => Form::ObjectKey,
        Some("string") => Form::Text,
        Some("integer") => integer(schema),
        Some("boolean") => Form::Boolean,
        _ => panic!("no shape for the schema {schema}"),
    }
}

fn words(schema: &Value) -> Option<Vec<Word>> {
    let word = |value: &Value, description: &str| {
        Some(Word { word: value.as_str()?.to_owned(), description: description.replace('\n', " ") })
    };
    if let Some(values) = schema["enum"].as_array() {
        return values.iter().map(|value| word(value, "")).collect();
    }
    let choices = schema["oneOf"].as_array()?;
    choices
        .iter()
        .map(|choice| word(&choice["const"], choice["description"].as_str().unwrap_or_default()))
        .collect()
}

fn integer(schema: &Value) -> Form {
    let (min, max) = match schema["format"].as_str() {
        Some("uint8") => (0, i64::from(u8::MAX)),
        Some("uint16") => (0, i64::from(u16::MAX)),
        Some("uint32") => (0, i64::from(u32::MAX)),
        Some("uint64") => (0, i64::MAX),
        Some("int32") => (i64::from(i32::MIN), i64::from(i32::MAX)),
        _ => (i64::MIN, i64::MAX),
    };
    Form::Integer {
        min: schema["minimum"].as_i64().unwrap_or(min),
        max: schema["maximum"].as_i64().unwrap_or(max),
    }
}

fn fields(schema: &Value, defs: &Value) -> Vec<Field> {
    let none = Map::new();
    let properties = schema["properties"].as_object().unwrap_or(&none);
    let required = schema["required"].as_array().map(Vec::as_slice).unwrap_or_default();
    properties
        .iter()
        .map(|(name, schema)| Field {
            name: name.clone(),
            required: required.iter().any(|required| required == name),
            shape: shape(schema, defs),
        })
        .collect()
}
