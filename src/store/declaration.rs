//! Where an object is declared, and what is wrong with that.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Where an object is declared: its one owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The source: `directory:/etc/vmlet/manifests`.
    pub source: String,
    /// The file, below the source's folder.
    pub path: PathBuf,
    /// The line at which the object's document starts, from 1.
    pub line: u32,
}

/// What the names of folders' sources begin with.
const DIRECTORY: &str = "directory:";

impl Origin {
    /// The source that a folder of manifests is.
    pub fn source_of(folder: &Path) -> String {
        format!("{DIRECTORY}{}", folder.display())
    }

    /// The folder that a source is, if it is one.
    pub fn folder_of(source: &str) -> Option<&Path> {
        source.strip_prefix(DIRECTORY).map(Path::new)
    }

    /// The file's full path: a folder's manifests are recorded below it.
    pub fn file(&self) -> PathBuf {
        Origin::folder_of(&self.source).map_or_else(|| self.path.clone(), |root| root.join(&self.path))
    }
}

/// `/etc/vmlet/manifests/web.yaml:3`
impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file().display(), self.line)
    }
}

/// Trouble with a declaration, which leaves the last good spec in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// One CamelCase word: InvalidManifest, Conflict, SourceUnavailable.
    pub reason: String,
    /// What is wrong, with file and line.
    pub message: String,
}

impl Problem {
    /// Declared again while the former object of the name is being deleted: no trouble, it waits.
    pub const REDECLARED: &'static str = "Redeclared";

    /// Of an object that is being deleted: its name is declared at `place`.
    pub(crate) fn redeclared(place: &str) -> Problem {
        let message = format!("declared again at {place}; created anew when the old one is gone");
        Problem { reason: Problem::REDECLARED.to_owned(), message }
    }

    /// Whether another object of the name is to follow this one.
    pub fn is_redeclared(&self) -> bool {
        self.reason == Problem::REDECLARED
    }
}

/// By source, what there is about its declaration, which is not in force. Not kept: each source says it anew
/// when it starts, and one that is no more says nothing.
pub type Rivals = BTreeMap<String, Problem>;
