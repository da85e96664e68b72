//! A scripted host for tests that drive an engine by hand.
//!
//! In: scripts, and orders such as [`Host::kill_vmm`]. Out: what there is ([`Host::running`]), what was ever
//! done ([`Host::pulls`]), and what nobody may do, done ([`Host::violations`]). The host outlives engines,
//! as a real one outlives daemons. Its time is that of the runtime it is used on.

use std::path::PathBuf;
use std::sync::Arc;

use super::images::{ImageScript, canonical};
use super::trouble::{EffectScript, Trouble, VmScript};
use super::world::World;
use crate::image::Digest;
use crate::object::ObjectKey;
use crate::reconcile::{Clock, Entropy, Parts, Retention};
use crate::store::DurableView;

/// A host by script. Clones are the same host.
#[derive(Clone)]
pub struct Host(pub(super) Arc<World>);

impl Default for Host {
    fn default() -> Self {
        Host::new()
    }
}

impl Host {
    /// A host on which nothing runs and nothing goes wrong by chance.
    pub fn new() -> Self {
        Host(Arc::new(World::new(0, Trouble::NONE)))
    }

    /// A daemon begins, on the clock of the runtime that this is called on. With a view of what of its log
    /// is durable, all that it does is held against that.
    pub fn begin(&self, durable: Option<DurableView>, retention: Retention) {
        self.0.begin(durable, retention);
    }

    /// The daemon is dead: whatever is left of it changes nothing any more.
    pub fn end(&self) {
        self.0.end();
    }

    /// What an engine needs to run on this host.
    pub fn parts(&self, clock: Clock, entropy: Entropy) -> Parts {
        self.0.parts(clock, &entropy)
    }

    /// Sets how an image's source behaves from now on. Without a script it is there, with a digest of its
    /// own, and pulled in some seconds.
    pub fn script_image(&self, source: &str, script: ImageScript) {
        self.0.lock().script_image(canonical(source), script);
    }

    /// Sets how the starts of a VM go from now on.
    pub fn script_vm(&self, key: &ObjectKey, script: VmScript) {
        self.0.lock().vm_scripts.insert(key.clone(), script);
    }

    /// Sets how VMs behave that have no script of their own and were not started yet.
    pub fn script_vms(&self, script: VmScript) {
        self.0.lock().usual_vm = script;
    }

    /// Sets how the effects of a name go from now on: `prepare`, `spawn`, `release`, `cleanup`; and `watch`,
    /// the beginning of the wait for a VMM's end, which can only panic.
    pub fn script_effect(&self, name: &str, script: EffectScript) {
        self.0.lock().effect_scripts.insert(name.to_owned(), script);
    }

    /// The VMM of a VM dies of a signal. Whether it ran.
    pub fn kill_vmm(&self, key: &ObjectKey) -> bool {
        self.0.kill_vmm(key)
    }

    /// The workload of a VM ends with this exit code. Whether the VM ran.
    pub fn end_workload(&self, key: &ObjectKey, code: i32) -> bool {
        self.0.end_workload(key, code)
    }

    /// The host loses its power, and is started again.
    pub fn reboot(&self) {
        self.0.reboot();
    }

    /// A base disk is lost.
    pub fn lose_disk(&self, digest: &Digest) {
        self.0.lock().disks.remove(digest);
    }

    /// The VMs that run, in the order of their processes' numbers.
    pub fn running(&self) -> Vec<ObjectKey> {
        let state = self.0.lock();
        let now = state.now();
        let running = state.processes.all().filter(|process| process.runs(now));
        running.map(|process| process.launch.key.clone()).collect()
    }

    /// The VMs' folders.
    pub fn folders(&self) -> Vec<PathBuf> {
        self.0.lock().folders.keys().cloned().collect()
    }

    /// The base disks.
    pub fn disks(&self) -> Vec<Digest> {
        self.0.lock().disks.iter().cloned().collect()
    }

    /// The pulls' staging places.
    pub fn staged(&self) -> usize {
        self.0.lock().staged.len()
    }

    /// The network devices that are attached.
    pub fn attached(&self) -> usize {
        self.0.lock().attached.len()
    }

    /// Pulls of a source that were begun.
    pub fn pulls(&self, source: &str) -> u32 {
        self.0.lock().tally.pulls.get(&canonical(source)).copied().unwrap_or(0)
    }

    /// Pulls that ran at once, at most.
    pub fn most_pulling(&self) -> usize {
        self.0.lock().tally.most_pulling
    }

    /// VMs that were in their boot at once, at most.
    pub fn most_booting(&self) -> usize {
        self.0.lock().tally.most_booting
    }

    /// Base disks that were removed.
    pub fn removals(&self) -> u32 {
        self.0.lock().tally.removals
    }

    /// What a daemon did that it may not do: two processes of one VM, an effect without a durable record, a
    /// disk taken from under a VM.
    pub fn violations(&self) -> Vec<String> {
        self.0.lock().violations.clone()
    }
}
