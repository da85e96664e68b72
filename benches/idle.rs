//! A daemon with a thousand running VMs that has nothing to do.

mod common;

use std::time::{Duration, Instant};

use common::{Plane, Setup, Target, figure, manifest};
use vmlet::testing::ImageScript;

const IMAGE: &str = "127.0.0.1:5055/web:1";
const VMS: usize = 1000;
/// Longer than the folder's rescan, so that one is in it.
const WATCHED: Duration = Duration::from_secs(40);
const MIB: f64 = (1 << 20) as f64;

fn main() {
    common::runtime().block_on(run());
}

async fn run() {
    let dir = Plane::folders();
    for number in 0..VMS {
        let name = format!("vm-{number:04}");
        Plane::put_old(dir.path(), &name, &manifest(&name, IMAGE, 128, "tier: front"));
    }
    let plane = Plane::start(dir, Setup { boot: Duration::ZERO, max_boots: 100 });
    plane.images.script(IMAGE, ImageScript::new('a', Duration::ZERO));
    plane.ready("vm-", VMS).await;
    // What the start has left to do is not idling.
    tokio::time::sleep(Duration::from_secs(5)).await;

    let (start, used) = (Instant::now(), common::cpu_time());
    tokio::time::sleep(WATCHED).await;
    let share = (common::cpu_time() - used).as_secs_f64() / start.elapsed().as_secs_f64();
    figure("1000 running VMs, idle: share of a core", share * 100.0, "%", Target::AtMost(1.0));
    let resident = common::resident_bytes() as f64 / MIB;
    let allowed = 64.0 + VMS as f64 * 20.0 / 1024.0;
    figure("  resident memory, the fake guests' included", resident, "MiB", Target::AtMost(allowed));
    plane.stop().await;
}
