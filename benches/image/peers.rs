//! What the same image costs others, and the least that it can cost.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::registry::Image;

/// `skopeo copy`, `umoci unpack`, `mke2fs -d`: the tools that make a bootable disk of an image today.
pub(crate) fn three_tools(reference: &str, folder: &Path, disk_bytes: u64) -> Duration {
    let layout = format!("oci:{}:1", folder.join("layout").display());
    let source = format!("docker://{reference}");
    let bundle = folder.join("bundle");
    let megabytes = format!("{}M", disk_bytes >> 20);
    let start = Instant::now();
    run(Command::new("skopeo")
        .args(["--insecure-policy", "copy", "--src-tls-verify=false"])
        .args([&source, &layout]));
    run(Command::new("umoci").arg("unpack").arg("--image").arg(&layout[4..]).arg(&bundle));
    run(Command::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-d"])
        .arg(bundle.join("rootfs"))
        .arg(folder.join("disk.ext4"))
        .arg(megabytes));
    start.elapsed()
}

/// `podman pull`, which ends at an unpacked tree. None where there is no podman.
pub(crate) fn podman(reference: &str, folder: &Path) -> Option<Duration> {
    let podman = || {
        let mut command = Command::new("podman");
        command.arg("--root").arg(folder.join("root")).arg("--runroot").arg(folder.join("run"));
        command.args(["--storage-driver", "overlay"]);
        command
    };
    Command::new("podman").arg("--version").stdout(Stdio::null()).status().ok()?;
    let start = Instant::now();
    run(podman().args(["pull", "--quiet", "--tls-verify=false", reference]));
    let took = start.elapsed();
    run(podman().args(["rmi", "--all", "--force"]));
    Some(took)
}

/// The floor: all layers inflated in parallel by the library that vmlet inflates with, while each byte
/// is written once, in large pieces; nothing is fetched, checked or understood.
pub(crate) fn floor(image: &Image, folder: &Path) -> Duration {
    let start = Instant::now();
    let file = File::create(folder.join("floor")).expect("the folder takes files");
    let mut end = 0;
    let mut places = Vec::new();
    for layer in &image.layers {
        places.push((&layer.path, end));
        end += layer.unpacked;
    }
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(2, Into::into) {
            scope.spawn(|| {
                while let Some(&(layer, offset)) = places.get(next.fetch_add(1, Ordering::Relaxed)) {
                    inflate(layer, &file, offset).expect("the build's disk has room");
                }
            });
        }
    });
    file.sync_all().expect("the build's disk works");
    start.elapsed()
}

fn inflate(layer: &Path, file: &File, mut offset: u64) -> io::Result<()> {
    let blob = io::BufReader::with_capacity(256 << 10, File::open(layer)?);
    let mut decoder = flate2::bufread::MultiGzDecoder::new(blob);
    let mut buffer = vec![0; 1 << 20];
    loop {
        let mut length = 0;
        while length < buffer.len() {
            match decoder.read(&mut buffer[length..])? {
                0 => break,
                count => length += count,
            }
        }
        if length == 0 {
            return Ok(());
        }
        file.write_all_at(&buffer[..length], offset)?;
        offset += length as u64;
    }
}

/// Waits until the disk has nothing left to write, so that nobody pays for who ran before, and has
/// the layers in memory for everybody.
pub(crate) fn calm(image: &Image) {
    for layer in &image.layers {
        let mut file = File::open(&layer.path).expect("the registry keeps it");
        io::copy(&mut file, &mut io::sink()).expect("it can be read");
    }
    rustix::fs::sync();
}

/// A tool's output is of interest only when it fails.
fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
