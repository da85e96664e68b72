//! How VMs are connected: a bridge with taps, or the VMM's own user-space network.

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
    /// The device's address, locally administered: `52:54:00:…`.
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
