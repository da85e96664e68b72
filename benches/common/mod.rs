//! What the benches are written with: figures, and a whole control plane over a scripted world.
#![allow(dead_code, unused_imports, reason = "each bench uses its part")]

mod figure;
mod plane;
mod process;

pub(crate) use figure::{Target, figure};
pub(crate) use plane::{Plane, Setup, is_ready, manifest};
pub(crate) use process::{cpu_time, peak_bytes, resident_bytes};

use tempfile::TempDir;

/// A folder on the disk that the build is on: /tmp may be memory, where an fsync costs nothing.
pub(crate) fn folder() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("the build's folder takes another")
}

/// The runtime that the daemon has.
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().expect("threads can be started")
}
