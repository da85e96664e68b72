//! Which init system an image has.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

/// Links followed in one look-up, as many as the kernel follows.
const LINKS: usize = 40;

/// An init system, by how it is spoken to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum InitSystem {
    /// Reports its default target through `NOTIFY_SOCKET`, powers off at SIGRTMIN+4 (systemd(1)).
    Systemd(PathBuf),
    /// Powers off at SIGPWR: openrc-init, and sysvinit by its `powerwait` entry.
    Other(PathBuf),
}

impl InitSystem {
    pub(crate) fn path(&self) -> &Path {
        match self {
            InitSystem::Systemd(path) | InitSystem::Other(path) => path,
        }
    }
}

/// The init system under `root`, by the path that starts it. Busybox is none: its init without an
/// inittab serves consoles only, and images hold it as a tool box.
pub(crate) fn detect(root: &Path) -> Option<InitSystem> {
    let candidates = [
        "/sbin/init",
        "/usr/sbin/init",
        "/lib/systemd/systemd",
        "/usr/lib/systemd/systemd",
        "/sbin/openrc-init",
    ];
    candidates.into_iter().find_map(|candidate| {
        let target = resolve(root, Path::new(candidate))?;
        let metadata = fs::metadata(root.join(target.strip_prefix("/").ok()?)).ok()?;
        if !metadata.is_file() || metadata.permissions().mode() & 0o111 == 0 {
            return None;
        }
        let name = target.file_name()?.to_str()?;
        if name.starts_with("busybox") || is_busybox(root, &metadata) {
            return None;
        }
        let path = PathBuf::from(candidate);
        Some(if name == "systemd" { InitSystem::Systemd(path) } else { InitSystem::Other(path) })
    })
}

/// Busybox can be installed as hard links, too.
fn is_busybox(root: &Path, metadata: &fs::Metadata) -> bool {
    ["/bin/busybox", "/usr/bin/busybox", "/bin/sh"].into_iter().any(|path| {
        let other = resolve(root, Path::new(path))
            .and_then(|path| fs::metadata(root.join(path.strip_prefix("/").ok()?)).ok());
        other.is_some_and(|other| (other.dev(), other.ino()) == (metadata.dev(), metadata.ino()))
    })
}

/// Follows symbolic links as if `root` were `/`. The result is absolute within it.
fn resolve(root: &Path, path: &Path) -> Option<PathBuf> {
    let mut done = PathBuf::from("/");
    let mut todo: Vec<PathBuf> = parts(path);
    let mut links = 0;
    while let Some(part) = todo.pop() {
        if part == Path::new("..") {
            done.pop();
            continue;
        }
        let next = done.join(&part);
        match fs::read_link(root.join(next.strip_prefix("/").ok()?)) {
            Ok(target) => {
                links += 1;
                if links > LINKS {
                    return None;
                }
                if target.is_absolute() {
                    done = PathBuf::from("/");
                }
                todo.extend(parts(&target));
            }
            Err(_) => done = next,
        }
    }
    Some(done)
}

/// The components to walk, last first.
fn parts(path: &Path) -> Vec<PathBuf> {
    let wanted = |part: &Component| matches!(part, Component::Normal(_) | Component::ParentDir);
    path.components().filter(wanted).map(|part| PathBuf::from(part.as_os_str())).rev().collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    struct Root(tempfile::TempDir);

    impl Root {
        fn new() -> Self {
            Root(tempfile::tempdir().unwrap())
        }

        fn at(&self, path: &str) -> PathBuf {
            let path = self.0.path().join(&path[1..]);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            path
        }

        fn program(self, path: &str) -> Self {
            let file = self.at(path);
            fs::write(&file, path).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
            self
        }

        fn link(self, path: &str, target: &str) -> Self {
            symlink(target, self.at(path)).unwrap();
            self
        }

        fn detect(&self) -> Option<InitSystem> {
            detect(self.0.path())
        }
    }

    #[test]
    fn a_merged_debian_with_systemd_is_found() {
        let root = Root::new()
            .program("/usr/lib/systemd/systemd")
            .link("/usr/sbin/init", "/lib/systemd/systemd")
            .link("/sbin", "usr/sbin")
            .link("/lib", "usr/lib");
        assert_eq!(root.detect(), Some(InitSystem::Systemd("/sbin/init".into())));
    }

    #[test]
    fn systemd_without_sbin_init_is_found() {
        let root = Root::new().program("/lib/systemd/systemd");
        assert_eq!(root.detect(), Some(InitSystem::Systemd("/lib/systemd/systemd".into())));
    }

    #[test]
    fn other_inits_are_found() {
        assert_eq!(Root::new().program("/sbin/init").detect(), Some(InitSystem::Other("/sbin/init".into())));
        assert_eq!(
            Root::new().program("/sbin/openrc-init").detect(),
            Some(InitSystem::Other("/sbin/openrc-init".into()))
        );
    }

    #[test]
    fn busybox_is_no_init_system() {
        let alpine = Root::new().program("/bin/busybox").link("/sbin/init", "/bin/busybox");
        assert_eq!(alpine.detect(), None);
        let hard = Root::new().program("/bin/busybox");
        fs::hard_link(hard.at("/bin/busybox"), hard.at("/sbin/init")).unwrap();
        assert_eq!(hard.detect(), None);
    }

    #[test]
    fn broken_links_loops_and_plain_files_are_no_init_system() {
        assert_eq!(Root::new().detect(), None);
        assert_eq!(Root::new().link("/sbin/init", "/lib/systemd/systemd").detect(), None);
        assert_eq!(Root::new().link("/sbin/init", "init").detect(), None);
        assert_eq!(Root::new().link("/sbin/init", "../../../../etc/passwd").detect(), None);
        let root = Root::new();
        fs::write(root.at("/sbin/init"), "no program").unwrap();
        assert_eq!(root.detect(), None);
    }
}
