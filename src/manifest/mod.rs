//! Manifests: files in, declared objects and diagnostics out.

mod check;
mod crd;
mod decode;
mod desired;
mod diagnostic;
mod events;
mod keep;
mod reference;
mod scan;
mod shape;
mod source;
mod stability;
mod tree;
mod watcher;

#[cfg(test)]
mod tests;

pub use check::{Finding, object_from_value};
pub use crd::{crd, schema};
pub use decode::{Decoded, Located, MAX_FILE_SIZE, decode};
pub use desired::{Change, Held, MassDeleteGuard, MassDeleteSettings, changes};
pub use diagnostic::Diagnostic;
pub use keep::keep;
pub use reference::reference;
pub use scan::Limits;
pub use source::{Broken, DirectorySource, FileState, Settings, Snapshot};
pub use stability::Patience;
