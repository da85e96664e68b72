//! What has a name under `images/` is on disk: strace tells what was synced before it got there.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::process::Command;

use vmlet::image::{HostFiles, ImageStore, Settings, Source};

use super::bundle::{at, whole};
use super::common::oci::{Item, tar};
use super::{Setup, image};

/// The system calls on files that a process made, in their order: a name and the paths after it. A sync is there
/// once it is done, a rename from when it begins.
fn calls(record: &str) -> Vec<(String, Vec<PathBuf>)> {
    let mut begun: HashMap<&str, &str> = HashMap::new();
    let mut calls = Vec::new();
    for line in record.lines() {
        let (thread, line) = line.trim_start().split_once(' ').unwrap();
        let line = line.trim_start();
        let call = if line.starts_with("<... ") {
            begun.remove(thread).filter(|call| call.contains("sync("))
        } else if line.ends_with("<unfinished ...>") {
            begun.insert(thread, line);
            Some(line).filter(|call| call.starts_with("rename"))
        } else {
            Some(line).filter(|line| line.contains('('))
        };
        let Some((name, arguments)) = call.and_then(|call| call.split_once('(')) else { continue };
        let quotes = if name.starts_with("rename") { ['"', '"'] } else { ['<', '>'] };
        let paths = arguments.split(quotes).skip(1).step_by(2).map(PathBuf::from).collect();
        calls.push((name.to_owned(), paths));
    }
    calls
}

/// All files and folders below one, and itself, by their names in it.
fn walk(folder: &Path, name: &Path, found: &mut BTreeSet<PathBuf>) {
    found.insert(name.to_owned());
    for entry in std::fs::read_dir(folder.join(name)).unwrap() {
        let entry = entry.unwrap();
        let name = name.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            walk(folder, &name, found);
        } else {
            found.insert(name);
        }
    }
}

/// Has an image installed under strace, and compares.
fn is_synced(kind: &str, path: &Path) {
    let state = tempfile::tempdir().unwrap();
    let record = state.path().join("record");
    let output = Command::new("strace")
        .args(["-f", "-y", "-s", "4096", "-e", "trace=fsync,fdatasync,/^rename", "-o"])
        .arg(&record)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "durable::installed_elsewhere", "--ignored"])
        .envs([("KIND", kind), ("SOURCE", path.to_str().unwrap())])
        .env("STATE", state.path().join("state"))
        .output()
        .expect("strace runs (scripts/install-deps.sh installs it)");
    assert!(output.status.success(), "{kind}: {}", String::from_utf8_lossy(&output.stdout));
    let calls = calls(&std::fs::read_to_string(&record).unwrap());
    let images = state.path().join("state/images");
    let named = calls.iter().position(|(name, paths)| {
        name.starts_with("rename") && paths.last().is_some_and(|to| to.parent() == Some(&images))
    });
    let named = named.expect("it gets its name by a rename");
    let synced = |calls: &[(String, Vec<PathBuf>)]| -> BTreeSet<PathBuf> {
        let syncs = calls.iter().filter(|(name, _)| name.ends_with("sync"));
        syncs.flat_map(|(_, paths)| paths.clone()).collect()
    };
    let [from, to] = &calls[named].1[..] else { panic!("{:?}", calls[named]) };
    let mut made = BTreeSet::new();
    walk(to, Path::new(""), &mut made);
    assert!(made.len() > 2, "{kind}: {made:?}");
    let before = synced(&calls[..named]);
    for name in made {
        assert!(before.contains(&from.join(&name)), "{kind}: {name:?} is not synced: {before:?}");
    }
    assert!(synced(&calls[named..]).contains(&images), "{kind}: its name is not synced");
}

#[test]
fn what_is_installed_is_on_disk() {
    let setup = Setup::new();
    let root = setup.ext4("root.ext4", "^has_journal");
    is_synced("bundle", &setup.write("a.tar", whole(&root)));
    let modules = [
        Item::file("rootfs.tar", tar(&[Item::file("x", "1")])),
        Item::file("kernel", "k"),
        // Their folders are nowhere else.
        Item::file("modules/a/b/c.ko", "m"),
        Item::dir("modules/empty/one"),
    ];
    is_synced("bundle", &setup.write("b.tar", tar(&modules)));
    let layout = setup.path("layout");
    image("one").write_layout(&layout, "1");
    is_synced("layout", &layout);
    is_synced("files", &root);
}

/// Installs what the environment names.
#[tokio::test]
#[ignore = "others run it in an environment of their making"]
async fn installed_elsewhere() {
    let named = |name: &str| std::env::var(name).unwrap();
    let path = PathBuf::from(named("SOURCE"));
    let source = match named("KIND").as_str() {
        "bundle" => at(vmlet::image::Place::Path(path), None),
        "layout" => super::layout::layout(path),
        _ => Source::Files(Box::new(HostFiles { root: path, kernel: None, initrd: None, modules: None })),
    };
    let state = named("STATE");
    let store = ImageStore::open(Path::new(&state), Settings::default()).unwrap();
    let setup = Setup { state: tempfile::tempdir().unwrap(), host: tempfile::tempdir().unwrap(), store };
    setup.get(&source).await;
}
