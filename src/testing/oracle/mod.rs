//! What must hold: the reference model that a simulation is compared with.
//!
//! In: the folder, the store's records, the world. Out: sentences that say what is not (yet) as the
//! folder says ([`unsettled`]), and what must never be ([`wrong`]). Nothing here knows how the engine
//! works: an object is settled, or it says why not and is right about it (`blocked`, `images`).

mod blocked;
mod held;
mod images;
mod settled;

use std::collections::BTreeMap;
use std::time::Duration;

use super::Simulation;
use super::life::summary;
use super::world::State;
use crate::manifest::FileState;
use crate::object::{AnyObject, Condition, Kind, ObjectKey};
use crate::reconcile::{Retention, Settings};
use crate::store::{Capacity, Record, Store, VmRecord};

/// Everything that is looked at, at one instant.
struct Sight<'a> {
    world: &'a State,
    now: Duration,
    records: BTreeMap<ObjectKey, Record>,
    wanted: BTreeMap<ObjectKey, Vec<AnyObject>>,
    /// A file cannot be read: what it held before stays.
    broken: bool,
    capacity: Capacity,
    retention: Retention,
    store: &'a Store,
}

fn look<T>(sim: &Simulation, store: &Store, then: impl FnOnce(&Sight<'_>) -> T) -> T {
    let mut wanted: BTreeMap<ObjectKey, Vec<AnyObject>> = BTreeMap::new();
    for state in sim.files() {
        let FileState::Good(objects) = state else { continue };
        for located in objects.iter() {
            wanted.entry(located.object.key()).or_default().push(located.object.clone());
        }
    }
    let broken = sim.files().any(|state| !matches!(state, FileState::Good(_)));
    let records = Kind::ALL.into_iter().flat_map(|kind| store.list(kind, None).0);
    let records = records.map(|record| (record.key(), record)).collect();
    let world = sim.world.lock();
    let Settings { capacity, retention, .. } = sim.options.settings;
    then(&Sight { now: world.now(), capacity, retention, world: &world, records, wanted, broken, store })
}

/// What is not as the folder says.
pub(super) fn unsettled(sim: &Simulation, store: &Store) -> Vec<String> {
    look(sim, store, |sight| {
        let mut open = Vec::new();
        if let Some(why) = store.failed() {
            open.push(format!("the store failed: {why}"));
        }
        for (key, wanted) in &sight.wanted {
            match sight.records.get(key) {
                None => open.push(format!("{key} is not there")),
                Some(record) => open.extend(sight.unsettled(key, record, wanted)),
            }
        }
        for (key, record) in &sight.records {
            let stays = sight.broken && record.problem().is_some() || sight.in_use(key, record);
            if !sight.wanted.contains_key(key) && !stays {
                open.push(format!("{key} is still there: {}", summary(record)));
            }
        }
        open.extend(sight.left_over());
        open
    })
}

/// What must never be.
pub(super) fn wrong(sim: &Simulation, store: &Store) -> Vec<String> {
    look(sim, store, |sight| {
        let mut wrong = sight.leases();
        wrong.extend(sight.twins());
        wrong.extend(sight.misjudged());
        for record in sight.records.values() {
            if let Record::Vm(vm) = record {
                let uid = vm.object.metadata.uid.unwrap_or_default();
                let allowed = 1 + sight.world.blame.get(&uid).copied().unwrap_or(0) + sim.edits + sim.crashes;
                if vm.starts > allowed {
                    let key = record.key();
                    wrong.push(format!("{key} was started {} times, {allowed} can be explained", vm.starts));
                }
            }
        }
        wrong
    })
}

fn vm_of(record: &Record) -> Option<&VmRecord> {
    match record {
        Record::Vm(vm) => Some(vm),
        Record::Image(_) => None,
    }
}

fn ready(conditions: &[Condition]) -> Option<&Condition> {
    conditions.iter().find(|condition| condition.kind == "Ready")
}

fn stalled(conditions: &[Condition]) -> bool {
    conditions.iter().any(|condition| condition.kind == "Stalled" && condition.status == true.into())
}

fn is_ready(conditions: &[Condition]) -> Result<(), String> {
    let ready = ready(conditions).is_some_and(|condition| condition.status == true.into());
    if ready { Ok(()) } else { Err("it is not ready".to_owned()) }
}
