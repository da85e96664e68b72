//! Twenty VMs behind a registry that does not answer, beside twenty whose images are there.

mod common;

use std::time::{Duration, Instant};

use common::{Plane, Setup, Target, figure, manifest};
use vmlet::testing::ImageScript;

const PRESENT: &str = "127.0.0.1:5055/present:1";
const VMS: usize = 20;
/// Each figure is the median of so many runs, slow ones and quick ones in turn.
const RUNS: usize = 5;

fn main() {
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        alone.push(common::runtime().block_on(run(0)));
        beside.push(common::runtime().block_on(run(VMS)));
    }
    let (alone, beside) = (median(alone), median(beside));
    figure("20 VMs with images present, alone: all Ready", alone, "ms", Target::None);
    figure("  beside 20 behind a stalled registry", beside, "ms", Target::None);
    figure("  ratio", beside / alone, "", Target::AtMost(1.1));
}

/// The time from the manifests' appearance until the VMs with images are Ready, in milliseconds.
async fn run(stalled: usize) -> f64 {
    let dir = Plane::folders();
    let first = manifest("first", PRESENT, 128, "tier: front");
    Plane::put_old(dir.path(), "first", &first);
    let plane = Plane::start(dir, Setup { boot: Duration::from_millis(100), max_boots: 4 });
    plane.host.script_image(PRESENT, ImageScript::new('a', Duration::ZERO));
    for number in 0..stalled {
        let digit = char::from_digit(number as u32 % 10, 16).expect("a digit");
        plane.host.script_image(&slow(number), ImageScript::new(digit, Duration::from_secs(3600)));
    }
    plane.ready("first", 1).await;
    let start = Instant::now();
    for number in 0..VMS {
        // By name the stalled ones come first.
        if number < stalled {
            let name = format!("a-stalled-{number}");
            Plane::put(plane.dir(), &name, &manifest(&name, &slow(number), 128, "tier: front"));
        }
        let name = format!("present-{number}");
        Plane::put(plane.dir(), &name, &manifest(&name, PRESENT, 128, "tier: front"));
    }
    let ready = plane.ready("present-", VMS).await;
    plane.stop().await;
    (ready - start).as_secs_f64() * 1000.0
}

/// Different images: none waits for another's pull.
fn slow(number: usize) -> String {
    format!("127.0.0.1:5055/slow-{number}:1")
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
