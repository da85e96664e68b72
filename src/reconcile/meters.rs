//! The engine's numbers.

use std::collections::BTreeMap;
use std::fmt;

use super::Engine;
use super::world::World;
use crate::metrics::{Counts, Page, Report};
use crate::object::Kind;
use crate::store::{DiskState, Record};

/// What the engine counts. All labels are words of the code.
#[derive(Debug, Default)]
pub(super) struct Meters {
    steps: Counts<2>,
    failures: Counts<2>,
    pulls: Counts<1>,
    pulled: Counts<0>,
    restarts: Counts<0>,
    collections: Counts<1>,
}

impl Meters {
    /// A reconcile step is taken.
    pub(super) fn step(&self, kind: Kind, step: &str) {
        self.steps.add([kind.singular(), step], 1);
    }

    /// A step, or a pull, has failed.
    pub(super) fn failure(&self, what: &str, reason: &str) {
        self.failures.add([what, reason], 1);
    }

    /// An attempt to pull has ended.
    pub(super) fn pull(&self, outcome: &str) {
        self.pulls.add([outcome], 1);
    }

    /// So many compressed bytes were downloaded.
    pub(super) fn pulled(&self, bytes: u64) {
        self.pulled.add([], bytes);
    }

    /// A base disk was removed, and why.
    pub(super) fn collection(&self, reason: &str) {
        self.collections.add([reason], 1);
    }

    /// A VM was started that had been started before.
    pub(super) fn restart(&self) {
        self.restarts.add([], 1);
    }
}

impl Report for Engine {
    fn report(&self, page: &mut Page<'_>) -> fmt::Result {
        let (world, meters) = (&self.world, &self.world.meters);
        guards(world, page)?;
        world.recorder.report(page)?;
        permits(world, page)?;
        objects(world, page)?;
        let help = "Steps that reconcile tasks took";
        page.counts("vmlet_reconcile_steps", help, ["kind", "step"], &meters.steps)?;
        let help = "Steps and pulls that failed, each attempt";
        page.counts("vmlet_reconcile_failures", help, ["kind", "reason"], &meters.failures)?;
        page.counts("vmlet_pulls", "Attempts to pull that ended", ["outcome"], &meters.pulls)?;
        let help = "Compressed bytes of layers that were downloaded";
        page.counts("vmlet_pulled_bytes", help, [], &meters.pulled)?;
        disks(world, page)?;
        let help = "Base disks that were removed, and why";
        page.counts("vmlet_collections", help, ["reason"], &meters.collections)?;
        page.counts("vmlet_vm_restarts", "Starts of VMs after their first", [], &meters.restarts)
    }
}

fn guards(world: &World, page: &mut Page<'_>) -> fmt::Result {
    let guards = [
        ([("guard", "store")], world.store.guard_times()),
        ([("guard", "pulls")], world.pulls.guard_times()),
        ([("guard", "agents")], world.agents.held()),
        ([("guard", "collector")], world.collector.guard_times()),
        ([("guard", "timeline")], world.recorder.guard_times()),
    ];
    let guards: Vec<_> = guards.iter().map(|(label, held)| (&label[..], *held)).collect();
    page.moments("vmlet_guard_held_seconds", "How long each guard was held, each time", &guards)
}

fn permits(world: &World, page: &mut Page<'_>) -> fmt::Result {
    let free = [
        ([("permit", "pull")], world.pulls.free_permits() as f64),
        ([("permit", "boot")], world.boots.available_permits() as f64),
    ];
    let free: Vec<_> = free.iter().map(|(label, free)| (&label[..], *free)).collect();
    page.gauges("vmlet_permits_free", "Permits that nobody holds", &free)
}

/// Base disks by state, what they take, and the room that is left.
fn disks(world: &World, page: &mut Page<'_>) -> fmt::Result {
    let mut count = [("used", 0.0), ("unused", 0.0), ("installing", 0.0), ("removing", 0.0)];
    let mut bytes = 0.0;
    for disk in world.store.disks() {
        let state = match disk.state {
            DiskState::Ready { .. } => usize::from(disk.unused.is_some()),
            DiskState::Installing { .. } => 2,
            DiskState::Removing => 3,
        };
        count[state].1 += 1.0;
        bytes += disk.path().map_or(0, |path| world.room.taken(path)) as f64;
    }
    let count = count.map(|(state, count)| ([("state", state)], count));
    let count: Vec<_> = count.iter().map(|(label, count)| (&label[..], *count)).collect();
    page.gauges("vmlet_disks", "Base disks by whether anything refers to them", &count)?;
    page.gauge("vmlet_disk_bytes", "Bytes that base disks take in the state folder", bytes)?;
    let help = "Bytes that the layers take which are kept for later pulls";
    page.gauge("vmlet_blob_cache_bytes", help, world.room.blobs() as f64)?;
    let Some(space) = world.room.space() else { return Ok(()) };
    let help = "Bytes that are free on the state folder's file system";
    page.gauge("vmlet_filesystem_free_bytes", help, space.free as f64)?;
    let help = "Bytes of the state folder's file system";
    page.gauge("vmlet_filesystem_bytes", help, space.total as f64)
}

/// Objects by kind, phase, and whether they are ready.
fn objects(world: &World, page: &mut Page<'_>) -> fmt::Result {
    let mut objects: BTreeMap<[String; 3], u32> = BTreeMap::new();
    for kind in Kind::ALL {
        for record in world.store.list(kind, None).0 {
            let (phase, conditions) = match &record {
                Record::Vm(vm) => (&vm.object.status.phase, &vm.object.status.conditions),
                Record::Image(image) => (&image.object.status.phase, &image.object.status.conditions),
            };
            let ready = conditions.iter().any(|held| held.kind == "Ready" && held.status == true.into());
            let labels = [kind.singular().to_owned(), phase.clone(), ready.to_string()];
            *objects.entry(labels).or_default() += 1;
        }
    }
    let objects: Vec<_> = objects
        .iter()
        .map(|([kind, phase, ready], count)| {
            ([("kind", kind.as_str()), ("phase", phase), ("ready", ready)], f64::from(*count))
        })
        .collect();
    let objects: Vec<_> = objects.iter().map(|(labels, count)| (&labels[..], *count)).collect();
    page.gauges("vmlet_objects", "Objects by what their status says", &objects)
}
