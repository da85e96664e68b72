//! A network that only keeps count.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;

use crate::network::{Network, NetworkError, Nic};

/// The devices that are attached now, by MAC.
#[derive(Debug, Default)]
pub struct FakeNetwork {
    attached: Mutex<HashSet<String>>,
}

impl FakeNetwork {
    /// How many devices are attached now.
    pub fn attached(&self) -> usize {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

#[async_trait]
impl Network for FakeNetwork {
    async fn attach(&self, nic: &Nic) -> Result<(), NetworkError> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner).insert(nic.mac.clone());
        Ok(())
    }

    async fn detach(&self, nic: &Nic) -> Result<(), NetworkError> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner).remove(&nic.mac);
        Ok(())
    }
}
