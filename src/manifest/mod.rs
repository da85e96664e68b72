//! Manifests: files in, declared objects and diagnostics out.

mod check;
mod decode;
mod diagnostic;
mod events;
mod scan;
mod shape;
mod source;
mod stability;
mod tree;
mod watcher;

#[cfg(test)]
mod tests;

pub use check::{Finding, object_from_value};
pub use decode::{Decoded, Located, MAX_FILE_SIZE, decode};
pub use diagnostic::Diagnostic;
pub use scan::Limits;
pub use source::{DirectorySource, FileState, Settings, Snapshot};
pub use stability::Patience;
