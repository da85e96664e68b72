//! Folders of manifests, read once.

use std::fs;
use std::io::Read;
use std::path::Path;

use crate::manifest::{Diagnostic, DirectorySource, FileState, MAX_FILE_SIZE, Settings, Snapshot};

/// What a folder declares, if all of it is valid.
///
/// # Errors
/// Everything that is wrong with it.
pub(super) fn folder(root: &Path) -> Result<Snapshot, Vec<Diagnostic>> {
    let snapshot = DirectorySource::new(root.to_owned(), Settings::default()).scan_once();
    let mut wrong: Vec<Diagnostic> =
        snapshot.trouble.iter().map(|trouble| Diagnostic::of_file(root, trouble)).collect();
    for (path, state) in &snapshot.files {
        match state {
            FileState::Good(_) => {}
            FileState::Broken(broken) => {
                // As it was named, not as it is found.
                let named = |found: &Diagnostic| Diagnostic { path: root.join(path), ..found.clone() };
                wrong.extend(broken.diagnostics.iter().map(named));
            }
            FileState::Unsettled => {
                let message = "the file is being written or cannot be read";
                wrong.push(Diagnostic::of_file(root.join(path), message));
            }
        }
    }
    if wrong.is_empty() { Ok(snapshot) } else { Err(wrong) }
}

/// A file's bytes, one more than allowed at most: the decoder then says that it is too long.
///
/// # Errors
/// When it cannot be read.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, Vec<Diagnostic>> {
    let mut bytes = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(MAX_FILE_SIZE + 1).read_to_end(&mut bytes));
    match read {
        Ok(_) => Ok(bytes),
        Err(error) => Err(vec![Diagnostic::of_file(path, &format!("the file cannot be read: {error}"))]),
    }
}

/// A folder of one file.
///
/// # Errors
/// Everything that is wrong with it.
pub(super) fn one_file(path: &Path) -> Result<Snapshot, Vec<Diagnostic>> {
    let bytes = read(path)?;
    let state = FileState::of(path, &bytes);
    if let FileState::Broken(broken) = &state {
        return Err(broken.diagnostics.clone());
    }
    let files = path.file_name().map(|name| (name.into(), state)).into_iter().collect();
    Ok(Snapshot { complete: true, files, trouble: Vec::new() })
}
