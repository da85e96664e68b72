//! A daemon that dies right before or after each kind of write, to its store or to the world; and the
//! next one, which must make everything as it would have been.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::host::{Host, Net, is_ready, vm};
use crate::trapped::Effect::{self, *};
use crate::trapped::Fact::{ExitRecorded, Pinned, Released, Removed, Reserved, Stopping, Up};
use crate::trapped::Trap::{self, After, Before, Durable};
use crate::{free_port, pid};

/// One life of a VM, with a death of its daemon in each of its three parts.
struct Life {
    creation: Trap,
    edit: Edit,
    deletion: Trap,
}

/// An edit that restarts the VM, and the death of the daemon that acts on it.
enum Edit {
    /// On its disk.
    Memory(Trap),
    /// On a new one.
    Disk(Trap),
}

fn effects(effects: &[Effect]) -> impl Iterator<Item = Trap> {
    effects.iter().flat_map(|effect| [Before(*effect), After(*effect)])
}

/// All deaths, in as few lives as have a place for each.
fn lives() -> Vec<Life> {
    let creations = effects(&[Stage, Install, Prepare, Attach, Spawn, Release]);
    let creations: Vec<Trap> = creations.chain([Durable(Pinned), Durable(Reserved), Durable(Up)]).collect();
    let edits = effects(&[Detach, Prepare, Attach, Spawn, Release]).map(Edit::Memory);
    let edits = edits.chain([Stopping, ExitRecorded, Up].map(|fact| Edit::Memory(Durable(fact))));
    let edits = edits.chain(effects(&[RemoveDisk]).map(Edit::Disk));
    let deletions = effects(&[Kill, Detach, Cleanup, RemoveImage]);
    let deletions = deletions.chain([Stopping, ExitRecorded, Released, Removed].map(Durable));
    let deletions: Vec<Trap> = deletions.collect();
    assert_eq!(creations.len(), 15);
    let (creations, edits) = (creations.into_iter(), edits.into_iter());
    let deletions = deletions.into_iter().cycle();
    let parts = creations.zip(edits).zip(deletions);
    parts.map(|((creation, edit), deletion)| Life { creation, edit, deletion }).collect()
}

/// Lives all lives whose number has this rest, one after the other.
async fn live(rest: usize, of: usize) {
    let mut host = Host::prepare(Net::Bridge).await;
    host.accelerator = "tcg";
    for life in lives().iter().skip(rest).step_by(of) {
        let spec = json!({
            "image": {"oci": host.reference("busybox:1")},
            "memory": "128Mi",
            "terminationGracePeriodSeconds": 0,
            "network": {"ports": [{"host": free_port(), "guest": 80}]}
        });
        host.write("vm.yaml", &[vm("cat", spec.clone())]);
        host.die_at(life.creation).await;
        host.start_daemon().await;
        let first = host.ready("cat").await;
        assert_one_process(&host, &first);
        host.kill_daemon();

        let mut edited = spec;
        let trap = match life.edit {
            Edit::Memory(trap) => {
                edited["memory"] = json!("160Mi");
                trap
            }
            Edit::Disk(trap) => {
                edited["rootDisk"] = json!({"size": "3Gi"});
                trap
            }
        };
        host.write("vm.yaml", &[vm("cat", edited)]);
        host.die_at(trap).await;
        host.start_daemon().await;
        let second = |vm: &Value| is_ready(vm) && vm["metadata"]["generation"] == 2;
        let second = host.until("vms", "cat", second).await;
        assert_one_process(&host, &second);
        assert_eq!(
            (&second["metadata"]["uid"], &second["status"]["addresses"], &second["status"]["ports"]),
            (&first["metadata"]["uid"], &first["status"]["addresses"], &first["status"]["ports"])
        );
        assert_ne!(pid(&first), pid(&second), "it was started anew");
        host.kill_daemon();
        host.assert_accounted();

        host.remove("vm.yaml");
        host.die_at(life.deletion).await;
        host.start_daemon().await;
        host.empty().await;
        host.vanished().await;
        host.kill_daemon();
        host.assert_accounted();
    }
    host.start_daemon().await;
    host.assert_host_is_clean().await;
}

/// The one process of a host with one VM is the one that its status names.
fn assert_one_process(host: &Host, vm: &Value) {
    let expected = format!("{} {}", pid(vm), vm["metadata"]["uid"].as_str().unwrap());
    assert_eq!(host.traces().processes, BTreeSet::from([expected]), "{vm}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_death_of_a_daemon_is_made_good_first_half() {
    live(0, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_death_of_a_daemon_is_made_good_second_half() {
    live(1, 2).await;
}
