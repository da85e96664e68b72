//! A VM's root disk: an empty ext4 filesystem, whatever its size.

mod common;

use std::fs::File;
use std::time::Instant;

use common::{Target, figure};
use vmlet::image::ext4::format_empty;

const GIB: u64 = 1 << 30;
const RUNS: usize = 21;

fn main() {
    let dir = common::folder();
    for (name, size) in [("10 GiB", 10 * GIB), ("1 TiB", 1024 * GIB)] {
        let mut times: Vec<f64> = (0..RUNS)
            .map(|run| {
                let path = dir.path().join(format!("{run}.ext4"));
                let start = Instant::now();
                let file = File::options().read(true).write(true).create_new(true).open(&path);
                format_empty(&file.expect("a new file"), size, [run as u8; 16], false)
                    .expect("there is room");
                let took = start.elapsed().as_secs_f64() * 1000.0;
                std::fs::remove_file(path).expect("its owner may remove it");
                took
            })
            .collect();
        times.sort_by(f64::total_cmp);
        figure(&format!("root disk of {name}, median"), times[RUNS / 2], "ms", Target::AtMost(10.0));
        figure("  slowest", times[RUNS - 1], "ms", Target::None);
    }
}
