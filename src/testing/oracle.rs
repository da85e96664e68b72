//! What must hold: the reference model that a simulation is compared with.
//!
//! In: the folder, the store's records, the world. Out: sentences that say what is not (yet) as the
//! folder says ([`unsettled`]), and what must never be ([`wrong`]). Nothing here knows how the engine
//! works.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::time::Duration;

use vmlet_wire::GuestState;

use super::Simulation;
use super::images::name;
use super::life::{calendar, summary};
use super::world::State;
use crate::boot::KernelSource;
use crate::image::{Digest, Source, VmAt};
use crate::manifest::FileState;
use crate::object::{AnyObject, Condition, Kind, ObjectKey, RunPolicy, Uid, VmSpec};
use crate::reconcile::{Retention, Settings};
use crate::store::{
    Capacity, DiskState, ImageRecord, PinnedImage, Record, Reservation, Run, Store, VmRecord,
};

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
    for state in sim.snapshot.files.values() {
        let FileState::Good(objects) = state else { continue };
        for located in objects.iter() {
            wanted.entry(located.object.key()).or_default().push(located.object.clone());
        }
    }
    let broken = sim.snapshot.files.values().any(|state| !matches!(state, FileState::Good(_)));
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

impl Sight<'_> {
    fn unsettled(&self, key: &ObjectKey, record: &Record, wanted: &[AnyObject]) -> Option<String> {
        let said = || format!("{key}: {}", summary(record));
        let metadata = record.metadata();
        if metadata.deletion_timestamp.is_some() {
            return Some(format!("{} (of an earlier declaration)", said()));
        }
        let fits = |wanted: &AnyObject| match (record, wanted) {
            (Record::Vm(vm), AnyObject::Vm(wanted)) => vm.object.spec == wanted.spec,
            (Record::Image(image), AnyObject::Image(wanted)) => image.object.spec == wanted.spec,
            _ => false,
        };
        if !wanted.iter().any(fits) {
            return Some(format!("{} (another spec is declared)", said()));
        }
        let settled = match record {
            Record::Vm(vm) => self.vm_settled(vm),
            Record::Image(image) => self.image_settled(image),
        };
        settled.err().map(|why| format!("{} ({why})", said()))
    }

    /// A deleted image stays while a VM names it, and says so.
    fn in_use(&self, key: &ObjectKey, record: &Record) -> bool {
        let Record::Image(image) = record else { return false };
        let names = |record: &Record| match record {
            Record::Vm(vm) => {
                vm.object.metadata.namespace == key.namespace
                    && vm.object.spec.image.name.as_ref() == Some(&key.name)
            }
            Record::Image(_) => false,
        };
        image.object.metadata.deletion_timestamp.is_some()
            && ready(&image.object.status.conditions).is_some_and(|ready| ready.reason == "InUse")
            && self.records.values().any(names)
    }

    fn image_settled(&self, image: &ImageRecord) -> Result<(), String> {
        let status = &image.object.status;
        observed(status.observed_generation, image.object.metadata.generation)?;
        if self.out_of_reach(image) {
            return explained(&status.conditions, &status.phase, status.next_retry_time.is_some());
        }
        let source =
            image.object.spec.source.chosen(&image.object.metadata.namespace).ok_or("it has no source")?;
        if let Source::Vm(vm) = &source {
            return if self.waits_for_vm(vm, image) { Ok(()) } else { is_ready(&status.conditions) };
        }
        let digest = self.digest(&source).ok_or("it is not in the registry")?;
        is_ready(&status.conditions)?;
        if image.image.as_ref().is_none_or(|pin| pin.digest != digest) {
            return Err(format!("it is not {digest}"));
        }
        if image.current().and_then(PinnedImage::boot).is_none() {
            return Err("it is ready without its kernel".to_owned());
        }
        Ok(())
    }

    /// Whether an image says that it waits for its VM, and rightly.
    fn waits_for_vm(&self, vm: &VmAt, image: &ImageRecord) -> bool {
        let key = ObjectKey::new(Kind::Vm, &vm.namespace, &vm.name);
        let stopped = match self.records.get(&key) {
            Some(Record::Vm(vm)) => vm.object.status.phase == "Stopped" && vm.reservation.is_some(),
            _ => false,
        };
        let ready = ready(&image.object.status.conditions);
        !stopped && ready.is_some_and(|ready| ready.reason == "WaitingForVM")
    }

    fn vm_settled(&self, vm: &VmRecord) -> Result<(), String> {
        let (spec, status) = (&vm.object.spec, &vm.object.status);
        observed(status.observed_generation, vm.object.metadata.generation)?;
        let running: Vec<_> = self.processes_of(vm).collect();
        let stopped = status.phase == "Stopped" && running.is_empty();
        let ended = stopped && vm.last_exit.is_some() && spec.run_policy != RunPolicy::Always;
        if ended || spec.run_policy == RunPolicy::Halted {
            return if stopped { Ok(()) } else { Err("it is to be stopped".to_owned()) };
        }
        if is_ready(&status.conditions).is_err() && self.blocked(vm) {
            return explained(&status.conditions, &status.phase, status.next_retry_time.is_some());
        }
        is_ready(&status.conditions)?;
        let [process] = running[..] else { return Err(format!("{} processes run", running.len())) };
        if process.guest(self.now) != Some(GuestState::Ready) {
            return Err("its guest is not ready".to_owned());
        }
        if (process.launch.cpus, process.launch.memory) != (spec.cpus, spec.memory) {
            return Err("it runs with other processors or memory".to_owned());
        }
        let held = vm.reservation.as_ref().ok_or("it runs without a reservation")?;
        if self.wanted_digest(vm).is_some_and(|digest| digest != held.image) {
            return Err("it runs another image".to_owned());
        }
        let Run::Up { boot, .. } = &vm.run else {
            return Err("its record says that it does not run".to_owned());
        };
        if self
            .wanted_image(vm)
            .and_then(ImageRecord::current)
            .and_then(PinnedImage::boot)
            .is_some_and(|wanted| wanted != *boot)
        {
            return Err("it runs another kernel".to_owned());
        }
        Ok(())
    }

    fn processes_of(&self, vm: &VmRecord) -> impl Iterator<Item = &super::world::Process> {
        let (uid, now) = (vm.object.metadata.uid, self.now);
        let own =
            move |process: &&super::world::Process| Some(process.launch.uid) == uid && process.runs(now);
        self.world.processes.all().filter(own)
    }

    /// What a source stands for; none if it is not there.
    fn digest(&self, source: &Source) -> Option<Digest> {
        self.world.image_script(source).digest
    }

    /// Whether a source was refused for good.
    fn doomed(&self, source: &Source) -> bool {
        self.world.doomed.contains(&name(source))
    }

    /// Whether an image cannot be had: it is not in the registry, or was refused for good and is not
    /// tried again.
    fn out_of_reach(&self, image: &ImageRecord) -> bool {
        let Some(source) = image.object.spec.source.chosen(&image.object.metadata.namespace) else {
            return true;
        };
        let kernel = match image.object.spec.kernel().and_then(|choice| choice.source) {
            Some(KernelSource::Oci(reference)) => Some(Source::Oci(reference)),
            _ => None,
        };
        let stalled = stalled(&image.object.status.conditions);
        let lost = |source: &Source| self.digest(source).is_none() || self.doomed(source) && stalled;
        std::iter::once(source).chain(kernel).any(|source| lost(&source))
    }

    /// The `Image` object that a VM names.
    fn wanted_image(&self, vm: &VmRecord) -> Option<&ImageRecord> {
        let (namespace, name) = (&vm.object.metadata.namespace, vm.object.spec.image.name.as_ref()?);
        match self.records.get(&ObjectKey::new(Kind::Image, namespace, name))? {
            Record::Image(image) if image.object.metadata.deletion_timestamp.is_none() => Some(image),
            _ => None,
        }
    }

    /// The digest that a VM is to run; none if it cannot be had.
    fn wanted_digest(&self, vm: &VmRecord) -> Option<Digest> {
        let spec = &vm.object.spec.image;
        if let Some(source) = spec.direct() {
            let refused = self.doomed(&source) && stalled(&vm.object.status.conditions);
            return self.digest(&source).filter(|_| !refused);
        }
        let image = self.wanted_image(vm)?;
        let source = image.object.spec.source.chosen(&image.object.metadata.namespace)?;
        if let Source::Vm(_) = source {
            return image.image.as_ref().map(|pin| pin.digest.clone());
        }
        self.digest(&source).filter(|_| !self.out_of_reach(image))
    }

    /// Whether something that only an edit or another object mends is in a VM's way.
    fn blocked(&self, vm: &VmRecord) -> bool {
        let refused = |uid: Uid| self.world.doomed.contains(&uid.to_string());
        self.wanted_digest(vm).is_none()
            || vm.object.metadata.uid.is_some_and(refused) && stalled(&vm.object.status.conditions)
            || self.others(vm).any(|other| clash(&vm.object.spec, other)) && !holds_all(vm)
            || ["Waiting", "Failed"].contains(&vm.object.status.phase.as_str()) && self.waits_rightly(vm)
    }

    fn waits_rightly(&self, vm: &VmRecord) -> bool {
        self.crowded(vm) || self.behind(vm) || self.dependent(vm)
    }

    /// Whether the others leave too little memory, disk or processors for a VM.
    fn crowded(&self, vm: &VmRecord) -> bool {
        let (spec, capacity) = (&vm.object.spec, self.capacity);
        let sum = |of: fn(&Reservation) -> u64| self.others(vm).map(of).sum::<u64>();
        sum(|held| held.memory.as_bytes()) + spec.memory.as_bytes() > capacity.memory.as_bytes()
            || sum(|held| held.disk.as_bytes()) + spec.root_disk.size.as_bytes() > capacity.disk.as_bytes()
            || sum(|held| u64::from(held.cpus)) + u64::from(spec.cpus) > u64::from(capacity.cpus)
    }

    /// Whether another VM waits for room, which this one may not pass.
    fn behind(&self, vm: &VmRecord) -> bool {
        let key = vm.object.key();
        let others = self.records.values().filter_map(vm_of).filter(|other| other.object.key() != key);
        others.into_iter().any(|other| other.object.status.phase == "Waiting" && self.crowded(other))
    }

    /// Whether a VM waits for one that is not ready.
    fn dependent(&self, vm: &VmRecord) -> bool {
        let namespace = &vm.object.metadata.namespace;
        vm.object.spec.depends_on.iter().any(|name| {
            let record = self.records.get(&ObjectKey::new(Kind::Vm, namespace, name));
            record.and_then(vm_of).is_none_or(|other| is_ready(&other.object.status.conditions).is_err())
        })
    }

    fn others(&self, vm: &VmRecord) -> impl Iterator<Item = &Reservation> {
        let key = vm.object.key();
        let others = self.records.iter().filter(move |(other, _)| **other != key);
        others.filter_map(|(_, record)| record.reservation())
    }

    /// Traces on the host that no object accounts for.
    fn left_over(&self) -> Vec<String> {
        let mut left = Vec::new();
        let vms = || self.records.values().filter_map(vm_of);
        for process in self.world.processes.all().filter(|process| process.runs(self.now)) {
            let known =
                vms().any(|vm| matches!(&vm.run, Run::Up { process: own, .. } if *own == process.identity));
            if !known {
                left.push(format!("process {} of {} runs", process.identity.pid, process.launch.key));
            }
        }
        for folder in self.world.folders.values() {
            let uid = Some(folder.uid);
            if !vms().any(|vm| vm.object.metadata.uid == uid && vm.reservation.is_some()) {
                left.push(format!("the folder of {} is there", folder.key));
            }
        }
        for nic in self.world.attached.values() {
            let held =
                |vm: &VmRecord| vm.reservation.as_ref().is_some_and(|held| held.nic.as_ref() == Some(nic));
            if !vms().any(held) {
                left.push(format!("the tap of {} is there", nic.mac));
            }
        }
        if !self.world.staged.is_empty() {
            left.push(format!("{} staging places are there", self.world.staged.len()));
        }
        left.extend(self.disks_left());
        left
    }

    /// The digests that something refers to.
    fn kept(&self) -> BTreeSet<&Digest> {
        let pins = self.records.values().filter_map(|record| record.pinned()).flat_map(PinnedImage::disks);
        let held = self.records.values().filter_map(|record| record.reservation().map(|held| &held.image));
        pins.chain(held).collect()
    }

    fn disks_left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for disk in self.store.disks() {
            if !matches!(disk.state, DiskState::Ready { .. }) {
                left.push(format!("the record of {} says {:?}", disk.digest, disk.state));
            } else if let Some(unused) = &disk.unused {
                if self.retention.until(unused.since) <= calendar(self.now) {
                    left.push(format!("nobody refers to {} since {}", disk.digest, unused.since));
                } else if self.world.space().is_below(self.retention.low) {
                    left.push(format!("nobody refers to {}, and its room is wanted", disk.digest));
                }
            }
        }
        let recorded: BTreeSet<Digest> = self.store.disks().into_iter().map(|disk| disk.digest).collect();
        if recorded != self.world.disks {
            left.push(format!("recorded are {recorded:?}, installed are {:?}", self.world.disks));
        }
        left
    }

    /// A disk's record says that it is unused if, and only if, nothing refers to it.
    fn misjudged(&self) -> Vec<String> {
        let kept = self.kept();
        let disks = self.store.disks().into_iter().filter(|disk| disk.is_ready());
        let wrong = disks.filter(|disk| disk.unused.is_some() == kept.contains(&disk.digest));
        wrong.map(|disk| format!("{} is recorded as {:?}", disk.digest, disk.unused)).collect()
    }

    /// Nothing is held twice, and nothing by what is gone.
    fn leases(&self) -> Vec<String> {
        let held: Vec<&Reservation> = self.records.values().filter_map(Record::reservation).collect();
        let nics: Vec<_> = held.iter().filter_map(|held| held.nic.as_ref()).collect();
        let mut wrong = Vec::new();
        twice(&mut wrong, "address", held.iter().filter_map(|held| held.address()));
        twice(&mut wrong, "user", held.iter().filter_map(|held| held.vmm_user));
        twice(&mut wrong, "MAC", nics.iter().map(|nic| &nic.mac));
        twice(&mut wrong, "tap", nics.iter().filter_map(|nic| nic.link.tap()));
        let ports = nics.iter().flat_map(|nic| nic.ports.iter().map(|port| (port.host, port.protocol)));
        twice(&mut wrong, "host port", ports);
        wrong
    }

    /// One VM, one process.
    fn twins(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let running = self.world.processes.all().filter(|process| process.runs(self.now));
        twice(&mut wrong, "a process of VM", running.map(|process| process.launch.uid));
        wrong
    }
}

fn twice<T: Ord + Debug + Clone>(wrong: &mut Vec<String>, what: &str, items: impl Iterator<Item = T>) {
    let mut seen = BTreeSet::new();
    for item in items {
        if !seen.insert(item.clone()) {
            wrong.push(format!("{what} {item:?} is held twice"));
        }
    }
}

/// Whether a VM holds what its spec asks for of the network.
fn holds_all(vm: &VmRecord) -> bool {
    let wanted = &vm.object.spec.network;
    vm.reservation.as_ref().is_some_and(|held| {
        let ports = held.nic.as_ref().map(|nic| nic.ports.as_slice()).unwrap_or_default();
        ports == wanted.ports && (wanted.address.is_none() || wanted.address == held.address())
    })
}

/// Whether a VM wants what another holds.
fn clash(spec: &VmSpec, held: &Reservation) -> bool {
    let ports = held.nic.iter().flat_map(|nic| &nic.ports);
    let wanted = &spec.network;
    let port = ports
        .into_iter()
        .any(|held| wanted.ports.iter().any(|port| (port.host, port.protocol) == (held.host, held.protocol)));
    port || wanted.address.is_some() && wanted.address == held.address()
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

fn observed(observed: i64, generation: i64) -> Result<(), String> {
    if observed == generation { Ok(()) } else { Err(format!("generation {generation} was not looked at")) }
}

/// What is not ready says why, and when it is tried again if that is on its way.
fn explained(conditions: &[Condition], phase: &str, retries: bool) -> Result<(), String> {
    let said = ready(conditions).is_some_and(|ready| !ready.reason.is_empty() && !ready.message.is_empty());
    if !said {
        return Err("it does not say why it is not ready".to_owned());
    }
    match phase {
        "Backoff" if !retries => Err("it does not say when it is tried again".to_owned()),
        // On its way: what comes of it is not known yet.
        "Resolving" | "Starting" | "Running" | "Stopping" => Err("it is on its way".to_owned()),
        _ => Ok(()),
    }
}
