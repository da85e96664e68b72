//! A daemon that is killed at any time, again and again, while manifests change and VMMs die; and an
//! account of every trace in between.
//!
//! `VMLET_KILLS` says how often (8 is for every day), `VMLET_SEED` chooses another story.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::host::{Host, Net, condition, image, is_ready, vm};
use crate::images::{busybox_config, busybox_with};
use crate::{free_port, setting};

const NAMES: [&str; 4] = ["ant", "bee", "cat", "dog"];
/// Kills between two accounts.
const ROUND: usize = 8;
/// For how long nothing must change before the account.
const CALM: Duration = Duration::from_millis(500);
/// Within which time it must have come to that.
const SETTLED: Duration = Duration::from_secs(60);

/// The host and what is wanted of it.
struct Story {
    host: Host,
    random: StdRng,
    /// By name: the spec that was last declared, and its serial number.
    wanted: BTreeMap<&'static str, (Value, u64)>,
    serial: u64,
    ports: [u16; NAMES.len()],
    kills: usize,
    vmm_kills: usize,
}

impl Story {
    async fn begin(seed: u64) -> Self {
        let mut host = Host::start(Net::Bridge).await;
        let other = busybox_with(&[("etc/other", "another image\n")], busybox_config());
        host.registry.push(&other, "busybox", "2").await;
        host.accelerator = "tcg";
        let ports = NAMES.map(|_| free_port());
        let random = StdRng::seed_from_u64(seed);
        Story { host, random, wanted: BTreeMap::new(), serial: 0, ports, kills: 0, vmm_kills: 0 }
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.random.random_range(0..choices.len())]
    }

    /// Some spec. `peace`: one that can be fulfilled beside those of the others.
    fn spec(&mut self, number: usize, peace: bool) -> Value {
        let image = match self.random.random_range(0..4) {
            0 => json!({"name": "shared"}),
            1 => json!({"oci": self.host.reference("busybox:2")}),
            2 if !peace => json!({"oci": self.host.reference("busybox:missing")}),
            _ => json!({"oci": self.host.reference("busybox:1")}),
        };
        let port = if peace || self.random.random_bool(0.8) { number } else { self.one_of(&[0, 1, 2, 3]) };
        let ports = if self.random.random_bool(0.6) {
            json!([{"host": self.ports[port], "guest": 80}])
        } else {
            json!([])
        };
        json!({
            "image": image,
            "memory": self.one_of(&["96Mi", "128Mi", "160Mi"]),
            "rootDisk": {"size": self.one_of(&["1Gi", "2Gi"])},
            "runPolicy": self.one_of(&["Always", "Always", "Always", "Halted"]),
            "terminationGracePeriodSeconds": self.one_of(&[0, 1, 10]),
            "network": {"ports": ports},
        })
    }

    fn declare(&mut self, number: usize, peace: bool) {
        let (name, spec) = (NAMES[number], self.spec(number, peace));
        self.serial += 1;
        let mut manifest = vm(name, spec.clone());
        manifest["metadata"]["labels"] = json!({"serial": self.serial.to_string()});
        self.host.write(&format!("{name}.yaml"), &[manifest]);
        self.wanted.insert(name, (spec, self.serial));
    }

    fn remove(&mut self, name: &'static str) {
        if self.wanted.remove(name).is_some() {
            self.host.remove(&format!("{name}.yaml"));
        }
    }

    /// Something happens to somebody.
    fn act(&mut self) {
        let number = self.random.random_range(0..NAMES.len());
        let name = NAMES[number];
        match self.random.random_range(0..10) {
            0..=3 => self.declare(number, false),
            4..=5 => self.remove(name),
            // Perhaps seen as an edit, perhaps as a deletion and a new VM.
            6 => {
                self.remove(name);
                self.declare(number, false);
            }
            7 => {
                if self.wanted.contains_key(name) {
                    self.host.write_text(&format!("{name}.yaml"), "kind: VM\nspec: [half");
                    // It is written again before the account.
                }
            }
            _ => {
                let processes = self.host.traces().processes;
                if !processes.is_empty() {
                    let victim = processes.iter().nth(self.random.random_range(0..processes.len())).unwrap();
                    let pid = victim.split(' ').next().unwrap().parse().unwrap();
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                    self.vmm_kills += 1;
                }
            }
        }
    }

    /// Waits for any time, which is when the daemon dies.
    async fn any_time(&mut self) {
        let longest = self.one_of(&[50, 400, 1500, 4000]);
        let wait = Duration::from_millis(self.random.random_range(0..longest));
        tokio::time::sleep(wait).await;
    }

    async fn kill_daemon(&mut self) {
        for _ in 0..self.random.random_range(0..4) {
            self.act();
        }
        self.any_time().await;
        self.host.kill_daemon();
        self.kills += 1;
        self.host.launch_daemon();
    }

    /// Ends all conflicts, waits until everything is as wanted, kills the daemon in peace, and accounts for
    /// every trace.
    async fn account(&mut self) {
        self.host.kill_daemon();
        for (number, name) in NAMES.iter().enumerate() {
            if self.wanted.contains_key(name) {
                self.declare(number, true);
            }
        }
        self.host.start_daemon().await;
        for name in NAMES {
            let Some((spec, serial)) = self.wanted.get(name) else {
                self.host.until("vms", name, Value::is_null).await;
                continue;
            };
            let (halted, serial) = (spec["runPolicy"] == "Halted", serial.to_string());
            let settled = |vm: &Value| {
                vm["metadata"]["labels"]["serial"] == *serial
                    && vm["status"]["observedGeneration"] == vm["metadata"]["generation"]
                    && (is_ready(vm) || halted && condition(vm, "Ready")["reason"] == "Halted")
            };
            let vm = self.host.until("vms", name, settled).await;
            assert_eq!(halted, vm["status"]["pid"].is_null(), "{vm}");
        }
        self.calm().await;
        self.host.kill_daemon();
        self.host.assert_accounted();
        self.host.start_daemon().await;
    }

    /// Waits until the traces stay as they are: the removal of base disks is announced by nobody.
    async fn calm(&self) {
        let deadline = Instant::now() + SETTLED;
        let mut before = self.host.traces();
        loop {
            tokio::time::sleep(CALM).await;
            let now = self.host.traces();
            if now == before && now.foreign.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "it does not settle: {now:#?}\n{}", self.host.log());
            before = now;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_killed_at_any_time_leaves_nothing_unaccounted_for() {
    let (kills, seed) = (setting("VMLET_KILLS", ROUND), setting("VMLET_SEED", 1));
    let begun = Instant::now();
    let mut story = Story::begin(seed as u64).await;
    story.host.write("shared.yaml", &[image("shared", &story.host.reference("busybox:1"))]);
    let mut accounts = 0;
    while story.kills < kills {
        for _ in 0..ROUND.min(kills - story.kills) {
            story.kill_daemon().await;
        }
        story.account().await;
        accounts += 1;
        let Story { kills, vmm_kills, serial, .. } = &story;
        println!(
            "{kills} kills of the daemon, {vmm_kills} of VMMs, {serial} manifests, {accounts} accounts, {} s",
            begun.elapsed().as_secs()
        );
    }
    story.host.assert_host_is_clean().await;
}
