//! What is kept ready: made once, kept while pinned, refused with a reason.

use std::collections::BTreeSet;

use super::*;

fn folders(settings: &Settings) -> BTreeSet<String> {
    let entries = fs::read_dir(&settings.cache).expect("there").flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

#[test]
fn boot_files_hold_guest_and_modules_and_are_made_once() {
    let (host, modules) = (tempfile::tempdir().expect("a folder"), module_folder());
    let settings = settings(host.path(), modules.path());
    let files = open(&settings).host().clone();
    assert_eq!(files.release, HOST);
    assert_eq!(fs::read(&files.kernel).expect("copied"), installed(HOST));
    let entries = entries(&files.initramfs);
    let find = |name: &str| entries.iter().find(|entry| entry.0 == name).expect(name);
    assert_eq!((find("init").1, find("init").3.as_slice()), (0o100_755, b"the guest".as_slice()));
    assert_eq!((find("dev/console").1, find("dev/console").2), (0o020_600, (5, 1)));
    let order = String::from_utf8(find("modules/order").3.clone()).expect("text");
    assert_eq!(order.lines().collect::<Vec<_>>(), LOAD_ORDER.map(|name| format!("{name}.ko")));
    for name in order.lines() {
        assert!(find(&format!("modules/{name}")).3.starts_with(b"\x7fELF"));
    }

    let made = |path: &Path| fs::metadata(path).expect("there").modified().expect("a time");
    let before = (made(&files.initramfs), made(&files.kernel));
    assert_eq!(*open(&settings).host(), files);
    assert_eq!((made(&files.initramfs), made(&files.kernel)), before);

    // Another guest changes nothing of the kernel, and a driver that wants an ELF gets one.
    let elf = BootCache::open(&settings, b"a newer guest", KernelForm::Elf).expect("made").host().clone();
    assert_eq!(
        fs::read(&elf.kernel).expect("unpacked"),
        unpack::elf(&installed(HOST)).expect("can be").into_owned()
    );
    assert_ne!(elf.initramfs, files.initramfs);
    assert_eq!(made(&files.kernel), before.1);
}

#[test]
fn kernels_that_are_pinned_are_kept_and_others_go() {
    let (host, modules) = (tempfile::tempdir().expect("a folder"), module_folder());
    let settings = settings(host.path(), modules.path());
    let (cache, runtime) = (open(&settings), runtime());
    let request = |name: &str| {
        let kernel = host.path().join(name);
        fs::write(&kernel, installed(name)).expect("written");
        file(kernel, Some(modules.path()))
    };
    let make = |request: &KernelRequest| runtime.block_on(cache.make(request)).expect("made");
    let (kept, dropped) = (make(&request("6.2.0")), make(&request("6.3.0")));
    assert_eq!(cache.files(Some(&kept)).expect("there").release, "6.2.0");
    assert_eq!(cache.files(None).expect("there").release, HOST);
    // A file that changed is another kernel; the one that was made stays what it was.
    fs::write(host.path().join("6.2.0"), installed("6.2.1")).expect("written");
    let changed = make(&file(host.path().join("6.2.0"), Some(modules.path())));
    assert!(changed != kept && cache.files(Some(&kept)).expect("there").release == "6.2.0");

    fs::create_dir(settings.cache.join("staging-half")).expect("made");
    let next = BootCache::open(&settings, b"a newer guest", KernelForm::Installed).expect("made");
    assert_eq!(next.files(Some(&kept)), None, "not before it is readied for this guest");
    runtime.block_on(next.keep(&[kept.clone()].into())).expect("swept");
    assert_eq!(folders(&settings), [kept.0.clone(), next.host.0.0.clone()].into());
    let files = next.files(Some(&kept)).expect("readied");
    assert_eq!(next.files(Some(&dropped)), None);
    let guest = entries(&files.initramfs).into_iter().find(|entry| entry.0 == "init").expect("has one").3;
    assert_eq!(guest, b"a newer guest");
    let archives = fs::read_dir(files.initramfs.parent().expect("has one")).expect("there").flatten();
    let archives = archives.filter(|entry| entry.path().extension().is_some_and(|kind| kind == "cpio"));
    assert_eq!(archives.count(), 2, "modules.cpio, and the initramfs of one guest");

    // One that is not whole is made anew.
    fs::remove_file(settings.cache.join(&kept.0).join("kernel")).expect("removed");
    let third = open(&settings);
    runtime.block_on(third.keep(&[kept.clone()].into())).expect("swept");
    assert_eq!(third.files(Some(&kept)), None);
    assert_eq!(folders(&settings), [third.host.0.0.clone()].into());
}

#[test]
fn one_kernel_is_made_once_and_two_at_once() {
    let (host, modules) = (tempfile::tempdir().expect("a folder"), module_folder());
    let settings = settings(host.path(), modules.path());
    let cache = open(&settings);
    let request = |name: &str| {
        let fifo = host.path().join(name);
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("made");
        file(fifo, Some(modules.path()))
    };
    let same = file(host.path().join("vmlinuz"), Some(modules.path()));
    runtime().block_on(async {
        let (one, other) = tokio::join!(cache.make(&same), cache.make(&same));
        assert_eq!(one.expect("made"), other.expect("made"));
        assert_eq!(cache.under_way.with(|under_way| under_way.len()), 1, "one flight for both");
        // A FIFO is no kernel, and nobody waits for its writer.
        let error = cache.make(&request("fifo")).await.expect_err("refused");
        assert!(error.message.contains("not a regular file"), "{error}");
        assert_eq!(cache.under_way.with(|under_way| under_way.len()), 1, "those that ended are forgotten");
    });
    assert_eq!(folders(&settings).len(), 1, "the same as the host's");
}

#[test]
fn a_kernel_that_cannot_be_booted_is_refused_with_a_reason() {
    let (host, modules) = (tempfile::tempdir().expect("a folder"), module_folder());
    let cache = open(&settings(host.path(), modules.path()));
    let refused = |bytes: Vec<u8>, modules: Option<&Path>| {
        let kernel = host.path().join("bad");
        fs::write(&kernel, bytes).expect("written");
        let error = runtime().block_on(cache.make(&file(kernel, modules))).expect_err("refused");
        (error.reason, error.transient, error.message)
    };
    let (reason, transient, message) = refused(b"?".to_vec(), Some(modules.path()));
    assert!((reason, transient) == ("InvalidKernel", false) && message.contains("neither"), "{message}");
    let (reason, _, message) = refused(elf(&note(17), &DRIVERS), None);
    assert!(reason == "InvalidKernel" && message.contains("PVH"), "{message}");
    let (reason, transient, message) = refused(elf(&note(PVH), &DRIVERS[..5]), None);
    assert!((reason, transient) == ("KernelLacksDriver", false) && message.contains("overlay"), "{message}");
    let absent = file("/nowhere/vmlinuz".into(), None);
    let error = runtime().block_on(cache.make(&absent)).expect_err("absent");
    assert_eq!((error.reason, error.transient), ("KernelNotFound", true));
    // All built in, and no modules.
    let kernel = host.path().join("monolithic");
    fs::write(&kernel, elf(&note(PVH), &DRIVERS)).expect("written");
    runtime().block_on(cache.make(&file(kernel, None))).expect("complete");
}

#[test]
fn an_initial_ram_disk_is_unpacked_below_our_own() {
    let (host, modules) = (tempfile::tempdir().expect("a folder"), module_folder());
    let cache = open(&settings(host.path(), modules.path()));
    let mut archive = Vec::new();
    let mut writer = cpio::newc::Builder::new("init").mode(0o100_755).write(&mut archive, 3);
    writer.write_all(b"his").expect("a Vec takes everything");
    writer.finish().expect("a Vec takes everything");
    cpio::newc::trailer(&mut archive).expect("a Vec takes everything");
    let initrd = host.path().join("initrd");
    fs::write(&initrd, &archive).expect("written");
    let kernel = host.path().join("vmlinuz");
    let request = KernelRequest::Files(KernelFiles {
        kernel,
        initrd: Some(initrd),
        modules: Some(modules.path().to_owned()),
    });
    let made = runtime().block_on(cache.make(&request)).expect("made");
    let all = entries(&cache.files(Some(&made)).expect("there").initramfs);
    let inits: Vec<_> =
        all.iter().filter(|entry| entry.0 == "init").map(|entry| entry.3.as_slice()).collect();
    assert_eq!(inits, [b"his".as_slice(), b"the guest"]);
}
