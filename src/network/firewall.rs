//! The nftables tables of one bridge: NAT, port forwards, and what guests may send.
//!
//! In flows what a VM was given; out go whole nft(8) transactions that touch nothing but two tables
//! named after the bridge. The rules are fixed; all that differs between VMs are elements of
//! named sets and maps. What is installed is read back from the kernel before every change, so nothing
//! depends on what an earlier daemon remembered, and a table that somebody flushed comes back.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::Ipv4Addr;

use serde_json::Value;

use super::nft::{NftError, nft};
use super::{NetworkError, Subnet};
use crate::object::{Port, Protocol};

/// How often a change is computed anew when what it was computed from has changed meanwhile.
const ATTEMPTS: usize = 3;

/// The tables of one bridge.
#[derive(Clone, Debug)]
pub(super) struct Firewall {
    /// The name of the bridge and of the tables.
    pub(super) bridge: String,
    pub(super) subnet: Subnet,
}

/// What a VM was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Grant<'a> {
    pub(super) tap: &'a str,
    pub(super) mac: &'a str,
    pub(super) address: Ipv4Addr,
    pub(super) ports: &'a [Port],
}

/// Elements of the tables' sets and maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Entries {
    /// Host port to address and port of a guest.
    pub(super) forwards: BTreeMap<(Protocol, u16), (Ipv4Addr, u16)>,
    /// Taps whose frames are checked.
    pub(super) taps: BTreeSet<String>,
    /// Tap, MAC and address that belong together.
    pub(super) leases: BTreeSet<(String, String, Ipv4Addr)>,
}

impl Firewall {
    /// Makes the tables, or renews their rules. Elements stay as they are.
    pub(super) async fn ensure(&self) -> Result<(), NetworkError> {
        nft(&["-f", "-"], &self.rules()).await?;
        Ok(())
    }

    /// Removes the tables. Absent is fine.
    pub(super) async fn remove(&self) -> Result<(), NetworkError> {
        let name = &self.bridge;
        // Adding before deleting makes it work when a table is absent.
        let script = format!(
            "add table ip {name}\ndelete table ip {name}\nadd table bridge {name}\ndelete table bridge {name}\n"
        );
        nft(&["-f", "-"], &script).await?;
        Ok(())
    }

    /// Makes the VM's elements exactly what it was given. Host ports that are new are checked first:
    /// nobody on the host may listen on them.
    pub(super) async fn grant(&self, grant: &Grant<'_>) -> Result<(), NetworkError> {
        self.change(grant.tap, grant.address, &Entries::from(grant)).await
    }

    /// Removes all elements of the VM with this tap and address.
    pub(super) async fn revoke(&self, tap: &str, address: Ipv4Addr) -> Result<(), NetworkError> {
        self.change(tap, address, &Entries::default()).await
    }

    async fn change(&self, tap: &str, address: Ipv4Addr, wanted: &Entries) -> Result<(), NetworkError> {
        let mut attempt = 1;
        loop {
            let present = match self.entries().await {
                Ok(entries) => entries.of(tap, address),
                Err(NftError::Absent(_)) => {
                    self.ensure().await?;
                    Entries::default()
                }
                Err(error) => return Err(error.into()),
            };
            for (&(protocol, port), _) in
                wanted.forwards.iter().filter(|(key, _)| !present.forwards.contains_key(*key))
            {
                check_port_is_free(protocol, port)?;
            }
            let script = present.change_to(wanted, &self.bridge);
            if script.is_empty() {
                return Ok(());
            }
            match nft(&["-f", "-"], &script).await {
                Ok(_) => return Ok(()),
                Err(NftError::Absent(_)) if attempt < ATTEMPTS => attempt += 1,
                Err(NftError::Exists(_)) => return Err(forwarded_elsewhere(wanted)),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// All elements of the tables. Each is listed by a process of its own: nft 1.0.6 finds only the
    /// first of several that one command line names.
    async fn entries(&self) -> Result<Entries, NftError> {
        let list = |family| async move { nft(&["-j", "list", "table", family, &self.bridge], "").await };
        let (ip, bridge) = tokio::try_join!(list("ip"), list("bridge"))?;
        parse_entries(&(ip + &bridge))
            .map_err(|error| NftError::Failed(format!("its list is not understood: {error}")))
    }

    /// The whole of the rules, as one transaction.
    fn rules(&self) -> String {
        let (bridge, subnet) = (&self.bridge, &self.subnet);
        format!(
            r#"
add table ip {bridge}
add map ip {bridge} tcp_forwards {{ type inet_service : ipv4_addr . inet_service; }}
add map ip {bridge} udp_forwards {{ type inet_service : ipv4_addr . inet_service; }}
add chain ip {bridge} guard {{ type filter hook prerouting priority raw; }}
add chain ip {bridge} inwards {{ type nat hook prerouting priority dstnat; }}
add chain ip {bridge} local {{ type nat hook output priority -100; }}
add chain ip {bridge} beyond {{ type filter hook forward priority filter; }}
add chain ip {bridge} outwards {{ type nat hook postrouting priority srcnat; }}
flush table ip {bridge}

# route_localnet lets the bridge carry 127.0.0.0/8 for the forwards; guests get no use of that.
add rule ip {bridge} guard iifname "{bridge}" ip daddr 127.0.0.0/8 drop

add rule ip {bridge} inwards fib daddr type local dnat ip to tcp dport map @tcp_forwards
add rule ip {bridge} inwards fib daddr type local dnat ip to udp dport map @udp_forwards
add rule ip {bridge} local fib daddr type local dnat ip to tcp dport map @tcp_forwards
add rule ip {bridge} local fib daddr type local dnat ip to udp dport map @udp_forwards

# From beyond the host only forwarded ports are reached, even where that host has a route to us.
add rule ip {bridge} beyond iifname != "{bridge}" oifname "{bridge}" ct state new ct status & dnat != dnat drop

add rule ip {bridge} outwards ip saddr {subnet} oifname != "{bridge}" masquerade
# A guest answers its peers on the bridge itself, so forwards from there and from loopback need the bridge's address.
add rule ip {bridge} outwards ip saddr {{ 127.0.0.0/8, {subnet} }} oifname "{bridge}" ct status & dnat == dnat masquerade

add table bridge {bridge}
add set bridge {bridge} taps {{ type ifname; }}
add set bridge {bridge} leases {{ type ifname . ether_addr . ipv4_addr; }}
add chain bridge {bridge} guard {{ type filter hook prerouting priority -300; }}
flush table bridge {bridge}

# IPv4 and ARP, as oneself; nothing else (no IPv6 router advertisements, no VLANs).
add rule bridge {bridge} guard iifname != @taps accept
add rule bridge {bridge} guard iifname . ether saddr . ip saddr @leases accept
add rule bridge {bridge} guard iifname . ether saddr . arp saddr ip @leases iifname . arp saddr ether . arp saddr ip @leases accept
add rule bridge {bridge} guard drop
"#
        )
    }
}

impl From<&Grant<'_>> for Entries {
    fn from(grant: &Grant<'_>) -> Self {
        let forward = |port: &Port| ((port.protocol, port.host), (grant.address, port.guest));
        Entries {
            forwards: grant.ports.iter().map(forward).collect(),
            taps: BTreeSet::from([grant.tap.to_owned()]),
            leases: BTreeSet::from([(grant.tap.to_owned(), grant.mac.to_owned(), grant.address)]),
        }
    }
}

impl Entries {
    /// Those that belong to one VM.
    pub(super) fn of(mut self, tap: &str, address: Ipv4Addr) -> Self {
        self.forwards.retain(|_, to| to.0 == address);
        self.taps.retain(|name| name == tap);
        self.leases.retain(|lease| lease.0 == tap || lease.2 == address);
        self
    }

    /// The transaction that turns these into the wanted ones; empty if nothing differs.
    pub(super) fn change_to(&self, wanted: &Entries, bridge: &str) -> String {
        let mut script = String::new();
        let mut all = |verb: &str, from: &Entries, without: &Entries| {
            for (key, to) in from.forwards.iter().filter(|(key, to)| without.forwards.get(*key) != Some(*to))
            {
                let map = match key.0 {
                    Protocol::Tcp => "tcp_forwards",
                    Protocol::Udp => "udp_forwards",
                };
                let element = format!("{} : {} . {}", key.1, to.0, to.1);
                write_element(&mut script, verb, &format!("ip {bridge} {map}"), &element);
            }
            for tap in from.taps.difference(&without.taps) {
                write_element(&mut script, verb, &format!("bridge {bridge} taps"), &format!("\"{tap}\""));
            }
            for (tap, mac, address) in from.leases.difference(&without.leases) {
                let element = format!("\"{tap}\" . {mac} . {address}");
                write_element(&mut script, verb, &format!("bridge {bridge} leases"), &element);
            }
        };
        all("delete", self, wanted);
        all("add", wanted, self);
        script
    }
}

fn write_element(script: &mut String, verb: &str, set: &str, element: &str) {
    writeln!(script, "{verb} element {set} {{ {element} }}").expect("writing to a string cannot fail");
}

/// The elements in the output of `nft -j list …` (libnftables-json(5)), one document a command: those of our names.
pub(super) fn parse_entries(text: &str) -> Result<Entries, serde_json::Error> {
    let mut entries = Entries::default();
    for document in serde_json::Deserializer::from_str(text).into_iter::<Value>() {
        let document = document?;
        for object in document["nftables"].as_array().into_iter().flatten() {
            for (_, set) in object.as_object().into_iter().flatten() {
                for element in set["elem"].as_array().into_iter().flatten() {
                    entries.add(set["name"].as_str().unwrap_or_default(), element);
                }
            }
        }
    }
    Ok(entries)
}

impl Entries {
    /// Adds an element of a set or map. Elements of other shapes are not ours.
    fn add(&mut self, set: &str, element: &Value) {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let address = |value: &Value| value.as_str()?.parse::<Ipv4Addr>().ok();
        let port = |value: &Value| value.as_u64().and_then(|port| u16::try_from(port).ok());
        let forward = |protocol| {
            let to = &element[1]["concat"];
            Some(((protocol, port(&element[0])?), (address(&to[0])?, port(&to[1])?)))
        };
        match set {
            "tcp_forwards" => self.forwards.extend(forward(Protocol::Tcp)),
            "udp_forwards" => self.forwards.extend(forward(Protocol::Udp)),
            "taps" => self.taps.extend(text(element)),
            "leases" => {
                let parts = &element["concat"];
                let lease = || Some((text(&parts[0])?, text(&parts[1])?, address(&parts[2])?));
                self.leases.extend(lease());
            }
            _ => {}
        }
    }
}

/// The forward chains elsewhere that drop what they do not know: `table ip filter, chain FORWARD`.
/// One such chain is enough to cut VMs off from the world (nftables: a drop is final).
pub(super) async fn dropping_forward_chains() -> Result<Vec<String>, NetworkError> {
    let text = nft(&["-j", "list", "chains"], "").await?;
    let document: Value = serde_json::from_str(&text).unwrap_or_default();
    let chains = document["nftables"].as_array().into_iter().flatten().map(|object| &object["chain"]);
    Ok(chains
        .filter(|chain| chain["hook"] == "forward" && chain["policy"] == "drop")
        .filter(|chain| chain["family"] == "ip" || chain["family"] == "inet")
        .map(|chain| {
            let part = |key: &str| chain[key].as_str().unwrap_or("?").to_owned();
            format!("table {} {}, chain {}", part("family"), part("table"), part("name"))
        })
        .collect())
}

/// Fails if a process listens on the port: the forward would silently take its traffic.
fn check_port_is_free(protocol: Protocol, port: u16) -> Result<(), NetworkError> {
    let any = std::net::SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let bound = match protocol {
        // Bound, but not listening: nobody can connect to the probe.
        Protocol::Tcp => tokio::net::TcpSocket::new_v4().and_then(|socket| {
            socket.set_reuseaddr(true)?;
            socket.bind(any)
        }),
        Protocol::Udp => std::net::UdpSocket::bind(any).map(drop),
    };
    match bound {
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Err(NetworkError::passing(
            "PortInUse",
            format!(
                "another process uses the host's {} port {port}; stop it (find it: ss -lnp 'sport = {port}') \
                 or choose another port in spec.network.ports",
                protocol_name(protocol)
            ),
        )),
        // Ports below 1024 may be forbidden to bind and still be forwarded.
        _ => Ok(()),
    }
}

fn forwarded_elsewhere(wanted: &Entries) -> NetworkError {
    let ports: Vec<String> = wanted
        .forwards
        .keys()
        .map(|(protocol, port)| format!("{} {port}", protocol_name(*protocol)))
        .collect();
    NetworkError::passing(
        "PortInUse",
        format!("a host port is already forwarded to another VM, one of: {}", ports.join(", ")),
    )
}

fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
    }
}
