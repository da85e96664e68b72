//! How VMs are connected: a bridge with taps, or the VMM's own user-space network.
//!
//! In flows a [`Nic`] as the store reserved it; out come the tap, the firewall entries and the port
//! forwards that it needs, or their removal. [`HostNetwork`] makes them on a Linux host,
//! [`UserNetwork`] has nothing to make. [`Subnet`], [`macs_for`] and [`taps_for`] are the arithmetic
//! that the reservation uses.
//!
//! Guaranteed: what was not made here is never changed; every step is idempotent, so a call that was
//! cut off is mended by calling again; a guest speaks only as the address and MAC that it was given.

mod address;
mod firewall;
mod host;
mod link;
mod nft;
mod resolvers;
mod tap;
#[cfg(test)]
mod tests;

pub use address::{Subnet, SubnetError, bridge_mac, macs_for, taps_for};
pub use host::{ForwardingWarning, HostNetwork, HostSettings, forwarding_warnings};
pub use resolvers::{parse_resolvers, resolvers};

use std::net::Ipv4Addr;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::object::Port;

/// Makes and removes what the host needs for a VM's network device.
#[async_trait]
pub trait Network: Send + Sync + 'static {
    /// Makes the tap and the port forwards of a VM. Idempotent.
    async fn attach(&self, nic: &Nic) -> Result<(), NetworkError>;

    /// Removes them. Absent is fine.
    async fn detach(&self, nic: &Nic) -> Result<(), NetworkError>;
}

/// A VM's network device, as reserved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Nic {
    /// The device's address, locally administered: `52:54:…` ([`macs_for`]).
    pub mac: String,
    /// What it is connected to.
    pub link: Link,
    /// Forwarded ports.
    pub ports: Vec<Port>,
}

/// What a network device is connected to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Link {
    /// A tap on the host's bridge.
    #[serde(rename_all = "camelCase")]
    Bridge {
        /// The tap's name, at most 15 bytes.
        tap: String,
        /// The user that may open the tap; none for the daemon's own.
        tap_owner: Option<u32>,
        /// The VM's address.
        address: Ipv4Addr,
        /// The subnet's prefix length.
        prefix: u8,
        /// The bridge's address.
        gateway: Ipv4Addr,
    },
    /// The VMM's user-space network (QEMU's slirp: the guest is 10.0.2.15/24, its gateway 10.0.2.2,
    /// its resolver 10.0.2.3).
    User,
}

impl Link {
    /// The tap's name, if there is one.
    pub fn tap(&self) -> Option<&str> {
        match self {
            Link::Bridge { tap, .. } => Some(tap),
            Link::User => None,
        }
    }
}

/// The network of VMMs that bring their own: QEMU forwards the ports itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct UserNetwork;

#[async_trait]
impl Network for UserNetwork {
    async fn attach(&self, _: &Nic) -> Result<(), NetworkError> {
        Ok(())
    }

    async fn detach(&self, _: &Nic) -> Result<(), NetworkError> {
        Ok(())
    }
}

/// Why a step of the network failed.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct NetworkError {
    /// One CamelCase word for the condition.
    pub reason: &'static str,
    /// What happened and what to do about it.
    pub message: String,
    /// Whether trying again without any change can help.
    pub transient: bool,
}

impl NetworkError {
    /// An error that only a change of the host or of the settings mends.
    fn lasting(reason: &'static str, message: impl Into<String>) -> Self {
        NetworkError { reason, message: message.into(), transient: false }
    }

    /// An error that can pass by itself.
    fn passing(reason: &'static str, message: impl Into<String>) -> Self {
        NetworkError { reason, message: message.into(), transient: true }
    }
}
