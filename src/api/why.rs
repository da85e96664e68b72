//! `GET …/KIND/NAME/why`: one answer that joins what records, events and statuses say of an object.
//!
//! [`explain`] is pure: facts in, answer out. It decides nothing: reasons and sentences are those of the
//! conditions, and the chain of blockers follows what they are about.

use std::collections::{BTreeMap, BTreeSet};

use axum::Json;
use axum::extract::{Path, State};
use axum::response::IntoResponse;
use jiff::Timestamp;

use super::Api;
use super::error::{Answer, ApiError};
use super::resources::Place;
use super::types::{Blocker, Happened, Why};
use crate::manifest::{broken_files, similar};
use crate::network::Link;
use crate::object::{AnyObject, Condition, ConditionStatus, Kind, ObjectKey, RunPolicy};
use crate::store::{Event, Record, Reservation, Run, Severity, VmRecord};

/// The longest chain that is told.
const MAX_BLOCKERS: usize = 32;
/// The most names in one sentence.
const NAMES: usize = 4;

pub(super) async fn get(kind: Kind, State(api): State<Api>, Path(place): Path<Place>) -> Answer {
    let key = place.key(kind);
    let records = Kind::ALL.into_iter().flat_map(|kind| api.store.list(kind, None).0);
    let facts = Facts {
        records: records.map(|record| (record.key(), record)).collect(),
        events: &|key| api.store.events(Some(&key.into())),
        driver: &api.guests.driver(),
    };
    match explain(&facts, &key) {
        Some(why) => Ok(Json(why).into_response()),
        None => Err(unknown(&key, &facts, &api.store.events(None))),
    }
}

/// There is no such object: perhaps another was meant, or its manifest has errors.
fn unknown(key: &ObjectKey, facts: &Facts<'_>, events: &[Event]) -> ApiError {
    let known = facts.records.keys().filter(|known| known.namespace == key.namespace);
    let same_kind = known.filter(|known| known.kind == key.kind).map(|known| known.name.as_str());
    let meant =
        similar(&key.name, same_kind).map(|name| format!("did you mean {}/{name}?", key.kind.singular()));
    let mut hints: Vec<String> = meant.into_iter().collect();
    hints.extend(
        broken_files(events).into_values().map(|why| format!("a manifest with errors is not used: {why}")),
    );
    ApiError::not_found(key).hints(&hints)
}

/// What an answer is made of.
pub(super) struct Facts<'a> {
    pub(super) records: BTreeMap<ObjectKey, Record>,
    /// An object's events, the latest last.
    pub(super) events: &'a dyn Fn(&ObjectKey) -> Vec<Event>,
    /// What runs VMs, and how: `qemu, tcg`.
    pub(super) driver: &'a str,
}

/// The answer; none if there is no such object.
pub(super) fn explain(facts: &Facts<'_>, key: &ObjectKey) -> Option<Why> {
    let record = facts.records.get(key)?;
    let (object, events) = (record.object(), (facts.events)(key));
    let ready = holds(condition(&object, "Ready"));
    let metadata = object.metadata();
    let observed_generation = match &object {
        AnyObject::Vm(vm) => vm.status.observed_generation,
        AnyObject::Image(image) => image.status.observed_generation,
    };
    let declared = |event: &&Event| matches!(event.reason.as_str(), "Declared" | "SpecChanged");
    let seen = events.iter().rfind(declared).map(|event| event.last_seen);
    Some(Why {
        object: key.to_string(),
        ready,
        reason: reason(&object).to_owned(),
        message: message(&object),
        shared_with: if ready { Vec::new() } else { facts.sharers(record) },
        declared: record.origin().to_string(),
        generation: metadata.generation,
        observed_generation,
        seen: seen.or(metadata.creation_timestamp),
        problem: record.problem().map(|problem| problem.message.clone()),
        reserved: record.reservation().map(reserved).unwrap_or_default(),
        last_step: latest(&events, Severity::Normal),
        blocked_by: if ready { Vec::new() } else { facts.blockers(record) },
        last_error: latest(&events, Severity::Warning),
        next_try: next_try(&object),
        then: facts.then(record),
    })
}

impl Facts<'_> {
    /// The others that wait for the disk of the same digest.
    fn sharers(&self, record: &Record) -> Vec<String> {
        let Some(pin) = record.pinned().filter(|_| !image_ready(&record.object())) else { return Vec::new() };
        let others = self.records.values().filter(|other| {
            other.key() != record.key()
                && other.pinned().is_some_and(|theirs| theirs.digest == pin.digest)
                && !image_ready(&other.object())
        });
        names(others.map(Record::key))
    }

    /// What the object waits for, what that waits for, and so on.
    fn blockers(&self, record: &Record) -> Vec<Blocker> {
        let (mut found, mut seen) = (Vec::new(), BTreeSet::from([record.key()]));
        let mut next = vec![record.clone()];
        while let Some(record) = next.pop() {
            let object = record.object();
            match &record {
                Record::Vm(vm) if object.metadata().deletion_timestamp.is_none() && !image_ready(&object) => {
                    let (blocker, image) = self.image_of(vm);
                    found.push(blocker);
                    found.extend(self.limits(image.map(Record::object).as_ref().unwrap_or(&object)));
                }
                Record::Vm(vm) if reason(&object) == "DependencyNotReady" => {
                    for name in &vm.object.spec.depends_on {
                        let key = ObjectKey::new(Kind::Vm, &record.key().namespace, name);
                        let there = self.records.get(&key);
                        let ready = there.is_some_and(|vm| holds(condition(&vm.object(), "Ready")));
                        if !ready && found.len() < MAX_BLOCKERS && seen.insert(key.clone()) {
                            found.push(self.object(&key));
                            next.extend(there.cloned());
                        }
                    }
                }
                _ => found.extend(self.limits(&object)),
            }
        }
        found
    }

    /// The image that a VM waits for, and its `Image` object if there is one.
    fn image_of(&self, vm: &VmRecord) -> (Blocker, Option<&Record>) {
        let (spec, namespace) = (&vm.object.spec.image, &vm.object.metadata.namespace);
        match (&spec.name, &spec.oci) {
            (Some(name), _) => {
                let key = ObjectKey::new(Kind::Image, namespace, name);
                (self.object(&key), self.records.get(&key))
            }
            (None, reference) => (pull(vm, reference.as_deref().unwrap_or_default()), None),
        }
    }

    /// An object that another waits for.
    fn object(&self, key: &ObjectKey) -> Blocker {
        let Some(record) = self.records.get(key) else {
            return Blocker {
                what: key.to_string(),
                reason: "NotFound".to_owned(),
                message: "it does not exist; declare it, or name one that exists".to_owned(),
                last_error: None,
                next_try: None,
            };
        };
        let object = record.object();
        Blocker {
            what: key.to_string(),
            reason: reason(&object).to_owned(),
            message: message(&object),
            last_error: latest(&(self.events)(key), Severity::Warning),
            next_try: next_try(&object),
        }
    }

    /// The limit that an object waits for, and who uses it up.
    fn limits(&self, object: &AnyObject) -> Option<Blocker> {
        let reason = reason(object);
        if let Some(what) = reason.strip_prefix("Insufficient") {
            let (what, message) = (what.to_lowercase(), message(object));
            return Some(Blocker {
                what,
                reason: reason.to_owned(),
                message,
                last_error: None,
                next_try: None,
            });
        }
        let (what, holders) = match reason {
            "WaitingForBoot" => {
                let booting = |record: &&Record| {
                    let up =
                        matches!(record, Record::Vm(vm) if matches!(vm.run, Run::Up { stopping: None, .. }));
                    up && !holds(condition(&record.object(), "Booted"))
                };
                ("boot permits", names(self.records.values().filter(booting).map(Record::key)))
            }
            "WaitingForPull" => {
                // A VM that waits for its Image object says that it is pulled, and pulls nothing itself.
                let pulls = |record: &Record| match record {
                    Record::Vm(vm) => vm.object.spec.image.oci.is_some(),
                    Record::Image(_) => true,
                };
                let pulling = |record: &&Record| {
                    let object = record.object();
                    pulls(record)
                        && condition(&object, "Ready").is_some_and(|ready| ready.reason == "Pulling")
                };
                ("pull permits", names(self.records.values().filter(pulling).map(Record::key)))
            }
            _ => return None,
        };
        let message = match holders.as_slice() {
            [] => "all are taken".to_owned(),
            holders => format!("all are taken: {}", holders.join(", ")),
        };
        let (what, reason) = (what.to_owned(), reason.to_owned());
        Some(Blocker { what, reason, message, last_error: None, next_try: None })
    }

    /// What comes next, in order.
    fn then(&self, record: &Record) -> Vec<String> {
        let object = record.object();
        let steps: &[&str] = if object.metadata().deletion_timestamp.is_some() {
            &["shutdown", "removal of all that it holds", "the record goes"]
        } else if holds(condition(&object, "Ready")) {
            &[]
        } else if holds(condition(&object, "Stalled")) {
            &["nothing before its manifest changes"]
        } else {
            return match record {
                Record::Vm(vm) => self.start(vm, &object),
                Record::Image(_) => self.image_then(&record.key()),
            };
        };
        steps.iter().map(|step| (*step).to_owned()).collect()
    }

    /// The steps of a start that are left.
    fn start(&self, vm: &VmRecord, object: &AnyObject) -> Vec<String> {
        if vm.object.spec.run_policy == RunPolicy::Halted || matches!(vm.run, Run::Ended { .. }) {
            return vec!["nothing before its manifest changes".to_owned()];
        }
        let up = matches!(vm.run, Run::Up { .. });
        let boot = format!("boot ({})", self.driver);
        let steps = [
            (!image_ready(object) && !up, "image"),
            (!vm.reservation.as_ref().is_some_and(Reservation::can_run), "reserve"),
            (!up || !holds(condition(object, "Booted")), boot.as_str()),
            (true, "workload"),
            (true, "ready"),
        ];
        let left = steps.iter().filter(|(left, _)| *left).map(|(_, step)| (*step).to_owned());
        // What is under way is told already.
        left.skip(1).collect()
    }

    fn image_then(&self, key: &ObjectKey) -> Vec<String> {
        let users = self.records.values().filter(|record| match record {
            Record::Vm(vm) => {
                let image = &vm.object.spec.image.name;
                let names_it =
                    vm.object.metadata.namespace == key.namespace && image.as_ref() == Some(&key.name);
                names_it && !holds(condition(&record.object(), "Ready"))
            }
            Record::Image(_) => false,
        });
        let users = names(users.map(Record::key));
        let mut then = vec!["ready".to_owned()];
        if !users.is_empty() {
            then.push(format!("start of {}", users.join(", ")));
        }
        then
    }
}

/// The pull of a VM's own reference.
fn pull(vm: &VmRecord, reference: &str) -> Blocker {
    let digest = vm.image.as_ref().filter(|pin| Some(&pin.source) == vm.object.spec.image.direct().as_ref());
    let digest = digest.map(|pin| format!(" ({})", short(&pin.digest.to_string()))).unwrap_or_default();
    let object = AnyObject::Vm(vm.object.clone());
    Blocker {
        what: format!("image {reference}{digest}"),
        reason: reason(&object).to_owned(),
        message: message(&object),
        last_error: None,
        next_try: next_try(&object),
    }
}

fn condition<'a>(object: &'a AnyObject, kind: &str) -> Option<&'a Condition> {
    object.conditions().iter().find(|condition| condition.kind == kind)
}

fn holds(condition: Option<&Condition>) -> bool {
    condition.is_some_and(|condition| condition.status == ConditionStatus::True)
}

/// The Ready condition's reason.
fn reason(object: &AnyObject) -> &str {
    condition(object, "Ready").map(|ready| ready.reason.as_str()).unwrap_or_default()
}

/// The Ready condition's sentence.
fn message(object: &AnyObject) -> String {
    let ready = condition(object, "Ready");
    ready.map_or_else(|| "it has not been looked at yet".to_owned(), |ready| ready.message.clone())
}

fn next_try(object: &AnyObject) -> Option<Timestamp> {
    match object {
        AnyObject::Vm(vm) => vm.status.next_retry_time,
        AnyObject::Image(image) => image.status.next_retry_time,
    }
}

/// Whether the base disk is there: of a VM by its own condition, of an image by its only one.
fn image_ready(object: &AnyObject) -> bool {
    holds(condition(object, if object.key().kind == Kind::Vm { "ImageReady" } else { "Ready" }))
}

fn latest(events: &[Event], severity: Severity) -> Option<Happened> {
    let event = events.iter().rfind(|event| event.severity == severity)?;
    Some(Happened {
        reason: event.reason.clone(),
        message: event.message.clone(),
        at: event.last_seen,
        count: event.count,
    })
}

fn reserved(held: &Reservation) -> Vec<String> {
    let mut list = Vec::new();
    if let Some(nic) = &held.nic {
        if let Link::Bridge { address, .. } = nic.link {
            list.push(address.to_string());
        }
        list.push(nic.mac.clone());
        list.extend(nic.ports.iter().map(|port| format!("host port {} for {}", port.host, port.guest)));
    }
    // A VM that rests keeps the rest, but neither memory nor processors.
    if held.can_run() {
        list.push(format!("{} of memory", held.memory));
    }
    list.push(format!("{} of disk", held.disk));
    list
}

/// Some names, and how many more there are.
fn names(keys: impl Iterator<Item = ObjectKey>) -> Vec<String> {
    let keys: Vec<ObjectKey> = keys.collect();
    let mut names: Vec<String> = keys.iter().take(NAMES).map(ToString::to_string).collect();
    if keys.len() > NAMES {
        names.push(format!("{} more", keys.len() - NAMES));
    }
    names
}

/// `sha256:` and the first digits.
fn short(digest: &str) -> String {
    format!("{}…", digest.chars().take(19).collect::<String>())
}
