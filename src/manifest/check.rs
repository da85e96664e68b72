//! Checks a plain value against a kind's shape, and makes it an object. Every error is found, not
//! only the first.

use serde_json::{Map, Value};

use super::shape::{self, Field, Form, Shape, Word};
use crate::object::{API_VERSION, AnyObject, Kind, ObjectKey, Period, Quantity, Violation};

/// The most findings of one object. Who has more mends these first.
const MAX_FINDINGS: usize = 50;
/// What a manifest may carry but only vmlet sets, so that what `vmlet get -o yaml` prints is a manifest.
const BOOKKEEPING: [&str; 6] =
    ["uid", "generation", "resourceVersion", "creationTimestamp", "deletionTimestamp", "finalizers"];

/// One thing that is wrong with an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// `spec.network.ports[0].host`; empty for the object as a whole.
    pub path: String,
    /// Whether it is the field's name that is wrong, not its value.
    pub name: bool,
    /// What is wrong, in a sentence that names the field.
    pub message: String,
    /// What would be right.
    pub hint: Option<String>,
}

/// Makes an object of a plain value (as JSON or YAML gives it). Nulls count as absent, as in Kubernetes;
/// `status` and the bookkeeping of `metadata` are dropped.
///
/// # Errors
/// Everything that is wrong with it: unknown, missing and ill-typed fields; and if there are none of these,
/// the broken rules of [`AnyObject::violations`].
pub fn object_from_value(value: Value) -> Result<AnyObject, Vec<Finding>> {
    let mut findings = Vec::new();
    let Value::Object(mut fields) = value else {
        let message =
            format!("expected an object with apiVersion, kind, metadata and spec, found {}", name_of(&value));
        return Err(vec![Finding { path: String::new(), name: false, message, hint: None }]);
    };
    let Some(kind) = kind(&fields, &mut findings) else { return Err(findings) };
    fields.retain(|name, _| name != "status");
    if let Some(Value::Object(metadata)) = fields.get_mut("metadata") {
        metadata.retain(|name, _| !BOOKKEEPING.contains(&name.as_str()));
    }
    let value = without_nulls(Value::Object(fields));
    Checker { noun: kind.as_str(), findings: &mut findings }.check(&value, shape::of(kind), "");
    if !findings.is_empty() {
        return Err(findings);
    }
    let object = typed(kind, value).map_err(|error| {
        vec![Finding { path: String::new(), name: false, message: error.to_string(), hint: None }]
    })?;
    let broken = object.violations();
    if broken.is_empty() { Ok(object) } else { Err(broken.into_iter().map(Finding::from).collect()) }
}

fn typed(kind: Kind, value: Value) -> Result<AnyObject, serde_json::Error> {
    match kind {
        Kind::Vm => serde_json::from_value(value).map(AnyObject::Vm),
        Kind::Image => serde_json::from_value(value).map(AnyObject::Image),
    }
}

impl From<Violation> for Finding {
    fn from(violation: Violation) -> Self {
        let message = format!("{}: {}", violation.path, violation.message);
        Finding { path: violation.path, name: false, message, hint: None }
    }
}

/// The kind, once apiVersion and kind are right: without them the other fields mean nothing.
fn kind(fields: &Map<String, Value>, findings: &mut Vec<Finding>) -> Option<Kind> {
    let mut refuse = |path: &str, message: String, hint: String| {
        findings.push(Finding { path: path.to_owned(), name: false, message, hint: Some(hint) });
    };
    match fields.get("apiVersion") {
        Some(Value::String(version)) if version == API_VERSION => {}
        None | Some(Value::Null) => {
            refuse(
                "apiVersion",
                "apiVersion is missing".to_owned(),
                format!("add `apiVersion: {API_VERSION}`"),
            );
        }
        Some(other) => {
            let found = shown(other);
            refuse("apiVersion", format!("apiVersion {found} is unknown"), format!("use `{API_VERSION}`"));
        }
    }
    let found = match fields.get("kind") {
        Some(Value::String(kind)) => Kind::ALL.into_iter().find(|known| known.as_str() == kind),
        _ => None,
    };
    if found.is_none() {
        let text = fields.get("kind").and_then(Value::as_str);
        let hint = match text.and_then(|kind| kind.parse().ok().or_else(|| similar_kind(kind))) {
            Some(kind) => format!("did you mean `{kind}`?"),
            None if text == Some("Scenario") => {
                "a scenario belongs outside of the manifests folder".to_owned()
            }
            None => "use `VM` or `Image`".to_owned(),
        };
        let message = match fields.get("kind") {
            None | Some(Value::Null) => "kind is missing".to_owned(),
            Some(other) => format!("kind {} is unknown", shown(other)),
        };
        refuse("kind", message, hint);
    }
    found.filter(|_| findings.is_empty())
}

fn similar_kind(text: &str) -> Option<Kind> {
    let names = Kind::ALL.map(Kind::as_str);
    similar(text, names.into_iter()).and_then(|name| name.parse().ok())
}

/// Everything that is wrong with a value that is to have a shape.
pub(super) fn check(value: &Value, shape: &Shape, noun: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    Checker { noun, findings: &mut findings }.check(value, shape, "");
    findings
}

struct Checker<'a> {
    /// What is checked, in messages.
    noun: &'a str,
    findings: &'a mut Vec<Finding>,
}

impl Checker<'_> {
    fn add(&mut self, path: &str, name: bool, message: String, hint: Option<String>) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(Finding { path: path.to_owned(), name, message, hint });
        }
    }

    /// Recursion is bounded by the shape's depth.
    fn check(&mut self, value: &Value, shape: &Shape, path: &str) {
        if self.findings.len() >= MAX_FINDINGS {
            return;
        }
        match (&shape.form, value) {
            (Form::Object(fields), Value::Object(map)) => self.object(map, fields, path),
            (Form::List(inner), Value::Array(items)) => {
                for (index, item) in items.iter().enumerate() {
                    self.check(item, inner, &format!("{path}[{index}]"));
                }
            }
            (Form::Map(inner), Value::Object(map)) => {
                for (name, value) in map {
                    self.check(value, inner, &format!("{path}.{name}"));
                }
            }
            (Form::Integer { min, max }, Value::Number(number)) => {
                let valid = number.as_i64().is_some_and(|number| (*min..=*max).contains(&number));
                if !valid {
                    let message =
                        format!("{path} must be a whole number from {min} to {max}, found {number}");
                    self.add(path, false, message, None);
                }
            }
            (Form::Quantity, Value::Number(number)) if number.is_u64() => {}
            (Form::Quantity, Value::String(text)) => {
                if let Err(message) = text.parse::<Quantity>() {
                    self.add(path, false, format!("{path}: {message}"), None);
                }
            }
            (Form::Ipv4, Value::String(text)) => {
                if text.parse::<std::net::Ipv4Addr>().is_err() {
                    let message = format!("{path}: {} is not an IPv4 address", shown(value));
                    self.add(path, false, message, Some("write for example 10.63.0.10".to_owned()));
                }
            }
            (Form::Period, Value::String(text)) => {
                if let Err(message) = text.parse::<Period>() {
                    self.add(path, false, format!("{path}: {message}"), None);
                }
            }
            (Form::ObjectKey, Value::String(text)) => {
                if let Err(message) = text.parse::<ObjectKey>() {
                    self.add(path, false, format!("{path}: {message}"), None);
                }
            }
            (Form::Choice(words), Value::String(text)) => self.choice(words, text, path),
            (Form::Text, Value::String(_)) | (Form::Boolean, Value::Bool(_)) => {}
            (form, value) => self.mismatch(form, value, path),
        }
    }

    fn object(&mut self, map: &Map<String, Value>, fields: &[Field], path: &str) {
        let mut meant = Vec::new();
        for name in map.keys().filter(|name| fields.iter().all(|field| field.name != **name)) {
            if self.findings.len() >= MAX_FINDINGS {
                return;
            }
            let path = join(path, name);
            let known = fields.iter().map(|field| field.name.as_str());
            let hint = match similar(name, known.clone()) {
                Some(known) => {
                    meant.push(known);
                    format!("did you mean `{known}`?")
                }
                None => format!("known fields: {}", known.collect::<Vec<_>>().join(", ")),
            };
            let message = format!("{} is not a field of {}", shorten(&path), self.noun);
            self.add(&path, true, message, Some(hint));
        }
        for field in fields {
            let path = join(path, &field.name);
            match map.get(&field.name) {
                Some(value) => self.check(value, &field.shape, &path),
                None if field.required && !meant.contains(&field.name.as_str()) => {
                    let hint = first_sentence(&field.shape.description).to_owned();
                    self.add(&path, true, format!("{path} is missing"), (!hint.is_empty()).then_some(hint));
                }
                None => {}
            }
        }
    }

    fn choice(&mut self, words: &[Word], text: &str, path: &str) {
        if words.iter().any(|word| word.word == text) {
            return;
        }
        let known = words.iter().map(|word| word.word.as_str());
        let hint = match similar(text, known.clone()) {
            Some(word) => format!("did you mean `{word}`?"),
            None => format!("use one of {}", known.collect::<Vec<_>>().join(", ")),
        };
        self.add(path, false, format!("{path} cannot be {}", shown(&text.into())), Some(hint));
    }

    fn mismatch(&mut self, form: &Form, value: &Value, path: &str) {
        let at = if path.is_empty() { "the document" } else { path };
        let message = format!("{at} must be {}, found {}", description_of(form), name_of(value));
        let hint = match (form, value) {
            (Form::Text, Value::Number(_) | Value::Bool(_)) => Some(format!("write \"{value}\" in quotes")),
            (Form::Integer { .. }, Value::String(text)) if text.parse::<i64>().is_ok() => {
                Some("remove the quotes".to_owned())
            }
            (Form::Boolean, Value::String(_)) => Some("write true or false, without quotes".to_owned()),
            (Form::List(_), Value::String(_) | Value::Number(_)) => Some("write [value]".to_owned()),
            _ => None,
        };
        self.add(path, false, message, hint);
    }
}

fn description_of(form: &Form) -> &'static str {
    match form {
        Form::Object(_) => "a mapping of fields",
        Form::List(_) => "a list",
        Form::Map(_) => "a mapping of names to values",
        Form::Text | Form::Choice(_) => "text",
        Form::Ipv4 => "an IPv4 address",
        Form::Period => "a length of time, for example 30s",
        Form::ObjectKey => "an object, for example vm/web",
        Form::Integer { .. } => "a whole number",
        Form::Quantity => "a quantity of bytes, for example 256Mi",
        Form::Boolean => "true or false",
    }
}

fn name_of(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(value) => format!("{value}"),
        Value::Number(number) => format!("the number {number}"),
        Value::String(_) => format!("the text {}", shown(value)),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a mapping".to_owned(),
    }
}

/// A value in a message: short and quoted.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{:?}", shorten(text)),
        Value::Array(_) | Value::Object(_) => name_of(value),
        other => other.to_string(),
    }
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn first_sentence(text: &str) -> &str {
    text.split_once(". ").map_or(text, |(first, _)| first).trim_end_matches('.')
}

/// The known name that was probably meant.
pub(crate) fn similar<'a>(text: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if text.len() > 64 {
        return None;
    }
    let text = text.to_lowercase();
    known
        .map(|name| (strsim::damerau_levenshtein(&text, &name.to_lowercase()), name))
        .filter(|(distance, name)| *distance <= name.len().max(3) / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// Drops the null fields of all mappings. Recursion is bounded by the readers' depth limits.
pub(super) fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(
            map.into_iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(name, value)| (name, without_nulls(value)))
                .collect(),
        ),
        Value::Array(items) => Value::Array(items.into_iter().map(without_nulls).collect()),
        other => other,
    }
}
