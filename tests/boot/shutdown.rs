//! Guests that do not shut down when they are asked to.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

use crate::host::{Host, Net, vm};
use crate::traces::alive;
use crate::{pid, shell};

/// How long after its grace period a stubborn VM may be there, on a busy machine.
const SLACK: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_that_ignores_its_shutdown_is_killed_after_its_grace_period() {
    let mut host = Host::start(Net::Bridge).await;
    let mut spec = shell(&host, "trap '' TERM; touch /deaf; while true; do sleep 1; done");
    spec["terminationGracePeriodSeconds"] = json!(3);
    host.write("vm.yaml", &[vm("deaf", spec)]);
    let deaf = host.ready("deaf").await;
    host.exec("deaf", &["sh", "-c", "until test -e /deaf; do :; done"]);
    let asked = Instant::now();
    host.remove("vm.yaml");
    host.until("vms", "deaf", Value::is_null).await;
    let took = asked.elapsed();
    assert!((Duration::from_secs(3)..Duration::from_secs(3) + SLACK).contains(&took), "{took:?}");
    assert!(!alive(pid(&deaf)));
    let events = host.events("deaf").await;
    let said = |reason: &str, part: &str| events.iter().any(|(r, m)| r == reason && m.contains(part));
    assert!(said("Stopping", "the VM is deleted"), "{events:?}");
    assert!(said("Stopped", "its workload did not end within 3 s and was killed"), "{events:?}");
    assert!(!said("Killing", ""), "the guest did it: {events:?}");
    host.assert_host_is_clean().await;
}

/// The whole VM does not answer: neither its guest, nor its VMM.
#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_does_not_shut_down_is_killed_after_its_grace_period() {
    let mut host = Host::start(Net::Bridge).await;
    let mut spec = shell(&host, "while true; do sleep 1; done");
    spec["terminationGracePeriodSeconds"] = json!(2);
    host.write("vm.yaml", &[vm("frozen", spec)]);
    let frozen = host.ready("frozen").await;
    kill(nix::unistd::Pid::from_raw(pid(&frozen).try_into().unwrap()), Signal::SIGSTOP).unwrap();
    let asked = Instant::now();
    host.remove("vm.yaml");
    host.until("vms", "frozen", Value::is_null).await;
    let took = asked.elapsed();
    assert!((Duration::from_secs(2)..Duration::from_secs(2) + SLACK).contains(&took), "{took:?}");
    assert!(!alive(pid(&frozen)));
    let events = host.events("frozen").await;
    let said = |reason: &str, part: &str| events.iter().any(|(r, m)| r == reason && m.contains(part));
    assert!(said("Killing", "it did not shut down within 2 s"), "{events:?}");
    assert!(said("Stopped", "killed: the VM is deleted"), "{events:?}");
    host.assert_host_is_clean().await;
}
