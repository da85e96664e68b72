//! Ten thousand VM manifests: from cold to all Ready, and one edit among them.

mod common;

use std::time::{Duration, Instant};

use common::{Plane, Setup, Target, figure, manifest};
use vmlet::store::Record;
use vmlet::testing::ImageScript;

const IMAGE: &str = "127.0.0.1:5055/web:1";
const EDITS: u32 = 5;

fn main() {
    let count = std::env::var("VMS").ok().and_then(|count| count.parse().ok()).unwrap_or(10_000);
    common::runtime().block_on(run(count));
}

async fn run(count: usize) {
    let dir = Plane::folders();
    for number in 0..count {
        Plane::put_old(dir.path(), &name(number), &manifest(&name(number), IMAGE, 128, "tier: front"));
    }
    let (start, used) = (Instant::now(), common::cpu_time());
    // A fake boot takes nothing, so the number of permits must not either.
    let plane = Plane::start(dir, Setup { boot: Duration::ZERO, max_boots: 1000 });
    plane.host.script_image(IMAGE, ImageScript::new('a', Duration::ZERO));
    let declared = plane.declared(count).await;
    let declaring = common::cpu_time() - used;
    let ready = plane.ready("vm-", count).await;
    let cpu = common::cpu_time() - used;
    let took = ready.duration_since(start).as_secs_f64();
    let target = Target::AtMost(10.0 * count as f64 / 10_000.0);
    figure(&format!("{count} VMs, cold to all Ready"), took, "s", target);
    figure("  processor time for that", cpu.as_secs_f64(), "s", Target::None);
    figure("  all declared", (declared - start).as_secs_f64(), "s", Target::None);
    figure("  processor time for that", declaring.as_secs_f64(), "s", Target::None);
    let guard = plane.store.guard_histogram();
    figure("  guard p99 meanwhile", guard.p99_us as f64, "us", Target::AtMost(1000.0));
    figure("  guard max meanwhile", guard.max_us as f64, "us", Target::None);

    settle(&plane).await;
    let (mut declared, mut acted, mut live) = (Vec::new(), Vec::new(), Vec::new());
    for edit in 0..EDITS {
        let victim = name(count / 2 + edit as usize);
        live.push(edit_label(&plane, &victim).await);
        let (seen, done) = edit_memory(&plane, &victim).await;
        declared.push(seen);
        acted.push(done);
    }
    figure("  one label edited: live", median(live), "ms", Target::AtMost(100.0));
    figure("  one memory edited: declared", median(declared), "ms", Target::AtMost(100.0));
    figure("  one memory edited: restarted", median(acted), "ms", Target::AtMost(100.0));
    let peak = common::peak_bytes() as f64 / f64::from(1 << 20);
    figure("  memory at its peak, the fake guests' included", peak, "MiB", Target::None);
    plane.stop().await;
}

fn name(number: usize) -> String {
    format!("vm-{number:05}")
}

/// Waits until the store has been still for a while, so that an edit is measured alone.
async fn settle(plane: &Plane) {
    let mut changes = plane.store.watch(None).expect("from now on");
    while let Ok(change) = tokio::time::timeout(Duration::from_secs(3), changes.next()).await {
        // A watch that has expired stays so: without another, this would never end.
        if change.is_err() {
            changes = plane.store.watch(None).expect("from now on");
        }
    }
}

async fn edit_label(plane: &Plane, name: &str) -> f64 {
    tokio::time::sleep(Duration::from_secs(1)).await;
    let start = Instant::now();
    Plane::put(plane.dir(), name, &manifest(name, IMAGE, 128, "tier: edge"));
    let live = plane
        .until(name, |record| record.metadata().labels.get("tier").is_some_and(|tier| tier == "edge"))
        .await;
    millis(live - start)
}

/// Until the generation is the new one, and until the VM runs with the new size.
async fn edit_memory(plane: &Plane, name: &str) -> (f64, f64) {
    tokio::time::sleep(Duration::from_secs(1)).await;
    let start = Instant::now();
    Plane::put(plane.dir(), name, &manifest(name, IMAGE, 192, "tier: edge"));
    let declared = plane.until(name, |record| record.metadata().generation == 2).await;
    let acted = plane
        .until(name, |record| match record {
            Record::Vm(vm) => vm.starts == 2 && common::is_ready(record),
            Record::Image(_) => false,
        })
        .await;
    (millis(declared - start), millis(acted - start))
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
