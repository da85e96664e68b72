//! The kinds for other tools: JSON schema for editors, CustomResourceDefinition for clusters.

use serde_json::{Map, Value, json};

use super::shape::{self, Field, Form, Shape};
use crate::object::{GROUP, Kind, VERSION};

/// The JSON schema (draft 2020-12) of a kind's manifests.
pub fn schema(kind: Kind) -> Value {
    shape::json_schema(kind)
}

/// The `CustomResourceDefinition` (apiextensions.k8s.io/v1) of a kind.
pub fn crd(kind: Kind) -> Value {
    let shape = shape::of(kind);
    let part = |name| structural(shape.field(name).expect("objects have spec and status"));
    let text = json!({"type": "string"});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{}.{GROUP}", kind.plural())},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind.as_str(),
                "listKind": format!("{kind}List"),
                "plural": kind.plural(),
                "singular": kind.singular(),
            },
            "versions": [{
                "name": VERSION,
                "served": true,
                "storage": true,
                "subresources": {"status": {}},
                "additionalPrinterColumns": columns(kind),
                "schema": {"openAPIV3Schema": {
                    "type": "object",
                    "description": shape.description,
                    "required": ["spec"],
                    "properties": {
                        "apiVersion": text,
                        "kind": text,
                        "metadata": {"type": "object"},
                        "spec": part("spec"),
                        "status": part("status"),
                    },
                }},
            }],
        },
    })
}

/// What `kubectl get` shows.
fn columns(kind: Kind) -> Value {
    let column = |name: &str, form: &str, path: &str| json!({"name": name, "type": form, "jsonPath": path});
    let ready = column("Ready", "string", ".status.conditions[?(@.type==\"Ready\")].status");
    let status = column("Status", "string", ".status.phase");
    let age = column("Age", "date", ".metadata.creationTimestamp");
    match kind {
        Kind::Vm => json!([
            ready,
            status,
            column("Image", "string", ".status.image.reference"),
            column("Address", "string", ".status.addresses[0]"),
            column("Restarts", "integer", ".status.restarts"),
            age,
        ]),
        Kind::Image => json!([
            ready,
            status,
            column("Reference", "string", ".spec.source.oci.reference"),
            column("Digest", "string", ".status.digest"),
            column("Size", "string", ".status.disk.size"),
            age,
        ]),
    }
}

/// A structural schema: no references, one type each, what Kubernetes demands of CRDs.
fn structural(shape: &Shape) -> Value {
    let mut schema = match &shape.form {
        Form::Object(fields) => object(fields),
        Form::List(inner) => json!({"type": "array", "items": structural(inner)}),
        Form::Map(inner) => json!({"type": "object", "additionalProperties": structural(inner)}),
        Form::Text | Form::Period | Form::ObjectKey => json!({"type": "string"}),
        Form::Ipv4 => json!({"type": "string", "format": "ipv4"}),
        Form::Integer { min, max } => integer(*min, *max),
        Form::Quantity => json!({
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": true,
            "pattern": QUANTITY,
        }),
        Form::Boolean => json!({"type": "boolean"}),
        Form::Choice(words) => {
            json!({"type": "string", "enum": words.iter().map(|word| &word.word).collect::<Vec<_>>()})
        }
    };
    if !shape.description.is_empty() {
        schema["description"] = Value::from(shape.description.as_str());
    }
    if let Some(default) = shape.default.as_ref().filter(|default| !default.is_null()) {
        schema["default"] = default.clone();
    }
    schema
}

/// As [`Quantity`](crate::object::Quantity) reads them.
const QUANTITY: &str = "^[0-9]+(\\.[0-9]+)?(Ki|Mi|Gi|Ti|Pi|Ei|k|M|G|T)?$";

fn object(fields: &[Field]) -> Value {
    let properties: Map<String, Value> =
        fields.iter().map(|field| (field.name.clone(), structural(&field.shape))).collect();
    let required: Vec<&str> =
        fields.iter().filter(|field| field.required).map(|field| field.name.as_str()).collect();
    let mut schema = json!({"type": "object", "properties": properties});
    if !required.is_empty() {
        schema["required"] = Value::from(required);
    }
    schema
}

/// Without the bounds that the format implies.
fn integer(min: i64, max: i64) -> Value {
    let mut schema = json!({"type": "integer", "format": "int64"});
    if min != i64::MIN {
        schema["minimum"] = Value::from(min);
    }
    if max != i64::MAX {
        schema["maximum"] = Value::from(max);
    }
    schema
}
