//! What makes a kernel another one, and what is left of those that are not wanted.

use super::*;

fn parts() -> Parts {
    let module = |name: &str, bytes: &[u8]| Module { file_name: name.to_owned(), bytes: bytes.to_vec() };
    Parts {
        release: "6.1".to_owned(),
        kernel: b"kernel".to_vec(),
        initrd: None,
        modules: vec![module("a.ko", b"one"), module("b.ko", b"two")],
    }
}

#[test]
fn a_kernel_with_anything_else_in_it_is_another() {
    let changes: [fn(&mut Parts); 8] = [
        |_| {},
        |parts| parts.release.push('x'),
        |parts| parts.kernel.push(b'x'),
        |parts| parts.initrd = Some(Vec::new()),
        |parts| parts.initrd = Some(b"initrd".to_vec()),
        |parts| parts.modules[1].file_name.push('x'),
        |parts| parts.modules[1].bytes.push(b'x'),
        |parts| parts.modules.swap(0, 1),
    ];
    let ids: BTreeSet<KernelId> = changes
        .iter()
        .map(|change| {
            let mut changed = parts();
            change(&mut changed);
            changed.id()
        })
        .collect();
    assert_eq!(ids.len(), changes.len(), "two of them have one folder");
    assert_eq!(parts().id(), parts().id());
    assert_eq!(parts().id().0.len(), 32);
}

#[test]
fn what_ends_in_one_part_does_not_begin_another() {
    let mut moved = parts();
    moved.release.push_str("kern");
    moved.kernel = b"el".to_vec();
    let mut other = parts();
    other.release.push('k');
    other.kernel = b"ernel".to_vec();
    assert_ne!(moved.id(), other.id());
    let mut moved = parts();
    moved.modules[0].file_name = "a.koo".to_owned();
    moved.modules[0].bytes = b"ne".to_vec();
    assert_ne!(moved.id(), parts().id());
}

#[test]
fn the_format_of_a_folder_is_in_its_name() {
    // By value: whoever changes what a folder holds changes FORMAT, and whoever changes this, this.
    assert_eq!((FORMAT, parts().id().0.as_str()), (2, ID));
}

/// Of [`parts`].
const ID: &str = "d7b4a4dc5413056b15444594ecaa38bc";

#[test]
fn what_is_put_down_may_be_read_by_every_vmm() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let target = dir.path().join("kernel");
    parts().write(&target).expect("written");
    let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    assert_eq!(mode(&target), 0o755);
    for name in [KERNEL, RELEASE, MODULES] {
        assert_eq!(mode(&target.join(name)), 0o644, "{name}");
    }
    let left: Vec<_> =
        fs::read_dir(&target).expect("a folder").map(|entry| entry.expect("one").file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

fn workshop(dir: &Path, form: KernelForm) -> Workshop {
    Workshop {
        dir: dir.to_owned(),
        guest: b"guest",
        guest_id: "now".to_owned(),
        form,
        made: Guarded::default(),
    }
}

#[test]
fn a_folder_that_cannot_be_made_leaves_nothing_and_says_so() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let workshop = workshop(dir.path(), KernelForm::Installed);
    // A file stands where the folder is to be.
    let id = parts().id();
    fs::write(dir.path().join(&id.0), "in the way").expect("written");
    assert!(workshop.install(&parts()).is_err());
    let left: Vec<_> =
        fs::read_dir(dir.path()).expect("a folder").map(|entry| entry.expect("one").file_name()).collect();
    assert_eq!(left, [std::ffi::OsString::from(id.0)], "the half-made folder is gone");
    assert!(workshop.made.with(|made| made.is_empty()));
}

#[test]
fn a_kernel_is_unpacked_only_where_that_is_wanted() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let installed = workshop(dir.path(), KernelForm::Installed).install(&parts()).expect("made").1;
    assert!(installed.kernel.ends_with(KERNEL), "{installed:?}");
    // Another daemon, whose driver wanted it unpacked, left this.
    fs::write(installed.kernel.with_file_name(ELF), "elf").expect("written");
    let again = workshop(dir.path(), KernelForm::Installed).install(&parts()).expect("there").1;
    assert!(again.kernel.ends_with(KERNEL), "{again:?}");
    let unpacked = workshop(dir.path(), KernelForm::Elf).install(&parts()).expect("there").1;
    assert!(unpacked.kernel.ends_with(ELF), "{unpacked:?}");
}

#[test]
fn old_guests_and_half_written_files_go_and_all_else_stays() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let workshop = workshop(dir.path(), KernelForm::Installed);
    let (id, files) = workshop.install(&parts()).expect("made");
    let folder = dir.path().join(&id.0);
    for name in ["initramfs-before.cpio", "kernel.1234.new"] {
        fs::write(folder.join(name), "old").expect("written");
    }
    fs::create_dir(dir.path().join("staging-1")).expect("made");
    workshop.keep(&BTreeSet::from([id])).expect("kept");
    let mut left: Vec<_> = fs::read_dir(&folder)
        .expect("a folder")
        .map(|entry| entry.expect("one").file_name().into_string().expect("text"))
        .collect();
    left.sort();
    assert_eq!(left, ["initramfs-now.cpio", KERNEL, MODULES, RELEASE]);
    assert!(files.initramfs.is_file());
    assert_eq!(fs::read_dir(dir.path()).expect("a folder").count(), 1);
}
