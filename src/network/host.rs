//! The bridge of a Linux host and the VMs on it.

use std::fmt;

use ipnet::Ipv4Net;
use rtnetlink::packet_route::link::InfoKind;
use tokio_util::task::AbortOnDropHandle;

use super::firewall::{Firewall, Grant, dropping_forward_chains};
use super::link::{Interface, Links};
use super::{Link, Network, NetworkError, Nic, Subnet, bridge_mac, tap};

/// Routes shorter than this stand for "everything": the default route, or the halves and quarters by
/// which VPN clients override it. A more specific network beside them is usual.
const DEFAULT_ROUTE_PREFIX: u8 = 8;

/// What bridge to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostSettings {
    /// The bridge's name, and that of the nftables tables `ip` and `bridge`.
    pub bridge: String,
    /// The VMs' network.
    pub subnet: Subnet,
}

impl Default for HostSettings {
    /// `vmlet0`, 10.63.0.0/24.
    fn default() -> Self {
        HostSettings {
            bridge: "vmlet0".to_owned(),
            subnet: "10.63.0.0/24".parse().expect("the default is a subnet"),
        }
    }
}

/// A bridge with its address, its tables, and a tap for each VM.
///
/// Only what carries the bridge's name is changed: the bridge, its own sysctls, its taps and two nftables
/// tables. Never `net.ipv4.ip_forward`, never another table: see [`forwarding_warnings`].
#[derive(Debug)]
pub struct HostNetwork {
    settings: HostSettings,
    links: Links,
    firewall: Firewall,
}

impl HostNetwork {
    /// Makes the bridge and the tables, or adopts what an earlier daemon made, VMs included.
    ///
    /// # Errors
    /// `InvalidBridge` for a name that cannot be one; `NameTaken` if a device of this name is not our
    /// bridge or has another address; `SubnetInUse` if the host has a route into the subnet;
    /// `PermissionDenied`, `NftMissing`.
    pub async fn start(settings: HostSettings) -> Result<Self, NetworkError> {
        check_name(&settings.bridge)?;
        let links = Links::connect()?;
        let firewall = Firewall { bridge: settings.bridge.clone(), subnet: settings.subnet };
        let network = HostNetwork { settings, links, firewall };
        network.make_bridge().await?;
        network.firewall.ensure().await?;
        Ok(network)
    }

    /// The names of the taps on the bridge, for the sweep at start-up.
    pub async fn list_taps(&self) -> Result<Vec<String>, NetworkError> {
        let Some(bridge) = self.links.find(&self.settings.bridge).await? else {
            return Ok(Vec::new());
        };
        let ports = self.links.all().await?.into_iter().filter(|link| link.bridge == Some(bridge.index));
        Ok(ports.filter(|link| link.kind == Some(InfoKind::Tun)).map(|link| link.name).collect())
    }

    /// Removes a tap that no VM has reserved. Absent is fine.
    pub async fn remove_tap(&self, tap: &str) -> Result<(), NetworkError> {
        match self.links.find(tap).await?.filter(|link| link.kind == Some(InfoKind::Tun)) {
            Some(link) => self.links.remove(&link).await,
            None => Ok(()),
        }
    }

    /// Removes the bridge and the tables. Only for when no VM exists.
    ///
    /// # Errors
    /// `InUse` while there are taps on the bridge.
    pub async fn stop(&self) -> Result<(), NetworkError> {
        let taps = self.list_taps().await?;
        if !taps.is_empty() {
            let message =
                format!("{} has VMs on it ({}); delete them first", self.settings.bridge, taps.join(", "));
            return Err(NetworkError::lasting("InUse", message));
        }
        self.firewall.remove().await?;
        match self.links.find(&self.settings.bridge).await? {
            Some(bridge) if is_ours(&bridge) => self.links.remove(&bridge).await,
            _ => Ok(()),
        }
    }

    async fn make_bridge(&self) -> Result<(), NetworkError> {
        let HostSettings { bridge: name, subnet } = &self.settings;
        let existing = self.links.find(name).await?;
        if existing.as_ref().is_some_and(|link| !is_ours(link)) {
            return Err(NetworkError::lasting(
                "NameTaken",
                format!("{name} exists and was not made by vmlet; choose another name with --bridge"),
            ));
        }
        self.check_routes(existing.as_ref()).await?;
        if existing.is_none() {
            self.links.add_bridge(name, &bridge_mac(name)).await?;
        }
        let bridge = self.find_bridge().await?;
        let (gateway, prefix) = (subnet.gateway(), subnet.prefix());
        let addresses = self.links.addresses(&bridge).await?;
        if let Some(other) = addresses.iter().find(|net| net.addr() != gateway || net.prefix_len() != prefix)
        {
            return Err(NetworkError::lasting(
                "NameTaken",
                format!(
                    "{name} has the address {other}, not {gateway}/{prefix}; start with the subnet that it was made \
                     for, or remove it once no VM uses it: ip link delete {name}"
                ),
            ));
        }
        // Before the first address: IPv6 stays off, and no packet finds half the settings.
        set_sysctls(name).await?;
        self.links.add_address(&bridge, gateway, prefix).await?;
        self.links.set_up(&bridge).await
    }

    async fn find_bridge(&self) -> Result<Interface, NetworkError> {
        let name = &self.settings.bridge;
        self.links.find(name).await?.filter(is_ours).ok_or_else(|| {
            NetworkError::lasting("BridgeGone", format!("the bridge {name} is gone; restart the daemon"))
        })
    }

    /// Refuses a subnet that the host reaches by another device.
    async fn check_routes(&self, bridge: Option<&Interface>) -> Result<(), NetworkError> {
        let subnet = self.settings.subnet;
        let ours = bridge.map(|link| link.index);
        let taken = |(to, by): &(Ipv4Net, Option<u32>)| {
            to.prefix_len() >= DEFAULT_ROUTE_PREFIX && (by.is_none() || *by != ours) && subnet.overlaps(*to)
        };
        let Some((to, by)) = self.links.routes().await?.into_iter().find(taken) else { return Ok(()) };
        let device = self.links.all().await?.into_iter().find(|link| Some(link.index) == by);
        let device = device.map_or_else(|| "another device".to_owned(), |link| link.name);
        Err(NetworkError::lasting(
            "SubnetInUse",
            format!(
                "{subnet} overlaps {to}, which the host reaches by {device}; choose another with --subnet"
            ),
        ))
    }
}

#[async_trait::async_trait]
impl Network for HostNetwork {
    async fn attach(&self, nic: &Nic) -> Result<(), NetworkError> {
        let Some(device) = Bridged::of(nic)? else { return Ok(()) };
        let bridge = self.find_bridge().await?;
        // The entries come first: a tap is checked from its first frame on.
        self.firewall.grant(&device.grant).await?;
        let (name, owner) = (device.grant.tap.to_owned(), device.owner);
        let creation = tokio::task::spawn_blocking(move || tap::create(&name, owner));
        // Dropped while still queued, it never runs: a cancelled attach leaves no late tap.
        AbortOnDropHandle::new(creation).await.map_err(|error| {
            NetworkError::passing("TapFailed", format!("making the tap was cut short: {error}"))
        })??;
        let tap = self.links.find(device.grant.tap).await?.ok_or_else(|| {
            NetworkError::passing("TapFailed", format!("the tap {} has vanished", device.grant.tap))
        })?;
        if tap.bridge.is_some_and(|index| index != bridge.index) {
            return Err(NetworkError::lasting(
                "NameTaken",
                format!("the tap {} is a port of another bridge", tap.name),
            ));
        }
        self.links.enslave(&tap, bridge.index).await
    }

    async fn detach(&self, nic: &Nic) -> Result<(), NetworkError> {
        let Some(device) = Bridged::of(nic)? else { return Ok(()) };
        let Grant { tap, address, .. } = device.grant;
        self.remove_tap(tap).await?;
        self.firewall.revoke(tap, address).await
    }
}

/// A [`Nic`] on a bridge, checked: these words become part of nft scripts.
struct Bridged<'a> {
    grant: Grant<'a>,
    owner: Option<u32>,
}

impl<'a> Bridged<'a> {
    /// None for a device that is not on a bridge.
    fn of(nic: &'a Nic) -> Result<Option<Self>, NetworkError> {
        let Link::Bridge { tap, tap_owner, address, .. } = &nic.link else { return Ok(None) };
        check_name(tap)?;
        let bytes: Vec<&str> = nic.mac.split(':').collect();
        let hex = |byte: &&str| byte.len() == 2 && byte.bytes().all(|digit| digit.is_ascii_hexdigit());
        if bytes.len() != 6 || !bytes.iter().all(hex) {
            return Err(NetworkError::lasting("InvalidMac", format!("{:?} is no MAC address", nic.mac)));
        }
        let grant = Grant { tap, mac: &nic.mac, address: *address, ports: &nic.ports };
        Ok(Some(Bridged { grant, owner: *tap_owner }))
    }
}

/// A name that every tool takes for an interface (15 bytes at most: IFNAMSIZ) and nft for a table.
fn check_name(name: &str) -> Result<(), NetworkError> {
    let letters = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if (1..=15).contains(&name.len())
        && name.starts_with(|first: char| first.is_ascii_alphabetic())
        && name.bytes().all(letters)
    {
        return Ok(());
    }
    Err(NetworkError::lasting(
        "InvalidBridge",
        format!("{name:?} is no name for a network device: use up to 15 letters, digits, '-' and '_'"),
    ))
}

/// Our bridges carry the MAC that their name gives, from the moment they exist.
fn is_ours(link: &Interface) -> bool {
    link.kind == Some(InfoKind::Bridge) && link.mac == bridge_mac(&link.name)
}

/// Settings of this bridge alone (Linux, Documentation/networking/ip-sysctl.rst).
async fn set_sysctls(bridge: &str) -> Result<(), NetworkError> {
    let settings = [
        // Packets of VMs may go on to elsewhere, if the host as a whole forwards.
        (format!("ipv4/conf/{bridge}/forwarding"), "1"),
        // Connections to a forwarded port of 127.0.0.1 leave by the bridge.
        (format!("ipv4/conf/{bridge}/route_localnet"), "1"),
        // VMs speak IPv4; the host listens to nothing else from them.
        (format!("ipv6/conf/{bridge}/disable_ipv6"), "1"),
    ];
    for (key, value) in settings {
        match tokio::fs::write(format!("/proc/sys/net/{key}"), value).await {
            // A kernel without IPv6.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && key.starts_with("ipv6") => {}
            Err(error) => {
                return Err(NetworkError::lasting(
                    "SysctlFailed",
                    format!("net/{key} cannot be set to {value}: {error}"),
                ));
            }
            Ok(()) => {}
        }
    }
    Ok(())
}

/// Something on this host that keeps VMs from reaching beyond it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardingWarning {
    /// What it is, and what it means.
    pub detail: String,
    /// What an administrator can do.
    pub fix: String,
}

/// `net.ipv4.ip_forward is 0: …; sysctl -w net.ipv4.ip_forward=1`
impl fmt::Display for ForwardingWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.detail, self.fix)
    }
}

/// What on this host keeps VMs on `bridge` from reaching beyond it. These are the administrator's
/// settings: vmlet reports and does not change them.
pub async fn forwarding_warnings(bridge: &str) -> Vec<ForwardingWarning> {
    let mut warnings = Vec::new();
    let forward = tokio::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").await.unwrap_or_default();
    if forward.trim() == "0" {
        warnings.push(ForwardingWarning {
            detail: "net.ipv4.ip_forward is 0: VMs cannot reach beyond this host, nor be reached from beyond"
                .to_owned(),
            fix: "sysctl -w net.ipv4.ip_forward=1".to_owned(),
        });
    }
    // Without nft or the rights to ask there is nothing to add: starting reports that.
    for chain in dropping_forward_chains().await.unwrap_or_default() {
        warnings.push(ForwardingWarning {
            detail: format!(
                "a firewall drops forwarded packets by default ({chain}): VMs cannot reach beyond this host, nor, \
                 with br_netfilter, each other"
            ),
            fix: format!("let it accept the interface {bridge} in both directions"),
        });
    }
    warnings
}
