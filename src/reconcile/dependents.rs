//! Who waits for which VM: an index for the supervisor. Pure.
//!
//! In: the declarations (`dependsOn` of VMs, `source.vm` of images) and each change of a VM. Out: the objects
//! whose tasks are to look again, because the VM that they wait for appeared, went, became ready, or is in
//! another phase.

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};

use crate::object::{Kind, ObjectKey};
use crate::store::{Record, VmRecord};

#[derive(Default)]
pub(super) struct Dependents {
    /// For each VM that is waited for, perhaps one that does not exist.
    awaited: HashMap<ObjectKey, Awaited>,
    /// The VMs that each object waits for.
    waits_for: HashMap<ObjectKey, Vec<String>>,
}

#[derive(Default)]
struct Awaited {
    by: BTreeSet<ObjectKey>,
    seen: Option<Sight>,
}

/// What those who wait are told of a VM.
#[derive(Clone, Debug, PartialEq)]
struct Sight {
    ready: bool,
    deleted: bool,
    phase: String,
}

impl Dependents {
    /// Takes in what an object declares.
    pub(super) fn declare(&mut self, record: &Record) {
        let (key, names) = (record.key(), awaited(record));
        if self.waits_for.get(&key).map_or(&[][..], Vec::as_slice) == names.as_slice() {
            return;
        }
        self.forget(&key);
        for name in &names {
            let awaited = ObjectKey::new(Kind::Vm, &key.namespace, name);
            self.awaited.entry(awaited).or_default().by.insert(key.clone());
        }
        if !names.is_empty() {
            self.waits_for.insert(key, names);
        }
    }

    /// An object is gone: it waits for nobody any more.
    pub(super) fn forget(&mut self, key: &ObjectKey) {
        for name in self.waits_for.remove(key).unwrap_or_default() {
            let awaited = ObjectKey::new(Kind::Vm, &key.namespace, name);
            if let Some(entry) = self.awaited.get_mut(&awaited) {
                entry.by.remove(key);
                if entry.by.is_empty() {
                    self.awaited.remove(&awaited);
                }
            }
        }
    }

    /// Who is to look again now that a VM changed, or is gone.
    pub(super) fn affected(&mut self, key: &ObjectKey, vm: Option<&VmRecord>) -> Vec<ObjectKey> {
        let Some(entry) = self.awaited.get_mut(key) else { return Vec::new() };
        let sight = vm.map(|vm| Sight {
            ready: is_ready(vm),
            deleted: vm.object.metadata.deletion_timestamp.is_some(),
            phase: vm.object.status.phase.clone(),
        });
        if entry.seen == sight {
            return Vec::new();
        }
        entry.seen = sight;
        entry.by.iter().cloned().collect()
    }
}

/// The names of the VMs that an object waits for.
fn awaited(record: &Record) -> Vec<String> {
    match record {
        Record::Vm(vm) => vm.object.spec.depends_on.clone(),
        Record::Image(image) => image.object.spec.source.vm.iter().map(|vm| vm.name.clone()).collect(),
    }
}

fn is_ready(vm: &VmRecord) -> bool {
    let conditions = &vm.object.status.conditions;
    conditions.iter().any(|condition| condition.kind == "Ready" && condition.status == true.into())
}

/// Why a VM of these dependencies is not to be started yet, with `look` giving the VMs of its namespace.
pub(super) fn blocker(
    namespace: &str,
    depends_on: &[String],
    look: impl Fn(&ObjectKey) -> Option<std::sync::Arc<VmRecord>>,
) -> Option<String> {
    let unmet = depends_on.iter().filter_map(|name| {
        let key = ObjectKey::new(Kind::Vm, namespace, name);
        match look(&key) {
            None => Some(format!("{key} does not exist")),
            Some(vm) if vm.object.metadata.deletion_timestamp.is_some() => {
                Some(format!("{key} is being deleted"))
            }
            Some(vm) if is_ready(&vm) => None,
            Some(vm) if vm.object.status.phase.is_empty() => Some(format!("{key} is Pending")),
            Some(vm) => Some(format!("{key} is {}", vm.object.status.phase)),
        }
    });
    let unmet: Vec<String> = unmet.collect();
    let (first, more) = unmet.split_first()?;
    let others =
        if more.is_empty() { String::new() } else { format!(", and {} more are not Ready", more.len()) };
    Some(format!("waits until all that it depends on is Ready: {first}{others}"))
}
