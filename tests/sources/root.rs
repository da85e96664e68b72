//! A root in a tar on the host, as a stopped VM's is written.

use std::fs::File;
use std::os::unix::fs::FileExt;

use tokio::sync::watch;
use vmlet::image::{ImageConfig, Images, Limits, Progress, Root, Settings};

use super::Setup;
use super::bundle::sum;
use super::common::oci::{Item, noise, tar};
use super::common::tree::read_disk;

#[tokio::test]
async fn what_is_behind_a_hole_is_no_part_of_it() {
    let limits = Limits { unpacked_bytes: 1 << 20, ..Limits::default() };
    let setup = Setup::with(Settings { limits, ..Settings::default() });
    let path = setup.write("root.tar", tar(&[Item::file("x", "1").owner(3, 4)]));
    // The tar was written onto a sparse disk, which may hold anything behind it.
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(&noise(1, 2 << 20), 8 << 20).unwrap();
    let config = ImageConfig { cmd: vec!["/bin/app".to_owned()], ..ImageConfig::default() };
    let (progress, seen) = watch::channel(Progress::default());
    let root = Root { tar: path, config: config.clone() };
    let staged = setup.store.stage_root(root, &sum(b"root"), &progress).await.unwrap();
    let disk = setup.store.install(staged).await.unwrap();
    assert_eq!((disk.digest, disk.config), (sum(b"root"), config));
    assert_eq!(read_disk(&disk.path)[&b"x"[..]].gid, 4);
    let seen = seen.borrow();
    assert_eq!((seen.layers, seen.layers_done), (1, 1));
    assert!((1024..1 << 20).contains(&seen.bytes), "{}", seen.bytes);
}
