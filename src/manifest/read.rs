//! The text of a file in, the values of its documents and what is wrong with them out. Pure.
//!
//! Every input costs bounded time and memory: the size of the file, the number of its documents, values
//! and the depth of their nesting are limited, and aliases are refused. Reading goes on after an error
//! wherever the rest still means something, so that one look shows everything that has to be mended.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::MAX_FILE_SIZE;
use super::diagnostic::Diagnostic;
use super::events::{Mark, lines};
use super::tree::{self, Content, Document, Node, Span, Trouble};

/// The most diagnostics of one file.
const MAX_DIAGNOSTICS: usize = 100;

/// Reads a file, and collects what is wrong with it.
pub(super) struct Reader<'a> {
    path: PathBuf,
    lines: Vec<&'a str>,
    diagnostics: Vec<Diagnostic>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(path: &Path) -> Self {
        Reader { path: path.to_owned(), lines: Vec::new(), diagnostics: Vec::new() }
    }

    /// The documents that have values: of JSON if the file's name ends in `.json`, else of YAML.
    pub(super) fn read(&mut self, bytes: &'a [u8]) -> Vec<(Document, Value)> {
        match text_of(bytes) {
            Ok(text) => {
                self.lines = lines(text);
                if self.path.extension().is_some_and(|extension| extension == "json") {
                    self.json(text).into_iter().collect()
                } else {
                    self.yaml(text)
                }
            }
            Err((at, message)) => {
                self.refuse(Span { line: at.line, column: at.column, width: 1 }, "", &message, None);
                Vec::new()
            }
        }
    }

    /// Whether so much is wrong that no more is told.
    pub(super) fn full(&self) -> bool {
        self.diagnostics.len() >= MAX_DIAGNOSTICS
    }

    /// Whether something is wrong.
    pub(super) fn faulty(&self) -> bool {
        !self.diagnostics.is_empty()
    }

    /// What is wrong, in the order of the file.
    pub(super) fn diagnostics(mut self) -> Vec<Diagnostic> {
        self.diagnostics.sort_by_key(|diagnostic| (diagnostic.line, diagnostic.column));
        self.diagnostics
    }

    fn yaml(&mut self, text: &'a str) -> Vec<(Document, Value)> {
        let found = tree::read(text);
        let mut values = serde_yaml::Deserializer::from_str(text);
        let mut read = Vec::new();
        for mut document in found.documents {
            let value = values.next();
            let troubles = std::mem::take(&mut document.troubles);
            if troubles.is_empty() {
                match value.map(serde_yaml::Value::deserialize) {
                    Some(Ok(value)) => read.push((document, to_json(value))),
                    Some(Err(error)) => self.undecoded(&document, &error),
                    None => {}
                }
            }
            self.troubles(troubles);
        }
        self.troubles(found.end);
        read
    }

    fn json(&mut self, text: &'a str) -> Option<(Document, Value)> {
        if text.trim().is_empty() {
            return None;
        }
        let value = match serde_json::from_str(text) {
            Ok(value) => value,
            Err(error) => {
                self.not_json(&error);
                return None;
            }
        };
        // JSON is YAML but for details that only matter inside strings, where no place is asked for.
        let found = tree::read(&without_surrogates(text));
        let nowhere =
            || Document { root: Node { span: Span::START, content: Content::Scalar }, troubles: Vec::new() };
        let limit = found.end.filter(|trouble| !trouble.syntax);
        let mut document = found.documents.into_iter().next().unwrap_or_else(nowhere);
        let troubles = std::mem::take(&mut document.troubles);
        let good = troubles.is_empty() && limit.is_none();
        self.troubles(troubles);
        self.troubles(limit);
        good.then_some((document, value))
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

    /// Notes what is wrong at a place.
    pub(super) fn refuse(&mut self, span: Span, field: &str, message: &str, hint: Option<&str>) {
        let diagnostics = &mut self.diagnostics;
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
