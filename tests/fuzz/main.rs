//! Bytes that mean harm, and bytes by chance: everything that an outsider sends ends in a result or an error,
//! within bounded time and memory, and the same bytes end the same way.
//!
//! `VMLET_FUZZ` is the number of inputs for each target (see `driver.rs`); `UPDATE_CORPUS=1` writes the stored
//! corpus anew (see tests/corpus/README.md).
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
#[path = "../common/mod.rs"]
mod common;

mod driver;
mod hostile;
mod seeds;
mod targets;

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A folder of the stored corpus.
fn corpus(kind: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(kind)
}

/// The tests measure the memory of their process, so one at a time runs.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Compares what is stored with what the code makes, or stores it.
fn check_corpus(kind: &str, files: &[(String, Vec<u8>)]) {
    let folder = corpus(kind);
    if std::env::var_os("UPDATE_CORPUS").is_some() {
        std::fs::create_dir_all(&folder).unwrap();
        for (name, bytes) in files {
            std::fs::write(folder.join(name), bytes).unwrap();
        }
    }
    for (name, bytes) in files {
        let stored =
            std::fs::read(folder.join(name)).unwrap_or_else(|error| panic!("{kind}/{name}: {error}"));
        assert!(stored == *bytes, "{kind}/{name} is not what the code makes: run it with UPDATE_CORPUS=1");
    }
}
