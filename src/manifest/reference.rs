//! The reference page `docs/manifests.md`: made of the API types, so that it cannot lag behind them.

use std::fmt::Write;

use schemars::JsonSchema;

use super::shape::{self, Form, Shape};
use crate::object::{Kind, effect_of};

const INTRODUCTION: &str = include_str!("reference.md");

/// The text of `docs/manifests.md`.
pub fn reference() -> String {
    let mut page = INTRODUCTION.to_owned();
    for kind in [Kind::Vm, Kind::Image] {
        let shape = shape::of(kind);
        let part = |name| shape.field(name).expect("objects have metadata, spec and status");
        write!(page, "\n## {kind}\n\n").expect("strings take everything");
        page.push_str("| field | type | default | an edit | meaning |\n| --- | --- | --- | --- | --- |\n");
        spec_rows(&mut page, kind, part("spec"), "spec");
        write!(page, "\n### {kind} status\n\nWritten by vmlet, ignored in manifests.\n\n")
            .expect("strings take everything");
        page.push_str("| field | type | meaning |\n| --- | --- | --- |\n");
        status_rows(&mut page, part("status"), "status");
    }
    page.push_str(
        "\n## Metadata\n\n| field | type | default | an edit | meaning |\n| --- | --- | --- | --- | --- |\n",
    );
    metadata_rows(&mut page);
    page
}

/// A table of the fields of a type that is no manifest's.
pub(crate) fn fields<T: JsonSchema>() -> String {
    let mut table = "| field | type | default | meaning |\n| --- | --- | --- | --- |\n".to_owned();
    field_rows(&mut table, &shape::of_type::<T>(), "");
    table
}

fn field_rows(table: &mut String, shape: &Shape, path: &str) {
    for field in fields_of(shape) {
        let path = if path.is_empty() { field.name.clone() } else { format!("{path}.{}", field.name) };
        let default = if field.required { "required".to_owned() } else { default_of(&field.shape) };
        row(table, &[&format!("`{path}`"), &type_of(&field.shape), &default, &meaning(&field.shape)]);
        field_rows(table, &field.shape, &nested(&path, &field.shape));
    }
}

/// One row a field, nested ones below theirs.
fn spec_rows(page: &mut String, kind: Kind, shape: &Shape, path: &str) {
    for field in fields_of(shape) {
        let path = format!("{path}.{}", field.name);
        let default = if field.required { "required".to_owned() } else { default_of(&field.shape) };
        row(
            page,
            &[
                &format!("`{path}`"),
                &type_of(&field.shape),
                &default,
                &edit_of(kind, &path),
                &meaning(&field.shape),
            ],
        );
        spec_rows(page, kind, &field.shape, &nested(&path, &field.shape));
    }
}

fn edit_of(kind: Kind, path: &str) -> String {
    effect_of(kind, path).map(|effect| effect.to_string()).unwrap_or_default()
}

fn status_rows(page: &mut String, shape: &Shape, path: &str) {
    for field in fields_of(shape) {
        let path = format!("{path}.{}", field.name);
        row(page, &[&format!("`{path}`"), &type_of(&field.shape), &meaning(&field.shape)]);
        status_rows(page, &field.shape, &nested(&path, &field.shape));
    }
}

fn metadata_rows(page: &mut String) {
    let metadata = shape::of(Kind::Vm).field("metadata").expect("objects have metadata");
    for field in metadata.fields() {
        let default = if field.required { "required".to_owned() } else { default_of(&field.shape) };
        let path = format!("metadata.{}", field.name);
        let edit = edit_of(Kind::Vm, &path);
        row(page, &[&format!("`{path}`"), &type_of(&field.shape), &default, &edit, &meaning(&field.shape)]);
    }
}

fn row(page: &mut String, cells: &[&str]) {
    let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
    writeln!(page, "| {} |", cells.join(" | ")).expect("strings take everything");
}

/// The fields of an object, or of a list's or a mapping's objects.
fn fields_of(shape: &Shape) -> &[shape::Field] {
    match &shape.form {
        Form::List(inner) | Form::Map(inner) => inner.fields(),
        _ => shape.fields(),
    }
}

fn nested(path: &str, shape: &Shape) -> String {
    match &shape.form {
        Form::List(_) => format!("{path}[]"),
        Form::Map(_) => format!("{path}.*"),
        _ => path.to_owned(),
    }
}

fn type_of(shape: &Shape) -> String {
    match &shape.form {
        Form::Object(_) => "fields".to_owned(),
        Form::List(inner) => format!("list of {}", type_of(inner)),
        Form::Map(inner) => format!("names to {}", type_of(inner)),
        Form::Text => "text".to_owned(),
        Form::Ipv4 => "IPv4 address".to_owned(),
        Form::Period => "time".to_owned(),
        Form::ObjectKey => "object".to_owned(),
        Form::Integer { .. } => "number".to_owned(),
        Form::Quantity => "bytes".to_owned(),
        Form::Boolean => "true or false".to_owned(),
        Form::Choice(_) => "word".to_owned(),
    }
}

fn default_of(shape: &Shape) -> String {
    match &shape.default {
        None => String::new(),
        // The fields' own defaults say the same.
        Some(_) if matches!(shape.form, Form::Object(_)) => String::new(),
        Some(serde_json::Value::String(text)) if text.is_empty() => "empty".to_owned(),
        Some(serde_json::Value::String(text)) => format!("`{text}`"),
        Some(other) => format!("`{other}`"),
    }
}

fn meaning(shape: &Shape) -> String {
    let mut text = shape.description.clone();
    if let Form::Choice(words) = &shape.form {
        for word in words.iter().filter(|word| !word.description.is_empty()) {
            write!(text, " `{}`: {}", word.word, word.description).expect("strings take everything");
        }
    }
    text
}
