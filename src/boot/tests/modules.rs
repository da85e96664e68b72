//! Modules: which are needed, in which order, and how they are read.

use super::super::modules::depends_field;
use super::*;

proptest! {
    #[test]
    fn depends_survives_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = depends_field(&bytes);
    }
}

#[test]
fn dependencies_load_first_with_and_without_depmod() {
    let dir = module_folder();
    let from_modules = needed(&Files::Host, dir.path()).expect("complete");
    assert_eq!(stems(&from_modules), LOAD_ORDER);
    let mut dep = String::new();
    for (path, depends) in MODULES {
        let path_of = |name: &str| {
            let found = MODULES.iter().find(|(path, _)| path.ends_with(&format!("/{name}.ko")));
            format!(" kernel/{}", found.expect("listed").0)
        };
        let depends: String = depends.split(',').filter(|name| !name.is_empty()).map(path_of).collect();
        dep += &format!("kernel/{path}:{depends}\n");
    }
    fs::write(dir.path().join("modules.dep"), dep).expect("written");
    assert_eq!(needed(&Files::Host, dir.path()).expect("complete"), from_modules);
}

#[test]
fn a_kernel_without_a_needed_module_is_refused() {
    let dir = module_folder();
    fs::remove_file(dir.path().join("kernel/fs/overlay.ko")).expect("removed");
    let error = needed(&Files::Host, dir.path()).expect_err("incomplete");
    assert!(matches!(&error, BootError::NoModule { name, .. } if name == "overlay"), "{error}");
    fs::write(dir.path().join("modules.builtin"), "kernel/fs/ext4/ext4.ko\nkernel/fs/overlay.ko\n")
        .expect("written");
    needed(&Files::Host, dir.path()).expect("built in is fine");
}

#[test]
fn a_cycle_of_modules_ends() {
    let dir = module_folder();
    fs::write(dir.path().join("kernel/drivers/virtio_ring.ko"), module("virtio")).expect("written");
    assert_eq!(needed(&Files::Host, dir.path()).expect("complete").len(), MODULES.len());
}

#[test]
fn what_is_built_in_is_known_by_either_list_or_presumed() {
    let dir = module_folder();
    fs::remove_file(dir.path().join("modules.builtin")).expect("removed");
    // Nothing says what is built in: what is no module must be.
    assert_eq!(stems(&needed(&Files::Host, dir.path()).expect("presumed")), LOAD_ORDER);
    let modinfo = |text: &str| fs::write(dir.path().join("modules.builtin.modinfo"), text).expect("written");
    modinfo("crc16.license=GPL\0ext4.license=GPL\0ext4.alias=fs-ext4\0");
    assert_eq!(stems(&needed(&Files::Host, dir.path()).expect("listed")), LOAD_ORDER);
    modinfo("crc16.license=GPL\0");
    let error = needed(&Files::Host, dir.path()).expect_err("there is no ext4");
    assert!(matches!(&error, BootError::NoModule { name, .. } if name == "ext4"), "{error}");
    let empty = tempfile::tempdir().expect("a temporary folder");
    let error = needed(&Files::Host, empty.path()).expect_err("a wrong folder").to_string();
    assert!(error.contains("no modules in it"), "{error}");
}

#[test]
fn a_module_folder_names_nothing_outside_of_it() {
    let (dir, outside) = (module_folder(), tempfile::tempdir().expect("a temporary folder"));
    let secret = outside.path().join("overlay.ko");
    fs::write(&secret, module("")).expect("written");
    let dep = |path: &str| {
        let others = MODULES.iter().filter(|(path, _)| !path.contains("overlay"));
        let lines: String = others.map(|(path, _)| format!("kernel/{path}:\n")).collect();
        fs::write(dir.path().join("modules.dep"), format!("{lines}{path}:\n")).expect("written");
        needed(&Files::Host, dir.path())
    };
    dep("kernel/fs/overlay.ko").expect("a good one");
    let up = format!("{}{}", "../".repeat(20), secret.display());
    for path in [secret.to_str().expect("text"), &up] {
        let error = dep(path).expect_err(path).to_string();
        assert!(error.contains("not below its folder"), "{error}");
    }
    let link = dir.path().join("kernel/fs/linked");
    std::os::unix::fs::symlink(outside.path(), &link).expect("linked");
    assert!(matches!(dep("kernel/fs/linked/overlay.ko"), Err(BootError::Io { .. })), "a link led out");
    let fifo = dir.path().join("kernel/fs/fifo");
    fs::create_dir(&fifo).expect("made");
    nix::unistd::mkfifo(&fifo.join("overlay.ko"), nix::sys::stat::Mode::S_IRWXU).expect("made");
    assert!(matches!(dep("kernel/fs/fifo/overlay.ko"), Err(BootError::Io { .. })), "a FIFO was waited for");
}

#[test]
fn modules_are_read_however_they_are_compressed() {
    let bytes = module("virtio");
    let packed = [
        ("ko", bytes.clone()),
        ("gz", pack(&["gzip", "-n", "-f"], &bytes)),
        ("zst", pack(&["zstd", "-q", "-c"], &bytes)),
        ("xz", pack(&["xz", "--check=crc32", "--lzma2=dict=1MiB", "-c"], &bytes)),
    ];
    for (extension, packed) in packed {
        assert_eq!(unpack::module(packed.clone(), extension, 1000).expect("unpacked"), bytes, "{extension}");
        if extension != "ko" {
            assert!(unpack::module(packed, extension, 10).is_err(), "{extension}: over the limit");
            assert!(unpack::module(b"?".to_vec(), extension, 1000).is_err(), "{extension}: broken");
        }
    }
    let dir = module_folder();
    let xz = dir.path().join("kernel/fs/overlay.ko.xz");
    fs::write(&xz, pack(&["xz", "-c"], &module(""))).expect("written");
    fs::remove_file(dir.path().join("kernel/fs/overlay.ko")).expect("removed");
    let modules = needed(&Files::Host, dir.path()).expect("complete");
    assert_eq!(
        (stems(&modules), modules.last().map(|last| last.bytes.clone())),
        (LOAD_ORDER.into(), Some(module("")))
    );
    fs::write(&xz, b"?").expect("written");
    let error = needed(&Files::Host, dir.path()).expect_err("broken").to_string();
    assert!(error.contains("overlay.ko.xz cannot be unpacked"), "{error}");
}
