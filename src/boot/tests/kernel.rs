//! Which of the installed kernels is taken.

use std::cmp::Ordering;

use super::super::kernel::{Kernel, compare_releases, newest};
use super::super::modules::not_built_in;
use super::*;

#[test]
fn releases_are_ordered_as_people_read_them() {
    let ascending = [
        "5.10.0-9-amd64",
        "5.10.0-30-amd64",
        "6.1.0-9-amd64",
        "6.1.0-56-amd64",
        "6.1.0-56-cloud-amd64",
        "6.9.12",
        "6.12.0-rc7-amd64",
        "6.12.0-1-amd64",
        "6.12.0-1-amd64-extra",
    ];
    for pair in ascending.windows(2) {
        assert_eq!(compare_releases(pair[0], pair[1]), Ordering::Less, "{pair:?}");
    }
}

proptest! {
    #[test]
    fn the_order_of_releases_is_one(a in "[0-9a-c.~-]{0,12}", b in "[0-9a-c.~-]{0,12}", c in "[0-9a-c.~-]{0,12}") {
        prop_assert_eq!(compare_releases(&a, &b), compare_releases(&b, &a).reverse());
        let mut sorted = [a, b, c];
        sorted.sort_by(|a, b| compare_releases(a, b));
        prop_assert!(compare_releases(&sorted[0], &sorted[2]).is_le());
    }
}

#[test]
fn the_newest_kernel_that_has_modules_is_taken() {
    let host = tempfile::tempdir().expect("a temporary folder");
    let (boot, modules) = (host.path().join("boot"), host.path().join("modules"));
    fs::create_dir_all(&boot).expect("made");
    assert!(matches!(newest(&Files::Host, &boot, None, &modules), Err(BootError::NoKernel { .. })));
    for release in ["6.1.0-9-amd64", "6.1.0-10-amd64", "6.2.0-1-amd64"] {
        fs::write(boot.join(format!("vmlinuz-{release}")), release).expect("written");
    }
    fs::write(boot.join("config-6.3.0"), "").expect("written");
    for release in ["6.1.0-9-amd64", "6.1.0-10-amd64"] {
        fs::create_dir_all(modules.join(release)).expect("made");
    }
    assert_eq!(newest(&Files::Host, &boot, None, &modules).expect("found").release, "6.1.0-10-amd64");
    let named = modules.join("6.1.0-9-amd64");
    assert_eq!(newest(&Files::Host, &boot, Some(&named), &modules).expect("found").release, "6.2.0-1-amd64");
}

#[test]
fn the_kernel_of_this_host_is_unpacked() {
    let kernel = Kernel::find(&Files::Host, None, None).expect("a kernel is installed");
    let image = fs::read(&kernel.image).expect("readable");
    assert_eq!(unpack::release(&image), Some(kernel.release.as_str()));
    let elf = unpack::elf(&image).expect("unpacked");
    assert!(elf.len() > 2 * image.len() && unpack::has_pvh_entry(&elf));
    // Its virtio drivers are modules, and all that it needs resolves.
    assert!(not_built_in(&elf).is_some());
    assert!(!needed(&Files::Host, &kernel.modules.expect("has some")).expect("complete").is_empty());
}
