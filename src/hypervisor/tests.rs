use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

use super::fake::{Behaviour, FakeDriver, Step};
use super::process::{self, ExitStatus, parse_start_time};
use super::*;
use crate::boot::BootFiles;
use crate::object::{Kind, Quantity};

#[test]
fn start_time_is_found_behind_any_name() {
    let fields = "S 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 22 33";
    for name in ["sh", "a b", ") S 1 (", "((", "a)b 1 2 3"] {
        assert_eq!(parse_start_time(&format!("77 ({name}) {fields}\n")), Some(4711), "{name}");
    }
    assert_eq!(parse_start_time("77 (sh) S 1 1"), None);
    assert_eq!(parse_start_time(""), None);
}

/// A process that lives until its input ends.
fn cat() -> (Child, ProcessIdentity) {
    let child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("cat");
    let identity = ProcessIdentity::of(child.id()).expect("proc is readable").expect("it lives");
    (child, identity)
}

#[tokio::test]
async fn a_childs_end_is_noticed_with_its_code() {
    let (mut child, identity) = cat();
    assert!(process::alive(&identity));
    drop(child.stdin.take());
    let status = process::wait(&identity).await.expect("pidfds work");
    assert_eq!(status, ExitStatus { code: Some(0), signal: None });
    assert!(!process::alive(&identity));
    assert_eq!(process::wait(&identity).await.expect("pidfds work"), ExitStatus::default());
}

#[tokio::test]
async fn a_killed_child_is_gone_and_killing_again_is_fine() {
    let (_child, identity) = cat();
    process::kill(&identity).await.expect("it may be killed");
    assert!(!process::alive(&identity));
    process::kill(&identity).await.expect("gone is fine");
}

#[tokio::test]
async fn another_process_with_the_same_number_is_left_alone() {
    let (mut child, identity) = cat();
    for other in [
        ProcessIdentity { start_time: identity.start_time + 1, ..identity.clone() },
        ProcessIdentity { boot_id: "another boot".to_owned(), ..identity.clone() },
        ProcessIdentity { pid: 0, ..identity.clone() },
        ProcessIdentity { pid: u32::MAX, ..identity.clone() },
    ] {
        assert!(!process::alive(&other));
        process::kill(&other).await.expect("gone is fine");
        assert_eq!(process::wait(&other).await.expect("pidfds work"), ExitStatus::default());
    }
    assert!(process::alive(&identity));
    child.kill().expect("it may be killed");
    process::wait(&identity).await.expect("pidfds work");
}

#[tokio::test]
async fn a_process_of_an_earlier_daemon_is_waited_for() {
    // The shell ends at once and leaves its background process to init.
    let mut shell = Command::new("sh")
        .args(["-c", "exec 3<&0; cat <&3 >/dev/null & echo $!"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("sh");
    let mut pid = String::new();
    BufReader::new(shell.stdout.take().expect("piped")).read_line(&mut pid).expect("a pid");
    let input = shell.stdin.take();
    let pid = pid.trim().parse().expect("a number");
    let identity = ProcessIdentity::of(pid).expect("proc is readable").expect("it lives");
    shell.wait().expect("the shell ends");
    assert!(process::alive(&identity));
    let (status, ()) = tokio::join!(process::wait(&identity), async { drop(input) });
    assert_eq!(status.expect("pidfds work"), ExitStatus::default());
    assert!(!process::alive(&identity));
}

#[tokio::test]
async fn a_zombie_counts_as_gone() {
    let (mut child, _) = cat();
    drop(child.stdin.take());
    let identity = ProcessIdentity::of(child.id()).expect("proc is readable").expect("not reaped yet");
    let pid = Pid::from_raw(child.id() as i32);
    let unreaped = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    waitid(WaitId::Pid(pid.expect("not zero")), unreaped).expect("it ends");
    assert!(!process::alive(&identity));
    assert_eq!(process::wait(&identity).await.expect("pidfds work").code, Some(0));
}

fn launch(name: &str) -> Launch {
    Launch {
        uid: Uid::new_v4(),
        key: ObjectKey::new(Kind::Vm, "default", name),
        dir: PathBuf::from("/vms").join(name),
        cpus: 1,
        memory: Quantity::mebibytes(128),
        boot: BootFiles {
            kernel: "/boot/vmlinuz".into(),
            initramfs: "/boot/initramfs.cpio".into(),
            release: "6.1.0".to_owned(),
        },
        command_line: None,
        base_disk: "/base.ext4".into(),
        root_size: Quantity::mebibytes(64),
        nic: None,
        guest: vmlet_wire::GuestConfig {
            hostname: name.to_owned(),
            network: None,
            workload: vmlet_wire::Workload {
                prefer_init: false,
                argv: vec![],
                env: vec![],
                working_dir: None,
                user: None,
                stop_signal: None,
                grace_seconds: 1,
            },
            export: None,
        },
        export: None,
        vmm_user: None,
    }
}

fn fake() -> FakeDriver {
    FakeDriver::new(|_| Box::new(tokio::io::duplex(64).0))
}

async fn start(driver: &FakeDriver, launch: &Launch) -> ProcessIdentity {
    driver.prepare(launch).await.expect("nothing is scripted to fail");
    let gated = driver.spawn(launch).await.expect("nothing is scripted to fail");
    let process = gated.process().clone();
    gated.release().await.expect("nothing is scripted to fail");
    process
}

fn crash() -> VmmExit {
    VmmExit { code: None, signal: Some(6), workload: None, message: "scripted".to_owned() }
}

#[tokio::test(start_paused = true)]
async fn fake_vms_boot_in_their_time_and_overlap() {
    let driver = fake();
    let launches = [launch("a"), launch("b"), launch("c")];
    let before = tokio::time::Instant::now();
    let boots = launches.iter().map(|launch| async {
        start(&driver, launch).await;
        driver.connect(&launch.dir).await.map(drop).expect("the guest answers");
    });
    futures_util::future::join_all(boots).await;
    assert_eq!(before.elapsed(), Duration::from_secs(1));
    assert_eq!(driver.max_booting(), 3);
    assert_eq!(driver.running().len(), 3);
    start(&driver, &launch("d")).await;
    assert_eq!(driver.max_booting(), 3);
    assert_eq!(driver.violations(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn fake_vms_end_by_command_by_script_by_button_and_by_kill() {
    let driver = fake();
    let vm = launch("a");
    let process = start(&driver, &vm).await;
    assert!(driver.end(&vm.dir, crash()));
    assert_eq!(driver.exited(&vm.dir, &process).await, crash());
    assert!(!driver.alive(&process));
    assert!(!driver.end(&vm.dir, crash()));

    let ends = Some((Duration::from_secs(5), crash()));
    driver.set_behaviour(Behaviour { ends, ..Behaviour::default() });
    let process = start(&driver, &vm).await;
    let before = tokio::time::Instant::now();
    assert_eq!(driver.exited(&vm.dir, &process).await, crash());
    assert_eq!(before.elapsed(), Duration::from_secs(5));

    driver.set_behaviour(Behaviour::default());
    let process = start(&driver, &vm).await;
    driver.power_button(&vm.dir).await.expect("it runs");
    assert_eq!(driver.exited(&vm.dir, &process).await.code, Some(0));

    let process = start(&driver, &vm).await;
    driver.kill(&process).await.expect("nothing is scripted to fail");
    assert_eq!(driver.exited(&vm.dir, &process).await.signal, Some(9));
    driver.cleanup(&vm.dir).await.expect("nothing is scripted to fail");
    assert!(driver.folders().is_empty() && driver.running().is_empty());
    assert_eq!(driver.violations(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_fake_vm_that_hangs_never_answers_until_it_ends() {
    let driver = fake();
    driver.set_behaviour(Behaviour { boot: None, ..Behaviour::default() });
    let vm = launch("a");
    start(&driver, &vm).await;
    let hour = Duration::from_secs(3600);
    assert!(tokio::time::timeout(hour, driver.connect(&vm.dir)).await.is_err());
    let (connected, ended) = tokio::join!(driver.connect(&vm.dir), async { driver.end(&vm.dir, crash()) });
    assert!(ended && connected.is_err_and(|error| error.transient));
}

#[tokio::test(start_paused = true)]
async fn fake_steps_fail_as_often_as_scripted() {
    let driver = fake();
    let (vm, other) = (launch("a"), launch("b"));
    driver.fail_next(Step::Prepare, Some(vm.uid), 2, true);
    driver.fail_next(Step::Release, None, 1, false);
    assert!(driver.prepare(&vm).await.is_err_and(|error| error.transient));
    driver.prepare(&other).await.expect("only the other fails");
    assert!(driver.prepare(&vm).await.is_err());
    driver.prepare(&vm).await.expect("twice, no more");
    let gated = driver.spawn(&vm).await.expect("not scripted to fail");
    let process = gated.process().clone();
    assert!(gated.release().await.is_err_and(|error| !error.transient));
    assert!(!driver.alive(&process));
    start(&driver, &vm).await;
}

#[tokio::test(start_paused = true)]
async fn the_fake_audits_its_callers() {
    let driver = fake();
    let vm = launch("a");
    let first = driver.prepare(&vm).await.and(driver.spawn(&vm).await).expect("nothing fails");
    let second = driver.spawn(&vm).await.expect("nothing fails");
    assert!(driver.alive(first.process()) && driver.running().is_empty());
    drop(second);
    first.release().await.expect("nothing fails");
    assert_eq!(driver.violations().len(), 0);
    driver.spawn(&vm).await.expect("nothing fails").release().await.expect("it is let through");
    assert!(driver.violations()[0].contains("two processes"));
    driver.remove_disk(&vm.dir).await.expect("it is let through");
    driver.cleanup(&vm.dir).await.expect("it is let through");
    assert_eq!(driver.violations().len(), 3);
}
