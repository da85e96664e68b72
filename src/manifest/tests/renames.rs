//! Which files are known to be whole by how they came into their places.

use std::collections::HashSet;
use std::path::PathBuf;

use notify::event::{CreateKind, DataChange, ModifyKind, RenameMode};
use notify::{Event, EventKind};

use super::super::watcher::note_renamed;

fn whole(events: &[(EventKind, &[&str])]) -> Vec<PathBuf> {
    let mut renamed = HashSet::new();
    for (kind, paths) in events {
        let paths = paths.iter().map(PathBuf::from).collect();
        note_renamed(&Event { kind: *kind, paths, attrs: Default::default() }, &mut renamed);
    }
    renamed.into_iter().collect()
}

const TO: EventKind = EventKind::Modify(ModifyKind::Name(RenameMode::To));
const BOTH: EventKind = EventKind::Modify(ModifyKind::Name(RenameMode::Both));
const FROM: EventKind = EventKind::Modify(ModifyKind::Name(RenameMode::From));
const WRITTEN: EventKind = EventKind::Modify(ModifyKind::Data(DataChange::Any));
const CREATED: EventKind = EventKind::Create(CreateKind::File);

#[test]
fn a_file_is_whole_until_it_is_written_to() {
    assert_eq!(whole(&[(TO, &["/m/a.yaml"])]), [PathBuf::from("/m/a.yaml")]);
    assert_eq!(whole(&[(BOTH, &["/m/a.tmp", "/m/a.yaml"])]), [PathBuf::from("/m/a.yaml")]);
    assert_eq!(whole(&[(FROM, &["/m/a.yaml"]), (CREATED, &["/m/b.yaml"])]), Vec::<PathBuf>::new());
    assert_eq!(whole(&[(TO, &["/m/a.yaml"]), (WRITTEN, &["/m/a.yaml"])]), Vec::<PathBuf>::new());
    assert_eq!(whole(&[(TO, &["/m/a.yaml"]), (CREATED, &["/m/a.yaml"])]), Vec::<PathBuf>::new());
}
