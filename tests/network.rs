//! The host network, for real: bridges, taps and nftables in network namespaces that the test makes.
//!
//! A namespace stands for the host, one for a machine beyond it, one for each VM. A VM is the far end of
//! its tap, as a VMM would be: a thread that carries frames between the host's tap and a tap of its own.

#![allow(clippy::unwrap_used, reason = "a helper that cannot go on fails the test")]

#[path = "network/lab.rs"]
mod lab;

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use futures_util::future::join_all;
use lab::{Namespace, Vm, beyond, fetch, run, serve};
use vmlet::network::{HostNetwork, HostSettings, Network, forwarding_warnings};
use vmlet::object::{Port, Protocol};

fn settings() -> HostSettings {
    HostSettings { bridge: "vmtest0".to_owned(), subnet: "10.63.0.0/24".parse().unwrap() }
}

fn port(host: u16, guest: u16) -> Port {
    Port { host, guest, protocol: Protocol::Tcp }
}

fn udp(host: u16, guest: u16) -> Port {
    Port { host, guest, protocol: Protocol::Udp }
}

fn listen(address: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(address).unwrap();
    socket.set_read_timeout(Some(lab::LIMIT)).unwrap();
    socket
}

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::from((address.parse::<Ipv4Addr>().unwrap(), port))
}

#[test]
fn vms_reach_what_they_should_and_are_reached_where_published() {
    let host = Namespace::new();
    let outside = beyond(&host);
    host.within(|| run("sysctl", &["-qw", "net.ipv4.ip_forward=1"]));
    let (web, client) = host.block_on(async {
        let network = HostNetwork::start(settings()).await.unwrap();
        let (web, client) =
            (Vm::new("10.63.0.5", vec![port(8080, 80), udp(5300, 53)]), Vm::new("10.63.0.6", vec![]));
        network.attach(&web.nic).await.unwrap();
        network.attach(&client.nic).await.unwrap();
        (web, client)
    });
    let web = web.boot(&host);
    let client = client.boot(&host);
    let _server = web.within(|| serve(at("0.0.0.0", 80)));

    // The server answers with the address that it sees.
    assert_eq!(host.within(|| fetch(at("10.63.0.5", 80))).unwrap(), "10.63.0.1", "host to VM");
    assert_eq!(client.within(|| fetch(at("10.63.0.5", 80))).unwrap(), "10.63.0.6", "VM to VM");
    assert_eq!(host.within(|| fetch(at("127.0.0.1", 8080))).unwrap(), "10.63.0.1", "forward from loopback");
    assert_eq!(host.within(|| fetch(at("192.0.2.1", 8080))).unwrap(), "192.0.2.1", "from an own address");
    assert_eq!(outside.within(|| fetch(at("192.0.2.1", 8080))).unwrap(), "192.0.2.2", "from beyond");
    assert_eq!(client.within(|| fetch(at("10.63.0.1", 8080))).unwrap(), "10.63.0.1", "from another VM");

    let (resolver, asker) =
        (web.within(|| listen(at("0.0.0.0", 53))), host.within(|| listen(at("127.0.0.1", 0))));
    asker.send_to(b"name?", at("127.0.0.1", 5300)).unwrap();
    let mut datagram = [0; 16];
    let (length, from) = resolver.recv_from(&mut datagram).unwrap();
    assert_eq!((&datagram[..length], from.ip().to_string().as_str()), (&b"name?"[..], "10.63.0.1"));
    resolver.send_to(b"address", from).unwrap();
    let (length, from) = asker.recv_from(&mut datagram).unwrap();
    assert_eq!((&datagram[..length], from), (&b"address"[..], at("127.0.0.1", 5300)), "the same for UDP");

    let _server = outside.within(|| serve(at("0.0.0.0", 80)));
    assert_eq!(web.within(|| fetch(at("192.0.2.2", 80))).unwrap(), "192.0.2.1", "outwards by NAT");

    // Beyond the host only what is published is reached, even with a route to the VMs.
    outside.within(|| run("ip", &["route", "add", "10.63.0.0/24", "via", "192.0.2.1"]));
    assert!(outside.within(|| fetch(at("10.63.0.5", 80))).is_err(), "an unpublished address from beyond");

    // The host's loopback is the host's own.
    let _server = host.within(|| serve(at("127.0.0.1", 9000)));
    web.within(|| run("sysctl", &["-qw", "net.ipv4.conf.eth0.route_localnet=1"]));
    web.within(|| run("ip", &["route", "replace", "127.0.0.0/8", "via", "10.63.0.1", "table", "local"]));
    web.within(|| run("ip", &["route", "del", "local", "127.0.0.1", "dev", "lo", "table", "local"]));
    assert!(web.within(|| fetch(at("127.0.0.1", 9000))).is_err(), "the host's loopback from a VM");
}

#[test]
fn a_guest_speaks_only_as_itself() {
    let host = Namespace::new();
    let vm = host.block_on(async {
        let network = HostNetwork::start(settings()).await.unwrap();
        let vm = Vm::new("10.63.0.5", vec![]);
        network.attach(&vm.nic).await.unwrap();
        vm
    });
    let vm = vm.boot(&host);
    let listener = host.within(|| listen(at("10.63.0.1", 9000)));
    vm.within(|| run("ip", &["address", "add", "10.63.0.77/24", "dev", "eth0"]));
    // Frames of one tap stay in order: when the honest one is there, the others were dropped.
    let send = |from: &str, text: &str| {
        let socket = vm.within(|| UdpSocket::bind(at(from, 0)).unwrap());
        socket.send_to(text.as_bytes(), at("10.63.0.1", 9000)).unwrap();
    };
    let mut buffer = [0; 64];
    let mut receive = || {
        let (length, _) = listener.recv_from(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    send("10.63.0.5", "first");
    assert_eq!(receive(), "first");
    send("10.63.0.77", "another address");
    send("10.63.0.5", "honest");
    assert_eq!(receive(), "honest");
    vm.within(|| run("ip", &["link", "set", "eth0", "address", "52:54:00:00:00:99"]));
    send("10.63.0.5", "another MAC");
    vm.within(|| run("ip", &["link", "set", "eth0", "address", &vm.nic.mac]));
    send("10.63.0.5", "honest again");
    assert_eq!(receive(), "honest again");
}

#[test]
fn nothing_is_left_and_nothing_else_is_touched() {
    let host = Namespace::new();
    host.within(|| {
        run("nft", &["add table ip other; add chain ip other c { type filter hook forward priority 0; policy drop; }"]);
        run("ip", &["link", "add", "other0", "type", "bridge"]);
        run("sysctl", &["-qw", "net.ipv4.ip_forward=0"]);
    });
    let state = || host.within(|| (run("nft", &["-s", "list", "ruleset"]), run("ip", &["-br", "link"])));
    let before = state();
    host.block_on(async {
        let network = HostNetwork::start(settings()).await.unwrap();
        let empty = run("nft", &["-s", "list", "ruleset"]);
        let (one, two) = (Vm::new("10.63.0.5", vec![port(8080, 80)]), Vm::new("10.63.0.6", vec![]));
        network.attach(&one.nic).await.unwrap();
        network.attach(&two.nic).await.unwrap();
        let full = run("nft", &["-s", "list", "ruleset"]);

        // An earlier daemon's bridge is adopted, with the VMs on it.
        let network = HostNetwork::start(settings()).await.unwrap();
        network.attach(&one.nic).await.unwrap();
        assert_eq!(run("nft", &["-s", "list", "ruleset"]), full);
        let mut taps = network.list_taps().await.unwrap();
        taps.sort();
        let mut expected = vec![one.tap().to_owned(), two.tap().to_owned()];
        expected.sort();
        assert_eq!(taps, expected);
        assert_eq!(network.stop().await.unwrap_err().reason, "InUse");

        // Somebody flushes everything: the next attach brings a VM's part back.
        run("nft", &["delete table ip vmtest0; delete table bridge vmtest0"]);
        network.attach(&one.nic).await.unwrap();
        network.attach(&two.nic).await.unwrap();
        assert_eq!(run("nft", &["-s", "list", "ruleset"]), full);

        // A changed port replaces the old one.
        let mut changed = one.nic.clone();
        changed.ports = vec![port(8080, 8000)];
        network.attach(&changed).await.unwrap();
        assert!(run("nft", &["list", "ruleset"]).contains("8080 : 10.63.0.5 . 8000"));

        for _ in 0..2 {
            network.detach(&one.nic).await.unwrap();
            network.detach(&two.nic).await.unwrap();
        }
        assert_eq!(run("nft", &["-s", "list", "ruleset"]), empty);
        assert_eq!(network.list_taps().await.unwrap(), Vec::<String>::new());
        for _ in 0..2 {
            network.stop().await.unwrap();
        }
        let warnings = forwarding_warnings("vmtest0").await;
        assert!(warnings[0].detail.contains("ip_forward"), "{warnings:?}");
        assert!(warnings[1].detail.contains("table ip other, chain c"), "{warnings:?}");
    });
    assert_eq!(state(), before);
    let forward = host.within(|| run("sysctl", &["-n", "net.ipv4.ip_forward"]));
    assert_eq!(forward.trim(), "0", "the host's forwarding is not ours to change");
}

#[test]
fn an_attach_that_is_cut_off_is_mended_by_the_next_call() {
    let host = Namespace::new();
    host.block_on(async {
        let network = HostNetwork::start(settings()).await.unwrap();
        let state = || (run("nft", &["-s", "list", "ruleset"]), run("ip", &["-br", "link"]));
        let empty = state();
        let vm = Vm::new("10.63.0.5", vec![port(8080, 80)]);
        for micros in [0, 100, 500, 1000, 2000, 4000, 8000, 16000] {
            let _ = tokio::time::timeout(Duration::from_micros(micros), network.attach(&vm.nic)).await;
            network.detach(&vm.nic).await.unwrap();
            assert_eq!(state(), empty, "cut off after {micros} µs");
            let _ = tokio::time::timeout(Duration::from_micros(micros), network.attach(&vm.nic)).await;
            network.attach(&vm.nic).await.unwrap();
            let _ = tokio::time::timeout(Duration::from_micros(micros), network.detach(&vm.nic)).await;
            network.detach(&vm.nic).await.unwrap();
            assert_eq!(state(), empty, "cut off after {micros} µs");
        }
    });
}

#[test]
fn vms_come_and_go_at_once() {
    let host = Namespace::new();
    host.block_on(async {
        let network = HostNetwork::start(settings()).await.unwrap();
        let empty = run("nft", &["-s", "list", "ruleset"]);
        let vms: Vec<Vm> =
            (0..16).map(|n| Vm::new(&format!("10.63.0.{}", 10 + n), vec![port(8080 + n, 80)])).collect();
        let results = join_all(vms.iter().map(|vm| network.attach(&vm.nic))).await;
        assert!(results.iter().all(Result::is_ok), "{results:?}");
        assert_eq!(network.list_taps().await.unwrap().len(), vms.len());
        // Half of them go while the others are confirmed.
        let both = vms.iter().enumerate().map(async |(n, vm)| match n % 2 {
            0 => network.detach(&vm.nic).await,
            _ => network.attach(&vm.nic).await,
        });
        let results = join_all(both).await;
        assert!(results.iter().all(Result::is_ok), "{results:?}");
        assert_eq!(network.list_taps().await.unwrap().len(), vms.len() / 2);
        join_all(vms.iter().map(|vm| network.detach(&vm.nic))).await;
        assert_eq!(run("nft", &["-s", "list", "ruleset"]), empty);
    });
}

#[test]
fn a_tap_belongs_to_the_user_that_it_is_for() {
    let host = Namespace::new();
    host.block_on(async {
        let network = HostNetwork::start(settings()).await.unwrap();
        let mut vm = Vm::new("10.63.0.5", vec![]);
        for user in [3_000_001, 3_000_002] {
            vm.own(user);
            network.attach(&vm.nic).await.unwrap();
            let shown = run("ip", &["-d", "link", "show", vm.tap()]);
            assert!(shown.contains(&format!("user {user}")), "{shown}");
        }
    });
}

#[test]
fn a_port_in_use_is_an_error_that_says_so() {
    let host = Namespace::new();
    host.block_on(async {
        let network = HostNetwork::start(settings()).await.unwrap();
        let listener = TcpListener::bind(at("127.0.0.1", 8080)).unwrap();
        let vm = Vm::new("10.63.0.5", vec![port(8080, 80)]);
        let error = network.attach(&vm.nic).await.unwrap_err();
        assert_eq!((error.reason, error.transient), ("PortInUse", true));
        assert!(error.message.contains("TCP port 8080"), "{error}");
        assert_eq!(network.list_taps().await.unwrap(), Vec::<String>::new());
        drop(listener);
        network.attach(&vm.nic).await.unwrap();
        let other = Vm::new("10.63.0.6", vec![port(8080, 80)]);
        let error = network.attach(&other.nic).await.unwrap_err();
        assert_eq!(error.reason, "PortInUse");
        assert!(error.message.contains("another VM"), "{error}");
    });
}

#[test]
fn what_is_not_ours_is_refused() {
    let host = Namespace::new();
    let start = || host.block_on(async { HostNetwork::start(settings()).await.map(drop) });
    let reason = || start().unwrap_err().reason;
    host.within(|| run("ip", &["link", "add", "vmtest0", "type", "bridge"]));
    assert_eq!(reason(), "NameTaken");
    host.within(|| {
        run("ip", &["link", "del", "vmtest0"]);
        run("ip", &["link", "add", "other0", "type", "bridge"]);
        run("ip", &["address", "add", "10.63.0.129/25", "dev", "other0"]);
        run("ip", &["link", "set", "other0", "up"])
    });
    let error = start().unwrap_err();
    assert_eq!(error.reason, "SubnetInUse");
    assert!(error.message.contains("10.63.0.128/25") && error.message.contains("other0"), "{error}");
    host.within(|| run("ip", &["link", "del", "other0"]));
    start().unwrap();
    // A default route is no overlap; another subnet for a bridge that exists is refused.
    host.within(|| run("ip", &["route", "add", "default", "dev", "vmtest0"]));
    start().unwrap();
    let other = HostSettings { subnet: "10.89.0.0/24".parse().unwrap(), ..settings() };
    let error = host.block_on(async { HostNetwork::start(other).await.map(drop) }).unwrap_err();
    assert_eq!(error.reason, "NameTaken");
    let names = ["", "0br", "a b", "averyveryverylongname", "x;flush"];
    for name in names {
        let named = HostSettings { bridge: name.to_owned(), ..settings() };
        let error = host.block_on(async { HostNetwork::start(named).await.map(drop) }).unwrap_err();
        assert_eq!(error.reason, "InvalidBridge", "{name}");
    }
}
