use serde_json::json;

use super::super::*;
use super::support::*;
use crate::network::{Link, macs_for, taps_for};
use crate::object::{Quantity, Uid};

fn address(reservation: &Reservation) -> [u8; 4] {
    reservation.address().unwrap().octets()
}

fn reserve(store: &Store, name: &str, uid: Uid) -> Result<Reservation, ReserveError> {
    now(store.reserve_vm(claim(name, uid)))
}

#[test]
fn a_reservation_holds_all_that_was_claimed() {
    let (store, _) = store_with_disk();
    let uid = declare(&store, vm("web"));
    let wanted = VmClaim { network: bridge(None, &[8080]), ..claim("web", uid) };
    let reservation = now(store.reserve_vm(wanted)).unwrap();
    let nic = reservation.nic.clone().unwrap();
    assert_eq!(Some(nic.mac), macs_for(uid).next());
    assert_eq!(
        nic.link,
        Link::Bridge {
            tap: taps_for(uid).next().unwrap(),
            tap_owner: Some(1000),
            address: [10, 63, 0, 2].into(),
            prefix: 29,
            gateway: [10, 63, 0, 1].into(),
        }
    );
    assert_eq!((nic.ports.len(), reservation.vmm_user), (1, Some(1000)));
    assert_eq!(store.vm(&key("web")).unwrap().reservation, Some(reservation));
}

#[test]
fn a_stale_claim_gets_nothing() {
    let (store, _) = store_with_disk();
    let uid = declare(&store, vm("web"));
    let stale = |claim| matches!(now(store.reserve_vm(claim)), Err(ReserveError::Stale));
    assert!(stale(VmClaim { generation: 2, ..claim("web", uid) }), "another generation");
    assert!(stale(claim("web", Uid::new_v4())), "another uid");
    assert!(stale(claim("absent", uid)), "no such VM");
    now(store.undeclare(&key("web"), "directory:/m", at(2))).unwrap();
    assert!(stale(claim("web", uid)), "being deleted");
    assert_eq!(store.vm(&key("web")).unwrap().reservation, None);
}

#[test]
fn a_disk_that_is_not_ready_cannot_be_reserved() {
    let (store, _) = Store::in_memory();
    let uid = declare(&store, vm("web"));
    let refused = || matches!(reserve(&store, "web", uid), Err(ReserveError::ImageNotReady { .. }));
    assert!(refused(), "absent");
    now(store.claim_disk(&digest(1), Uid::nil())).unwrap();
    assert!(refused(), "being installed");
    now(store.abandon_disk(&digest(1), Uid::nil())).unwrap();
    now(store.forget_disk(&digest(1))).unwrap();
    install(&store, &digest(1));
    now(store.condemn_disk(&digest(1))).unwrap();
    assert!(refused(), "being removed");
}

#[test]
fn addresses_are_the_lowest_free_ones_until_none_is_left() {
    let (store, _) = store_with_disk();
    let light = |name: &str, uid| VmClaim {
        memory: Quantity::mebibytes(1),
        disk: Quantity::bytes(0),
        ..claim(name, uid)
    };
    let names = ["a", "b", "c", "d", "e"];
    let uids = names.map(|name| declare(&store, vm(name)));
    for (index, (name, uid)) in names.iter().zip(uids).enumerate() {
        let reservation = now(store.reserve_vm(light(name, uid))).unwrap();
        assert_eq!(address(&reservation), [10, 63, 0, 2 + index as u8]);
    }
    let uid = declare(&store, vm("f"));
    let refused = now(store.reserve_vm(light("f", uid)));
    assert!(matches!(refused, Err(ReserveError::NoFreeAddress { .. })));
    now(store.release_vm(&key("c"), uids[2])).unwrap();
    assert_eq!(address(&now(store.reserve_vm(light("f", uid))).unwrap()), [10, 63, 0, 4]);
}

#[test]
fn subnets_without_room_for_a_vm_have_no_address() {
    let (store, _) = store_with_disk();
    let uid = declare(&store, vm("web"));
    for (subnet, room) in
        [("10.0.0.0/30", true), ("10.0.0.0/31", false), ("255.255.255.255/32", false), ("0.0.0.0/0", true)]
    {
        let network =
            NetworkClaim::Bridge { subnet: subnet.parse().unwrap(), fixed: None, ports: Vec::new() };
        let reserved = now(store.reserve_vm(VmClaim { network, ..claim("web", uid) }));
        assert_eq!(reserved.is_ok(), room, "{subnet}: {reserved:?}");
    }
}

#[test]
fn a_fixed_address_is_inside_free_and_the_holder_is_named() {
    let (store, _) = store_with_disk();
    let (a, b) = (declare(&store, vm("a")), declare(&store, vm("b")));
    let fixed = |name, uid, last| {
        now(store.reserve_vm(VmClaim { network: bridge(Some([10, 63, 0, last]), &[]), ..claim(name, uid) }))
    };
    for outside in [0, 1, 7, 8] {
        let refused = fixed("a", a, outside);
        assert!(matches!(refused, Err(ReserveError::AddressOutside { .. })), "{outside}: {refused:?}");
    }
    assert_eq!(address(&fixed("a", a, 6).unwrap()), [10, 63, 0, 6]);
    assert_eq!(address(&fixed("a", a, 6).unwrap()), [10, 63, 0, 6], "its own is no conflict");
    let refused = fixed("b", b, 6);
    assert!(matches!(&refused, Err(ReserveError::AddressTaken { by, .. }) if *by == key("a")), "{refused:?}");
    assert!(refused.unwrap_err().to_string().starts_with("address 10.63.0.6 is held by vm/a"));
}

#[test]
fn host_ports_are_held_per_protocol_and_the_holder_is_named() {
    let (store, _) = store_with_disk();
    let (a, b) = (declare(&store, vm("a")), declare(&store, vm("b")));
    now(store.reserve_vm(VmClaim { network: bridge(None, &[8080, 8081]), ..claim("a", a) })).unwrap();
    let ports = |ports: serde_json::Value| {
        let ports = serde_json::from_value(ports).unwrap();
        now(store.reserve_vm(VmClaim { network: NetworkClaim::User { ports }, ..claim("b", b) }))
    };
    let refused = ports(json!([{"host": 9, "guest": 9}, {"host": 8081, "guest": 80}])).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "host port 8081/TCP is held by vm/a; choose another in spec.network.ports"
    );
    assert_eq!(store.vm(&key("b")).unwrap().reservation, None, "all or nothing");
    ports(json!([{"host": 8081, "guest": 80, "protocol": "UDP"}])).unwrap();
    now(store.reserve_vm(VmClaim { network: bridge(None, &[8080]), ..claim("a", a) })).unwrap();
    ports(json!([{"host": 8081, "guest": 80}])).expect("a gave it up");
}

#[test]
fn each_vm_has_a_user_of_its_own() {
    let (store, _) = store_with_disk();
    let (a, b) = (declare(&store, vm("a")), declare(&store, vm("b")));
    let claim = |name, uid, vmm_users| now(store.reserve_vm(VmClaim { vmm_users, ..claim(name, uid) }));
    assert_eq!(claim("a", a, Some(5..6)).unwrap().vmm_user, Some(5));
    assert!(matches!(claim("b", b, Some(5..6)), Err(ReserveError::NoFreeUser)));
    assert!(matches!(claim("b", b, Some(6..6)), Err(ReserveError::NoFreeUser)), "an empty range");
    assert_eq!(claim("b", b, Some(5..7)).unwrap().vmm_user, Some(6));
    assert_eq!(claim("b", b, Some(9..10)).unwrap().vmm_user, Some(9), "the range moved");
    assert_eq!(claim("b", b, None).unwrap().vmm_user, None);
}

#[test]
fn a_vm_keeps_what_still_fits() {
    let (store, _) = store_with_disk();
    let (a, b) = (declare(&store, vm("a")), declare(&store, vm("b")));
    reserve(&store, "a", a).unwrap();
    let first = reserve(&store, "b", b).unwrap();
    now(store.release_vm(&key("a"), a)).unwrap();
    let version_before = version(&store.record(&key("b")).unwrap());
    assert_eq!(reserve(&store, "b", b).unwrap(), first, "though 10.63.0.2 and user 1000 are free again");
    assert_eq!(version(&store.record(&key("b")).unwrap()), version_before, "nothing was written");
    let larger = VmClaim { memory: Quantity::mebibytes(512), ..claim("b", b) };
    assert_eq!(now(store.reserve_vm(larger)).unwrap().nic, first.nic);
    let elsewhere = VmClaim {
        network: NetworkClaim::Bridge {
            subnet: "10.99.0.0/24".parse().unwrap(),
            fixed: None,
            ports: Vec::new(),
        },
        ..claim("b", b)
    };
    assert_eq!(address(&now(store.reserve_vm(elsewhere)).unwrap()), [10, 99, 0, 2]);
    let none = VmClaim { network: NetworkClaim::None, ..claim("b", b) };
    assert_eq!(now(store.reserve_vm(none)).unwrap().nic, None);
    assert_eq!(address(&reserve(&store, "a", a).unwrap()), [10, 63, 0, 2]);
}

#[test]
fn uids_that_begin_alike_share_neither_mac_nor_tap() {
    let uids = std::sync::Mutex::new(vec![
        Uid::from_bytes([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]),
        Uid::from_bytes([1, 2, 3, 4, 5, 6, 20, 8, 9, 10, 11, 12, 13, 14, 15, 16]),
    ]);
    let minter: Minter = std::sync::Arc::new(move || uids.lock().unwrap().pop().unwrap_or_else(Uid::new_v4));
    let (store, _) = Store::in_memory_with(StoreSettings { minter, ..StoreSettings::default() });
    install(&store, &digest(1));
    let nics = ["a", "b"].map(|name| {
        let uid = declare(&store, vm(name));
        reserve(&store, name, uid).unwrap().nic.unwrap()
    });
    let taps = nics.each_ref().map(|nic| match &nic.link {
        Link::Bridge { tap, .. } => tap.clone(),
        Link::User => unreachable!(),
    });
    assert_ne!(nics[0].mac, nics[1].mac);
    assert_ne!(taps[0], taps[1]);
    assert!(taps.iter().all(|tap| tap.len() <= 15));
}

#[test]
fn what_a_process_uses_is_neither_changed_nor_released() {
    let (store, _) = store_with_disk();
    let uid = declare(&store, vm("web"));
    let held = reserve(&store, "web", uid).unwrap();
    let up = VmUpdate { run: Some(running()), ..VmUpdate::default() };
    now(store.publish_vm(&key("web"), uid, up)).unwrap();
    assert_eq!(reserve(&store, "web", uid).unwrap(), held, "the same again is fine");
    let larger = VmClaim { memory: Quantity::mebibytes(512), ..claim("web", uid) };
    assert!(matches!(now(store.reserve_vm(larger)), Err(ReserveError::Running)));
    assert!(matches!(now(store.release_vm(&key("web"), uid)), Err(ReleaseError::Running)));
    assert_eq!(store.vm(&key("web")).unwrap().reservation, Some(held));
}

#[test]
fn a_release_by_a_former_vm_of_the_name_is_harmless() {
    let (store, _) = store_with_disk();
    let uid = declare(&store, vm("web"));
    reserve(&store, "web", uid).unwrap();
    now(store.release_vm(&key("web"), Uid::new_v4())).unwrap();
    assert!(store.vm(&key("web")).unwrap().reservation.is_some());
    now(store.release_vm(&key("web"), uid)).unwrap();
    now(store.release_vm(&key("web"), uid)).expect("again is fine");
    assert!(store.vm(&key("web")).unwrap().reservation.is_none());
}

#[test]
fn a_range_without_users_has_none() {
    let (store, _) = store_with_disk();
    let uid = declare(&store, vm("web"));
    let none = VmClaim { vmm_users: Some(0..0), ..claim("web", uid) };
    assert!(matches!(now(store.reserve_vm(none)), Err(ReserveError::NoFreeUser)));
}

#[test]
fn a_name_of_a_device_that_another_holds_is_passed_over() {
    // Equal uids stand for uids whose hashes begin alike.
    let uids = std::sync::Mutex::new(vec![Uid::from_bytes([7; 16]), Uid::from_bytes([7; 16])]);
    let minter: Minter = std::sync::Arc::new(move || uids.lock().unwrap().pop().unwrap_or_else(Uid::new_v4));
    let (store, _) = Store::in_memory_with(StoreSettings { minter, ..StoreSettings::default() });
    install(&store, &digest(1));
    let nics = ["a", "b"].map(|name| {
        let uid = declare(&store, vm(name));
        reserve(&store, name, uid).unwrap().nic.unwrap()
    });
    assert_ne!(nics[0].mac, nics[1].mac);
    assert_ne!(nics[0].link.tap(), nics[1].link.tap());
}
