//! Addresses and names, as pure functions: the subnet's hosts, a VM's MAC, a tap's name.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::object::Uid;

/// The IPv4 network of a bridge. Its first host is the bridge, the gateway of the VMs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet(Ipv4Net);

/// Why a text is no subnet for VMs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} cannot be the VMs' subnet: {reason}")]
pub struct SubnetError {
    text: String,
    reason: String,
}

impl Subnet {
    /// The bridge's address: the first host.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.0.network().to_bits() + 1)
    }

    /// The prefix length, 8 to 29.
    pub fn prefix(&self) -> u8 {
        self.0.prefix_len()
    }

    /// The addresses that VMs can have, ascending: without the network's, the gateway's and the
    /// broadcast address.
    pub fn hosts(&self) -> impl Iterator<Item = Ipv4Addr> + use<> {
        let (gateway, broadcast) = (self.gateway().to_bits(), self.0.broadcast().to_bits());
        (gateway + 1..broadcast).map(Ipv4Addr::from_bits)
    }

    /// Whether a VM can have this address.
    pub fn is_host(&self, address: Ipv4Addr) -> bool {
        self.0.contains(&address)
            && address != self.0.network()
            && address != self.0.broadcast()
            && address != self.gateway()
    }

    /// Whether the two networks share an address.
    pub(super) fn overlaps(&self, other: Ipv4Net) -> bool {
        self.0.contains(&other.network()) || other.contains(&self.0.network())
    }
}

impl TryFrom<Ipv4Net> for Subnet {
    type Error = SubnetError;

    fn try_from(net: Ipv4Net) -> Result<Self, SubnetError> {
        let refuse = |reason: String| Err(SubnetError { text: net.to_string(), reason });
        if net.trunc() != net {
            return refuse(format!("it has host bits, use {}", net.trunc()));
        }
        if !(8..=29).contains(&net.prefix_len()) {
            return refuse("use a prefix length of 8 to 29".to_owned());
        }
        let first = net.network();
        if first.is_loopback() || first.is_multicast() || first.octets()[0] == 0 || first.octets()[0] >= 240 {
            return refuse("use unicast addresses, for example of 10.0.0.0/8".to_owned());
        }
        Ok(Subnet(net))
    }
}

impl FromStr for Subnet {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Self, SubnetError> {
        let refuse = |_| SubnetError {
            text: text.to_owned(),
            reason: "use an IPv4 network, for example 10.63.0.0/24".to_owned(),
        };
        text.parse::<Ipv4Net>().map_err(refuse)?.try_into()
    }
}

impl TryFrom<String> for Subnet {
    type Error = SubnetError;

    fn try_from(text: String) -> Result<Self, SubnetError> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> String {
        subnet.to_string()
    }
}

/// `10.63.0.0/24`
impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The MACs that a VM's device may have, in order of choice: the first one that no other VM has is
/// its own. `52:…` is unicast and locally administered (IEEE 802-2014, 8.4).
pub fn macs_for(uid: Uid) -> impl Iterator<Item = String> {
    (0_u32..).map(move |choice| mac(&hash("nic", &[uid.as_bytes(), &choice.to_le_bytes()[..]].concat())))
}

/// The names that a VM's tap may have, likewise; 15 bytes, the most of an interface's name (IFNAMSIZ).
pub fn taps_for(uid: Uid) -> impl Iterator<Item = String> {
    (0_u32..).map(move |choice| {
        let hash = hash("tap", &[uid.as_bytes(), &choice.to_le_bytes()[..]].concat());
        format!("vmt{}", hex::encode(&hash[..6]))
    })
}

/// The MAC of a bridge. Fixed, so that it does not follow the ports' (guests would lose their
/// gateway until ARP expires), and the mark by which a bridge is known as ours.
pub fn bridge_mac(bridge: &str) -> String {
    mac(&hash("bridge", bridge.as_bytes()))
}

fn hash(purpose: &str, bytes: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(purpose).chain_update([0]).chain_update(bytes).finalize().into()
}

fn mac(hash: &[u8; 32]) -> String {
    format!("52:54:{:02x}:{:02x}:{:02x}:{:02x}", hash[0], hash[1], hash[2], hash[3])
}
