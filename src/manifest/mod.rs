//! Manifests: a folder of files in, what must change in the store out.
//!
//! ```text
//!  bytes ──decode──▶ objects, diagnostics                     pure: read, tree, decode, check, shape
//!  folder ──DirectorySource──▶ Snapshot                       source: scan, root, stability, watcher, events, memory
//!  Snapshot ──changes──▶ Change ──keep──▶ store, events       pure: desired, mass_delete; keep, recorder
//!  API types ──shape──▶ reference page, JSON schema, CRD      pure: reference, crd
//! ```
//!
//! Guarantees: any bytes cost bounded time and memory and never panic; every error has a file, a line and a column;
//! files are only ever read; what cannot be read now deletes nothing.

mod change;
mod check;
mod crd;
mod decode;
mod desired;
mod diagnostic;
mod events;
mod keep;
mod mass_delete;
mod memory;
mod page;
mod read;
mod readiness;
mod recorder;
mod reference;
mod root;
mod scan;
mod shape;
mod source;
mod stability;
mod tree;
mod watcher;

#[cfg(test)]
mod tests;

pub use change::{About, Change, Held};
pub(crate) use change::{CONFLICT, MASS_DELETE};
pub(crate) use check::similar;
pub use check::{Finding, object_from_value};
pub use crd::{crd, schema};
pub use decode::{Decoded, Located, MAX_FILE_SIZE, decode};
pub use desired::changes;
pub use diagnostic::Diagnostic;
pub use keep::keep;
pub use mass_delete::{MassDeleteGuard, MassDeleteSettings};
pub(crate) use page::Page;
pub use readiness::Readiness;
pub(crate) use recorder::broken_files;
pub(crate) use reference::fields;
pub use reference::reference;
pub use scan::Limits;
pub use source::{Broken, DirectorySource, FileState, Settings, Snapshot};
pub use stability::Patience;
