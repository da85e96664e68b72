//! Whether an object is as the folder says, or says why it is not.

use std::collections::BTreeSet;

use vmlet_wire::GuestState;

use super::super::life::summary;
use super::super::world::Process;
use super::{Sight, is_ready, ready, stalled};
use crate::image::{Digest, Source, VmAt};
use crate::manifest::CONFLICT;
use crate::object::{AnyObject, Condition, Kind, ObjectKey, RunPolicy};
use crate::store::{ImageRecord, PinnedImage, Record, Reservation, Run, VmRecord};

impl Sight<'_> {
    /// What is not right about an object that the folder declares.
    pub(super) fn unsettled(&self, key: &ObjectKey, record: &Record, wanted: &[AnyObject]) -> Option<String> {
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
        if let Err(why) = self.problem_noted(record, wanted.len()) {
            return Some(format!("{} ({why})", said()));
        }
        let settled = match record {
            Record::Vm(vm) => self.vm_settled(vm),
            Record::Image(image) => self.image_settled(image),
        };
        settled.err().map(|why| format!("{} ({why})", said()))
    }

    /// Two declarations of one name are a problem that the object shows, and nothing else is one.
    fn problem_noted(&self, record: &Record, declarations: usize) -> Result<(), String> {
        let noted = record.problem().map(|problem| problem.reason.as_str());
        let object = record.object();
        let shown = object.conditions().iter().find(|condition| condition.kind == "ManifestProblem");
        if shown.map(|condition| condition.reason.as_str()) != noted {
            return Err(format!("its problem is {noted:?}, shown is {shown:?}"));
        }
        match (noted, declarations) {
            _ if self.broken => Ok(()),
            (None, 1) => Ok(()),
            (Some(CONFLICT), 2..) => Ok(()),
            _ => Err(format!("declared {declarations} times, its problem is {noted:?}")),
        }
    }

    /// A deleted image stays while a VM names it, and says so.
    pub(super) fn in_use(&self, key: &ObjectKey, record: &Record) -> bool {
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
        match &source {
            Source::Vm(vm) if self.waits_for_vm(vm, image) => return Ok(()),
            Source::Vm(_) => is_ready(&status.conditions)?,
            _ => {
                is_ready(&status.conditions)?;
                let meanings = self.world.meanings(&source);
                if image.image.as_ref().is_none_or(|pin| !meanings.contains(&pin.digest)) {
                    return Err(format!("it is none of {meanings:?}"));
                }
            }
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

    /// Whether a VM is before its pull, which may bring others their image.
    fn image_is_to_come(&self, vm: &VmRecord) -> bool {
        let none_here =
            |wanted: BTreeSet<Digest>| wanted.iter().all(|digest| !self.world.disks.contains(digest));
        !stalled(&vm.object.status.conditions) && self.wanted_digests(vm).is_some_and(none_here)
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
            if running.is_empty() && self.wanted_digests(vm).is_none() && holds_room(vm) {
                return Err("it keeps memory from others, and has no image to run".to_owned());
            }
            if self.image_is_to_come(vm) {
                return Err("its image is to come, whatever else is in its way".to_owned());
            }
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
        if self.wanted_digests(vm).is_some_and(|wanted| !wanted.contains(&held.image)) {
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

    fn processes_of(&self, vm: &VmRecord) -> impl Iterator<Item = &Process> {
        let (uid, now) = (vm.object.metadata.uid, self.now);
        let own = move |process: &&Process| Some(process.launch.uid) == uid && process.runs(now);
        self.world.processes.all().filter(own)
    }
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

/// Whether a VM holds memory and processors.
fn holds_room(vm: &VmRecord) -> bool {
    vm.reservation.as_ref().is_some_and(Reservation::can_run)
}
