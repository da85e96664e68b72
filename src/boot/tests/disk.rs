//! Kernels in a disk that nobody mounts.

use super::*;
use crate::image::ext4;

/// A disk by the writer that images are made with, holding a kernel of this release, named by it or not.
fn disk(dir: &Path, name: &str, release: &str, modules: &[(&str, &str)]) -> PathBuf {
    let path = dir.join("disk.ext4");
    let file =
        fs::File::options().read(true).write(true).create(true).truncate(true).open(&path).expect("made");
    let limits = ext4::Limits { max_bytes: 1 << 30, max_inodes: 1000 };
    let mut builder = ext4::Builder::new(file, [7; 16], limits).expect("begun");
    let mut put = |path: &str, bytes: Result<&[u8], &str>| {
        let mut at = builder.root();
        let (folders, name) = path.rsplit_once('/').unwrap_or(("", path));
        for folder in folders.split('/').filter(|folder| !folder.is_empty()) {
            at = match builder.lookup(at, folder.as_bytes()) {
                Some((inode, _)) => inode,
                None => builder.mkdir(at, folder.as_bytes(), meta(0o755)).expect("made"),
            };
        }
        match bytes {
            Ok(bytes) => {
                let mut writer = builder.create(at, name.as_bytes(), meta(0o644)).expect("made");
                writer.append(bytes).expect("written");
                writer.finish().expect("written");
            }
            Err(target) => {
                builder.symlink(at, name.as_bytes(), target.as_bytes(), meta(0o777)).expect("made");
            }
        }
    };
    // As merged systems have it.
    put("lib", Err("usr/lib"));
    put(&format!("boot/{name}"), Ok(&installed(release)));
    put("boot/vmlinuz-loop", Err("vmlinuz-loop"));
    let folder = format!("usr/lib/modules/{release}");
    for (path, depends) in modules {
        put(&format!("{folder}/kernel/{path}"), Ok(&module(depends)));
    }
    put(&format!("{folder}/modules.builtin"), Ok(b"kernel/fs/ext4/ext4.ko\n"));
    put(&format!("{folder}/build"), Err("/"));
    // Long attributes make other disks.
    let long = (name == "vmlinuz-virt").then(|| (b"user.long".to_vec(), vec![7; 9000]));
    let root = ext4::Meta { xattrs: long.into_iter().collect(), ..meta(0o755) };
    builder.set_meta(builder.root(), root).expect("set");
    builder.finish().expect("whole");
    path
}

fn meta(mode: u16) -> ext4::Meta {
    ext4::Meta { mode, ..ext4::Meta::default() }
}

#[test]
fn a_kernel_in_a_disk_is_found_with_its_modules() {
    let (host, modules) = (tempfile::tempdir().expect("a folder"), module_folder());
    let cache = open(&settings(host.path(), modules.path()));
    let make = |disk: PathBuf, paths: KernelPaths| {
        runtime().block_on(cache.make(&KernelRequest::Disk { disk, paths }))
    };
    for name in ["vmlinuz-6.9.1-in", "vmlinuz-virt"] {
        let made = make(disk(host.path(), name, "6.9.1-in", &MODULES), KernelPaths::default()).expect(name);
        let files = cache.files(Some(&made)).expect("there");
        assert_eq!(
            (files.release.as_str(), fs::read(&files.kernel).expect("copied")),
            ("6.9.1-in", installed("6.9.1-in"))
        );
        let order =
            entries(&files.initramfs).into_iter().find(|entry| entry.0 == "modules/order").expect("there").3;
        assert_eq!(order, LOAD_ORDER.map(|name| format!("{name}.ko\n")).concat().into_bytes());
    }
    let named = KernelPaths { kernel: Some("/boot/vmlinuz-virt".into()), modules: None };
    make(disk(host.path(), "vmlinuz-virt", "6.9.1-in", &MODULES), named.clone()).expect("named");

    let refused = |disk: PathBuf, paths: KernelPaths| {
        let error = make(disk, paths).expect_err("refused");
        assert!(!error.transient && error.message.starts_with("in the image: "), "{error}");
        error
    };
    let error = refused(disk(host.path(), "vmlinuz-6", "6.9.1-in", &MODULES[..8]), KernelPaths::default());
    assert_eq!(error.reason, "KernelLacksDriver", "{error}");
    let error = refused(disk(host.path(), "bzImage", "6.9.1-in", &MODULES), KernelPaths::default());
    assert!(error.reason == "KernelNotFound" && error.message.contains("install one there"), "{error}");
    let error = refused(disk(host.path(), "bzImage", "6.9.1-in", &MODULES), named);
    assert_eq!(error.reason, "KernelNotFound", "{error}");
    let looped = KernelPaths { kernel: Some("/boot/vmlinuz-loop".into()), modules: None };
    refused(disk(host.path(), "vmlinuz-6", "6.9.1-in", &MODULES), looped);
    let text = host.path().join("text");
    fs::write(&text, [b'?'; 100_000]).expect("written");
    assert_eq!(refused(text, KernelPaths::default()).reason, "InvalidKernel");
}
