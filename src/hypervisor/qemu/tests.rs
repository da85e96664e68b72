use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use vmlet_wire::EXIT_LINE;

use super::accel::Accelerator;
use super::args::{self, Machine};
use super::exit::{compose, panic_line, printable, workload_exit};
use super::folder::{self, CONSOLE_LOG, VMM_LOG};
use super::qmp::{self, QmpError};
use crate::hypervisor::process::{self, ExitStatus};
use crate::hypervisor::{Launch, ProcessIdentity};
use crate::network::{Link, Nic};
use crate::object::{Kind, ObjectKey, Port, Protocol, Quantity, Uid};

mod bounds;

fn launch(dir: &Path) -> Launch {
    let ports = vec![
        Port { host: 8080, guest: 80, protocol: Protocol::Tcp },
        Port { host: 53, guest: 5353, protocol: Protocol::Udp },
    ];
    Launch {
        uid: Uid::from_u128(0x1234),
        key: ObjectKey::new(Kind::Vm, "ci", "web"),
        cpus: 2,
        memory: Quantity::mebibytes(256),
        base_disk: "/images/base, with comma.ext4".into(),
        nic: Some(Nic { mac: "52:54:00:00:00:01".to_owned(), link: Link::User, ports }),
        ..crate::testing::launch(dir)
    }
}

fn host(machine: Machine, accelerator: Accelerator) -> args::Host {
    args::Host { machine, accelerator, tsc_khz: 2_600_000 }
}

fn tcg() -> Accelerator {
    Accelerator::Tcg { why: "of the test".to_owned() }
}

#[test]
fn the_whole_command_line() {
    let args = args::arguments(&launch(Path::new("/vms/1")), &host(Machine::Microvm, tcg()));
    let lines = args.join("\n").replace("\n-", "\n\n-").replace("\n\n", "\0").replace('\n', " ");
    insta::assert_snapshot!(lines.replace('\0', "\n"), @r##"
    -name vm/ci/web
    -uuid 00000000-0000-0000-0000-000000001234
    -machine microvm,pcie=on
    -accel tcg,tb-size=128
    -cpu max
    -smp 2
    -m 262144k
    -nodefaults
    -no-user-config
    -display none
    -no-reboot
    -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
    -kernel /proc/self/fd/4
    -initrd /proc/self/fd/5
    -append console=ttyS0 quiet panic=-1 reboot=t tsc_early_khz=2600000 no_timer_check mitigations=off nokaslr cryptomgr.notests
    -add-fd fd=3,set=1
    -blockdev {"driver":"raw","node-name":"base","read-only":true,"file":{"driver":"file","filename":"/dev/fdset/1","locking":"off","read-only":true}}
    -device virtio-blk-pci,drive=base,serial=base
    -blockdev {"driver":"raw","node-name":"root","discard":"unmap","file":{"driver":"file","filename":"root.ext4","discard":"unmap"}}
    -device virtio-blk-pci,drive=root,serial=root
    -blockdev {"driver":"raw","node-name":"config","read-only":true,"file":{"driver":"file","filename":"config.img","locking":"off","read-only":true}}
    -device virtio-blk-pci,drive=config,serial=config
    -netdev user,id=net,ipv6=off,hostfwd=tcp:127.0.0.1:8080-:80,hostfwd=udp:127.0.0.1:53-:5353
    -device virtio-net-pci,netdev=net,mac=52:54:00:00:00:01,romfile=
    -chardev socket,id=link,path=run/link.sock,server=on,wait=off
    -device virtio-serial-pci
    -device virtserialport,chardev=link,name=dev.vmlet.link
    -chardev socket,id=console,path=run/console.sock,server=on,wait=off,logfile=console.log,logappend=on
    -serial chardev:console
    -chardev socket,id=qmp,path=run/qmp.sock,server=on,wait=off
    -mon chardev=qmp,mode=control
    -object rng-builtin,id=rng
    -device virtio-rng-pci,rng=rng
    "##);
}

#[test]
fn an_images_words_come_last_on_the_kernels_command_line() {
    let mut launch = launch(Path::new("/vms/1"));
    launch.command_line = Some("loglevel=7 mitigations=auto".to_owned());
    let args = args::arguments(&launch, &host(Machine::Microvm, tcg()));
    let at = args.iter().position(|arg| arg == "-append").expect("there is one");
    assert!(args[at + 1].ends_with(" cryptomgr.notests loglevel=7 mitigations=auto"), "{}", args[at + 1]);
}

#[test]
fn machines_and_accelerators_differ_where_they_must() {
    let mut bridged = launch(Path::new("/vms/1"));
    bridged.nic.as_mut().expect("it has one").link = Link::Bridge {
        tap: "vm0".to_owned(),
        tap_owner: None,
        address: [10, 0, 0, 2].into(),
        prefix: 24,
        gateway: [10, 0, 0, 1].into(),
    };
    let args = args::arguments(&bridged, &host(Machine::Q35, Accelerator::Kvm)).join(" ");
    for part in ["-machine q35 -accel kvm -cpu host", "-netdev tap,id=net,ifname=vm0,script=no,downscript=no"]
    {
        assert!(args.contains(part), "{part}: {args}");
    }
    // In hardware, the guest's guards guard, and its clock is KVM's.
    for part in ["mitigations=off", "nokaslr", "tsc_early_khz", "hostfwd"] {
        assert!(!args.contains(part), "{part}: {args}");
    }
    bridged.nic = None;
    let args = args::arguments(&bridged, &host(Machine::Q35, tcg())).join(" ");
    assert!(!args.contains("net"), "{args}");
}

#[test]
fn the_end_of_a_workload_is_read_from_the_console() {
    for (console, code) in [
        (format!("boot\n{EXIT_LINE}3\r\n"), Some(3)),
        (format!("{EXIT_LINE}3\n{EXIT_LINE}143\n[ 1.2] reboot: Power down\n"), Some(143)),
        (format!("[ 1.2] half a line{EXIT_LINE}0\n"), Some(0)),
        (format!("{EXIT_LINE}12"), None),
        (format!("{EXIT_LINE}many\n"), None),
        (format!("{EXIT_LINE}99999999999999\n"), None),
        ("boot\n".to_owned(), None),
        (String::new(), None),
    ] {
        assert_eq!(workload_exit(console.as_bytes()), code, "{console:?}");
    }
}

#[test]
fn the_message_is_the_panic_or_qemus_last_words() {
    let console = b"[    1.3] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000300\r\n[ 1.3] CPU: 0\r\n";
    let panic = "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000300";
    assert_eq!(panic_line(console).as_deref(), Some(panic));
    let status = ExitStatus { code: Some(0), signal: None };
    assert_eq!(compose(status, b"words", console).message, format!("the guest's kernel panicked: {panic}"));
    let exit = compose(status, b"qemu: no such disk\n\x1b[31mred\x07\n\n", b"");
    assert_eq!(exit.message, "qemu: no such disk; [31mred");
    assert_eq!((exit.code, exit.workload), (Some(0), None));
}

proptest! {
    #[test]
    fn logs_of_any_bytes_become_one_harmless_line(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let line = printable(&bytes);
        prop_assert!(!line.chars().any(char::is_control));
        let _ = (workload_exit(&bytes), panic_line(&bytes));
    }
}

fn temporary() -> (tempfile::TempDir, Launch) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let launch = launch(&dir.path().join("vm"));
    (dir, launch)
}

#[test]
fn preparing_twice_keeps_the_disk_and_renews_the_configuration() {
    let (_guard, mut launch) = temporary();
    folder::prepare(&launch).expect("made");
    let root = launch.dir.join("root.ext4");
    assert_eq!(fs::metadata(&root).expect("there").len(), 64 << 20);
    fs::write(&root, "written by the guest").expect("written");
    launch.guest.hostname = "other".to_owned();
    folder::prepare(&launch).expect("made again");
    assert_eq!(fs::read(&root).expect("there"), b"written by the guest");
    let config = fs::read(launch.dir.join("config.img")).expect("there");
    assert_eq!(config.len(), 4096);
    let json = config.split(|byte| *byte == 0).next().expect("a first part");
    let read: vmlet_wire::GuestConfig = serde_json::from_slice(json).expect("it is JSON");
    assert_eq!(read, launch.guest);
    assert_eq!(fs::metadata(&launch.dir).expect("there").permissions().mode() & 0o777, 0o700);

    folder::remove_disk(&launch.dir).expect("removed");
    folder::remove_disk(&launch.dir).expect("absent is fine");
    assert!(!root.exists());
    folder::remove(&launch.dir).expect("removed");
    folder::remove(&launch.dir).expect("absent is fine");
}

#[test]
fn a_half_made_disk_is_made_anew() {
    let (_guard, launch) = temporary();
    fs::create_dir_all(&launch.dir).expect("made");
    fs::write(launch.dir.join("root.ext4.new"), "half").expect("written");
    folder::prepare(&launch).expect("made");
    assert_eq!(fs::metadata(launch.dir.join("root.ext4")).expect("there").len(), 64 << 20);
    assert!(!launch.dir.join("root.ext4.new").exists());
}

#[test]
fn a_configuration_that_the_guest_would_not_read_is_refused() {
    let (_guard, mut launch) = temporary();
    launch.guest.workload.env = vec!["A=".to_owned() + &"x".repeat(1 << 20)];
    let error = folder::prepare(&launch).expect_err("too large");
    assert_eq!((error.reason, error.transient), ("ConfigTooLarge", false));
    assert!(!launch.dir.exists());
}

#[test]
fn logs_begin_anew_with_each_run_and_stay_bounded() {
    let (_guard, launch) = temporary();
    folder::prepare(&launch).expect("made");
    let console = launch.dir.join(CONSOLE_LOG);
    folder::begin_logs(&launch).expect("begun");
    fs::write(&console, "first run").expect("written");
    folder::begin_logs(&launch).expect("begun");
    // A start that never ran does not push the last words out.
    folder::begin_logs(&launch).expect("begun");
    assert_eq!(fs::read(&console).expect("there"), b"");
    assert_eq!(fs::read(launch.dir.join("console.log.1")).expect("there"), b"first run");

    let mut long = vec![b'a'; folder::MAX_LOG as usize + 1];
    long.push(b'z');
    fs::write(&console, &long).expect("written");
    folder::bound_logs(&launch.dir).expect("bounded");
    assert_eq!(fs::metadata(&console).expect("there").len(), 0);
    let older = fs::read(launch.dir.join("console.log.1")).expect("there");
    assert!(older.len() as u64 == folder::MAX_LOG && older.ends_with(b"az"));
    assert_eq!(folder::log_tail(&launch.dir, "console.log.1", 3), b"aaz");
    assert_eq!(folder::log_tail(&launch.dir, VMM_LOG, 3), b"");
    assert_eq!(folder::log_tail(&launch.dir, "absent", 3), b"");
}

#[test]
fn sockets_are_reached_by_long_paths_but_not_through_links() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let short = dir.path().join("short.sock");
    let listener = std::os::unix::net::UnixListener::bind(&short).expect("bound");
    let long: PathBuf = dir.path().join("x".repeat(200));
    let run = long.join("run");
    fs::create_dir_all(&run).expect("made");
    fs::hard_link(&short, run.join("link.sock")).expect("linked");
    folder::connect(&long, "link.sock").expect("connected");
    listener.accept().expect("a connection");

    std::os::unix::fs::symlink(&short, run.join("symbolic.sock")).expect("linked");
    fs::write(run.join("file.sock"), "").expect("written");
    for socket in ["symbolic.sock", "file.sock", "absent.sock"] {
        assert!(folder::connect(&long, socket).is_err(), "{socket}");
    }
    fs::rename(&run, long.join("real")).expect("moved");
    std::os::unix::fs::symlink("real", &run).expect("linked");
    assert!(folder::connect(&long, "link.sock").is_err());
}

/// Runs a command against a QEMU that says these lines: the greeting, then one after each request.
async fn qmp(lines: Vec<String>) -> Result<serde_json::Value, QmpError> {
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let qemu = async move {
        let mut theirs = BufReader::new(theirs);
        for line in lines {
            let _ = theirs.write_all(line.as_bytes()).await;
            let mut request = String::new();
            let _ = theirs.read_line(&mut request).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        result = qmp::execute(ours, "system_powerdown") => result,
        () = qemu => unreachable!("it only ends with the test"),
    }
}

fn lines(lines: [&str; 3]) -> Vec<String> {
    lines.map(|line| format!("{line}\n")).to_vec()
}

const GREETING: &str = r#"{"QMP": {"version": {}, "capabilities": []}}"#;

#[tokio::test(start_paused = true)]
async fn qmp_commands_are_answered_past_events() {
    let event = "{\"event\": \"RESUME\", \"timestamp\": {}}\n{\"return\": {\"a\": 1}}";
    let answer = qmp(lines([GREETING, r#"{"return": {}}"#, event])).await.expect("an answer");
    assert_eq!(answer["a"], 1);
}

#[tokio::test(start_paused = true)]
async fn qmp_failures_are_told_apart() {
    let done = r#"{"return": {}}"#;
    let refusal = r#"{"error": {"class": "GenericError", "desc": "not now"}}"#;
    let refused = qmp(lines([GREETING, done, refusal])).await.expect_err("refused");
    assert_eq!(refused.to_string(), "QEMU refused system_powerdown: not now");
    for hostile in ["[", "{}", "null", &"x".repeat(70_000), &"{\"event\": \"X\"}\n".repeat(1001)] {
        let error = qmp(lines([GREETING, done, hostile])).await.expect_err("hostile");
        assert!(matches!(error, QmpError::Protocol(_)), "{error}");
    }
    assert!(matches!(qmp(lines([done, done, done])).await, Err(QmpError::Protocol("no greeting"))));
    assert!(matches!(qmp(vec![]).await, Err(QmpError::Timeout)));
}

#[test]
fn the_time_stamp_counter_is_measured() {
    let khz = super::accel::tsc_khz();
    assert!((500_000..10_000_000).contains(&khz), "{khz} kHz");
}

#[tokio::test]
async fn the_process_that_a_folder_names_is_found_and_only_that() {
    let (_keep, launch) = temporary();
    folder::prepare(&launch).unwrap();
    assert_eq!(folder::recorded_process(&launch.dir), None);
    let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    let process = ProcessIdentity::of(child.id()).unwrap().unwrap();
    folder::record_process(&launch.dir, &process).unwrap();
    assert_eq!(folder::recorded_process(&launch.dir), Some(process.clone()));
    process::kill(&process).await.unwrap();
    assert!(!process::alive(&process));
    let _ = child.wait();
    std::fs::write(launch.dir.join("vmm.json"), "{").unwrap();
    assert_eq!(folder::recorded_process(&launch.dir), None, "a torn file names nobody");
}
