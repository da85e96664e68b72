//! The whole, for real: manifests in, real VMs out, from a real registry, and nothing left behind.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "../common/mod.rs"]
mod common;
mod crashes;
mod examples;
mod execs;
mod full_disk;
mod host;
mod images;
mod interactive;
mod kernels;
mod kills;
mod promotion;
mod shutdown;
mod systemd;
mod terminal;
mod traces;
mod trapped;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use host::{Host, Net, condition, image, is_ready, user_of, vm};
use traces::alive;

/// A page over plain TCP. Ready says that the workload runs, not that it listens yet: that has a moment.
fn fetch(address: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        match try_fetch(address) {
            Ok(page) if !page.is_empty() => return page,
            other => assert!(Instant::now() < deadline, "{address}: {other:?}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn try_fetch(address: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address.parse().unwrap(), Duration::from_secs(10))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    Ok(page)
}

fn pid(vm: &Value) -> u32 {
    let pid = vm["status"]["pid"].as_u64().unwrap_or_else(|| panic!("no pid: {vm}"));
    pid.try_into().unwrap()
}

fn address(vm: &Value) -> String {
    vm["status"]["addresses"][0].as_str().unwrap_or_else(|| panic!("no address: {vm}")).to_owned()
}

fn free_port() -> u16 {
    std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

/// How much of something a test does: more in the environment.
fn setting(name: &str, otherwise: usize) -> usize {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap())
}

/// A busybox shell that runs a script.
fn shell(host: &Host, script: &str) -> Value {
    json!({"image": {"oci": host.reference("busybox:1")}, "command": ["/bin/sh", "-c", script]})
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_become_vms_that_are_reachable_and_vanish_with_their_manifests() {
    let mut host = Host::start(Net::Bridge).await;
    let port = free_port();
    host.write("busybox.yaml", &[image("busybox", &host.reference("busybox:1"))]);
    let named = json!({"image": {"name": "busybox"}, "network": {"ports": [{"host": port, "guest": 80}]}});
    let direct = json!({"image": {"oci": host.reference("busybox:1")}});
    host.write("web.yaml", &[vm("named", named), vm("direct", direct)]);
    let (named, direct) = tokio::join!(host.ready("named"), host.ready("direct"));

    // Pulled once, by digest; the base disk is whole.
    let image = host.until("images", "busybox", is_ready).await;
    assert_eq!(image["status"]["digest"], named["status"]["image"]["digest"]);
    let disk = image["status"]["disk"]["path"].as_str().unwrap();
    let check = std::process::Command::new("e2fsck").args(["-fn", disk]).output().unwrap();
    assert!(check.status.success(), "{check:?}");

    // Reachable: host to VM, by a forwarded port, and VM to VM.
    assert!(fetch(&format!("{}:80", address(&named))).ends_with("hello from a VM\n"));
    assert!(fetch(&format!("127.0.0.1:{port}")).ends_with("hello from a VM\n"));
    let page = host.exec("direct", &["wget", "-q", "-O", "-", &format!("http://{}/", address(&named))]);
    assert_eq!(page, "hello from a VM");

    // As the image and the spec say, and no more privileged than it need be.
    assert_eq!(host.exec("named", &["cat", "/etc/hostname"]), "named");
    assert_eq!(host.exec("named", &["sh", "-c", "echo $FROM"]), "image");
    assert_eq!(host.vmlet(&["exec", "named", "--", "test", "-e", "/etc/unwanted"]).status.code(), Some(1));
    let users = [user_of(pid(&named)), user_of(pid(&direct))];
    assert!(users[0] != 0 && users[1] != 0 && users[0] != users[1], "{users:?}");
    assert_eq!(host.taps().len(), 2);

    // An image in use stays, and says by whom.
    host.remove("busybox.yaml");
    let kept = host.until("images", "busybox", |image| condition(image, "Ready")["reason"] == "InUse").await;
    assert!(condition(&kept, "Ready")["message"].as_str().unwrap().contains("vm/named"), "{kept}");

    host.remove("web.yaml");
    host.until("vms", "named", Value::is_null).await;
    host.until("vms", "direct", Value::is_null).await;
    host.until("images", "busybox", Value::is_null).await;
    assert!(!alive(pid(&named)) && !alive(pid(&direct)));
    host.assert_host_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_daemon_leaves_vms_running_and_the_next_one_adopts_them() {
    let mut host = Host::start(Net::Bridge).await;
    host.write("a.yaml", &[vm("a", json!({"image": {"oci": host.reference("busybox:1")}}))]);
    host.write("b.yaml", &[vm("b", shell(&host, "while true; do echo tick; sleep 1; done"))]);
    let before = [host.ready("a").await, host.ready("b").await];
    let boot = host.exec("a", &["cat", "/proc/sys/kernel/random/boot_id"]);
    host.kill_daemon();
    assert!(fetch(&format!("{}:80", address(&before[0]))).ends_with("hello from a VM\n"));
    host.start_daemon().await;
    host.linked("a").await;
    host.linked("b").await;
    let connected = |vm: &Value| condition(vm, "AgentConnected")["status"] == "True" && is_ready(vm);
    let after = [host.until("vms", "a", connected).await, host.until("vms", "b", connected).await];
    for (before, after) in before.iter().zip(&after) {
        assert_eq!((pid(before), address(before)), (pid(after), address(after)));
        assert_eq!(
            (&after["status"]["restarts"], &before["metadata"]["uid"]),
            (&json!(0), &after["metadata"]["uid"])
        );
    }
    assert_eq!(host.exec("a", &["cat", "/proc/sys/kernel/random/boot_id"]), boot);
    let log = host.vmlet(&["logs", "b"]);
    assert!(String::from_utf8_lossy(&log.stdout).contains("tick"), "{log:?}");
    host.assert_host_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_of_memory_restarts_the_vm_once_gracefully_on_its_disk() {
    let mut host = Host::start(Net::User).await;
    let script = "trap 'echo goodbye; exit 0' TERM; echo hello; while true; do sleep 1; done";
    let mut spec = shell(&host, script);
    host.write("vm.yaml", &[vm("edited", spec.clone())]);
    let before = host.ready("edited").await;
    host.exec("edited", &["sh", "-c", "echo kept > /kept"]);
    let memory = |host: &Host| -> u64 {
        let line = host.exec("edited", &["grep", "MemTotal", "/proc/meminfo"]);
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let small = memory(&host);
    spec["memory"] = json!("384Mi");
    host.write("vm.yaml", &[vm("edited", spec)]);
    let newer =
        |vm: &Value| is_ready(vm) && vm["metadata"]["generation"] == 2 && vm["status"]["restarts"] == 1;
    let after = host.until("vms", "edited", newer).await;
    assert!(memory(&host) > small + 100_000, "{} after {small}", memory(&host));
    assert_eq!(host.exec("edited", &["cat", "/kept"]), "kept");
    assert!(pid(&before) != pid(&after) && !alive(pid(&before)));
    assert_eq!(after["status"]["lastExit"]["reason"], "Shutdown");
    let events = host.events("edited").await;
    let said = |reason: &str, part: &str| events.iter().any(|(r, m)| r == reason && m.contains(part));
    assert!(said("SpecChanged", "memory 256Mi → 384Mi (restart)"), "{events:?}");
    assert!(said("Stopping", "memory 256Mi → 384Mi (restart)"), "{events:?}");
    let log = String::from_utf8(host.vmlet(&["logs", "edited"]).stdout).unwrap();
    assert!(log.contains("goodbye"), "{log}");
    host.assert_host_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_vmm_is_noticed_at_once_and_started_again() {
    let mut host = Host::start(Net::User).await;
    host.write("vm.yaml", &[vm("phoenix", json!({"image": {"oci": host.reference("busybox:1")}}))]);
    let before = host.ready("phoenix").await;
    let victim = nix::unistd::Pid::from_raw(i32::try_from(pid(&before)).unwrap());
    nix::sys::signal::kill(victim, nix::sys::signal::Signal::SIGKILL).unwrap();
    let killed = Instant::now();
    let down = host.until("vms", "phoenix", |vm| vm["status"]["lastExit"].is_object()).await;
    // Nothing but its pidfd tells: the VM would be Ready for ever.
    assert!(killed.elapsed() < Duration::from_secs(20), "noticed after {:?}", killed.elapsed());
    assert_eq!(down["status"]["lastExit"]["reason"], "VmmFailed");
    assert!(down["status"]["nextRetryTime"].is_string(), "{down}");
    let again = |vm: &Value| is_ready(vm) && vm["status"]["restarts"] == 1;
    let after = host.until("vms", "phoenix", again).await;
    assert_ne!(pid(&before), pid(&after));
    host.assert_host_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_reference_delays_nobody_else_and_a_fix_cuts_its_wait() {
    let mut host = Host::start(Net::User).await;
    let spec = |tag: &str| json!({"image": {"oci": host.reference(tag)}});
    host.write("broken.yaml", &[vm("broken", spec("busybox:missing"))]);
    host.write("good.yaml", &[vm("good", spec("busybox:1"))]);
    host.ready("good").await;
    let waiting = |vm: &Value| vm["status"]["nextRetryTime"].is_string();
    let broken = host.until("vms", "broken", waiting).await;
    let ready = condition(&broken, "Ready");
    assert_eq!((&ready["status"], &ready["reason"]), (&json!("False"), &json!("NotFound")), "{broken}");
    assert!(ready["message"].as_str().unwrap().contains("busybox:missing"), "{ready}");
    host.write("broken.yaml", &[vm("broken", spec("busybox:1"))]);
    host.ready("broken").await;
    host.assert_host_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_yaml_keeps_the_last_good_spec_running_and_names_file_and_line() {
    let mut host = Host::start(Net::User).await;
    let good = json!({"image": {"oci": host.reference("busybox:1")}});
    host.write("vm.yaml", &[vm("steady", good.clone())]);
    let before = host.ready("steady").await;
    let broken = format!(
        "apiVersion: vmlet.dev/v1alpha1\nkind: VM\nmetadata: {{name: steady}}\nspec:\n  image: {{oci: '{}'}}\n  memroy: 1Gi\n",
        host.reference("busybox:1")
    );
    host.write_text("vm.yaml", &broken);
    let problem = |vm: &Value| condition(vm, "ManifestProblem")["status"] == "True";
    let during = host.until("vms", "steady", problem).await;
    let message = condition(&during, "ManifestProblem")["message"].as_str().unwrap().to_owned();
    assert!(message.contains("vm.yaml:6:3") && message.contains("memroy"), "{message}");
    assert_eq!((pid(&before), is_ready(&during)), (pid(&during), true));
    assert!(
        host.events("steady")
            .await
            .iter()
            .any(|(reason, text)| reason == "InvalidManifest" && text.contains("vm.yaml:6:3"))
    );
    host.write("vm.yaml", &[vm("steady", good)]);
    let after = host.until("vms", "steady", |vm| condition(vm, "ManifestProblem").is_null()).await;
    assert_eq!((pid(&after), &after["status"]["restarts"]), (pid(&before), &json!(0)));
    host.assert_host_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn run_policies_are_kept_and_exit_codes_told() {
    let mut host = Host::start(Net::User).await;
    let with = |policy: &str, script: &str| {
        let mut spec = shell(&host, script);
        spec["runPolicy"] = json!(policy);
        spec["network"] = json!({"mode": "none"});
        spec
    };
    let once = with("Once", "echo once; exit 3");
    // Fails the first time, and finds on its disk that it has.
    let rerun = with("RerunOnFailure", "test -e /ran && exit 0; touch /ran; sync; exit 4");
    host.write("jobs.yaml", &[vm("once", once), vm("rerun", rerun)]);
    let ended = |vm: &Value| vm["status"]["phase"] == "Stopped";
    let once = host.until("vms", "once", ended).await;
    assert_eq!(
        (&once["status"]["lastExit"]["code"], &once["status"]["restarts"]),
        (&json!(3), &json!(0)),
        "{once}"
    );
    let rerun = host.until("vms", "rerun", ended).await;
    assert_eq!(
        (&rerun["status"]["lastExit"]["code"], &rerun["status"]["restarts"]),
        (&json!(0), &json!(1)),
        "{rerun}"
    );
    let log = String::from_utf8(host.vmlet(&["logs", "once"]).stdout).unwrap();
    assert!(log.contains("once"), "{log}");
    host.assert_host_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_user_network_forwards_ports_and_exec_passes_everything_on() {
    let mut host = Host::start(Net::User).await;
    let port = free_port();
    let spec = json!({
        "image": {"oci": host.reference("busybox:1")},
        "network": {"mode": "user", "ports": [{"host": port, "guest": 80}]}
    });
    host.write("vm.yaml", &[vm("user", spec)]);
    let vm = host.ready("user").await;
    assert_eq!(vm["status"]["ports"][0]["host"], port);
    assert!(fetch(&format!("127.0.0.1:{port}")).ends_with("hello from a VM\n"));
    let failing = host.vmlet(&["exec", "user", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!(failing.status.code(), Some(7));
    assert_eq!((failing.stdout.as_slice(), failing.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
    let refused = host.vmlet(&["delete", "vm/user"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("vm.yaml"), "{refused:?}");
    host.assert_host_is_clean().await;
}
