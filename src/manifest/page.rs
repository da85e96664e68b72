//! A file that is no manifest and is read as strictly: one document of a type with a schema. Pure.

use std::path::Path;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use super::check::{Finding, check, without_nulls};
use super::diagnostic::Diagnostic;
use super::read::Reader;
use super::shape;
use super::tree::{Document, Span};

/// The file's places, and what is wrong with it.
pub(crate) struct Page<'a> {
    reader: Reader<'a>,
    document: Document,
}

impl<'a> Page<'a> {
    /// Reads a file. `noun` is what it is, in messages.
    ///
    /// # Errors
    /// Everything that is wrong with it: syntax; unknown, missing and ill-typed fields.
    pub(crate) fn read<T>(path: &Path, bytes: &'a [u8], noun: &str) -> Result<(T, Self), Vec<Diagnostic>>
    where
        T: DeserializeOwned + JsonSchema,
    {
        let mut reader = Reader::new(path);
        let mut documents = reader.read(bytes).into_iter().filter(|(_, value)| !value.is_null());
        let (first, second) = (documents.next(), documents.next());
        if let Some((document, _)) = second {
            let message = format!("a file holds one {noun}, this is another one");
            reader.refuse(document.root.span, "", &message, None);
        }
        let Some((document, value)) = first else {
            if !reader.faulty() {
                reader.refuse(Span::START, "", &format!("the file holds no {noun}"), None);
            }
            return Err(reader.diagnostics());
        };
        let mut page = Page { reader, document };
        let value = without_nulls(value);
        for Finding { path, name, message, hint } in check(&value, &shape::of_type::<T>(), noun) {
            page.refuse(&path, name, &message, hint.as_deref());
        }
        if page.reader.faulty() {
            return Err(page.reader.diagnostics());
        }
        match serde_json::from_value(value) {
            Ok(value) => Ok((value, page)),
            Err(error) => {
                page.refuse("", false, &error.to_string(), None);
                Err(page.reader.diagnostics())
            }
        }
    }

    /// Notes what is wrong with a field: with its name, or with its value.
    pub(crate) fn refuse(&mut self, field: &str, name: bool, message: &str, hint: Option<&str>) {
        self.reader.refuse(self.document.locate(field, name), field, message, hint);
    }

    /// The line that a field is in, from 1.
    pub(crate) fn line(&self, field: &str) -> u32 {
        self.document.locate(field, true).line
    }

    /// What is wrong, in the order of the file.
    pub(crate) fn diagnostics(self) -> Vec<Diagnostic> {
        self.reader.diagnostics()
    }
}
