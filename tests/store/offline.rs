//! A store without a daemon: looked at without a trace, and replaced without a loss.

use std::fs;
use std::path::Path;

use tempfile::TempDir;
use vmlet::store::{ClosedStore, ClosedStoreError, Export, Store, import};

use super::support::*;

async fn of_one(name: &str) -> Export {
    let (other, _backend) = Store::in_memory();
    declare(&other, vm(name, "")).await;
    other.export().unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    objects(&open(dir).unwrap()).into_keys().map(|key| key.name).collect()
}

/// The files of a folder's log, with what is in them.
fn log(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let files = fs::read_dir(dir.join("db")).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files
        .filter(|path| path.is_file())
        .map(|path| (path.display().to_string(), fs::read(&path).unwrap()))
        .collect();
    files.sort();
    files
}

#[tokio::test]
async fn a_look_at_a_closed_store_changes_no_byte_of_it() {
    let dir = TempDir::new().unwrap();
    filled(dir.path()).await;
    let before = log(dir.path());
    assert_eq!(ClosedStore::take(dir.path()).unwrap().read().unwrap().counts().vms, 100);
    assert!(log(dir.path()) == before);
}

#[tokio::test]
async fn an_import_replaces_a_store_only_if_told_to_and_keeps_it_aside() {
    let dir = TempDir::new().unwrap();
    import(dir.path(), &of_one("old").await, false).unwrap();
    assert_eq!(names(dir.path()), ["old"]);
    let new = of_one("new").await;
    let refused = |left: &str| {
        let refused = import(dir.path(), &new, false);
        assert!(matches!(refused, Err(ClosedStoreError::Exists(_))), "over {left}: {refused:?}");
    };
    refused("a log and its copy");
    fs::rename(dir.path().join("export.json"), dir.path().join("kept")).unwrap();
    refused("a log");
    fs::rename(dir.path().join("kept"), dir.path().join("export.json")).unwrap();
    fs::rename(dir.path().join("db"), dir.path().join("kept")).unwrap();
    refused("a copy, which the next start would restore");
    fs::rename(dir.path().join("kept"), dir.path().join("db")).unwrap();

    let aside = import(dir.path(), &new, true).unwrap().expect("there was one");
    assert!(aside.join("db").exists());
    let kept = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
    let kept: Vec<_> = kept.filter(|path| path.to_string_lossy().contains("export.replaced-")).collect();
    assert!(kept.len() == 1 && fs::read_to_string(&kept[0]).unwrap().contains("vm/default/old"));
    let copied = fs::read_to_string(dir.path().join("export.json")).unwrap();
    assert!(
        copied.contains("vm/default/new") && !copied.contains("vm/default/old"),
        "nothing restores the old one"
    );
    assert_eq!(names(dir.path()), ["new"]);
}

#[test]
fn a_copy_of_another_format_is_not_read() {
    let text = r#"{"format": 1, "takenAt": "2026-01-01T00:00:00Z", "rows": {}}"#;
    let error = Export::read(text.as_bytes()).unwrap_err();
    assert!(error.contains("it is of format 1"), "{error}");
}
