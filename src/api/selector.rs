//! Label and field selectors: text in, a predicate out. Pure.

use std::collections::{BTreeMap, BTreeSet};

/// Selectors longer than this are refused, in bytes.
const MAX_LENGTH: usize = 4096;

/// Why a selector was refused: a sentence for the client.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct SelectorError(String);

/// A label selector: every requirement must hold. Empty selects everything.
///
/// The grammar is that of Kubernetes: `a=b`, `a==b`, `a!=b`, `a in (b,c)`, `a notin (b,c)`, `a`, `!a`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LabelSelector {
    requirements: Vec<Requirement>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    In(BTreeSet<String>),
    NotIn(BTreeSet<String>),
    Exists,
    Absent,
}

impl LabelSelector {
    /// Reads a selector.
    ///
    /// # Errors
    /// A sentence that quotes the part that is not understood.
    pub(super) fn parse(text: &str) -> Result<Self, SelectorError> {
        let requirements = split(text)?.into_iter().map(Requirement::parse).collect::<Result<_, _>>()?;
        Ok(LabelSelector { requirements })
    }

    /// Whether it selects everything.
    pub(super) fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether it selects an object with these labels.
    pub(super) fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.requirements.iter().all(|requirement| {
            let value = labels.get(&requirement.key);
            match &requirement.test {
                Test::In(values) => value.is_some_and(|value| values.contains(value)),
                // As in Kubernetes, an absent label is not in any set.
                Test::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
                Test::Exists => value.is_some(),
                Test::Absent => value.is_none(),
            }
        })
    }
}

impl Requirement {
    fn parse(text: &str) -> Result<Self, SelectorError> {
        if let Some((key, value)) = text.split_once("!=") {
            return Ok(Requirement { key: label(key)?, test: Test::NotIn([value_of(value)?].into()) });
        }
        if let Some((key, value)) = text.split_once('=') {
            let value = value.strip_prefix('=').unwrap_or(value);
            return Ok(Requirement { key: label(key)?, test: Test::In([value_of(value)?].into()) });
        }
        if let Some(key) = text.strip_prefix('!') {
            return Ok(Requirement { key: label(key)?, test: Test::Absent });
        }
        let Some((head, values)) = text.split_once('(') else {
            return Ok(Requirement { key: label(text)?, test: Test::Exists });
        };
        let refuse = || {
            SelectorError(format!(
                "{text:?} is not a label requirement; write for example tier in (front, back)"
            ))
        };
        let values = values.strip_suffix(')').ok_or_else(refuse)?;
        let values: BTreeSet<String> = values.split(',').map(value_of).collect::<Result<_, _>>()?;
        let mut words = head.split_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some(key), Some("in"), None) => Ok(Requirement { key: label(key)?, test: Test::In(values) }),
            (Some(key), Some("notin"), None) => {
                Ok(Requirement { key: label(key)?, test: Test::NotIn(values) })
            }
            _ => Err(refuse()),
        }
    }
}

/// The comma-separated parts of a selector, commas in parentheses aside.
fn split(text: &str) -> Result<Vec<&str>, SelectorError> {
    if text.len() > MAX_LENGTH {
        return Err(SelectorError(format!("the selector is longer than {MAX_LENGTH} bytes")));
    }
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let mut inside = false;
    let parts: Vec<&str> = text
        .split(|character| {
            match character {
                '(' => inside = true,
                ')' => inside = false,
                _ => {}
            }
            character == ',' && !inside
        })
        .map(str::trim)
        .collect();
    if parts.iter().any(|part| part.is_empty()) {
        return Err(SelectorError(format!("{text:?} has an empty requirement")));
    }
    Ok(parts)
}

fn label(key: &str) -> Result<String, SelectorError> {
    let key = key.trim();
    let allowed = |character: char| character.is_ascii_alphanumeric() || "-_./".contains(character);
    if key.is_empty() || !key.chars().all(allowed) {
        return Err(SelectorError(format!("{key:?} is not a label's key")));
    }
    Ok(key.to_owned())
}

fn value_of(value: &str) -> Result<String, SelectorError> {
    let value = value.trim();
    let allowed = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
    if !value.chars().all(allowed) {
        return Err(SelectorError(format!("{value:?} is not a label's value")));
    }
    Ok(value.to_owned())
}

/// A field selector: every requirement must hold. Only the fields that a resource names can be
/// selected by. Empty selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FieldSelector {
    requirements: Vec<(String, bool, String)>,
}

impl FieldSelector {
    /// Reads a selector over the `known` fields.
    ///
    /// # Errors
    /// A sentence that names the part that is not understood, or the fields that are.
    pub(super) fn parse(text: &str, known: &[&str]) -> Result<Self, SelectorError> {
        let mut requirements = Vec::new();
        for part in split(text)? {
            let (field, equal, value) = if let Some((field, value)) = part.split_once("!=") {
                (field, false, value)
            } else if let Some((field, value)) = part.split_once('=') {
                (field, true, value.strip_prefix('=').unwrap_or(value))
            } else {
                return Err(SelectorError(format!("{part:?} is not a field requirement; write field=value")));
            };
            if !known.contains(&field.trim()) {
                let known = known.join(", ");
                return Err(SelectorError(format!("{:?} cannot be selected by; use {known}", field.trim())));
            }
            requirements.push((field.trim().to_owned(), equal, value.trim().to_owned()));
        }
        Ok(FieldSelector { requirements })
    }

    /// Whether it selects an object with these fields.
    pub(super) fn matches<'a>(&self, value_of: impl Fn(&str) -> &'a str) -> bool {
        self.requirements.iter().all(|(field, equal, value)| (value_of(field) == value) == *equal)
    }
}
