//! The kernel's network devices, by rtnetlink (rtnetlink(7)).

use std::net::{IpAddr, Ipv4Addr};

use futures_util::{StreamExt, TryStreamExt};
use ipnet::Ipv4Net;
use nix::libc;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteType};
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, RouteMessageBuilder};

use super::NetworkError;

/// A connection to the kernel, in the network namespace in which it was opened.
#[derive(Clone, Debug)]
pub(super) struct Links {
    handle: Handle,
}

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) kind: Option<InfoKind>,
    pub(super) mac: String,
    /// The index of the bridge that this is a port of.
    pub(super) bridge: Option<u32>,
}

impl Links {
    /// Connects. The connection's task ends when the last clone is dropped.
    pub(super) fn connect() -> Result<Self, NetworkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(|error| {
            NetworkError::lasting(
                "NetlinkUnavailable",
                format!("the kernel's routing netlink does not open: {error}"),
            )
        })?;
        tokio::spawn(connection);
        Ok(Links { handle })
    }

    /// The device of this name.
    pub(super) async fn find(&self, name: &str) -> Result<Option<Interface>, NetworkError> {
        let mut found = self.handle.link().get().match_name(name).execute();
        match found.try_next().await {
            Ok(message) => Ok(message.as_ref().map(Interface::from)),
            Err(error) if errno(&error) == libc::ENODEV => Ok(None),
            Err(error) => Err(failed(&format!("looking for {name}"), &error)),
        }
    }

    /// Every device.
    pub(super) async fn all(&self) -> Result<Vec<Interface>, NetworkError> {
        let links = self.handle.link().get().execute();
        links
            .map_ok(|message| Interface::from(&message))
            .try_collect()
            .await
            .map_err(|error| failed("listing the network devices", &error))
    }

    /// Makes a bridge that is up; its MAC is there from the first moment.
    pub(super) async fn add_bridge(&self, name: &str, mac: &str) -> Result<(), NetworkError> {
        let message = LinkBridge::new(name).address(mac_bytes(mac)).build();
        let added = self.handle.link().add(message).execute().await;
        added.map_err(|error| failed(&format!("making the bridge {name}"), &error))
    }

    /// Makes a device a port of a bridge, and sets it up.
    pub(super) async fn enslave(&self, port: &Interface, bridge: u32) -> Result<(), NetworkError> {
        let message = LinkUnspec::new_with_index(port.index).controller(bridge).up().build();
        self.set(message, &format!("connecting {} to the bridge", port.name)).await
    }

    /// Sets a device up.
    pub(super) async fn set_up(&self, link: &Interface) -> Result<(), NetworkError> {
        let message = LinkMessageBuilder::<LinkUnspec>::default().index(link.index).up().build();
        self.set(message, &format!("setting {} up", link.name)).await
    }

    async fn set(&self, message: LinkMessage, what: &str) -> Result<(), NetworkError> {
        self.handle.link().set(message).execute().await.map_err(|error| failed(what, &error))
    }

    /// Removes a device. Gone already is fine.
    pub(super) async fn remove(&self, link: &Interface) -> Result<(), NetworkError> {
        match self.handle.link().del(link.index).execute().await {
            Err(error) if errno(&error) != libc::ENODEV => {
                Err(failed(&format!("removing {}", link.name), &error))
            }
            _ => Ok(()),
        }
    }

    /// The IPv4 addresses of a device.
    pub(super) async fn addresses(&self, link: &Interface) -> Result<Vec<Ipv4Net>, NetworkError> {
        let addresses = self.handle.address().get().set_link_index_filter(link.index).execute();
        let messages: Vec<_> = addresses
            .try_collect()
            .await
            .map_err(|error| failed(&format!("reading the addresses of {}", link.name), &error))?;
        let address = |attribute: &AddressAttribute, prefix| match attribute {
            AddressAttribute::Local(IpAddr::V4(address)) => Ipv4Net::new(*address, prefix).ok(),
            _ => None,
        };
        Ok(messages
            .iter()
            .filter_map(|message| {
                message.attributes.iter().find_map(|attribute| address(attribute, message.header.prefix_len))
            })
            .collect())
    }

    /// Gives a device an address. Having it already is fine.
    pub(super) async fn add_address(
        &self,
        link: &Interface,
        address: Ipv4Addr,
        prefix: u8,
    ) -> Result<(), NetworkError> {
        match self.handle.address().add(link.index, address.into(), prefix).execute().await {
            Err(error) if errno(&error) != libc::EEXIST => {
                Err(failed(&format!("giving {} the address {address}", link.name), &error))
            }
            _ => Ok(()),
        }
    }

    /// The destinations of the IPv4 unicast routes, with the index of the device they lead to.
    pub(super) async fn routes(&self) -> Result<Vec<(Ipv4Net, Option<u32>)>, NetworkError> {
        let all = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let mut messages = self.handle.route().get(all).execute();
        let mut routes = Vec::new();
        while let Some(message) = messages.next().await {
            let message = message.map_err(|error| failed("listing the routes", &error))?;
            if message.header.kind != RouteType::Unicast
                || message.header.address_family != AddressFamily::Inet
            {
                continue;
            }
            let prefix = message.header.destination_prefix_length;
            let to = message.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(address)) => {
                    Ipv4Net::new(*address, prefix).ok()
                }
                _ => None,
            });
            let by = message.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Oif(index) => Some(*index),
                _ => None,
            });
            routes.extend(to.map(|to| (to, by)));
        }
        Ok(routes)
    }
}

impl From<&LinkMessage> for Interface {
    fn from(message: &LinkMessage) -> Self {
        let mut interface = Interface {
            index: message.header.index,
            name: String::new(),
            kind: None,
            mac: String::new(),
            bridge: None,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => interface.name.clone_from(name),
                LinkAttribute::Address(bytes) => interface.mac = mac_text(bytes),
                LinkAttribute::Controller(index) => interface.bridge = Some(*index),
                LinkAttribute::LinkInfo(infos) => {
                    interface.kind = infos.iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind.clone()),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        interface
    }
}

fn mac_text(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

fn mac_bytes(text: &str) -> Vec<u8> {
    text.split(':').filter_map(|byte| u8::from_str_radix(byte, 16).ok()).collect()
}

fn errno(error: &rtnetlink::Error) -> i32 {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.raw_code().saturating_abs(),
        _ => 0,
    }
}

fn failed(what: &str, error: &rtnetlink::Error) -> NetworkError {
    match errno(error) {
        0 => NetworkError::passing("NetlinkFailed", format!("{what}: {error}")),
        libc::EPERM => NetworkError::lasting(
            "PermissionDenied",
            format!("{what}: not permitted; run the daemon as root or use mode: user"),
        ),
        code => NetworkError::passing(
            "NetlinkFailed",
            format!("{what}: {}", std::io::Error::from_raw_os_error(code)),
        ),
    }
}
