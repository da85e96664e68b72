use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use proptest::prelude::*;
use uuid::Uuid;

use super::firewall::{Entries, parse_entries};
use super::*;
use crate::object::Protocol;

fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

#[test]
fn the_first_host_is_the_gateway_and_the_others_are_for_vms() {
    let subnet: Subnet = "10.63.0.0/29".parse().unwrap();
    assert_eq!((subnet.gateway(), subnet.prefix()), (ip("10.63.0.1"), 29));
    let hosts: Vec<_> = subnet.hosts().map(|host| host.to_string()).collect();
    assert_eq!(hosts, ["10.63.0.2", "10.63.0.3", "10.63.0.4", "10.63.0.5", "10.63.0.6"]);
    assert!(subnet.hosts().all(|host| subnet.is_host(host)));
    for other in ["10.63.0.0", "10.63.0.1", "10.63.0.7", "10.63.0.8"] {
        assert!(!subnet.is_host(ip(other)), "{other}");
    }
}

#[test]
fn a_subnet_says_what_is_wrong_with_it() {
    let wrong = |text: &str| text.parse::<Subnet>().unwrap_err().to_string();
    assert!(wrong("10.63.0.1/24").contains("use 10.63.0.0/24"));
    assert!(wrong("10.63.0.0/30").contains("8 to 29"));
    assert!(wrong("10.63.0.0").contains("for example 10.63.0.0/24"));
    assert!(wrong("fd00::/64").contains("IPv4"));
    assert!(wrong("127.0.0.0/24").contains("unicast"));
    assert!(wrong("240.0.0.0/24").contains("unicast"));
}

#[test]
fn overlap_is_symmetric_containment() {
    let subnet: Subnet = "10.63.0.0/24".parse().unwrap();
    for (other, expected) in
        [("10.63.0.0/16", true), ("10.63.0.128/25", true), ("10.63.1.0/24", false), ("0.0.0.0/0", true)]
    {
        assert_eq!(subnet.overlaps(other.parse().unwrap()), expected, "{other}");
    }
}

#[test]
fn resolvers_of_the_host_itself_are_no_use_to_guests() {
    let text = "# comment\nsearch example.org\nnameserver 127.0.0.53\nnameserver ::1\nnameserver  10.0.0.2 # x\n\
                nameserver bad\nnameserver\nnameserver 10.0.0.3\nnameserver 10.0.0.4\nnameserver 10.0.0.5\n";
    assert_eq!(parse_resolvers(text), [ip("10.0.0.2"), ip("10.0.0.3"), ip("10.0.0.4")]);
    assert_eq!(parse_resolvers("nameserver 127.0.0.1\n"), Vec::<Ipv4Addr>::new());
}

#[test]
fn entries_are_read_back_from_nft() {
    // One document a command, as nft 1.0.6 writes them.
    let text = r#"
        {"nftables": [{"metainfo": {"version": "1.0.6", "json_schema_version": 1}}, {"map": {"family": "ip",
          "name": "tcp_forwards", "table": "vmlet0", "type": "inet_service", "handle": 6,
          "map": "ipv4_addr . inet_service",
          "elem": [[8080, {"concat": ["10.63.0.5", 80]}], [70000, {"concat": ["10.63.0.6", 80]}]]}}]}
        {"nftables": [{"metainfo": {}}, {"map": {"name": "udp_forwards"}}]}
        {"nftables": [{"set": {"name": "taps", "elem": ["vmt1"]}}]}
        {"nftables": [{"set": {"name": "leases",
          "elem": [{"concat": ["vmt1", "52:54:00:00:00:01", "10.63.0.5"]}, {"concat": []}]}}]}"#;
    let entries = parse_entries(text).unwrap();
    assert_eq!(
        entries.forwards.into_iter().collect::<Vec<_>>(),
        [((Protocol::Tcp, 8080), (ip("10.63.0.5"), 80))]
    );
    assert_eq!(entries.taps, BTreeSet::from(["vmt1".to_owned()]));
    assert_eq!(
        entries.leases,
        BTreeSet::from([("vmt1".to_owned(), "52:54:00:00:00:01".to_owned(), ip("10.63.0.5"))])
    );
}

#[test]
fn a_change_deletes_what_differs_before_it_adds() {
    let mut present = Entries::default();
    present.forwards.insert((Protocol::Tcp, 80), (ip("10.63.0.5"), 80));
    present.forwards.insert((Protocol::Udp, 53), (ip("10.63.0.5"), 53));
    present.taps.insert("vmt1".to_owned());
    let mut wanted = present.clone();
    wanted.forwards.insert((Protocol::Tcp, 80), (ip("10.63.0.5"), 8080));
    assert_eq!(
        present.change_to(&wanted, "br"),
        "delete element ip br tcp_forwards { 80 : 10.63.0.5 . 80 }\n\
         add element ip br tcp_forwards { 80 : 10.63.0.5 . 8080 }\n"
    );
    assert_eq!(present.change_to(&present, "br"), "");
}

#[test]
fn entries_of_a_vm_leave_out_the_others() {
    let mut all = Entries::default();
    for (tap, address, port) in [("vmt1", "10.63.0.5", 80), ("vmt2", "10.63.0.6", 81)] {
        all.forwards.insert((Protocol::Tcp, port), (ip(address), 80));
        all.taps.insert(tap.to_owned());
        all.leases.insert((tap.to_owned(), "52:54:00:00:00:01".to_owned(), ip(address)));
    }
    let one = all.of("vmt2", ip("10.63.0.6"));
    assert_eq!(one.forwards.keys().collect::<Vec<_>>(), [&(Protocol::Tcp, 81)]);
    assert_eq!((one.taps.len(), one.leases.len()), (1, 1));
}

proptest! {
    #[test]
    fn names_fit_what_they_are_for(bytes: [u8; 16], other: [u8; 16]) {
        let (uid, other) = (Uuid::from_bytes(bytes), Uuid::from_bytes(other));
        let taps = |uid| taps_for(uid).take(3).collect::<Vec<_>>();
        prop_assert!(taps(uid).iter().all(|tap| tap.len() == 15 && tap.bytes().all(|byte| byte.is_ascii_alphanumeric())));
        let macs = |uid| macs_for(uid).take(3).collect::<Vec<_>>();
        prop_assert!(macs(uid).iter().all(|mac| mac.len() == 17 && mac.starts_with("52:54:")));
        prop_assert_eq!(macs(uid), macs(uid));
        prop_assert_eq!(taps(uid) == taps(other), uid == other);
        prop_assert_ne!(&taps(uid)[0], &taps(uid)[1]);
    }

    #[test]
    fn every_subnet_has_as_many_hosts_as_it_says(address: u32, prefix in 20u8..=29) {
        let net = ipnet::Ipv4Net::new(Ipv4Addr::from_bits(address), prefix).unwrap().trunc();
        if let Ok(subnet) = net.to_string().parse::<Subnet>() {
            let hosts: BTreeSet<_> = subnet.hosts().collect();
            prop_assert_eq!(hosts.len(), (1 << (32 - prefix)) - 3);
            prop_assert!(hosts.iter().all(|host| subnet.is_host(*host)));
            prop_assert!(subnet.overlaps(net));
            prop_assert_eq!(subnet.to_string().parse::<Subnet>().unwrap(), subnet);
        }
    }

    #[test]
    fn no_text_breaks_the_parsers(text in "\\PC*") {
        let _ = (text.parse::<Subnet>(), parse_resolvers(&text), parse_entries(&text));
    }
}
