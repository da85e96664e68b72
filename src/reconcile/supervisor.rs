//! One task for each object in the store, woken when something that it depends on changes.
//!
//! In: the store's changes, in order. Out: tasks. Guaranteed: at most one task for a name at a time;
//! a task's own status never wakes it; a panic is one object's failed attempt (`task`), and no other
//! notices.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::{Id, JoinError, JoinSet};

use super::dependents::Dependents;
use super::image::ImageTask;
use super::task::{self, Reconciler, Wake};
use super::vm::VmTask;
use super::world::World;
use crate::object::{Kind, ObjectKey, Uid};
use crate::store::{Change, ChangeKind, Expired, ImageRecord, Problem, Record, Watch};

/// Runs all objects' tasks, for ever. Dropping the future ends them, and no VM with them.
pub(super) async fn run(world: Arc<World>) {
    let mut supervisor = Supervisor {
        world,
        running: BTreeMap::new(),
        tasks: JoinSet::new(),
        names: HashMap::new(),
        dependents: Dependents::default(),
        terminating: BTreeSet::new(),
    };
    let mut changes = supervisor.relist();
    loop {
        tokio::select! {
            biased;
            // First: tasks end far less often than objects change.
            Some(ended) = supervisor.tasks.join_next_with_id() => supervisor.ended(ended),
            change = changes.next() => match change {
                Ok(change) => supervisor.follow(&change),
                Err(Expired) => changes = supervisor.relist(),
            },
        }
    }
}

struct Supervisor {
    world: Arc<World>,
    running: BTreeMap<ObjectKey, Running>,
    tasks: JoinSet<()>,
    names: HashMap<Id, ObjectKey>,
    dependents: Dependents,
    /// The images that are being deleted.
    terminating: BTreeSet<ObjectKey>,
}

/// A task and what it was last woken for.
struct Running {
    uid: Uid,
    wake: watch::Sender<u64>,
    seen: Declaration,
}

/// What of a record others write: only a change of this wakes the object's own task.
#[derive(Clone, Debug, PartialEq)]
struct Declaration {
    generation: i64,
    deleted: Option<Timestamp>,
    problems: Vec<Problem>,
    /// Its disk is being read: a VM that is to start waits.
    promoted: bool,
}

impl Declaration {
    fn of(record: &Record) -> Self {
        let metadata = record.metadata();
        Declaration {
            generation: metadata.generation,
            deleted: metadata.deletion_timestamp,
            problems: record.problems().cloned().collect(),
            promoted: matches!(record, Record::Vm(vm) if vm.promotion.is_some()),
        }
    }
}

impl Supervisor {
    /// Looks at everything: at the start, and when changes were missed.
    fn relist(&mut self) -> Watch {
        self.dependents = Dependents::default();
        self.terminating.clear();
        loop {
            let lists = Kind::ALL.map(|kind| self.world.store.list(kind, None));
            // From the older list on: a change that both show is only looked at twice.
            let version = lists.iter().map(|(_, version)| *version).min();
            if let Ok(watch) = self.world.store.watch(version) {
                for record in lists.iter().flat_map(|(records, _)| records) {
                    self.ensure(record);
                    self.dependents.declare(record);
                }
                for running in self.running.values() {
                    wake(running);
                }
                return watch;
            }
        }
    }

    fn follow(&mut self, change: &Change) {
        let key = change.record.key();
        let news = if change.kind == ChangeKind::Deleted {
            // Its task removed it, and ends.
            self.terminating.remove(&key);
            true
        } else {
            self.ensure(&change.record)
        };
        match &change.record {
            Record::Image(image) => self.wake_users(image),
            Record::Vm(_) if news => self.wake_terminating(&key.namespace),
            Record::Vm(_) => {}
        }
        self.wake_dependents(change);
    }

    /// Starts the object's task, or wakes it if its declaration changed. False if nothing is new.
    fn ensure(&mut self, record: &Record) -> bool {
        let (key, Some(uid)) = (record.key(), record.metadata().uid) else {
            return false;
        };
        let seen = Declaration::of(record);
        if key.kind == Kind::Image && seen.deleted.is_some() {
            self.terminating.insert(key.clone());
        }
        match self.running.get_mut(&key) {
            Some(running) if running.uid == uid && running.seen == seen => return false,
            Some(running) => {
                // A task of an earlier uid finds its record gone and ends; then the new one starts.
                running.seen = seen;
                wake(running);
            }
            None => self.start(key, uid, seen),
        }
        true
    }

    fn start(&mut self, key: ObjectKey, uid: Uid, seen: Declaration) {
        let (sender, receiver) = watch::channel(0);
        let world = self.world.clone();
        let reconciler: Box<dyn Reconciler> = match key.kind {
            Kind::Vm => Box::new(VmTask::new(world, key.clone(), uid)),
            Kind::Image => Box::new(ImageTask::new(world, key.clone(), uid)),
        };
        let handle = self.tasks.spawn(task::run(reconciler, Wake::new(receiver)));
        self.names.insert(handle.id(), key.clone());
        self.running.insert(key, Running { uid, wake: sender, seen });
    }

    /// VMs follow those that they depend on, images the VM that they are made of.
    fn wake_dependents(&mut self, change: &Change) {
        let (key, gone) = (change.record.key(), change.kind == ChangeKind::Deleted);
        if gone {
            self.dependents.forget(&key);
        } else {
            self.dependents.declare(&change.record);
        }
        let Record::Vm(vm) = &change.record else { return };
        for dependent in self.dependents.affected(&key, (!gone).then_some(vm)) {
            self.running.get(&dependent).map(wake);
        }
    }

    /// VMs follow their image.
    fn wake_users(&self, image: &ImageRecord) {
        let metadata = &image.object.metadata;
        let (vms, _) = self.world.store.list(Kind::Vm, Some(&metadata.namespace));
        let names = |vm: &Record| match vm {
            Record::Vm(vm) => vm.object.spec.image.name.as_ref() == Some(&metadata.name),
            Record::Image(_) => false,
        };
        for vm in vms.iter().filter(|vm| names(vm)) {
            self.running.get(&vm.key()).map(wake);
        }
    }

    /// An image that is being deleted waits until no VM names it: one that goes, or is edited.
    fn wake_terminating(&self, namespace: &str) {
        for key in self.terminating.iter().filter(|key| key.namespace == namespace) {
            self.running.get(key).map(wake);
        }
    }

    fn ended(&mut self, ended: Result<(Id, ()), JoinError>) {
        let id = match ended {
            Ok((id, ())) => id,
            Err(error) => {
                tracing::error!(%error, "a reconcile task ended unexpectedly; it is started again");
                error.id()
            }
        };
        let Some(key) = self.names.remove(&id) else { return };
        self.running.remove(&key);
        let Some(record) = self.world.store.record(&key) else { return };
        let Some(uid) = record.metadata().uid else { return };
        self.start(key, uid, Declaration::of(&record));
    }
}

fn wake(running: &Running) {
    running.wake.send_modify(|count| *count += 1);
}
