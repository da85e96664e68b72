//! What the fold of manifests compares and what it asks for, as plain data: [`Held`] in, [`Change`] out.

use std::path::PathBuf;

use crate::object::{AnyObject, ObjectKey};
use crate::store::{Problem, Record};

/// The file has errors.
pub(crate) const INVALID: &str = "InvalidManifest";
/// Two files declare one object.
pub(crate) const CONFLICT: &str = "Conflict";
/// The folder cannot be read, or not completely.
pub(crate) const UNAVAILABLE: &str = "SourceUnavailable";
/// The folder that declared it is not read any more.
pub(crate) const SOURCE_GONE: &str = "SourceGone";
/// Too much would be deleted at once.
pub(crate) const MASS_DELETE: &str = "MassDelete";

/// An object that the store holds for this source.
#[derive(Clone, Debug, PartialEq)]
pub struct Held {
    /// The object as it is in force.
    pub object: AnyObject,
    /// The file that declares it, below the source's folder.
    pub path: PathBuf,
    /// Where in it.
    pub line: u32,
    /// It is being deleted.
    pub terminating: bool,
    /// What is wrong with the declaration.
    pub problem: Option<Problem>,
}

impl From<&Record> for Held {
    fn from(record: &Record) -> Self {
        let (object, origin) = (record.object(), record.origin());
        Held {
            path: origin.path.clone(),
            line: origin.line,
            terminating: object.metadata().deletion_timestamp.is_some(),
            problem: record.own_problem().cloned(),
            object,
        }
    }
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Create or update an object.
    Declare {
        /// As the file has it.
        object: Box<AnyObject>,
        /// The file, below the source's folder.
        path: PathBuf,
        /// Where in it, from 1.
        line: u32,
        /// The object may be held for another file.
        take_over: bool,
    },
    /// Delete an object.
    Undeclare(ObjectKey),
    /// Set or clear what is wrong with an object's declaration.
    Problem {
        /// The object.
        key: ObjectKey,
        /// None clears it.
        problem: Option<Problem>,
    },
    /// Tell people. Repeated for as long as it is so.
    Warning {
        /// What it is about.
        about: About,
        /// One CamelCase word.
        reason: &'static str,
        /// A sentence.
        message: String,
    },
}

/// What a warning is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum About {
    /// An object.
    Object(ObjectKey),
    /// A file, below the source's folder.
    File(PathBuf),
    /// The whole folder.
    Folder,
}
