//! Files of the host, used where they are.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;

use vmlet::image::{HostFiles, Images, KernelFiles, Source};

use super::Setup;
use super::common::tree::run;

fn files(root: PathBuf) -> HostFiles {
    HostFiles { root, kernel: None, initrd: None, modules: None }
}

fn of(files: &HostFiles) -> Source {
    Source::Files(Box::new(files.clone()))
}

#[tokio::test]
async fn files_are_registered_and_left_alone() {
    let setup = Setup::new();
    let root = setup.ext4("root.ext4", "^has_journal");
    let module = setup.write("modules/kernel/fs/a.ko", "module");
    let all = HostFiles {
        kernel: Some(setup.write("vmlinuz", "kernel")),
        initrd: Some(setup.write("initrd", "initrd")),
        modules: Some(setup.path("modules")),
        ..files(root.clone())
    };
    let before = fs::read(&root).unwrap();
    let disk = setup.get(&of(&all)).await;
    assert_eq!((&disk.path, disk.size), (&root, 4 << 20));
    let kernel = KernelFiles {
        kernel: setup.path("vmlinuz"),
        initrd: Some(setup.path("initrd")),
        modules: Some(setup.path("modules")),
    };
    assert_eq!(disk.kernel, Some(kernel));
    assert_eq!(setup.store.disk(&disk.digest).await.as_ref(), Some(&disk));
    assert_eq!(setup.store.installed().await.unwrap(), std::slice::from_ref(&disk.digest));
    setup.store.check(&disk.digest).await.unwrap();
    assert_eq!(setup.digest(&of(&all)).await, disk.digest, "the same files");
    assert_ne!(setup.digest(&of(&files(root.clone()))).await, disk.digest, "other files");

    // A module that is changed is noticed, and so is a root.
    fs::write(&module, "another").unwrap();
    let error = setup.store.check(&disk.digest).await.unwrap_err();
    assert_eq!((error.reason, error.transient), ("FilesChanged", true));
    assert!(error.message.contains(root.to_str().unwrap()), "{error}");

    setup.store.remove(&disk.digest).await.unwrap();
    assert_eq!(setup.store.disk(&disk.digest).await, None);
    assert!(fs::read(&root).unwrap() == before && module.exists(), "the host's files stay");
}

#[tokio::test]
async fn a_changed_root_is_noticed() {
    let setup = Setup::new();
    let root = setup.ext4("root.ext4", "^has_journal");
    let disk = setup.get(&of(&files(root.clone()))).await;
    let file = fs::File::options().write(true).open(&root).unwrap();
    let times = fs::metadata(&root).unwrap().modified().unwrap();
    file.write_all_at(b"x", 3 << 20).unwrap();
    assert_eq!(setup.store.check(&disk.digest).await.unwrap_err().reason, "FilesChanged");
    let error = setup.get_pinned(&of(&files(root.clone())), &disk.digest).await.unwrap_err();
    assert!(error.message.contains("changed since"), "{error}");
    file.set_modified(times).unwrap();
    setup.store.check(&disk.digest).await.unwrap();
    // The daemon's next life knows it too.
    drop(file);
    fs::remove_file(&root).unwrap();
    let store =
        vmlet::image::ImageStore::open(setup.state.path(), vmlet::image::Settings::default()).unwrap();
    assert!(store.disk(&disk.digest).await.is_some());
    assert_eq!(store.check(&disk.digest).await.unwrap_err().reason, "NotFound");
}

#[tokio::test]
async fn files_that_cannot_be_used_are_refused() {
    let setup = Setup::new();
    let patched = |name: &str, features: &str, at: u64, bytes: &[u8]| {
        let path = setup.ext4(name, features);
        fs::File::options().write(true).open(&path).unwrap().write_all_at(bytes, at).unwrap();
        path
    };
    let cut = setup.ext4("cut.ext4", "^has_journal");
    fs::File::options().write(true).open(&cut).unwrap().set_len(2 << 20).unwrap();
    run("mkfifo", "coreutils", &[setup.path("fifo").to_str().unwrap()]);
    let mut squashfs = b"hsqs".to_vec();
    squashfs.resize(8192, 0);
    let old = "^metadata_csum,^has_journal";
    let cases = [
        ("absent", setup.path("absent"), "does not exist"),
        ("folder", setup.host.path().to_owned(), "not a plain file"),
        ("fifo", setup.path("fifo"), "not a plain file"),
        ("text", setup.write("text", "no disk"), "too short"),
        ("zeros", setup.write("zeros", vec![0; 1 << 20]), "no ext4 file system"),
        ("squashfs", setup.write("squashfs", squashfs), "it is squashfs, and guests mount ext4"),
        ("cut", cut, "cut off"),
        ("damaged", patched("damaged", "metadata_csum", 1024 + 0x78, b"x"), "does not match its checksum"),
        ("mounted", patched("mounted", old, 1024 + 0x3a, &[0, 0]), "not unmounted cleanly"),
        ("errors", patched("errors", old, 1024 + 0x3a, &[3, 0]), "marked as having errors"),
        ("recover", patched("recover", old, 1024 + 0x60, &[0x46, 2]), "not unmounted cleanly"),
        ("unknown", patched("unknown", old, 1024 + 0x60, &[0x42, 2, 2, 0]), "features (0x20000)"),
        ("blocks", patched("blocks", old, 1024 + 0x18, &[6, 0]), "larger than 4 KiB"),
        ("endless", patched("endless", old, 1024 + 0x4, &[0xff; 4]), "cut off"),
    ];
    for (name, path, expected) in cases {
        let error = setup.refused(&of(&files(path))).await;
        assert!(error.contains(expected), "{name}: {error}");
    }
    let root = setup.ext4("root.ext4", "^has_journal");
    let with_kernel = HostFiles { kernel: Some(setup.path("absent")), ..files(root) };
    assert!(setup.refused(&of(&with_kernel)).await.contains("does not exist"));
    // A folder of modules that is none.
    let modules = setup.path("modules");
    let of_modules = HostFiles {
        kernel: Some(setup.write("vmlinuz", "k")),
        modules: Some(modules.clone()),
        ..files(setup.path("root.ext4"))
    };
    setup.write(&format!("modules/{}file", "d/".repeat(16)), "");
    let deep = setup.digest(&of(&of_modules)).await;
    // Links in it are not followed, and say nothing.
    std::os::unix::fs::symlink("/", modules.join("build")).unwrap();
    assert_eq!(setup.digest(&of(&of_modules)).await, deep);
    setup.write(&format!("modules/{}file", "d/".repeat(17)), "");
    assert!(setup.refused(&of(&of_modules)).await.contains("more than 16 deep"));
    fs::remove_dir_all(&modules).unwrap();
    (0..20_000).for_each(|number| drop(setup.write(&format!("modules/{number}"), "")));
    setup.digest(&of(&of_modules)).await;
    setup.write("modules/more", "");
    assert!(setup.refused(&of(&of_modules)).await.contains("more than 20000 files"));
    // Links of the host's owner are followed, once: the disk is the file behind them.
    let link = setup.path("link");
    std::os::unix::fs::symlink("root.ext4", &link).unwrap();
    fs::set_permissions(setup.path("root.ext4"), fs::Permissions::from_mode(0o400)).unwrap();
    assert_eq!(setup.get(&of(&files(link))).await.path, setup.path("root.ext4"));
}
