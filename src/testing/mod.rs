//! A scripted world for the real engine, and simulations of whole daemons in it.
//!
//! A [`Simulation`] runs what the daemon runs (manifests, store, engine) against a registry, a driver,
//! guests and a network that are scripted. Time is simulated: hours take milliseconds. Everything
//! follows from a seed: what is late, what fails, who comes first, when the daemon is killed. So a set
//! of manifests can be tested against bad days, and a bad day can be looked at again.
//!
//! ```
//! use std::time::Duration;
//! use vmlet::testing::{Action, Options, Simulation};
//!
//! let mut sim = Simulation::new(7, Options::default());
//! sim.write("web.yaml", "
//! apiVersion: vmlet.dev/v1alpha1
//! kind: VM
//! metadata: {name: web}
//! spec: {image: {oci: registry.example/web:1}}
//! ");
//! sim.at(Duration::from_secs(2), Action::Crash { down: Duration::from_secs(5) });
//! sim.run_until_converged(Duration::from_secs(600)).expect("web becomes ready");
//! assert!(sim.violations().is_empty());
//! for entry in sim.timeline() {
//!     println!("{entry}");
//! }
//! ```
//!
//! A [`Scenario`] is a file that says all this and what is expected, for `vmlet simulate`.
//!
//! A simulation blocks its thread and keeps a runtime of its own: inside of another runtime it belongs
//! on a thread where blocking is fine.
//!
//! The scripted world can also be had alone, as a [`Host`], for tests that drive an engine by hand.

mod host;
mod images;
mod launch;
mod life;
mod options;
mod oracle;
#[cfg(test)]
mod rig;
mod scenario;
mod simulation;
mod timeline;
mod trouble;
mod world;

pub use host::Host;
pub use images::ImageScript;
pub use launch::launch;
pub use options::{Options, Unflushed};
#[cfg(test)]
pub(crate) use rig::Rig;
pub use scenario::{Outcome, Scenario, reference};
pub use simulation::Simulation;
pub use timeline::{Entry, Teller};
pub use trouble::{Action, EffectScript, Trouble, VmScript, WorkloadExit};

/// The folder that a simulation's manifests are in, in messages.
pub const MANIFESTS: &str = "/simulated/manifests";
