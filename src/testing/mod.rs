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
//! The scripted parts can also be had alone, for tests that drive an engine by hand: [`FakeImages`],
//! [`FakeNetwork`], and [`crate::hypervisor::fake`].

mod images;
mod life;
mod network;
mod options;
mod oracle;
#[cfg(test)]
mod rig;
mod scenario;
mod simulation;
mod timeline;
mod trouble;
mod world;

pub use images::{FakeImages, ImageScript};
pub use network::FakeNetwork;
pub use options::{Options, Unflushed};
#[cfg(test)]
pub(crate) use rig::Rig;
pub use scenario::{Outcome, Scenario, reference};
pub use simulation::Simulation;
pub use timeline::{Entry, Teller};
pub use trouble::{Action, EffectScript, Trouble, VmScript, WorkloadExit};

/// Kernels of a host whose VMs all boot its own.
pub fn host_kernels() -> std::sync::Arc<dyn crate::boot::Kernels> {
    let world = std::sync::Arc::new(world::World::new(0, Trouble::NONE));
    world.parts(crate::reconcile::Clock::Host, &crate::reconcile::Entropy::Host).kernels
}

/// The folder that a simulation's manifests are in, in messages.
pub const MANIFESTS: &str = "/simulated/manifests";
