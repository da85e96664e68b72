//! A daemon with a thousand running VMs that has nothing to do.
//!
//! The fake guests live in the same process. What they and an empty daemon take is measured in processes of
//! their own, so that it is known what is the VMs'.

mod common;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Plane, Setup, Target, figure, manifest};
use tokio::sync::watch;
use vmlet::hypervisor::Launch;
use vmlet::image::{Progress, Source};
use vmlet::reconcile::{Clock, Entropy, Parts, Retention};
use vmlet::testing::{Host, ImageScript, VmScript};

const IMAGE: &str = "127.0.0.1:5055/web:1";
const VMS: usize = 1000;
/// Longer than the folder's rescan, so that one is in it.
const WATCHED: Duration = Duration::from_secs(40);
/// What a start has left to do is not idling.
const SETTLED: Duration = Duration::from_secs(5);
const MIB: f64 = (1 << 20) as f64;
/// Tells a process of its own what to measure.
const PART: &str = "VMLET_BENCH_PART";

fn main() {
    match std::env::var(PART).as_deref() {
        Ok("daemon") => println!("{}", common::runtime().block_on(empty_daemon())),
        Ok("guests") => println!("{}", common::runtime().block_on(guests_alone())),
        _ => common::runtime().block_on(run(apart("daemon"), apart("guests"))),
    }
}

async fn run(daemon: u64, guests: u64) {
    let dir = Plane::folders();
    for number in 0..VMS {
        let name = format!("vm-{number:04}");
        Plane::put_old(dir.path(), &name, &manifest(&name, IMAGE, 128, "tier: front"));
    }
    let plane = Plane::start(dir, Setup { boot: Duration::ZERO, max_boots: 100 });
    plane.host.script_image(IMAGE, ImageScript::new('a', Duration::ZERO));
    plane.ready("vm-", VMS).await;
    tokio::time::sleep(SETTLED).await;

    let (start, used) = (Instant::now(), common::cpu_time());
    tokio::time::sleep(WATCHED).await;
    let share = (common::cpu_time() - used).as_secs_f64() / start.elapsed().as_secs_f64();
    figure("1000 running VMs, idle: share of a core", share * 100.0, "%", Target::AtMost(1.0));
    let allowed = 64.0 + VMS as f64 * 20.0 / 1024.0;
    let [guests, daemon] = [guests, daemon].map(|bytes| bytes as f64 / MIB);
    let name = format!("  resident memory, {guests:.1} MiB of it the fake VMs'");
    figure(&name, common::resident_bytes() as f64 / MIB, "MiB", Target::AtMost(allowed));
    figure("  resident memory without VMs", daemon, "MiB", Target::None);
    plane.stop().await;
}

/// Measures a part in a process of its own, in bytes.
fn apart(part: &str) -> u64 {
    let own = std::env::current_exe().expect("/proc is mounted");
    let output = Command::new(own).env(PART, part).output().expect("this program can be run");
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().parse().unwrap_or_else(|_| panic!("{part}: {output:?}"))
}

/// What a daemon takes that has no manifests.
async fn empty_daemon() -> u64 {
    let plane = Plane::start(Plane::folders(), Setup { boot: Duration::ZERO, max_boots: 100 });
    tokio::time::sleep(SETTLED).await;
    let resident = common::resident_bytes();
    plane.stop().await;
    resident
}

/// What as many fake VMs take, with the guests' ends of their links.
async fn guests_alone() -> u64 {
    let host = Host::new();
    host.begin(None, Retention { grace: Duration::ZERO, low: 0, high: 0 });
    host.script_vms(VmScript { boot: Duration::ZERO, workload: Duration::ZERO, ..VmScript::default() });
    host.script_image(IMAGE, ImageScript::new('a', Duration::ZERO));
    let Parts { images, driver, .. } = host.parts(Clock::Host, Entropy::default());
    let source = Source::Oci(IMAGE.to_owned());
    let digest = images.resolve(&source).await.expect("it is scripted");
    let staged = images.stage(&source, &digest, &watch::channel(Progress::default()).0).await;
    let disk = images.install(staged.expect("it is scripted")).await.expect("nothing fails");
    let before = common::resident_bytes();
    let mut links = Vec::new();
    for number in 0..VMS {
        let launch = launch(&format!("vm-{number:04}"), &disk.path);
        driver.prepare(&launch).await.expect("nothing fails");
        let gate = driver.spawn(&launch).await.expect("nothing fails");
        gate.release().await.expect("nothing fails");
        links.push(driver.connect(&launch.dir).await.expect("it boots at once"));
    }
    let resident = common::resident_bytes() - before;
    drop(links);
    resident
}

fn launch(name: &str, base_disk: &Path) -> Launch {
    let dir = Path::new("/simulated/vms").join(name);
    Launch { base_disk: base_disk.to_owned(), ..vmlet::testing::launch(&dir) }
}
