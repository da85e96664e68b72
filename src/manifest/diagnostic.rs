//! What is wrong with a manifest, where, and what would be right.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use super::tree::Span;

/// The longest part of a source line that a diagnostic quotes, in characters.
const SNIPPET: usize = 120;
/// The longest message, hint or field path, in characters.
const MESSAGE: usize = 400;

/// One error in a manifest. [`Display`](fmt::Display) shows it the way compilers do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Diagnostic {
    /// The file.
    pub path: PathBuf,
    /// From 1.
    pub line: u32,
    /// In characters, from 1.
    pub column: u32,
    /// How many characters of the line are meant, at least 1.
    pub width: u32,
    /// `spec.network.ports[0].host`, where the error belongs to a field.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What is wrong.
    pub message: String,
    /// What would be right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The source line, or the part around the error if the line is long. Control characters are replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snippet: Option<String>,
    /// The column of the snippet's first character, from 1.
    pub snippet_column: u32,
}

impl Diagnostic {
    /// An error of the file as a whole.
    pub(crate) fn of_file(path: impl Into<PathBuf>, message: &str) -> Self {
        Diagnostic::new(path, Span::START, message)
    }

    /// An error at a place.
    pub(super) fn new(path: impl Into<PathBuf>, span: Span, message: &str) -> Self {
        Diagnostic {
            path: path.into(),
            line: span.line,
            column: span.column,
            width: span.width,
            field: None,
            message: printable(message, MESSAGE),
            hint: None,
            snippet: None,
            snippet_column: 1,
        }
    }

    /// The same, of a field.
    pub(super) fn field(mut self, path: &str) -> Self {
        self.field = (!path.is_empty()).then(|| printable(path, MESSAGE));
        self
    }

    /// The same, with advice.
    pub(super) fn hint(mut self, hint: Option<&str>) -> Self {
        self.hint = hint.map(|hint| printable(hint, MESSAGE));
        self
    }

    /// The same, with its source line.
    pub(super) fn quote(mut self, line: Option<&str>) -> Self {
        let before = (self.column - 1).saturating_sub(SNIPPET as u32 / 2);
        let long = |line: &str| line.chars().nth(SNIPPET).is_some();
        let skip = if line.is_some_and(long) { before } else { 0 };
        self.snippet = line.map(|line| {
            let start = line.char_indices().nth(skip as usize).map_or(line.len(), |(start, _)| start);
            printable(&line[start..], SNIPPET)
        });
        self.snippet_column = skip + 1;
        self
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.line.to_string().len();
        writeln!(f, "error: {}", self.message)?;
        write!(f, "{:digits$} --> {}:{}:{}", "", self.path.display(), self.line, self.column)?;
        let Some(text) = &self.snippet else {
            return match &self.hint {
                Some(hint) => write!(f, "\n{:digits$}  = {hint}", ""),
                None => Ok(()),
            };
        };
        let column = (self.column - self.snippet_column) as usize;
        let carets = (self.width as usize).clamp(1, SNIPPET);
        write!(f, "\n{:digits$}  |\n {} | {text}\n{:digits$}  | ", "", self.line, "")?;
        write!(f, "{:column$}{:^<carets$}", "", "")?;
        match &self.hint {
            Some(hint) => write!(f, " {hint}"),
            None => Ok(()),
        }
    }
}

/// The start of a text with control characters replaced: manifests end up on terminals and in events.
/// Tabs become spaces so that the carets stay under what they point at.
fn printable(text: &str, longest: usize) -> String {
    let printable = |char: char| match char {
        '\t' => ' ',
        char if char.is_control() => char::REPLACEMENT_CHARACTER,
        char => char,
    };
    let mut shown: String = text.chars().take(longest).map(printable).collect();
    if text.chars().nth(longest).is_some() {
        shown.push('…');
    }
    shown
}
