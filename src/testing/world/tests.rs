//! The scripted driver, as its callers know it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::{Instant, timeout};

use super::World;
use super::driver::ScriptedDriver;
use super::images::path;
use crate::hypervisor::{Driver, Launch, ProcessIdentity};
use crate::image::Digest;
use crate::testing::{EffectScript, Trouble, VmScript, WorkloadExit};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// A world with one base disk, and a daemon whose log cannot be looked into.
fn world() -> (Arc<World>, ScriptedDriver) {
    let world = Arc::new(World::new(0, Trouble::NONE));
    world.begin(None, crate::testing::Options::default().settings.retention);
    world.lock().disks.insert(base());
    (world.clone(), ScriptedDriver(world))
}

fn base() -> Digest {
    Digest::sha256([0xaa; 32])
}

fn launch(name: &str) -> Launch {
    Launch { base_disk: path(&base()), ..crate::testing::launch(&Path::new("/vms").join(name)) }
}

async fn start(driver: &ScriptedDriver, launch: &Launch) -> ProcessIdentity {
    driver.prepare(launch).await.expect("nothing is scripted to fail");
    let gated = driver.spawn(launch).await.expect("nothing is scripted to fail");
    let process = gated.process().clone();
    gated.release().await.expect("nothing is scripted to fail");
    process
}

fn running(world: &World) -> usize {
    let state = world.lock();
    let now = state.now();
    state.processes.all().filter(|process| process.runs(now)).count()
}

fn violations(world: &World) -> Vec<String> {
    world.lock().violations.clone()
}

#[tokio::test(start_paused = true)]
async fn vms_boot_in_their_time_and_overlap() {
    let (world, driver) = world();
    let launches = [launch("a"), launch("b"), launch("c")];
    let before = Instant::now();
    let boots = launches.iter().map(|launch| async {
        start(&driver, launch).await;
        driver.connect(&launch.dir).await.map(drop).expect("the guest answers");
    });
    futures_util::future::join_all(boots).await;
    assert_eq!(before.elapsed(), SECOND);
    let most_booting = || world.lock().tally.most_booting;
    assert_eq!((most_booting(), running(&world)), (3, 3));
    start(&driver, &launch("d")).await;
    assert_eq!(most_booting(), 3, "the others have booted");
    assert_eq!(violations(&world), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn vms_end_by_order_by_script_by_button_and_by_kill() {
    let (world, driver) = world();
    let vm = launch("a");
    let process = start(&driver, &vm).await;
    assert!(world.kill_vmm(&vm.key));
    assert_eq!(driver.exited(&vm.dir, &process).await.signal, Some(11));
    assert!(!driver.alive(&process) && !world.kill_vmm(&vm.key));

    let exit = Some(WorkloadExit { after: 5 * SECOND, code: 3, times: Some(1) });
    world.lock().vm_scripts.insert(vm.key.clone(), VmScript { exit, ..VmScript::default() });
    let process = start(&driver, &vm).await;
    let before = Instant::now();
    assert_eq!(driver.exited(&vm.dir, &process).await.workload, Some(3));
    assert!(before.elapsed() >= 6 * SECOND && before.elapsed() < 7 * SECOND, "{:?}", before.elapsed());

    let process = start(&driver, &vm).await;
    driver.power_button(&vm.dir).await.expect("it runs");
    assert_eq!(driver.exited(&vm.dir, &process).await.code, Some(0));

    let process = start(&driver, &vm).await;
    driver.kill(&process).await.expect("nothing is scripted to fail");
    assert_eq!(driver.exited(&vm.dir, &process).await.signal, Some(9));
    driver.cleanup(&vm.dir).await.expect("nothing is scripted to fail");
    assert!(world.lock().folders.is_empty());
    assert_eq!(running(&world), 0);
    assert_eq!(violations(&world), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_hangs_never_answers_until_it_ends() {
    let (world, driver) = world();
    let vm = launch("a");
    world.lock().vm_scripts.insert(vm.key.clone(), VmScript { hangs: 1, ..VmScript::default() });
    start(&driver, &vm).await;
    assert!(timeout(HOUR, driver.connect(&vm.dir)).await.is_err());
    let (connected, ended) = tokio::join!(driver.connect(&vm.dir), async { world.kill_vmm(&vm.key) });
    assert!(ended && connected.is_err_and(|error| error.transient));
}

#[tokio::test(start_paused = true)]
async fn effects_go_wrong_as_often_as_scripted() {
    let (world, driver) = world();
    let vm = launch("a");
    let script = |name: &str, script| _ = world.lock().effect_scripts.insert(name.to_owned(), script);
    script("prepare", EffectScript { failures: 2, takes: SECOND, ..EffectScript::default() });
    script("release", EffectScript { panics: 1, ..EffectScript::default() });
    let before = Instant::now();
    for _ in 0..2 {
        assert!(driver.prepare(&vm).await.is_err_and(|error| error.transient));
    }
    driver.prepare(&vm).await.expect("twice, no more");
    assert_eq!(before.elapsed(), 3 * SECOND);
    let gated = driver.spawn(&vm).await.expect("not scripted to fail");
    let process = gated.process().clone();
    assert!(std::panic::AssertUnwindSafe(gated.release()).catch_unwind().await.is_err());
    assert!(!driver.alive(&process), "it ended at its gate");
    script("spawn", EffectScript { failures: u32::MAX, ..EffectScript::default() });
    assert!(driver.spawn(&vm).await.is_err());
    script("spawn", EffectScript::default());
    start(&driver, &vm).await;
}

#[tokio::test(start_paused = true)]
async fn callers_are_audited() {
    let (world, driver) = world();
    let vm = launch("a");
    let first = driver.prepare(&vm).await.and(driver.spawn(&vm).await).expect("nothing fails");
    let second = driver.spawn(&vm).await.expect("nothing fails");
    assert!(driver.alive(first.process()) && running(&world) == 0);
    drop(second);
    first.release().await.expect("nothing fails");
    assert_eq!(violations(&world), Vec::<String>::new());
    driver.spawn(&vm).await.expect("nothing fails").release().await.expect("it is let through");
    assert!(violations(&world).iter().any(|violation| violation.contains("runs twice")));
    let before = violations(&world).len();
    driver.remove_disk(&vm.dir).await.expect("it is let through");
    driver.cleanup(&vm.dir).await.expect("it is let through");
    assert_eq!(violations(&world).len(), before + 2);
    driver.spawn(&launch("b")).await.expect("nothing fails").release().await.expect("it is let through");
    assert!(violations(&world).iter().any(|violation| violation.contains("private disk")));
}

#[tokio::test(start_paused = true)]
async fn numbers_of_ended_processes_are_used_again_and_their_identities_are_not() {
    let (world, driver) = world();
    let names: Vec<String> = (0..200).map(|number| format!("vm-{number}")).collect();
    let launches: Vec<Launch> = names.iter().map(|name| launch(name)).collect();
    let mut seen = Vec::new();
    for round in 0..3 {
        for vm in &launches {
            let process = start(&driver, vm).await;
            assert!(!seen.contains(&process), "{process:?} in round {round}");
            driver.kill(&process).await.expect("nothing is scripted to fail");
            seen.push(process);
        }
    }
    assert!(seen.iter().all(|process| process.pid <= 200), "numbers stay low");
    assert_eq!(violations(&world), Vec::<String>::new());
}
