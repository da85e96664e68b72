//! What sources do: declare objects, take the declaration back, note a problem with it.

use std::sync::Arc;

use jiff::Timestamp;

use super::Store;
use super::declaration::{Origin, Problem};
use super::error::{DeclareError, StoreError};
use super::record::{ImageRecord, Record, VmRecord};
use super::request::Declared;
use super::state::State;
use crate::object::{
    API_VERSION, AnyObject, DependencyError, Kind, ObjectKey, ObjectMeta, Shared, check_dependencies,
    image_changes, vm_changes,
};

/// What each object waits for before its record goes.
const FINALIZER: &str = "vmlet.dev/cleanup";

impl Store {
    /// Takes in what a source says about an object: its spec, labels and annotations, and where it
    /// says so. A new name gets a uid; a changed spec gets the next generation; a noted problem is
    /// over. Whatever else the object's metadata and status hold is ignored.
    ///
    /// `take_over` says that the object's former place no longer declares it. Of a source that is not
    /// [at work](Store::attend) nobody can say so: whoever declares an object of its takes that over.
    ///
    /// # Errors
    /// [`DeclareError::Conflict`] if another place declares the object and is not taken over from;
    /// [`DeclareError::Terminating`] while the former object of this name is being deleted;
    /// [`DeclareError::Dependency`] if a VM would wait for itself. Nothing changed then.
    pub async fn declare(
        &self,
        object: AnyObject,
        origin: Origin,
        take_over: bool,
        now: Timestamp,
    ) -> Result<Declared, DeclareError> {
        self.engine().commit(|state| state.declare(object, origin, take_over, now)).await
    }

    /// From now on, and for this daemon's life, a source is at work: what it declared is its own until it takes
    /// that back. So is one that declares something. To be called before any other source declares.
    pub fn attend(&self, source: &str) {
        // A store that failed takes no declarations either.
        let _ = self.engine().transact(|state| state.sources.insert(source.to_owned()));
    }

    /// Whether a source is at work. If not, nobody looks after what it declared in an earlier daemon's life.
    pub fn attends(&self, source: &str) -> bool {
        self.engine().read(|state| state.sources.contains(source))
    }

    /// Asks for an object's deletion: its reconcile task does the rest. One-way. False if there is
    /// no such object, if another source owns it, or if it is being deleted already.
    ///
    /// # Errors
    /// The store failed.
    pub async fn undeclare(&self, key: &ObjectKey, source: &str, now: Timestamp) -> Result<bool, StoreError> {
        self.engine().commit(|state| Ok(state.undeclare(key, source, now))).await
    }

    /// Notes what is wrong with an object's declaration, or that nothing is any more. False if there
    /// is no such object or nothing changed.
    ///
    /// # Errors
    /// The store failed.
    pub async fn set_problem(&self, key: &ObjectKey, problem: Option<Problem>) -> Result<bool, StoreError> {
        self.engine().commit(|state| Ok(state.set_problem(key, problem))).await
    }

    /// Notes that a source declares an object that is another's, or that it does not any more. Gone with the
    /// object, and with the daemon. False if there is no such object or nothing changed.
    ///
    /// # Errors
    /// The store failed.
    pub async fn set_rival(
        &self,
        key: &ObjectKey,
        source: &str,
        problem: Option<Problem>,
    ) -> Result<bool, StoreError> {
        self.engine().commit(|state| Ok(state.set_rival(key, source, problem))).await
    }
}

impl State {
    pub(super) fn declare(
        &mut self,
        mut object: AnyObject,
        origin: Origin,
        take_over: bool,
        now: Timestamp,
    ) -> Result<Declared, DeclareError> {
        normalize(&mut object);
        if !self.sources.contains(&origin.source) {
            self.sources.insert(origin.source.clone());
        }
        self.check_dependencies(&object)?;
        let Some(old) = self.objects.get(&object.key()).cloned() else {
            return Ok(self.create(object, origin, now));
        };
        if old.metadata().deletion_timestamp.is_some() {
            return Err(DeclareError::Terminating);
        }
        let incumbent = old.origin();
        let moved = incumbent.source != origin.source || incumbent.path != origin.path;
        let stranded = !self.sources.contains(&incumbent.source);
        if moved && !take_over && !stranded {
            return Err(DeclareError::Conflict { incumbent: incumbent.clone() });
        }
        Ok(self.update(old, object, origin, moved))
    }

    /// Two declarations that close a circle together meet here: the second is refused.
    fn check_dependencies(&self, object: &AnyObject) -> Result<(), DependencyError> {
        let AnyObject::Vm(wanted) = object else { return Ok(()) };
        let ObjectMeta { name: own, namespace, .. } = &wanted.metadata;
        check_dependencies(own, |name| {
            if name == own {
                return wanted.spec.depends_on.clone();
            }
            let vm = self.vm(&ObjectKey::new(Kind::Vm, namespace, name));
            // What is being deleted waits for nobody any more.
            let there = vm.filter(|vm| vm.object.metadata.deletion_timestamp.is_none());
            there.map(|vm| vm.object.spec.depends_on.clone()).unwrap_or_default()
        })
    }

    fn create(&mut self, mut object: AnyObject, origin: Origin, now: Timestamp) -> Declared {
        let uid = (self.minter)();
        let metadata = object.metadata_mut();
        *metadata = ObjectMeta {
            uid: Some(uid),
            generation: 1,
            creation_timestamp: Some(now),
            finalizers: vec![FINALIZER.to_owned()],
            ..desired(metadata)
        };
        self.put(match object {
            AnyObject::Vm(mut object) => {
                object.status = Shared::default();
                Record::Vm(Arc::new(VmRecord::new(object, origin)))
            }
            AnyObject::Image(mut object) => {
                object.status = Shared::default();
                Record::Image(Arc::new(ImageRecord::new(object, origin)))
            }
        });
        Declared::Created { uid }
    }

    fn update(&mut self, old: Record, object: AnyObject, origin: Origin, moved: bool) -> Declared {
        let (mut new, key) = (old.clone(), old.key());
        let changes = match (&mut new, &object) {
            (Record::Vm(record), AnyObject::Vm(wanted)) => {
                let record = Arc::make_mut(record);
                let changes = vm_changes(&record.object.spec, &wanted.spec);
                record.object.spec = wanted.spec.clone();
                changes
            }
            (Record::Image(record), AnyObject::Image(wanted)) => {
                let record = Arc::make_mut(record);
                let changes = image_changes(&record.object.spec, &wanted.spec);
                record.object.spec = wanted.spec.clone();
                changes
            }
            _ => unreachable!("a key's kind is its record's"),
        };
        let metadata = new.metadata_mut();
        metadata.labels.clone_from(&object.metadata().labels);
        metadata.annotations.clone_from(&object.metadata().annotations);
        metadata.generation += i64::from(!changes.is_empty());
        let generation = metadata.generation;
        let declaration_changed = moved || old.own_problem().is_some();
        let metadata_changed = old.metadata() != new.metadata();
        new.set_problem(None);
        new.set_origin(origin);
        if changes.is_empty() && !metadata_changed && !declaration_changed {
            // The same text on another line of its file is no change of the object.
            if old != new {
                self.put_unseen(new);
            }
            return Declared::Unchanged;
        }
        self.put(new);
        if !changes.is_empty() {
            self.leave_line(&key);
        }
        if changes.is_empty() { Declared::MetadataUpdated } else { Declared::Updated { generation, changes } }
    }

    pub(super) fn undeclare(&mut self, key: &ObjectKey, source: &str, now: Timestamp) -> bool {
        let Some(record) = self.objects.get(key) else { return false };
        if record.origin().source != source || record.metadata().deletion_timestamp.is_some() {
            return false;
        }
        let mut record = record.clone();
        record.metadata_mut().deletion_timestamp = Some(now);
        self.put(record);
        self.leave_line(key);
        true
    }

    pub(super) fn set_problem(&mut self, key: &ObjectKey, problem: Option<Problem>) -> bool {
        let Some(record) = self.objects.get(key) else { return false };
        if record.own_problem() == problem.as_ref() {
            return false;
        }
        let mut record = record.clone();
        record.set_problem(problem);
        self.put(record);
        true
    }

    pub(super) fn set_rival(&mut self, key: &ObjectKey, source: &str, problem: Option<Problem>) -> bool {
        let Some(mut record) = self.objects.get(key).cloned() else { return false };
        let before = match problem.clone() {
            Some(problem) => record.rivals_mut().insert(source.to_owned(), problem),
            None => record.rivals_mut().remove(source),
        };
        let changed = before != problem;
        if changed {
            self.put(record);
        }
        changed
    }
}

/// Makes the key agree with the type, whatever was written.
fn normalize(object: &mut AnyObject) {
    let (api_version, kind, expected) = match object {
        AnyObject::Vm(vm) => (&mut vm.api_version, &mut vm.kind, Kind::Vm),
        AnyObject::Image(image) => (&mut image.api_version, &mut image.kind, Kind::Image),
    };
    *kind = expected;
    API_VERSION.clone_into(api_version);
}

/// The part of the metadata that is the source's.
fn desired(metadata: &ObjectMeta) -> ObjectMeta {
    ObjectMeta {
        name: metadata.name.clone(),
        namespace: metadata.namespace.clone(),
        labels: metadata.labels.clone(),
        annotations: metadata.annotations.clone(),
        ..ObjectMeta::default()
    }
}
