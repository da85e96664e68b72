//! A process that writes and says what was acknowledged, to be killed or robbed of its power; and
//! what must be there afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use vmlet::object::Kind;
use vmlet::store::{Record, Store};

use super::support::*;

const DIR: &str = "VMLET_TEST_STORE_DIR";
const ROUNDS: &str = "VMLET_TEST_STORE_ROUNDS";
/// VMs that are written at the same time.
pub(crate) const WRITERS: usize = 8;
/// More than sled keeps in its log, which is a quarter of a segment: such a record is a file of its own.
const LARGE: usize = 140_000;

/// The arguments and environment that make this test binary a writer on `dir`. Each of its writers
/// makes so many changes.
pub(crate) fn arm(command: &mut Command, dir: &Path, rounds: u32) {
    command
        .args(["--exact", "writer::child_that_writes", "--ignored", "--nocapture"])
        .env(DIR, dir)
        .env(ROUNDS, rounds.to_string());
}

/// Not a test: the process.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by the tests of kills and power loss"]
async fn child_that_writes() {
    let dir = std::env::var_os(DIR).expect("set by the parent");
    let rounds: u32 = std::env::var(ROUNDS).unwrap().parse().unwrap();
    let store = open(Path::new(&dir)).unwrap();
    if store.disk(&digest()).is_none() {
        install_disk(&store).await;
    }
    let writers = (0..WRITERS).map(|number| tokio::spawn(write(store.clone(), number, rounds)));
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    store.close().await;
}

/// Counts a VM's starts up; after every third it takes a reservation, after every other third it
/// gives it back.
async fn write(store: Store, number: usize, rounds: u32) {
    let name = format!("vm-{number}");
    let uid = match store.vm(&key(&name)) {
        Some(known) => known.object.metadata.uid.unwrap(),
        None => declare(&store, vm(&name, &"e".repeat(if number == 0 { LARGE } else { 300 }))).await,
    };
    let first = store.vm(&key(&name)).unwrap().starts + 1;
    for count in first..first + rounds {
        starts(&store, &name, uid, count).await;
        println!("\nacknowledged {name} {count} unknown");
        match count % 3 {
            0 => {
                let held = store.reserve_vm(claim(&name, uid)).await.unwrap();
                println!("\nacknowledged {name} {count} {}", held.address().unwrap());
            }
            1 => {
                store.release_vm(&key(&name), uid).await.unwrap();
                println!("\nacknowledged {name} {count} nothing");
            }
            _ => {}
        }
    }
}

/// What the writer was told to be durable.
#[derive(Clone, Default)]
pub(crate) struct Acknowledged {
    /// Of each VM: its starts, and what it held then, if that is known.
    vms: BTreeMap<String, (u32, Option<Option<String>>)>,
    /// All acknowledgements.
    pub(crate) count: usize,
}

impl Acknowledged {
    /// Takes a line of the writer's output.
    pub(crate) fn note(&mut self, line: &str) {
        let words: Vec<&str> = line.trim().split(' ').collect();
        let ["acknowledged", name, count, held] = words[..] else { return };
        let held = match held {
            "unknown" => None,
            "nothing" => Some(None),
            address => Some(Some(address.to_owned())),
        };
        self.vms.insert(name.to_owned(), (count.parse().unwrap(), held));
        self.count += 1;
    }

    /// How many VMs something was acknowledged of.
    pub(crate) fn vms(&self) -> usize {
        self.vms.len()
    }

    /// Everything is there, or something later.
    pub(crate) fn check(&self, store: &Store) {
        for (name, (starts, held)) in &self.vms {
            let Some(vm) = store.vm(&key(name)) else { panic!("{name} was acknowledged and is gone") };
            assert!(vm.starts >= *starts, "{name}: {starts} was acknowledged, {} is there", vm.starts);
            let there = vm.reservation.as_ref().and_then(|held| held.address()).map(|held| held.to_string());
            if vm.starts == *starts
                && let Some(held) = held
            {
                assert_eq!(there, *held, "{name}'s reservation at {starts}");
            }
        }
        let (records, _) = store.list(Kind::Vm, None);
        let held: Vec<_> = records.iter().filter_map(Record::reservation).collect();
        let addresses: BTreeSet<_> = held.iter().map(|held| held.address()).collect();
        assert_eq!(addresses.len(), held.len(), "two VMs hold one address");
    }
}
