//! The bytes of a file in, objects and diagnostics out. Pure.
//!
//! Every input costs bounded time and memory: the size of the file, the number of its documents, values
//! and the depth of their nesting are limited, and aliases are refused. Decoding goes on after an error wherever
//! the rest still means something, so that one look shows everything that has to be mended.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::check::{Finding, object_from_value};
use super::diagnostic::Diagnostic;
use super::events::{Mark, lines};
use super::tree::{self, Content, Document, Node, Span, Trouble};
use crate::object::{API_VERSION, AnyObject, ObjectKey};

/// The largest manifest, in bytes.
pub const MAX_FILE_SIZE: u64 = 1 << 20;
/// The most diagnostics of one file.
const MAX_DIAGNOSTICS: usize = 100;

/// An object and where it is declared.
#[derive(Clone, Debug, PartialEq)]
pub struct Located {
    /// The object.
    pub object: AnyObject,
    /// The line at which it starts, from 1.
    pub line: u32,
}

/// What a file declares.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decoded {
    /// The objects without errors, in the file's order, no two of one identity.
    pub objects: Vec<Located>,
    /// The errors; none means that the file is good.
    pub diagnostics: Vec<Diagnostic>,
}

/// Decodes a file: JSON if its name ends in `.json`, else YAML of any number of documents. Each document is
/// an object or a list of objects (`kind: List`); empty documents are skipped.
pub fn decode(path: &Path, bytes: &[u8]) -> Decoded {
    let mut decoder = Decoder::new(path);
    match text_of(bytes) {
        Ok(text) => {
            decoder.lines = lines(text);
            if path.extension().is_some_and(|extension| extension == "json") {
                decoder.json(text);
            } else {
                decoder.yaml(text);
            }
        }
        Err((at, message)) => {
            decoder.refuse(Span { line: at.line, column: at.column, width: 1 }, "", &message, None);
        }
    }
    decoder.decoded.diagnostics.sort_by_key(|diagnostic| (diagnostic.line, diagnostic.column));
    decoder.decoded
}

fn text_of(bytes: &[u8]) -> Result<&str, (Mark, String)> {
    let start = Mark { line: 1, column: 1 };
    if bytes.len() as u64 > MAX_FILE_SIZE {
        return Err((start, format!("larger than {} MiB; split the file", MAX_FILE_SIZE >> 20)));
    }
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err((start, "the file is UTF-16; save it as UTF-8".to_owned()));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let valid = std::str::from_utf8(&bytes[..error.valid_up_to()]).expect("valid up to there");
        (Mark::of_offset(valid, valid.len()), "the file is not UTF-8 from here on".to_owned())
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

struct Decoder<'a> {
    path: PathBuf,
    lines: Vec<&'a str>,
    decoded: Decoded,
    /// The line of each object.
    seen: HashMap<ObjectKey, u32>,
}

impl<'a> Decoder<'a> {
    fn new(path: &Path) -> Self {
        let (lines, decoded, seen) = Default::default();
        Decoder { path: path.to_owned(), lines, decoded, seen }
    }

    fn yaml(&mut self, text: &'a str) {
        let found = tree::read(text);
        let mut values = serde_yaml::Deserializer::from_str(text);
        for document in found.documents {
            let value = values.next();
            if document.troubles.is_empty() {
                match value.map(serde_yaml::Value::deserialize) {
                    Some(Ok(value)) => self.document(&document, to_json(value)),
                    Some(Err(error)) => self.undecoded(&document, &error),
                    None => {}
                }
            }
            self.troubles(document.troubles);
        }
        self.troubles(found.end);
    }

    fn json(&mut self, text: &'a str) {
        if text.trim().is_empty() {
            return;
        }
        let value = match serde_json::from_str(text) {
            Ok(value) => value,
            Err(error) => return self.not_json(&error),
        };
        // JSON is YAML but for details that only matter inside strings, where no place is asked for.
        let found = tree::read(&without_surrogates(text));
        let nowhere =
            || Document { root: Node { span: Span::START, content: Content::Scalar }, troubles: Vec::new() };
        let limit = found.end.filter(|trouble| !trouble.syntax);
        let document = found.documents.into_iter().next().unwrap_or_else(nowhere);
        if document.troubles.is_empty() && limit.is_none() {
            self.document(&document, value);
        }
        self.troubles(document.troubles);
        self.troubles(limit);
    }

    /// A document's value: nothing, an object, or a list of objects.
    fn document(&mut self, document: &Document, value: Value) {
        let text = |name: &str| value.get(name).and_then(Value::as_str);
        let list = match (text("apiVersion"), text("kind")) {
            (Some("v1"), Some("List")) => true,
            (Some(API_VERSION), Some(kind)) => matches!(kind, "VMList" | "ImageList"),
            _ => false,
        };
        match value {
            Value::Null => {}
            Value::Object(mut fields) if list => match fields.get_mut("items").map(Value::take) {
                Some(Value::Array(items)) => {
                    for (index, item) in items.into_iter().enumerate() {
                        self.object(document, &format!("items[{index}]"), item);
                    }
                }
                _ => {
                    let message = "items must be a list of objects";
                    self.refuse(document.locate("items", true), "items", message, None);
                }
            },
            value => self.object(document, "", value),
        }
    }

    fn object(&mut self, document: &Document, at: &str, value: Value) {
        if self.decoded.diagnostics.len() >= MAX_DIAGNOSTICS {
            return;
        }
        let line = document.locate(at, true).line;
        match object_from_value(value) {
            Ok(object) => self.declare(document, at, Located { object, line }),
            Err(findings) => {
                for Finding { path, name, message, hint } in findings {
                    let path = match (at, path.as_str()) {
                        ("", _) => path,
                        (_, "") => at.to_owned(),
                        _ => format!("{at}.{path}"),
                    };
                    let span = document.locate(&path, name);
                    self.refuse(span, &path, &message, hint.as_deref());
                }
            }
        }
    }

    fn declare(&mut self, document: &Document, at: &str, located: Located) {
        let key = located.object.key();
        if let Some(line) = self.seen.get(&key) {
            let path = if at.is_empty() { "metadata.name".to_owned() } else { format!("{at}.metadata.name") };
            let message = format!("{key} is declared twice in this file");
            let hint = format!("first declared in line {line}");
            self.refuse(document.locate(&path, false), &path, &message, Some(&hint));
        } else {
            self.seen.insert(key, located.line);
            self.decoded.objects.push(located);
        }
    }

    fn troubles(&mut self, troubles: impl IntoIterator<Item = Trouble>) {
        for Trouble { span, message, hint, .. } in troubles {
            self.refuse(span, "", &message, hint.as_deref());
        }
    }

    /// What passed the readers' own checks and still has no value, such as a number beyond all types.
    fn undecoded(&mut self, document: &Document, error: &serde_yaml::Error) {
        let span = error.location().map_or(document.root.span, |at| Span {
            line: u32::try_from(at.line()).unwrap_or(u32::MAX),
            column: u32::try_from(at.column()).unwrap_or(u32::MAX),
            width: 1,
        });
        self.refuse(span, "", &without_position(error.to_string()), None);
    }

    fn not_json(&mut self, error: &serde_json::Error) {
        let span = Span { line: error.line().max(1) as u32, column: error.column().max(1) as u32, width: 1 };
        let message = format!("not valid JSON: {}", without_position(error.to_string()));
        self.refuse(span, "", &message, None);
    }

    fn refuse(&mut self, span: Span, field: &str, message: &str, hint: Option<&str>) {
        let diagnostics = &mut self.decoded.diagnostics;
        if diagnostics.len() >= MAX_DIAGNOSTICS {
            return;
        }
        let line = self.lines.get(span.line as usize - 1).copied();
        let diagnostic = Diagnostic::new(&self.path, span, message).field(field).hint(hint).quote(line);
        diagnostics.push(diagnostic);
        if diagnostics.len() == MAX_DIAGNOSTICS {
            let message = "there are more errors, which are not shown";
            diagnostics.push(Diagnostic::new(&self.path, span, message));
        }
    }
}

/// Both crates end their messages with a place, which stands elsewhere in a diagnostic.
fn without_position(mut message: String) -> String {
    if let Some(at) = message.rfind(" at line ") {
        message.truncate(at);
    }
    message
}

/// A YAML value as the JSON value that it means. JSON has no infinities: they become text, for which no
/// field has a use. Recursion is bounded by [`tree::MAX_DEPTH`].
fn to_json(value: serde_yaml::Value) -> Value {
    match value {
        serde_yaml::Value::Null => Value::Null,
        serde_yaml::Value::Bool(value) => Value::Bool(value),
        serde_yaml::Value::Number(number) => number
            .as_u64()
            .map(Value::from)
            .or_else(|| number.as_i64().map(Value::from))
            .or_else(|| number.as_f64().and_then(serde_json::Number::from_f64).map(Value::Number))
            .unwrap_or_else(|| Value::String(number.to_string())),
        serde_yaml::Value::String(text) => Value::String(text),
        serde_yaml::Value::Sequence(items) => Value::Array(items.into_iter().map(to_json).collect()),
        serde_yaml::Value::Mapping(map) => {
            let entry = |(key, value)| (key_text(to_json(key)), to_json(value));
            Value::Object(map.into_iter().map(entry).collect::<Map<_, _>>())
        }
        serde_yaml::Value::Tagged(tagged) => to_json(tagged.value),
    }
}

fn key_text(key: Value) -> String {
    match key {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

/// Replaces escaped surrogates (`\ud83d`), which JSON has and YAML has not, by as many characters.
fn without_surrogates(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    let mut rest = json;
    while let Some(at) = rest.find('\\') {
        text.push_str(&rest[..at]);
        rest = &rest[at..];
        let surrogate = rest.len() >= 6
            && rest.is_char_boundary(6)
            && rest[1..].starts_with('u')
            && matches!(rest.as_bytes()[2], b'd' | b'D')
            && matches!(rest.as_bytes()[3], b'8'..=b'9' | b'a'..=b'f' | b'A'..=b'F');
        let width = if surrogate { 6 } else { 1 + rest[1..].chars().next().map_or(0, char::len_utf8) };
        text.push_str(if surrogate { "??????" } else { &rest[..width] });
        rest = &rest[width..];
    }
    text.push_str(rest);
    text
}
