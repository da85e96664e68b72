//! Manifests: a folder of files in, what must change in the store out.
//!
//! ```text
//!  bytes ──decode──▶ objects, diagnostics                     pure: read, tree, decode, check, shape
//!  folder ──DirectorySource──▶ Snapshot ──changes──▶ Change   scan, stability, watcher; pure: desired
//!  API types ──shape──▶ reference page, JSON schema, CRD      pure: reference, crd
//! ```
//!
//! Guarantees: any bytes cost bounded time and memory and never panic; every error has a file, a line and a column;
//! files are only ever read; what cannot be read now deletes nothing.

mod check;
mod crd;
mod decode;
mod desired;
mod diagnostic;
mod events;
mod keep;
mod memory;
mod page;
mod read;
mod reference;
mod scan;
mod shape;
mod source;
mod stability;
mod tree;
mod watcher;

#[cfg(test)]
mod tests;

pub(crate) use check::similar;
pub use check::{Finding, object_from_value};
pub use crd::{crd, schema};
pub use decode::{Decoded, Located, MAX_FILE_SIZE, decode};
pub use desired::{About, Change, Held, MassDeleteGuard, MassDeleteSettings, changes};
pub(crate) use desired::{CONFLICT, MASS_DELETE};
pub use diagnostic::Diagnostic;
pub(crate) use keep::broken_files;
pub use keep::{Readiness, keep};
pub(crate) use page::Page;
pub(crate) use reference::fields;
pub use reference::reference;
pub use scan::Limits;
pub use source::{Broken, DirectorySource, FileState, Settings, Snapshot};
pub use stability::Patience;
