//! Where every field of a document is. Also the guard in front of the decoder: depth, number of
//! values and documents are bounded here, while reading event by event, before anything is built.

use std::collections::HashMap;

use super::events::{Event, Events, Located, Mark, SyntaxError};

/// The deepest nesting of lists and mappings.
pub(super) const MAX_DEPTH: usize = 64;
/// The most values of a file.
const MAX_VALUES: usize = 200_000;
/// The most documents of a file.
const MAX_DOCUMENTS: usize = 1000;

/// A stretch of characters on one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub line: u32,
    pub column: u32,
    pub width: u32,
}

impl Span {
    /// Where a text starts.
    pub(super) const START: Span = Span { line: 1, column: 1, width: 1 };

    fn new(start: Mark, end: Mark) -> Self {
        let width = if start.line == end.line { end.column.saturating_sub(start.column).max(1) } else { 1 };
        Span { line: start.line, column: start.column, width }
    }
}

/// A value and where it is.
#[derive(Debug)]
pub(super) struct Node {
    pub span: Span,
    pub content: Content,
}

#[derive(Debug)]
pub(super) enum Content {
    Scalar,
    List(Vec<Node>),
    Map(Vec<Entry>),
}

#[derive(Debug)]
pub(super) struct Entry {
    pub key: String,
    pub span: Span,
    pub value: Node,
}

/// Text that is not YAML, or YAML that manifests must not use.
#[derive(Debug)]
pub(super) struct Trouble {
    pub syntax: bool,
    pub span: Span,
    pub message: String,
    pub hint: Option<String>,
}

impl Trouble {
    fn new(span: Span, message: impl Into<String>, hint: &str) -> Self {
        Trouble {
            syntax: false,
            span,
            message: message.into(),
            hint: (!hint.is_empty()).then(|| hint.to_owned()),
        }
    }
}

/// One document. With troubles it is not decoded.
#[derive(Debug)]
pub(super) struct Document {
    pub root: Node,
    pub troubles: Vec<Trouble>,
}

/// The documents up to the first error that ends the file, and that error.
#[derive(Debug, Default)]
pub(super) struct Documents {
    pub documents: Vec<Document>,
    pub end: Option<Trouble>,
}

/// Reads the places of all documents of a text.
pub(super) fn read(text: &str) -> Documents {
    let mut reader = Reader { events: Events::new(text), values: 0, troubles: Vec::new() };
    let mut found = Documents::default();
    loop {
        match reader.document() {
            Ok(Some(document)) if found.documents.len() < MAX_DOCUMENTS => found.documents.push(document),
            Ok(Some(document)) => {
                let message = format!("more than {MAX_DOCUMENTS} documents in one file");
                found.end = Some(Trouble::new(document.root.span, message, "split the file"));
                return found;
            }
            Ok(None) => return found,
            Err(trouble) => {
                found.end = Some(trouble);
                return found;
            }
        }
    }
}

struct Reader<'text> {
    events: Events<'text>,
    values: usize,
    troubles: Vec<Trouble>,
}

impl Reader<'_> {
    fn next(&mut self) -> Result<Located, Trouble> {
        self.events.next().map_err(|SyntaxError { message, at, since }| {
            let span = Span { line: at.line, column: at.column, width: 1 };
            let hint = match since {
                _ if message.contains("cannot start any token") => {
                    "indent with spaces, not tabs; quote text that starts with @, ` or %".to_owned()
                }
                Some(line) => format!("it starts in line {line}"),
                None => String::new(),
            };
            Trouble { syntax: true, ..Trouble::new(span, format!("not valid YAML: {message}"), &hint) }
        })
    }

    fn document(&mut self) -> Result<Option<Document>, Trouble> {
        loop {
            match self.next()?.event {
                Event::DocumentStart => {
                    let first = self.next()?;
                    let root = self.node(first, 0)?;
                    return Ok(Some(Document { root, troubles: std::mem::take(&mut self.troubles) }));
                }
                Event::StreamEnd => return Ok(None),
                _ => {}
            }
        }
    }

    /// The value that starts with an event. Recursion is bounded by [`MAX_DEPTH`].
    fn node(&mut self, first: Located, depth: usize) -> Result<Node, Trouble> {
        let span = Span::new(first.start, first.end);
        self.values += 1;
        if self.values > MAX_VALUES {
            return Err(Trouble::new(span, format!("more than {MAX_VALUES} values"), "split the file"));
        }
        if depth > MAX_DEPTH {
            return Err(Trouble::new(span, format!("nested more than {MAX_DEPTH} levels deep"), ""));
        }
        if let Some(tag) = first.tag.filter(|tag| !tag.starts_with("tag:yaml.org,2002:")) {
            self.troubles.push(Trouble::new(span, format!("the tag {tag} has no meaning here"), "remove it"));
        }
        let content = match first.event {
            Event::ListStart => Content::List(self.list(depth)?),
            Event::MapStart => Content::Map(self.map(depth)?),
            Event::Alias => {
                let hint = "write the value out";
                self.troubles.push(Trouble::new(span, "YAML aliases are not supported", hint));
                Content::Scalar
            }
            _ => Content::Scalar,
        };
        Ok(Node { span, content })
    }

    fn list(&mut self, depth: usize) -> Result<Vec<Node>, Trouble> {
        let mut items = Vec::new();
        loop {
            let event = self.next()?;
            if event.event == Event::End {
                return Ok(items);
            }
            items.push(self.node(event, depth + 1)?);
        }
    }

    fn map(&mut self, depth: usize) -> Result<Vec<Entry>, Trouble> {
        let mut entries = Vec::new();
        let mut lines = HashMap::new();
        loop {
            let event = self.next()?;
            if event.event == Event::End {
                return Ok(entries);
            }
            let key = self.key(event, depth)?;
            let next = self.next()?;
            let value = self.node(next, depth + 1)?;
            let Some((key, span)) = key else { continue };
            if let Some(line) = lines.insert(key.clone(), span.line) {
                let message = format!("{key} is set twice");
                self.troubles.push(Trouble::new(span, message, &format!("first set in line {line}")));
            }
            entries.push(Entry { key, span, value });
        }
    }

    /// A mapping's key; none if it is not plain text.
    fn key(&mut self, event: Located, depth: usize) -> Result<Option<(String, Span)>, Trouble> {
        let span = Span::new(event.start, event.end);
        if let Event::Scalar(key) = event.event {
            return Ok(Some((key, span)));
        }
        self.node(event, depth + 1)?;
        let hint = "if this is a template, render it first";
        self.troubles.push(Trouble::new(span, "a field's name must be plain text", hint));
        Ok(None)
    }
}

impl Document {
    /// Where a field is: its value's place, or its name's.
    ///
    /// Names may themselves hold dots (`metadata.labels.app.kubernetes.io/name`), so the path is followed
    /// along the names that are there. What is not there has the place of its innermost parent.
    pub(super) fn locate(&self, path: &str, name: bool) -> Span {
        let (mut node, mut rest, mut parent) = (&self.root, path, self.root.span);
        while !rest.is_empty() {
            let step = match &node.content {
                Content::Scalar => None,
                Content::Map(entries) => entry(entries, rest),
                Content::List(items) => item(items, rest).map(|(node, rest)| (node.span, node, rest)),
            };
            let Some((span, next, after)) = step else { return parent };
            (node, rest, parent) = (next, after, span);
        }
        let on_value = !name && matches!(node.content, Content::Scalar);
        if on_value { node.span } else { parent }
    }
}

/// The entry whose name is the longest start of the path.
fn entry<'a, 'p>(entries: &'a [Entry], path: &'p str) -> Option<(Span, &'a Node, &'p str)> {
    let path = path.strip_prefix('.').unwrap_or(path);
    entries
        .iter()
        .filter_map(|entry| Some((entry, path.strip_prefix(entry.key.as_str())?)))
        .filter(|(_, rest)| rest.is_empty() || rest.starts_with(['.', '[']))
        .max_by_key(|(entry, _)| entry.key.len())
        .map(|(entry, rest)| (entry.span, &entry.value, rest))
}

fn item<'a, 'p>(items: &'a [Node], path: &'p str) -> Option<(&'a Node, &'p str)> {
    let (index, rest) = path.strip_prefix('[')?.split_once(']')?;
    Some((items.get(index.parse::<usize>().ok()?)?, rest))
}
