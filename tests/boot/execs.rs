//! Many commands in one VM at once, of all shapes: none hangs, loses output, or is left behind.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::time::timeout;

use crate::common::oci::noise;
use crate::host::{Host, Net, vm};
use crate::{pid, setting};

/// Far beyond what a command here takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(180);
/// Commands at a time.
const WORKERS: usize = 8;
/// Commands in all, unless the environment says otherwise.
const COMMANDS: usize = 64;

/// What a command does.
#[derive(Clone, Copy, Debug)]
enum Shape {
    /// Prints the numbers up to this on both outputs, and ends with a code.
    Print { numbers: usize, code: i32 },
    /// The same on a terminal.
    Terminal { numbers: usize },
    /// Sends back so many bytes.
    Echo { bytes: usize },
    /// Leaves a process behind that holds its output open.
    Leave,
    /// Prints without end, to a client that is killed.
    Cut,
}

impl Shape {
    fn random(random: &mut StdRng) -> Self {
        // Nothing, a little, around a frame, around a window, several windows.
        let sizes = [0, 1, 300, 4_000, 6_000, 25_000, 60_000];
        let numbers = sizes[random.random_range(0..sizes.len())] + random.random_range(0..100);
        match random.random_range(0..10) {
            0..=3 => Shape::Print { numbers, code: random.random_range(0..4) },
            4..=5 => Shape::Terminal { numbers },
            6..=7 => Shape::Echo { bytes: numbers * 8 },
            8 => Shape::Leave,
            _ => Shape::Cut,
        }
    }
}

fn numbers(up_to: usize, end: &str) -> String {
    (1..=up_to).map(|number| format!("{number}{end}")).collect()
}

fn command(host: &Host, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmlet"));
    command.args(["--socket", &host.text("api.sock"), "exec"]).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

async fn run(host: &Host, shape: Shape) {
    match shape {
        Shape::Print { numbers: up_to, code } => {
            let script = format!("seq 1 {up_to} & seq 1 {up_to} >&2; wait; exit {code}");
            let output = command(host, &["many", "--", "sh", "-c", &script]).output().await.unwrap();
            assert_eq!(output.status.code(), Some(code), "{:?}", output.status);
            let expected = numbers(up_to, "\n");
            assert!(output.stdout == expected.as_bytes(), "{} bytes on stdout", output.stdout.len());
            assert!(output.stderr == expected.as_bytes(), "{} bytes on stderr", output.stderr.len());
        }
        Shape::Terminal { numbers: up_to } => {
            let script = format!("seq 1 {up_to}");
            let arguments = ["exec", "-t", "many", "--", "sh", "-c", &script];
            let mut terminal = host.terminal(&arguments, (24, 80));
            let (status, output) = tokio::task::spawn_blocking(move || terminal.end()).await.unwrap();
            assert!(status.success() && output == numbers(up_to, "\r\n"), "{status}, {} bytes", output.len());
        }
        Shape::Echo { bytes } => {
            let sent = noise(bytes as u64, bytes);
            let mut child =
                command(host, &["-i", "many", "--", "cat"]).stdin(Stdio::piped()).spawn().unwrap();
            let mut stdin = child.stdin.take().unwrap();
            let data = sent.clone();
            let feed = tokio::spawn(async move { stdin.write_all(&data).await });
            let output = child.wait_with_output().await.unwrap();
            feed.await.unwrap().unwrap();
            assert!(output.status.success() && output.stdout == sent, "{:?}", output.stderr);
        }
        Shape::Leave => {
            let output = command(host, &["many", "--", "sh", "-c", "sleep 20 & echo left"]).output().await;
            let output = output.unwrap();
            assert!(output.status.success() && output.stdout == b"left\n", "{output:?}");
        }
        Shape::Cut => {
            let mut child = command(host, &["many", "--", "yes"]).spawn().unwrap();
            let mut first = [0; 100];
            child.stdout.take().unwrap().read_exact(&mut first).await.unwrap();
            child.kill().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_of_all_shapes_end_with_all_of_their_output() {
    let host = Host::start(Net::User).await;
    host.write("vm.yaml", &[vm("many", json!({"image": {"oci": host.reference("busybox:1")}}))]);
    host.ready("many").await;
    let host = Arc::new(host);
    let (count, seed) = (setting("VMLET_EXECS", COMMANDS), setting("VMLET_SEED", 1));
    let next = Arc::new(AtomicUsize::new(0));
    let workers = (0..WORKERS).map(|_| {
        let (host, next) = (host.clone(), next.clone());
        tokio::spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return;
                }
                let shape = Shape::random(&mut StdRng::seed_from_u64((seed * 1_000_000 + number) as u64));
                let ended = timeout(LIMIT, run(&host, shape)).await;
                assert!(ended.is_ok(), "command {number} of seed {seed} hangs: {shape:?}\n{}", host.log());
            }
        })
    });
    for worker in futures_util::future::join_all(workers).await {
        worker.unwrap();
    }
    // Those that were cut are killed as soon as the daemon notices.
    host.exec("many", &["sh", "-c", "while ps | grep -q '[y]es$'; do :; done"]);
    Arc::into_inner(host).unwrap().assert_host_is_clean().await;
}

/// Waits until bytes lie in the link's socket that nobody takes, and no more come.
async fn link_is_stuck(vmm: u32) {
    const CALM: u32 = 5;
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    let (mut last, mut calm) = (0, 0);
    while calm < CALM {
        ticks.tick().await;
        let unread = unread_of_link(vmm).await;
        calm = if unread > 0 && unread == last { calm + 1 } else { 0 };
        last = unread;
    }
}

/// Bytes that a VMM sent on its end of the link and the daemon has not read.
async fn unread_of_link(vmm: u32) -> u64 {
    let listed = Command::new("ss").args(["--unix", "--all", "--processes", "--no-header"]).output().await;
    let listed = String::from_utf8(listed.expect("apt install iproute2").stdout).expect("text");
    // u_str ESTAB 0 212992 run/link.sock 4711 * 4712 users:(("qemu-system-x86",pid=42,fd=7))
    let own = listed.lines().filter(|line| line.contains(&format!("pid={vmm},")) && line.contains("ESTAB"));
    let sent = own.filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields[4].ends_with("link.sock").then(|| fields[3].parse::<u64>().expect("a number"))
    });
    sent.sum()
}

/// Output piles up in the guest and in QEMU until nothing moves any more; then all of it goes on.
#[tokio::test(flavor = "multi_thread")]
async fn commands_go_on_after_a_daemon_that_stood_still() {
    let mut host = Host::start(Net::User).await;
    host.write("vm.yaml", &[vm("many", json!({"image": {"oci": host.reference("busybox:1")}}))]);
    let vmm = pid(&host.ready("many").await);
    let numbers_each = 150_000;
    let script = format!("echo begun >&2; seq 1 {numbers_each}");
    let mut children = Vec::new();
    for _ in 0..24 {
        let mut child = command(&host, &["many", "--", "sh", "-c", &script]).spawn().unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let mut begun = [0; 6];
        let read = timeout(LIMIT, stderr.read_exact(&mut begun)).await;
        read.expect("the command begins").unwrap();
        children.push(child);
    }
    kill(host.daemon_pid(), Signal::SIGSTOP).unwrap();
    timeout(LIMIT, link_is_stuck(vmm)).await.expect("the link's buffers become full");
    kill(host.daemon_pid(), Signal::SIGCONT).unwrap();
    let expected = numbers(numbers_each, "\n");
    for child in children {
        let output = timeout(LIMIT, child.wait_with_output()).await;
        let output = output.unwrap_or_else(|_| panic!("a command hangs\n{}", host.log())).unwrap();
        assert!(output.status.success() && output.stdout == expected.as_bytes(), "{:?}", output.status);
    }
    host.assert_host_is_clean().await;
}
