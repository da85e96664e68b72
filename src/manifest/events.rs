//! A safe view of libyaml's event parser, the one that serde_yaml decodes with: the same parser
//! tells where things are and what they are.

use std::ffi::CStr;
use std::mem::MaybeUninit;

use libyaml_rs as sys;

/// A place in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// From 1.
    pub line: u32,
    /// In characters, from 1.
    pub column: u32,
}

impl Mark {
    /// The place of a character of a text, by its offset in bytes.
    pub(super) fn of_offset(text: &str, offset: usize) -> Mark {
        let before = text.get(..offset).unwrap_or(text);
        let lines = lines(before);
        let column = lines.last().map_or(0, |line| line.chars().count());
        Mark { line: lines.len() as u32, column: column as u32 + 1 }
    }
}

/// The lines of a text as libyaml counts them: it takes Unicode's line breaks for breaks, too.
pub(super) fn lines(text: &str) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(end) = rest.find(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']) {
        let (line, after) = rest.split_at(end);
        lines.push(line);
        let width =
            if after.starts_with("\r\n") { 2 } else { after.chars().next().map_or(0, char::len_utf8) };
        rest = &after[width..];
    }
    lines.push(rest);
    lines
}

/// A piece of a YAML stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A document starts.
    DocumentStart,
    /// The document that was started ends.
    DocumentEnd,
    /// `*name`.
    Alias,
    /// A scalar's text.
    Scalar(String),
    /// A list starts.
    ListStart,
    /// A mapping starts.
    MapStart,
    /// The innermost list or mapping ends.
    End,
    /// Nothing follows.
    StreamEnd,
}

/// An event, its place, and its tag if it has one.
#[derive(Debug)]
pub(super) struct Located {
    pub event: Event,
    pub start: Mark,
    pub end: Mark,
    pub tag: Option<String>,
}

/// Text that is not YAML.
#[derive(Debug)]
pub(super) struct SyntaxError {
    pub message: String,
    /// The line of the construct that the error is in, if that is another one.
    pub since: Option<u32>,
    pub at: Mark,
}

/// The events of a text, one by one. After an error or the stream's end there are no more to ask for.
pub(super) struct Events<'text> {
    // Boxed because libyaml's parser holds pointers into itself once it has an input.
    parser: Box<sys::yaml_parser_t>,
    text: &'text str,
}

impl<'text> Events<'text> {
    pub(super) fn new(text: &'text str) -> Self {
        let mut parser = Box::new(MaybeUninit::<sys::yaml_parser_t>::uninit());
        // SAFETY: `initialize` writes the whole parser (it is a C struct of plain data) and fails only
        // by aborting on exhausted memory. The box keeps its address until `delete`. The input is
        // borrowed for 'text, which outlives `self`.
        let parser = unsafe {
            let raw = parser.as_mut_ptr();
            assert!(sys::yaml_parser_initialize(raw).ok, "memory for a YAML parser");
            sys::yaml_parser_set_encoding(raw, sys::YAML_UTF8_ENCODING);
            sys::yaml_parser_set_input_string(raw, text.as_ptr(), text.len() as u64);
            Box::from_raw(Box::into_raw(parser).cast::<sys::yaml_parser_t>())
        };
        Events { parser, text }
    }

    /// The next event.
    pub(super) fn next(&mut self) -> Result<Located, SyntaxError> {
        loop {
            if let Some(located) = self.step()? {
                return Ok(located);
            }
        }
    }

    /// The next event, or none if it is one that tells nothing.
    fn step(&mut self) -> Result<Option<Located>, SyntaxError> {
        let mut event = MaybeUninit::<sys::yaml_event_t>::uninit();
        // SAFETY: the parser is initialised; `parse` writes the event when it succeeds, and the event
        // is freed once its parts are copied out.
        unsafe {
            if !sys::yaml_parser_parse(&mut *self.parser, event.as_mut_ptr()).ok {
                return Err(self.error());
            }
            let mut event = event.assume_init();
            let located = convert(&event);
            sys::yaml_event_delete(&mut event);
            Ok(located)
        }
    }

    fn error(&self) -> SyntaxError {
        // SAFETY: libyaml's messages are static C strings or null.
        let (problem, context) = unsafe { (text_of(self.parser.problem), text_of(self.parser.context)) };
        let problem = problem.unwrap_or_else(|| "not valid YAML".to_owned());
        let has_context = context.is_some();
        let message = match context {
            Some(context) => format!("{problem} {context}"),
            None => problem,
        };
        // The reader knows bytes only, not lines.
        let at = if self.parser.error == sys::YAML_READER_ERROR {
            Mark::of_offset(self.text, self.parser.problem_offset as usize)
        } else {
            mark(self.parser.problem_mark)
        };
        let since = mark(self.parser.context_mark).line;
        SyntaxError { message, at, since: (has_context && since != at.line).then_some(since) }
    }
}

impl Drop for Events<'_> {
    fn drop(&mut self) {
        // SAFETY: initialised in `new`, deleted only here.
        unsafe { sys::yaml_parser_delete(&mut *self.parser) }
    }
}

/// # Safety
/// The event was filled by a successful parse and not deleted yet.
unsafe fn convert(event: &sys::yaml_event_t) -> Option<Located> {
    // SAFETY: the event's type says which member of the union is set; its strings end with a null
    // byte, and a scalar's value has the length that stands beside it.
    let (kind, tag) = unsafe {
        match event.type_ {
            sys::YAML_DOCUMENT_START_EVENT => (Event::DocumentStart, None),
            sys::YAML_DOCUMENT_END_EVENT => (Event::DocumentEnd, None),
            sys::YAML_STREAM_END_EVENT => (Event::StreamEnd, None),
            sys::YAML_ALIAS_EVENT => (Event::Alias, None),
            sys::YAML_SEQUENCE_START_EVENT => {
                (Event::ListStart, text_of(event.data.sequence_start.tag.cast()))
            }
            sys::YAML_MAPPING_START_EVENT => (Event::MapStart, text_of(event.data.mapping_start.tag.cast())),
            sys::YAML_SEQUENCE_END_EVENT | sys::YAML_MAPPING_END_EVENT => (Event::End, None),
            sys::YAML_SCALAR_EVENT => {
                let scalar = &event.data.scalar;
                let bytes = std::slice::from_raw_parts(scalar.value, scalar.length as usize);
                (Event::Scalar(String::from_utf8_lossy(bytes).into_owned()), text_of(scalar.tag.cast()))
            }
            _ => return None,
        }
    };
    Some(Located { event: kind, start: mark(event.start_mark), end: mark(event.end_mark), tag })
}

/// # Safety
/// Null, or a string that ends with a null byte.
unsafe fn text_of(string: *const i8) -> Option<String> {
    // SAFETY: by this function's contract.
    (!string.is_null()).then(|| unsafe { CStr::from_ptr(string) }.to_string_lossy().into_owned())
}

fn mark(mark: sys::yaml_mark_t) -> Mark {
    let from_one = |number: u64| u32::try_from(number).unwrap_or(u32::MAX).saturating_add(1);
    Mark { line: from_one(mark.line), column: from_one(mark.column) }
}
