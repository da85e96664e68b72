//! The values of a file in, objects and diagnostics out. Pure.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;

use super::check::{Finding, object_from_value};
use super::diagnostic::Diagnostic;
use super::read::Reader;
use super::tree::Document;
use crate::object::{API_VERSION, AnyObject, ObjectKey};

/// The largest manifest, in bytes.
pub const MAX_FILE_SIZE: u64 = 1 << 20;

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
    let mut reader = Reader::new(path);
    let documents = reader.read(bytes);
    let mut decoder = Decoder { reader, objects: Vec::new(), seen: HashMap::new() };
    for (document, value) in documents {
        decoder.document(&document, value);
    }
    // Kept for as long as the file is there: most files declare one object, and room for four is reserved.
    decoder.objects.shrink_to_fit();
    Decoded { objects: decoder.objects, diagnostics: decoder.reader.diagnostics() }
}

struct Decoder<'a> {
    reader: Reader<'a>,
    objects: Vec<Located>,
    /// The line of each object.
    seen: HashMap<ObjectKey, u32>,
}

impl Decoder<'_> {
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
                    self.reader.refuse(document.locate("items", true), "items", message, None);
                }
            },
            value => self.object(document, "", value),
        }
    }

    fn object(&mut self, document: &Document, at: &str, value: Value) {
        if self.reader.full() {
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
                    self.reader.refuse(span, &path, &message, hint.as_deref());
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
            self.reader.refuse(document.locate(&path, false), &path, &message, Some(&hint));
        } else {
            self.seen.insert(key, located.line);
            self.objects.push(located);
        }
    }
}
