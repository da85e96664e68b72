//! What a look remembers, what it may take in, and what notifications mean: one rule a test, by value.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use notify::event::{CreateKind, Flag, ModifyKind, RenameMode};
use notify::{Event, EventKind};

use super::super::memory::{Memory, Seen};
use super::super::root::Stamp;
use super::super::scan::Limits;
use super::super::source::FileState;
use super::super::stability::{Look, Patience, Settling, Verdict};
use super::super::watcher::{News, Scope};

const LONG: Duration = Duration::from_secs(3600);

/// Nothing young is believed but what was renamed into its place.
const PATIENT: Patience = Patience { settle: LONG, old: LONG, empty: LONG };

fn write(dir: &Path, name: &str, vm: &str) {
    let text = format!(
        "apiVersion: vmlet.dev/v1alpha1\nkind: VM\nmetadata: {{name: {vm}}}\nspec: {{image: {{oci: \"a/b:1\"}}}}\n"
    );
    std::fs::write(dir.join(name), text).expect("the folder takes files");
}

fn names(names: &[&str]) -> HashSet<PathBuf> {
    names.iter().map(PathBuf::from).collect()
}

/// A folder with a.yaml and b.yaml, both believed.
fn believed() -> (tempfile::TempDir, Memory) {
    let dir = tempfile::tempdir().expect("a folder");
    write(dir.path(), "a.yaml", "a");
    write(dir.path(), "b.yaml", "b");
    let mut memory = Memory::new(dir.path().to_owned(), PATIENT);
    let seen = memory.look(Limits::default(), false, &names(&["a.yaml", "b.yaml"]));
    assert_eq!(good(&seen), ["a.yaml", "b.yaml"]);
    (dir, memory)
}

fn good(seen: &Seen) -> Vec<&str> {
    let files = seen.snapshot.files.iter();
    let good = files.filter(|(_, state)| matches!(state, FileState::Good(_)));
    good.map(|(path, _)| path.to_str().expect("text")).collect()
}

#[test]
fn what_a_look_may_have_missed_is_not_forgotten() {
    let (_dir, mut memory) = believed();
    let limits = Limits { files: 1, ..Limits::default() };
    assert!(!memory.look(limits, false, &HashSet::new()).snapshot.complete);
    assert_eq!(good(&memory.look(Limits::default(), false, &HashSet::new())), ["a.yaml", "b.yaml"]);
}

#[test]
fn what_is_gone_is_forgotten_and_nothing_else() {
    let (dir, mut memory) = believed();
    std::fs::remove_file(dir.path().join("b.yaml")).expect("it is there");
    assert_eq!(good(&memory.look(Limits::default(), false, &HashSet::new())), ["a.yaml"]);
    write(dir.path(), "b.yaml", "b");
    let seen = memory.look(Limits::default(), false, &HashSet::new());
    assert_eq!(good(&seen), ["a.yaml"], "a new file is not believed for an old one's sake");
    assert_eq!(seen.unsettled, names(&["b.yaml"]));
}

#[test]
fn an_empty_file_is_not_whole_though_it_was_renamed_into_its_place() {
    let (dir, mut memory) = believed();
    std::fs::write(dir.path().join("b.yaml"), " \n").expect("written");
    let seen = memory.look(Limits::default(), false, &names(&["b.yaml"]));
    assert_eq!(good(&seen), ["a.yaml"]);
    assert_eq!(seen.snapshot.files[Path::new("b.yaml")], FileState::Unsettled);
}

#[test]
fn a_refused_file_is_forgotten() {
    let (dir, mut memory) = believed();
    let place = dir.path().join("b.yaml");
    let text = std::fs::read(&place).expect("it is there");
    std::fs::remove_file(&place).expect("it is there");
    std::os::unix::net::UnixListener::bind(&place).expect("a socket");
    let seen = memory.look(Limits::default(), false, &HashSet::new());
    assert!(matches!(seen.snapshot.files[Path::new("b.yaml")], FileState::Broken(_)));
    std::fs::remove_file(&place).expect("it is there");
    std::fs::write(&place, text).expect("written");
    assert_eq!(good(&memory.look(Limits::default(), false, &HashSet::new())), ["a.yaml"]);
}

#[test]
fn a_walk_takes_in_so_much_and_no_more() {
    let dir = tempfile::tempdir().expect("a folder");
    write(dir.path(), "a.yaml", "a");
    write(dir.path(), "b.yaml", "b");
    std::fs::write(dir.path().join("README"), "no manifest").expect("written");
    let each = std::fs::metadata(dir.path().join("a.yaml")).expect("it is there").len();
    let look = |limits: Limits| {
        let mut memory = Memory::new(dir.path().to_owned(), Patience::default());
        memory.look(limits, false, &HashSet::new()).snapshot
    };
    let limits = Limits { entries: 3, bytes: 2 * each, ..Limits::default() };
    assert!(look(limits).complete, "just so much");
    let told = look(Limits { entries: 2, ..limits }).trouble.concat();
    assert!(told.contains("more than 2 entries"), "{told}");
    let told = look(Limits { bytes: 2 * each - 1, ..limits }).trouble.concat();
    assert!(told.contains("MiB of manifests"), "{told}");
}

#[test]
fn links_and_folders_of_a_walk_are_told() {
    let (dir, mut memory) = believed();
    assert!(!memory.look(Limits::default(), false, &HashSet::new()).walked.links);
    std::fs::create_dir(dir.path().join(".hidden")).expect("made");
    write(&dir.path().join(".hidden"), "c.yaml", "c");
    std::os::unix::fs::symlink(".hidden", dir.path().join("shown")).expect("linked");
    let seen = memory.look(Limits::default(), false, &names(&["shown/c.yaml"]));
    assert!(seen.walked.links, "a glance at a file does not tell what a link shows");
    assert_eq!(good(&seen), ["a.yaml", "b.yaml", "shown/c.yaml"]);
    let root = dir.path().canonicalize().expect("it is there");
    let folders: Vec<_> = seen.walked.folders.keys().cloned().collect();
    assert_eq!(folders, [root.clone(), root.join(".hidden")], "what a link leads to is watched");
}

#[test]
fn troubles_are_told_to_a_bound() {
    let dir = tempfile::tempdir().expect("a folder");
    for number in 0..12 {
        std::fs::create_dir_all(dir.path().join(format!("{number}/deeper"))).expect("made");
    }
    let mut memory = Memory::new(dir.path().to_owned(), PATIENT);
    let limits = Limits { depth: 1, ..Limits::default() };
    assert_eq!(memory.look(limits, false, &HashSet::new()).snapshot.trouble.len(), 10);
}

fn look(content: u8, modified: u32) -> Look {
    let modified = Duration::from_millis(modified.into());
    let stamp = Stamp { device: 1, inode: 1, size: content.into(), modified, changed: modified };
    Look { stamp, digest: [content; 32], blank: content == 0 }
}

#[test]
fn a_stamp_stands_for_what_is_believed_and_for_nothing_that_may_come() {
    let (start, mut settling) = (Instant::now(), Settling::default());
    let patience = Patience::default();
    assert_eq!(settling.stamp(), None);
    assert_eq!(settling.look(look(1, 0), LONG, start, &patience), Verdict::New);
    assert_eq!(settling.stamp(), Some(&look(1, 0).stamp));
    assert_eq!(settling.look(look(2, 5), Duration::ZERO, start, &patience), Verdict::Wait);
    assert_eq!(settling.stamp(), None, "something else is there");
    assert_eq!(settling.look(look(1, 9), Duration::ZERO, start, &patience), Verdict::Same);
    assert_eq!(settling.stamp(), Some(&look(1, 9).stamp), "it was written anew, and is what it was");
    let later = start + LONG;
    settling.look(look(2, 5), Duration::ZERO, start, &patience);
    assert_eq!(settling.look(look(2, 5), Duration::ZERO, later, &patience), Verdict::New);
    assert_eq!(settling.stamp(), Some(&look(2, 5).stamp));
}

#[test]
fn an_empty_file_is_believed_when_it_is_old_or_was_long_so() {
    let (start, patience) = (Instant::now(), Patience::default());
    let old = Settling::default().look(look(0, 0), patience.empty, start, &patience);
    assert_eq!(old, Verdict::New);
    let mut young = Settling::default();
    assert_eq!(young.look(look(0, 0), Duration::ZERO, start, &patience), Verdict::Wait);
    assert_eq!(young.look(look(0, 0), Duration::ZERO, start + patience.empty, &patience), Verdict::New);
}

fn scope() -> Scope {
    Scope {
        folders: ["/m", "/m/sub"].map(PathBuf::from).into(),
        spine: ["/m", "/"].map(PathBuf::from).into(),
    }
}

fn noted(events: &[Event]) -> News {
    let mut news = News::default();
    events.iter().for_each(|event| news.note(&Ok(event.clone()), &scope()));
    news
}

fn created(path: &str) -> Event {
    Event::new(EventKind::Create(CreateKind::File)).add_path(path.into())
}

fn renamed(path: &str) -> Event {
    Event::new(EventKind::Modify(ModifyKind::Name(RenameMode::To))).add_path(path.into())
}

#[test]
fn events_without_a_place_and_lost_ones_may_mean_anything() {
    assert_eq!(noted(&[Event::new(EventKind::Create(CreateKind::File))]).touched, None);
    let lost = created("/m/a.yaml").set_flag(Flag::Rescan);
    assert_eq!(noted(&[lost]).touched, None);
    assert_eq!(noted(&[created("/m/sub/a.yaml")]).touched, Some(names(&["/m/sub/a.yaml"])));
    assert_eq!(noted(&[created("/m/other/a.yaml")]).touched, Some(HashSet::new()), "not in a folder of ours");
    assert_eq!(noted(&[created("/")]).touched, None, "the root's own place");
}

#[test]
fn so_many_files_are_touched_alone_and_no_more() {
    let events = |count: usize| (0..count).map(|n| created(&format!("/m/{n}.yaml"))).collect::<Vec<_>>();
    assert_eq!(noted(&events(100)).touched.map(|touched| touched.len()), Some(100));
    assert_eq!(noted(&events(101)).touched, None);
}

#[test]
fn what_was_renamed_is_noted_until_it_is_written_to() {
    assert_eq!(noted(&[renamed("/m/a.yaml")]).renamed, names(&["/m/a.yaml"]));
    assert_eq!(noted(&[renamed("/m/a.yaml"), created("/m/a.yaml")]).renamed, HashSet::new());
}
