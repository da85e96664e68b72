//! The scripted network: taps that are entries in the world.

use std::sync::Arc;

use async_trait::async_trait;

use super::{Effect, Refusal, State, World};
use crate::network::{Network, NetworkError, Nic};

/// The network of one daemon.
pub(in crate::testing) struct ScriptedNetwork(pub(in crate::testing) Arc<World>);

impl From<Refusal> for NetworkError {
    fn from(refusal: Refusal) -> Self {
        let Refusal { reason, message, transient } = refusal;
        NetworkError { reason, message, transient }
    }
}

impl State {
    /// Nothing of a device that is to be attached is in use by another.
    fn audit_attach(&mut self, nic: &Nic) {
        let Some(reserved) = self.durable().map(|durable| durable.reserves(nic)) else { return };
        let rivals = self.attached.values().filter(|other| other.mac != nic.mac);
        let clash = |other: &&Nic| {
            other.link.tap().is_some_and(|tap| nic.link.tap() == Some(tap))
                || other.ports.iter().any(|port| nic.ports.iter().any(|own| own.host == port.host))
        };
        if let Some(rival) = rivals.into_iter().find(clash) {
            let violation = format!("{} and {} share a tap or a host port", nic.mac, rival.mac);
            self.violation(violation);
        }
        if !reserved {
            self.violation(format!("a tap for {} without a durable reservation", nic.mac));
        }
    }

    fn audit_detach(&mut self, nic: &Nic) {
        let now = self.now();
        let user = self.processes.all().find(|process| {
            process.runs(now) && process.launch.nic.as_ref().is_some_and(|own| own.mac == nic.mac)
        });
        if let Some(key) = user.map(|process| process.launch.key.clone()) {
            self.violation(format!("the tap of {key} is removed under its feet"));
        }
    }
}

fn effect(name: &'static str) -> Effect {
    Effect { name, object: None, fate: None }
}

#[async_trait]
impl Network for ScriptedNetwork {
    async fn attach(&self, nic: &Nic) -> Result<(), NetworkError> {
        let act = |state: &mut State| {
            state.audit_attach(nic);
            state.attached.insert(nic.mac.clone(), nic.clone());
            Ok(())
        };
        Ok(self.0.effect(&effect("attach"), act).await?)
    }

    async fn detach(&self, nic: &Nic) -> Result<(), NetworkError> {
        let act = |state: &mut State| {
            state.audit_detach(nic);
            state.attached.remove(&nic.mac);
            Ok(())
        };
        Ok(self.0.effect(&effect("detach"), act).await?)
    }
}
