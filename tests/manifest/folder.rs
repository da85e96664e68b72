//! A watched folder on a real filesystem, treated the way editors, git and Kubernetes treat folders.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use vmlet::manifest::{DirectorySource, FileState, Limits, Patience, Settings, Snapshot};

/// For an event that is expected within a second.
const LIMIT: Duration = Duration::from_secs(60);

/// A source that runs, and what it says. The timed rescan is out of the tests' reach: notifications do it all.
struct Running {
    folder: tempfile::TempDir,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    _stop: DropGuard,
}

impl Running {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("manifests")).unwrap();
        Running::watch(folder, "manifests", Settings::default())
    }

    fn watch(folder: tempfile::TempDir, root: &str, settings: Settings) -> Self {
        let settings = Settings { rescan: Duration::from_secs(3600), ..settings };
        let source = DirectorySource::new(folder.path().join(root), settings);
        let (sender, snapshots) = watch::channel(Arc::default());
        let cancel = CancellationToken::new();
        tokio::spawn(source.run(sender, cancel.clone()));
        Running { folder, snapshots, _stop: cancel.drop_guard() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("manifests").join(name)
    }

    /// Waits for a snapshot; panics with the last one when it does not come.
    async fn wait(&mut self, what: &str, wanted: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
        let last = self.snapshots.clone();
        match tokio::time::timeout(LIMIT, self.snapshots.wait_for(|snapshot| wanted(snapshot))).await {
            Ok(snapshot) => Arc::clone(&snapshot.expect("the source runs")),
            Err(_) => panic!("no snapshot in which {what}; the last: {:#?}", last.borrow()),
        }
    }

    /// Waits until exactly these objects are declared and everything is settled.
    async fn declares(&mut self, names: &[&str]) -> Arc<Snapshot> {
        self.wait(&format!("{names:?} are declared"), |snapshot| {
            snapshot.complete && settled(snapshot) && declared(snapshot) == names
        })
        .await
    }
}

fn settled(snapshot: &Snapshot) -> bool {
    snapshot.files.values().all(|state| *state != FileState::Unsettled)
}

/// `web@web.yaml` for each object, in the order of files.
fn declared(snapshot: &Snapshot) -> Vec<String> {
    let good = |state: &FileState| match state {
        FileState::Good(objects) => Arc::clone(objects),
        _ => Arc::default(),
    };
    let name = |path: &Path, object: &vmlet::object::AnyObject| {
        format!("{}@{}", object.metadata().name, path.display())
    };
    let files = snapshot.files.iter();
    files
        .flat_map(|(path, state)| {
            good(state).iter().map(|located| name(path, &located.object)).collect::<Vec<_>>()
        })
        .collect()
}

fn vm(name: &str) -> String {
    format!(
        "apiVersion: vmlet.dev/v1alpha1\nkind: VM\nmetadata:\n  name: {name}\nspec:\n  image:\n    oci: a/b:c\n"
    )
}

#[tokio::test]
async fn a_file_written_in_two_steps_is_never_seen_half() {
    let mut source = Running::start();
    fs::write(source.path("web.yaml"), vm("web")).unwrap();
    source.declares(&["web@web.yaml"]).await;

    // As a shell's `>` does it: truncate first, content later.
    fs::write(source.path("web.yaml"), "").unwrap();
    let seen = source.wait("the file is unsettled", |snapshot| !settled(snapshot)).await;
    assert_eq!(seen.files[Path::new("web.yaml")], FileState::Unsettled);
    fs::write(source.path("web.yaml"), vm("web2")).unwrap();
    source.declares(&["web2@web.yaml"]).await;
}

#[tokio::test]
async fn a_file_that_stays_empty_declares_nothing() {
    let mut source = Running::start();
    fs::write(source.path("web.yaml"), vm("web")).unwrap();
    source.declares(&["web@web.yaml"]).await;
    fs::write(source.path("web.yaml"), "\n\n").unwrap();
    let snapshot = source.declares(&[]).await;
    assert_eq!(snapshot.files[Path::new("web.yaml")], FileState::Good(Arc::default()));
}

#[tokio::test]
async fn editors_save_by_renaming() {
    let mut source = Running::start();
    fs::write(source.path("web.yaml"), vm("web")).unwrap();
    source.declares(&["web@web.yaml"]).await;

    // Most tools: a temporary file beside it, renamed over it.
    fs::write(source.path("web.yaml.tmp"), vm("web2")).unwrap();
    fs::rename(source.path("web.yaml.tmp"), source.path("web.yaml")).unwrap();
    source.declares(&["web2@web.yaml"]).await;

    // vim: a probe, a swap file, the old file moved to a backup, the new one written, the backup removed.
    fs::write(source.path(".web.yaml.swp"), "swap").unwrap();
    fs::write(source.path("4913"), "").unwrap();
    fs::remove_file(source.path("4913")).unwrap();
    fs::rename(source.path("web.yaml"), source.path("web.yaml~")).unwrap();
    fs::write(source.path("web.yaml"), vm("web3")).unwrap();
    fs::remove_file(source.path("web.yaml~")).unwrap();
    let snapshot = source.declares(&["web3@web.yaml"]).await;
    assert_eq!(snapshot.files.len(), 1);
}

#[tokio::test]
async fn a_file_that_is_renamed_into_its_place_is_believed_at_once() {
    let long = Duration::from_secs(3600);
    let patience = Patience { settle: long, old: long, empty: long };
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("manifests")).unwrap();
    let settings = Settings { patience, ..Settings::default() };
    let mut source = Running::watch(folder, "manifests", settings);
    source.declares(&[]).await;
    fs::write(source.path("web.tmp"), vm("web")).unwrap();
    fs::rename(source.path("web.tmp"), source.path("web.yaml")).unwrap();
    source.declares(&["web@web.yaml"]).await;

    // One that is written in place may have more to come.
    fs::write(source.path("web.yaml"), vm("half")).unwrap();
    source.wait("the file is not settled", |snapshot| !settled(snapshot)).await;
}

#[tokio::test]
async fn errors_are_told_and_mended() {
    let mut source = Running::start();
    fs::write(source.path("web.yaml"), vm("web").replace("image", "imgae")).unwrap();
    let broken = |snapshot: &Snapshot| match snapshot.files.get(Path::new("web.yaml")) {
        Some(FileState::Broken(broken)) => broken.diagnostics[0].message == "spec.imgae is not a field of VM",
        _ => false,
    };
    source.wait("the file is broken", broken).await;
    fs::write(source.path("web.yaml"), vm("web")).unwrap();
    source.declares(&["web@web.yaml"]).await;
}

#[tokio::test]
async fn new_folders_are_read_at_once() {
    let mut source = Running::start();
    source.declares(&[]).await;
    // No pause between the folder and what is in it: its watch comes too late for the file's event.
    fs::create_dir_all(source.path("a/b/c")).unwrap();
    fs::write(source.path("a/b/c/web.yaml"), vm("web")).unwrap();
    source.declares(&["web@a/b/c/web.yaml"]).await;
    fs::write(source.path("a/b/db.yml"), vm("db")).unwrap();
    source.declares(&["web@a/b/c/web.yaml", "db@a/b/db.yml"]).await;
    fs::rename(source.path("a/b"), source.path("z")).unwrap();
    source.declares(&["web@z/c/web.yaml", "db@z/db.yml"]).await;
    fs::remove_dir_all(source.path("z")).unwrap();
    source.declares(&[]).await;
}

#[tokio::test]
async fn a_config_map_is_swapped_as_one() {
    let mut source = Running::start();
    let root = source.path("");
    let publish = |number: u32| {
        let folder = format!("..version_{number}");
        fs::create_dir(root.join(&folder)).unwrap();
        fs::write(root.join(&folder).join("web.yaml"), vm(&format!("web{number}"))).unwrap();
        symlink(&folder, root.join("..data_tmp")).unwrap();
        fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
        if number > 1 {
            fs::remove_dir_all(root.join(format!("..version_{}", number - 1))).unwrap();
        }
    };
    publish(1);
    symlink("..data/web.yaml", root.join("web.yaml")).unwrap();
    source.declares(&["web1@web.yaml"]).await;
    publish(2);
    source.declares(&["web2@web.yaml"]).await;
    publish(3);
    source.declares(&["web3@web.yaml"]).await;
}

#[tokio::test]
async fn a_missing_root_is_not_an_empty_one() {
    let mut source = Running::start();
    fs::write(source.path("web.yaml"), vm("web")).unwrap();
    source.declares(&["web@web.yaml"]).await;

    let root = source.path("");
    fs::remove_dir_all(&root).unwrap();
    let snapshot = source.wait("the root is missing", |snapshot| !snapshot.trouble.is_empty()).await;
    assert!(!snapshot.complete);

    fs::create_dir(&root).unwrap();
    fs::write(source.path("db.yaml"), vm("db")).unwrap();
    source.declares(&["db@db.yaml"]).await;

    // Another folder takes its place without a moment of absence.
    let other = source.folder.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("ci.yaml"), vm("ci")).unwrap();
    fs::rename(&root, source.folder.path().join("old")).unwrap();
    fs::rename(&other, &root).unwrap();
    source.declares(&["ci@ci.yaml"]).await;
    fs::write(source.path("ci.yaml"), vm("ci2")).unwrap();
    source.declares(&["ci2@ci.yaml"]).await;
}

#[tokio::test]
async fn a_root_that_is_a_link_may_be_repointed() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["one", "two"] {
        fs::create_dir(folder.path().join(name)).unwrap();
        fs::write(folder.path().join(name).join("web.yaml"), vm(name)).unwrap();
    }
    symlink("one", folder.path().join("manifests")).unwrap();
    let mut source = Running::watch(folder, "manifests", Settings::default());
    source.declares(&["one@web.yaml"]).await;
    let temporary = source.folder.path().join("next");
    symlink("two", &temporary).unwrap();
    fs::rename(&temporary, source.folder.path().join("manifests")).unwrap();
    source.declares(&["two@web.yaml"]).await;
    fs::write(source.path("web.yaml"), vm("three")).unwrap();
    source.declares(&["three@web.yaml"]).await;
}

#[tokio::test]
async fn only_regular_files_inside_the_root_are_opened() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("manifests");
    fs::create_dir_all(root.join("inside")).unwrap();
    fs::create_dir(folder.path().join("outside")).unwrap();
    fs::write(folder.path().join("outside/secret.yaml"), vm("secret")).unwrap();
    symlink("../outside/secret.yaml", root.join("file.yaml")).unwrap();
    symlink("../outside", root.join("folder")).unwrap();
    symlink("/dev/zero", root.join("device.yaml")).unwrap();
    symlink("nowhere", root.join("dangling.yaml")).unwrap();
    symlink(".", root.join("inside/loop")).unwrap();
    symlink("..", root.join("inside/up")).unwrap();
    symlink("../web.yaml", root.join("inside/alias.yaml")).unwrap();
    fs::write(root.join("web.yaml"), vm("web")).unwrap();
    fs::write(root.join("README.md"), "not a manifest").unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        root.join("pipe.yaml"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();

    let source = DirectorySource::new(root, Settings::default());
    let snapshot = tokio::task::spawn_blocking(move || source.scan_once());
    let snapshot = tokio::time::timeout(LIMIT, snapshot).await.expect("nothing blocks").unwrap();
    assert!(snapshot.complete);
    assert_eq!(declared(&snapshot), ["web@web.yaml"]);
    let refused: Vec<(&str, bool)> = snapshot
        .files
        .iter()
        .map(|(path, state)| (path.to_str().unwrap(), matches!(state, FileState::Broken(_))))
        .collect();
    assert_eq!(
        refused,
        [
            ("dangling.yaml", true),
            ("device.yaml", true),
            ("file.yaml", true),
            ("folder", true),
            ("pipe.yaml", true),
            ("web.yaml", false)
        ]
    );
}

#[tokio::test]
async fn limits_make_a_scan_incomplete() {
    let folder = tempfile::tempdir().unwrap();
    for number in 0..4 {
        fs::write(folder.path().join(format!("{number}.yaml")), vm("web")).unwrap();
    }
    fs::create_dir_all(folder.path().join("a/b")).unwrap();
    let scan = |files, depth| {
        let settings =
            Settings { limits: Limits { files, depth, ..Limits::default() }, ..Settings::default() };
        DirectorySource::new(folder.path().to_owned(), settings).scan_once()
    };
    assert!(scan(4, 2).complete);
    assert!(!scan(3, 2).complete);
    assert!(!scan(4, 1).complete);
}

#[tokio::test]
async fn a_git_checkout_is_followed() {
    let mut source = Running::start();
    let root = source.path("");
    let git = |arguments: &[&str]| {
        let output = std::process::Command::new("git")
            .args(["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main", "-C"])
            .arg(&root)
            .args(arguments)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .output()
            .expect("git is installed (apt install git)");
        assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    git(&["init", "-q"]);
    fs::write(root.join("web.yaml"), vm("web")).unwrap();
    fs::write(root.join("db.yaml"), vm("db")).unwrap();
    git(&["add", "."]);
    git(&["commit", "-qm", "one"]);
    git(&["checkout", "-qb", "two"]);
    fs::remove_file(root.join("db.yaml")).unwrap();
    fs::create_dir(root.join("new")).unwrap();
    fs::write(root.join("new/db.yaml"), vm("db")).unwrap();
    fs::write(root.join("web.yaml"), vm("web2")).unwrap();
    git(&["add", "-A"]);
    git(&["commit", "-qm", "two"]);
    source.declares(&["db@new/db.yaml", "web2@web.yaml"]).await;
    git(&["checkout", "-q", "main"]);
    source.declares(&["db@db.yaml", "web@web.yaml"]).await;
    git(&["checkout", "-q", "two"]);
    source.declares(&["db@new/db.yaml", "web2@web.yaml"]).await;
}
