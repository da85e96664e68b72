//! Whatever happens in whatever order, what must hold holds.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use proptest::prelude::*;
use serde_json::json;

use super::super::leases::Leases;
use super::super::*;
use super::support::*;
use crate::network::Link;
use crate::object::{Port, Protocol, Quantity, Uid};

const MEMORY: u64 = 1024;
const DISK: u64 = 4096;

#[derive(Clone, Debug)]
enum Step {
    Declare { vm: u8, cpus: u8 },
    Undeclare(u8),
    Reserve { vm: u8, fixed: Option<u8>, ports: Vec<u16>, wide: bool, users: u32, memory: u64, disk: u64 },
    Release(u8),
    Run(u8, bool),
    Remove(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let vm = || 0..8_u8;
    let reserve = (
        vm(),
        prop::option::weighted(0.3, 0..9_u8),
        prop::collection::vec(1..5_u16, 0..3),
        any::<bool>(),
        0..6_u32,
        0..600_u64,
        0..2000_u64,
    );
    prop_oneof![
        3 => (vm(), 1..3_u8).prop_map(|(vm, cpus)| Step::Declare { vm, cpus }),
        1 => vm().prop_map(Step::Undeclare),
        6 => reserve.prop_map(|(vm, fixed, ports, wide, users, memory, disk)| {
            Step::Reserve { vm, fixed, ports, wide, users, memory, disk }
        }),
        2 => vm().prop_map(Step::Release),
        2 => (vm(), any::<bool>()).prop_map(|(vm, up)| Step::Run(vm, up)),
        1 => vm().prop_map(Step::Remove),
    ]
}

fn take(store: &Store, step: Step) {
    let name = |number: u8| format!("vm-{number}");
    let of = |number: u8| {
        let record = store.vm(&key(&name(number)));
        record.map(|vm| (vm.object.metadata.uid.unwrap_or_default(), vm.object.metadata.generation))
    };
    let uid = |number: u8| of(number).map_or(Uid::nil(), |(uid, _)| uid);
    match step {
        Step::Declare { vm, cpus } => {
            let object = vm_with(&name(vm), json!({"image": {"name": "base"}, "cpus": cpus}));
            _ = now(store.declare(object, origin("a"), false, at(1)));
        }
        Step::Undeclare(vm) => _ = now(store.undeclare(&key(&name(vm)), "directory:/m", at(2))),
        Step::Reserve { vm, fixed, ports, wide, users, memory, disk } => {
            let (uid, generation) = of(vm).unwrap_or_default();
            let protocol = if wide { Protocol::Tcp } else { Protocol::Udp };
            let ports = ports.into_iter().map(|host| Port { host, guest: 80, protocol });
            let network = NetworkClaim::Bridge {
                subnet: if wide { "10.63.0.0/28" } else { "10.63.0.0/29" }.parse().unwrap(),
                fixed: fixed.map(|last| [10, 63, 0, last].into()),
                ports: ports.collect(),
            };
            _ = now(store.reserve_vm(VmClaim {
                generation,
                network,
                vmm_users: (users > 0).then_some(1000..1000 + users),
                memory: Quantity::mebibytes(memory),
                disk: Quantity::mebibytes(disk),
                capacity: Capacity {
                    memory: Quantity::mebibytes(MEMORY),
                    cpus: 5,
                    disk: Quantity::mebibytes(DISK),
                },
                impatient: memory > 500,
                ..claim(&name(vm), uid)
            }));
        }
        Step::Release(vm) => _ = now(store.release_vm(&key(&name(vm)), uid(vm))),
        Step::Run(vm, up) => {
            let run = Some(if up { running() } else { Run::Idle });
            _ = now(store.publish_vm(&key(&name(vm)), uid(vm), VmUpdate { run, ..VmUpdate::default() }));
        }
        Step::Remove(vm) => _ = now(store.remove_vm(&key(&name(vm)), uid(vm))),
    }
}

fn all_different<T: Ord + Debug + Clone>(what: &str, items: impl IntoIterator<Item = T>) {
    let mut seen = BTreeSet::new();
    for item in items {
        assert!(seen.insert(item.clone()), "two VMs hold {what} {item:?}");
    }
}

fn check_leases(store: &Store) {
    let (records, _) = store.list(Kind::Vm, None);
    let held: Vec<&Reservation> = records.iter().filter_map(Record::reservation).collect();
    let nics: Vec<_> = held.iter().filter_map(|held| held.nic.as_ref()).collect();
    all_different("address", held.iter().filter_map(|held| held.address()));
    all_different("user", held.iter().filter_map(|held| held.vmm_user));
    all_different("MAC", nics.iter().map(|nic| nic.mac.clone()));
    all_different(
        "tap",
        nics.iter().map(|nic| match &nic.link {
            Link::Bridge { tap, .. } => tap.clone(),
            Link::User => unreachable!(),
        }),
    );
    let ports = nics.iter().flat_map(|nic| {
        let own: BTreeSet<_> = nic.ports.iter().map(|port| (port.host, port.protocol)).collect();
        own
    });
    all_different("port", ports);
    let sum = |of: fn(&Reservation) -> Quantity| held.iter().map(|held| of(held).as_bytes()).sum::<u64>();
    assert!(sum(|held| held.memory) <= MEMORY << 20);
    assert!(sum(|held| held.disk) <= DISK << 20);
    assert!(held.iter().map(|held| held.cpus).sum::<u32>() <= 5);

    let mut derived = Leases::default();
    for record in &records {
        if let Some(held) = record.reservation() {
            derived.add(&record.key(), held);
        }
        let Record::Vm(vm) = record else { unreachable!() };
        assert!(
            !matches!(vm.run, Run::Up { .. }) || vm.reservation.is_some(),
            "a process without a reservation"
        );
    }
    store.engine().read(|state| assert_eq!(state.leases, derived, "the indices differ from the records"));
}

/// Applies everything the watcher sees to what it knew.
fn follow(watch: &mut Watch, known: &mut BTreeMap<ObjectKey, Record>, last: &mut u64) {
    use futures_util::FutureExt;
    while let Some(change) = watch.next().now_or_never() {
        let change = change.expect("the history is long enough");
        assert!(change.version > *last, "versions rise");
        *last = change.version;
        let before = match change.kind {
            ChangeKind::Deleted => known.remove(&change.record.key()),
            _ => known.insert(change.record.key(), change.record),
        };
        assert_eq!(before.is_none(), change.kind == ChangeKind::Added);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn leases_are_unique_within_capacity_and_watches_complete(steps in prop::collection::vec(step(), 0..80)) {
        let (store, backend) = store_with_disk();
        let (mut known, mut last) = (BTreeMap::new(), 0);
        let mut watch = store.watch(None).unwrap();
        for step in steps {
            take(&store, step);
            check_leases(&store);
            follow(&mut watch, &mut known, &mut last);
        }
        let listed = store.list(Kind::Vm, None).0;
        prop_assert_eq!(known.into_values().collect::<Vec<_>>(), listed.clone());
        let (again, _) = backend.crash(0);
        prop_assert_eq!(again.list(Kind::Vm, None).0, listed, "the log says the same");
        check_leases(&again);
    }
}
