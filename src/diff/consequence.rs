//! What becomes of VMs and images: the reconcile's rules, applied before the fact.

use std::collections::{BTreeMap, BTreeSet};

use super::{Action, Difference, ObjectDifference, Outcome, Process, Running};
use crate::object::{
    AnyObject, DependencyError, Effect, Kind, ObjectKey, RunPolicy, Vm, VmSpec, check_dependencies, strongest,
};
use crate::reconcile::{due_stop, reruns, restarting};

/// Fills in outcomes, and takes out what the store would refuse. `wanted` is the new state of what changes, none of what goes.
pub(super) fn foresee(
    running: &[Running],
    wanted: &BTreeMap<ObjectKey, Option<AnyObject>>,
    difference: &mut Difference,
) {
    let world = World::new(running, wanted);
    world.refuse_circles(difference);
    for change in &mut difference.changes {
        match change.object.kind {
            Kind::Vm => world.vm(change),
            Kind::Image => world.image(change),
        }
    }
}

/// Everything as it will be declared, with the processes as they are.
struct World<'a> {
    after: BTreeMap<ObjectKey, &'a AnyObject>,
    processes: BTreeMap<ObjectKey, &'a Process>,
    before: BTreeMap<ObjectKey, &'a AnyObject>,
}

impl<'a> World<'a> {
    fn new(running: &'a [Running], wanted: &'a BTreeMap<ObjectKey, Option<AnyObject>>) -> Self {
        let before: BTreeMap<ObjectKey, &AnyObject> =
            running.iter().map(|running| (running.held.object.key(), &running.held.object)).collect();
        let alive = running.iter().filter(|running| !running.held.terminating);
        let mut after: BTreeMap<ObjectKey, &AnyObject> =
            alive.map(|running| (running.held.object.key(), &running.held.object)).collect();
        for (key, object) in wanted {
            match object {
                Some(object) => drop(after.insert(key.clone(), object)),
                None => drop(after.remove(key)),
            }
        }
        let processes = running.iter().map(|running| (running.held.object.key(), &running.process)).collect();
        World { after, processes, before }
    }

    /// VMs that would wait for themselves are not declared. Each circle is told once.
    fn refuse_circles(&self, difference: &mut Difference) {
        let mut told = BTreeSet::new();
        let refused = &mut difference.refused;
        difference.changes.retain(|change| {
            let key = &change.object;
            let Some(AnyObject::Vm(vm)) = self.after.get(key) else { return true };
            let of = |name: &str| match self.after.get(&ObjectKey::new(Kind::Vm, &key.namespace, name)) {
                Some(AnyObject::Vm(vm)) => vm.spec.depends_on.clone(),
                _ => Vec::new(),
            };
            let Err(error) = check_dependencies(&vm.metadata.name, of) else { return true };
            let circle: BTreeSet<String> = match &error {
                DependencyError::Cycle(names) => names.iter().cloned().collect(),
                DependencyError::TooMany => BTreeSet::from([key.name.clone()]),
            };
            if told.insert((key.namespace.clone(), circle)) {
                refused.push(format!("{key}: {error}"));
            }
            false
        });
    }

    fn vm(&self, change: &mut ObjectDifference) {
        let key = &change.object;
        let process = self.processes.get(key).copied().unwrap_or(&Process::Idle);
        change.outcome = match (change.action, self.after.get(key)) {
            (Action::Delete { held_back: true, .. }, _) => Outcome::None,
            (Action::Delete { .. }, _) if matches!(process, Process::Up { .. }) => Outcome::Stop,
            (Action::Delete { .. }, _) | (_, None | Some(AnyObject::Image(_))) => Outcome::Remove,
            (Action::Create | Action::Recreate, Some(AnyObject::Vm(vm))) => starts(&vm.spec),
            (Action::Update, Some(AnyObject::Vm(vm))) => self.update(key, process, vm),
        };
        if let Some(AnyObject::Vm(vm)) = self.after.get(key)
            && let Some(image) = self.missing(vm)
        {
            change.waits_for = Some(image);
        }
    }

    fn update(&self, key: &ObjectKey, process: &Process, wanted: &Vm) -> Outcome {
        let before = match self.before.get(key) {
            Some(AnyObject::Vm(vm)) => vm,
            _ => wanted,
        };
        match process {
            Process::Up { started } if due_stop(started, &wanted.spec).is_some() => {
                if wanted.spec.run_policy == RunPolicy::Halted {
                    Outcome::Stop
                } else if strongest(&restarting(started, &wanted.spec)) >= Some(Effect::Recreate)
                    || self.moves(before, wanted)
                {
                    Outcome::Recreate
                } else {
                    Outcome::Restart
                }
            }
            Process::Up { .. } if self.moves(before, wanted) => Outcome::Recreate,
            Process::Up { .. } => Outcome::None,
            Process::Ended { started, code } if reruns(started, *code, &wanted.spec) => starts(&wanted.spec),
            Process::Ended { .. } => Outcome::None,
            Process::Idle if before.spec.run_policy == RunPolicy::Halted => starts(&wanted.spec),
            Process::Idle => Outcome::None,
        }
    }

    /// Whether a VM moves to another image, as far as can be told before its digest is known.
    fn moves(&self, before: &Vm, wanted: &Vm) -> bool {
        before.spec.image != wanted.spec.image && self.missing(wanted).is_none()
    }

    /// The `Image` object that the VM names and that will not be there.
    fn missing(&self, vm: &Vm) -> Option<ObjectKey> {
        named(vm).filter(|image| !self.after.contains_key(image))
    }

    fn image(&self, change: &mut ObjectDifference) {
        let users = self.after.values().filter_map(|object| match object {
            AnyObject::Vm(vm) if named(vm).as_ref() == Some(&change.object) => Some(vm),
            _ => None,
        });
        match change.action {
            Action::Delete { held_back: true, .. } => change.outcome = Outcome::None,
            Action::Delete { .. } => {
                change.vms = users.map(Vm::key).collect();
                change.outcome = if change.vms.is_empty() { Outcome::Remove } else { Outcome::Held };
            }
            Action::Create | Action::Recreate => change.outcome = Outcome::Pull,
            Action::Update => {
                let changes = |top: &str| change.fields.iter().any(|field| field.top() == top);
                change.outcome = match (changes("source"), changes("kernel")) {
                    (true, _) => Outcome::Pull,
                    (false, true) => Outcome::Kernel,
                    (false, false) => return,
                };
                change.vms = users.filter(|vm| self.follows(vm)).map(Vm::key).collect();
            }
        }
    }

    /// Whether a VM runs, and goes on running on whatever its image becomes.
    fn follows(&self, vm: &Vm) -> bool {
        let up = matches!(self.processes.get(&vm.key()), Some(Process::Up { .. }));
        up && vm.spec.run_policy != RunPolicy::Halted
    }
}

fn starts(spec: &VmSpec) -> Outcome {
    if spec.run_policy == RunPolicy::Halted { Outcome::None } else { Outcome::Start }
}

/// The `Image` object that a VM names.
fn named(vm: &Vm) -> Option<ObjectKey> {
    let name = vm.spec.image.name.as_ref()?;
    Some(ObjectKey::new(Kind::Image, &vm.metadata.namespace, name))
}
