//! What a glance at some files tells, and when only a walk does.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::{CreateKind, Flag};
use notify::{Event, EventKind};

use super::super::memory::Memory;
use super::super::scan::Limits;
use super::super::source::FileState;
use super::super::stability::Patience;
use super::super::watcher::{News, Scope};

fn write(dir: &Path, name: &str, vm: &str) {
    let text = format!(
        "apiVersion: vmlet.dev/v1alpha1\nkind: VM\nmetadata: {{name: {vm}}}\nspec: {{image: {{oci: \"a/b:1\"}}}}\n"
    );
    std::fs::write(dir.join(name), text).expect("the folder takes files");
}

/// A folder with a.yaml and b.yaml, seen once.
fn seen() -> (tempfile::TempDir, Memory) {
    let dir = tempfile::tempdir().expect("a folder");
    write(dir.path(), "a.yaml", "a");
    write(dir.path(), "b.yaml", "b");
    let patience = Patience { settle: Duration::ZERO, old: Duration::ZERO, empty: Duration::ZERO };
    let mut memory = Memory::new(dir.path().to_owned(), patience);
    let seen = memory.look(Limits::default(), false, &HashSet::new());
    assert!(seen.snapshot.complete && seen.unsettled.is_empty() && !seen.walked.links);
    (dir, memory)
}

fn glance(memory: &mut Memory, paths: &[&str]) -> Option<Vec<(String, String)>> {
    let paths: BTreeSet<PathBuf> = paths.iter().map(PathBuf::from).collect();
    let files = memory.glance(&paths, &HashSet::new())?.states;
    let name = |state: &FileState| match state {
        FileState::Good(objects) => objects[0].object.key().name,
        other => panic!("not a good file: {other:?}"),
    };
    Some(files.iter().map(|(path, state)| (path.display().to_string(), name(state))).collect())
}

#[test]
fn a_glance_reads_what_was_touched_and_nothing_else() {
    let (dir, mut memory) = seen();
    write(dir.path(), "a.yaml", "edited");
    write(dir.path(), "b.yaml", "unseen");
    std::fs::write(dir.path().join("a.tmp"), "").expect("the folder takes files");
    let edited = vec![("a.yaml".to_owned(), "edited".to_owned())];
    assert_eq!(glance(&mut memory, &["a.yaml", "a.tmp", "gone.tmp"]), Some(edited));
}

#[test]
fn a_walk_tells_of_what_came_went_or_is_no_plain_file() {
    let (dir, mut memory) = seen();
    assert_eq!(glance(&mut memory, &[]), None, "nothing is named");
    write(dir.path(), "new.yaml", "new");
    assert_eq!(glance(&mut memory, &["new.yaml"]), None, "it may be one too many");
    std::fs::create_dir(dir.path().join("folder")).expect("a new folder");
    assert_eq!(glance(&mut memory, &["folder"]), None, "there are files in it");
    std::os::unix::fs::symlink(dir.path(), dir.path().join("link")).expect("a new link");
    assert_eq!(glance(&mut memory, &["link"]), None, "it leads somewhere");
    std::fs::remove_file(dir.path().join("a.yaml")).expect("it is there");
    assert_eq!(glance(&mut memory, &["a.yaml"]), None, "only a whole walk makes it absent");
    std::os::unix::fs::symlink("b.yaml", dir.path().join("a.yaml")).expect("a new link");
    assert_eq!(glance(&mut memory, &["a.yaml"]), None, "it is another file now");
}

fn touched(events: &[notify::Result<Event>]) -> Option<Vec<PathBuf>> {
    let scope = Scope {
        folders: ["/m", "/m/sub"].map(PathBuf::from).into(),
        spine: ["/m", "/"].map(PathBuf::from).into(),
    };
    let mut news = News::default();
    for event in events {
        news.note(event, &scope);
    }
    let mut paths: Vec<PathBuf> = news.below(Path::new("/m")).touched?.into_iter().collect();
    paths.sort();
    Some(paths)
}

fn event(path: &str) -> notify::Result<Event> {
    Ok(Event::new(EventKind::Create(CreateKind::File)).add_path(path.into()))
}

#[test]
fn only_entries_of_folders_are_touched_alone() {
    let both = touched(&[event("/m/a.yaml"), event("/m/sub/b.yaml"), event("/elsewhere")]);
    assert_eq!(both, Some(vec!["a.yaml".into(), "sub/b.yaml".into()]));
    assert_eq!(touched(&[event("/m/a.yaml"), event("/m/sub")]), None, "a folder");
    assert_eq!(touched(&[event("/m")]), None, "the root");
    let lost = Event::new(EventKind::Other).set_flag(Flag::Rescan);
    assert_eq!(touched(&[Ok(lost), event("/m/a.yaml")]), None, "events were lost");
    assert_eq!(touched(&[Err(notify::Error::generic("broken"))]), None, "an error");
    let many: Vec<_> = (0..1000).map(|number| event(&format!("/m/{number}.yaml"))).collect();
    assert_eq!(touched(&many), None, "a walk is cheaper");
}
