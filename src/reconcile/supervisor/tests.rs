//! Which changes wake whom. No task runs meanwhile: the tests never wait.

use futures_util::FutureExt;
use uuid::Uuid;

use super::*;
use crate::store::{ImageUpdate, VmClaim, VmRecord, VmUpdate};
use crate::testing::Rig;

const SOURCE: &str = "directory:/m";

fn done<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("nothing waits in memory")
}

fn vm(name: &str, more: &str) -> String {
    format!(
        "apiVersion: vmlet.dev/v1alpha1\nkind: VM\nmetadata: {{name: {name}}}\nspec: {{image: {{name: base}}{more}}}"
    )
}

const BASE: &str = "apiVersion: vmlet.dev/v1alpha1\nkind: Image\nmetadata: {name: base}\nspec: {source: {oci: \
                    {reference: 'r/a:1'}}}";

struct Stage {
    rig: Rig,
    supervisor: Supervisor,
    changes: Watch,
}

impl Stage {
    /// A supervisor that has seen what these manifests declare.
    fn of(manifests: &[&str]) -> Stage {
        let rig = Rig::new();
        for manifest in manifests {
            done(rig.declare(manifest));
        }
        let world = Arc::new(World::new(rig.store.clone(), rig.parts(), rig.settings.clone()));
        let mut supervisor = Supervisor {
            world,
            running: BTreeMap::new(),
            tasks: JoinSet::new(),
            names: HashMap::new(),
            dependents: Dependents::default(),
            terminating: BTreeSet::new(),
        };
        let changes = supervisor.relist();
        Stage { rig, supervisor, changes }
    }

    /// Follows what has changed. Returns how often each of these was woken for it.
    fn woken<const N: usize>(&mut self, keys: [&ObjectKey; N]) -> [u64; N] {
        let count = |stage: &Stage| keys.map(|key| *stage.supervisor.running[key].wake.borrow());
        let before = count(self);
        while let Some(change) = self.changes.next().now_or_never() {
            self.supervisor.follow(&change.expect("the history is long enough"));
        }
        let after = count(self);
        std::array::from_fn(|index| after[index] - before[index])
    }

    fn uid(&self, key: &ObjectKey) -> Uid {
        self.rig.store.record(key).unwrap().metadata().uid.unwrap()
    }

    /// What the VM's own task does.
    fn says(&self, key: &ObjectKey, phase: &str) {
        let mut status = (*self.rig.store.vm(key).unwrap().object.status).clone();
        status.phase = phase.to_owned();
        let update = VmUpdate { status: Some(status), ..VmUpdate::default() };
        done(self.rig.store.publish_vm(key, self.uid(key), update)).unwrap();
    }

    fn undeclare(&self, key: &ObjectKey) {
        assert!(done(self.rig.store.undeclare(key, SOURCE, self.rig.now())).unwrap());
    }

    fn remove_vm(&self, key: &ObjectKey) {
        done(self.rig.store.remove_vm(key, self.uid(key))).unwrap();
    }
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new(Kind::Vm, "default", name)
}

fn base() -> ObjectKey {
    ObjectKey::new(Kind::Image, "default", "base")
}

#[tokio::test(start_paused = true)]
async fn only_what_others_write_wakes_a_task_and_each_change_once() {
    let mut stage = Stage::of(&[&vm("web", "")]);
    let web = key("web");
    stage.says(&web, "Pending");
    assert_eq!(stage.woken([&web]), [0], "its own status");
    done(stage.rig.declare(&vm("web", ", cpus: 2")));
    assert_eq!(stage.woken([&web]), [1], "an edit");
    stage.says(&web, "Starting");
    assert_eq!(stage.woken([&web]), [0], "its own status again");
    let problem = Problem { reason: "R".to_owned(), message: String::new() };
    assert!(done(stage.rig.store.set_problem(&web, Some(problem.clone()))).unwrap());
    assert_eq!(stage.woken([&web]), [1], "a problem");
    assert!(done(stage.rig.store.set_rival(&web, "another", Some(problem))).unwrap());
    assert_eq!(stage.woken([&web]), [1], "another source's");
    stage.undeclare(&web);
    assert_eq!(stage.woken([&web]), [1], "a deletion");
    stage.says(&web, "Terminating");
    assert_eq!(stage.woken([&web]), [0]);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_promotion_wakes_its_vm() {
    let mut stage = Stage::of(&[&vm("web", "")]);
    let (web, store) = (key("web"), stage.rig.store.clone());
    let digest: crate::image::Digest = format!("sha256:{}", "a".repeat(64)).parse().unwrap();
    let install = Uuid::nil();
    done(store.claim_disk(&digest, install)).unwrap();
    let (path, size) = ("/d".into(), crate::object::Quantity::bytes(1));
    done(store.publish_disk(&digest, install, path, size, crate::image::ImageConfig::default())).unwrap();
    let spec = store.vm(&web).unwrap().object.spec.clone();
    done(store.reserve_vm(VmClaim {
        key: web.clone(),
        uid: stage.uid(&web),
        generation: 1,
        image: digest,
        network: crate::store::NetworkClaim::None,
        vmm_users: None,
        memory: spec.memory,
        cpus: spec.cpus,
        disk: spec.root_disk.size,
        capacity: stage.rig.settings.capacity,
        impatient: false,
    }))
    .unwrap();
    done(store.claim_promotion(&web, install)).unwrap();
    stage.woken([&web]);
    done(store.release_promotion(&web, install)).unwrap();
    assert_eq!(stage.woken([&web]), [1]);
}

#[tokio::test(start_paused = true)]
async fn a_dependency_that_says_something_new_or_goes_wakes_who_waits_for_it() {
    let mut stage = Stage::of(&[&vm("db", ""), &vm("web", ", dependsOn: [db]")]);
    let (db, web) = (key("db"), key("web"));
    stage.says(&db, "Pending");
    assert_eq!(stage.woken([&web]), [1]);
    stage.says(&db, "Pending");
    assert_eq!(stage.woken([&web]), [0], "nothing is new");
    stage.undeclare(&db);
    assert_eq!(stage.woken([&web]), [1], "its deletion is asked for");
    stage.remove_vm(&db);
    assert_eq!(stage.woken([&web]), [1], "it is gone");
}

#[tokio::test(start_paused = true)]
async fn who_is_gone_waits_for_nobody() {
    let mut stage = Stage::of(&[&vm("db", ""), &vm("web", ", dependsOn: [db]")]);
    let (db, web) = (key("db"), key("web"));
    stage.undeclare(&web);
    stage.remove_vm(&web);
    stage.woken([&db]);
    let record = VmRecord::clone(&stage.rig.store.vm(&db).unwrap());
    assert_eq!(stage.supervisor.dependents.affected(&db, Some(&record)), []);
}

#[tokio::test(start_paused = true)]
async fn a_deleted_image_looks_again_when_a_vm_is_edited_or_goes_and_at_no_status() {
    let mut stage = Stage::of(&[BASE, &vm("web", "")]);
    let (web, base) = (key("web"), base());
    stage.undeclare(&base);
    assert_eq!(stage.woken([&base]), [1]);
    stage.says(&web, "Running");
    assert_eq!(stage.woken([&base]), [0], "a status");
    done(stage.rig.declare(&vm("web", ", cpus: 2")));
    assert_eq!(stage.woken([&base]), [1], "an edit");
    stage.undeclare(&web);
    stage.woken([&base]);
    stage.remove_vm(&web);
    assert_eq!(stage.woken([&base]), [1], "the last VM is gone");
    done(stage.rig.store.remove_image(&base, stage.uid(&base))).unwrap();
    stage.woken([&base]);
    assert!(stage.supervisor.terminating.is_empty());
}

#[tokio::test(start_paused = true)]
async fn vms_look_again_when_their_image_says_something() {
    let mut stage = Stage::of(&[BASE, &vm("web", "")]);
    let (web, base) = (key("web"), base());
    let update = ImageUpdate {
        status: Some(crate::object::ImageStatus { phase: "Ready".to_owned(), ..Default::default() }),
        ..ImageUpdate::default()
    };
    done(stage.rig.store.publish_image(&base, stage.uid(&base), update)).unwrap();
    assert_eq!(stage.woken([&web, &base]), [1, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_look_at_everything_forgets_what_was_known_and_wakes_all() {
    let mut stage = Stage::of(&[&vm("db", ""), &vm("web", ", dependsOn: [db]")]);
    let (db, web) = (key("db"), key("web"));
    let ghost = Record::Vm(stage.rig.store.vm(&web).unwrap());
    stage.undeclare(&web);
    stage.remove_vm(&web);
    stage.supervisor.dependents.declare(&ghost);
    stage.supervisor.terminating.insert(base());
    let before = *stage.supervisor.running[&db].wake.borrow();
    stage.changes = stage.supervisor.relist();
    assert_eq!(*stage.supervisor.running[&db].wake.borrow(), before + 1);
    assert!(stage.supervisor.terminating.is_empty());
    let record = VmRecord::clone(&stage.rig.store.vm(&db).unwrap());
    assert_eq!(stage.supervisor.dependents.affected(&db, Some(&record)), []);
}

#[tokio::test(start_paused = true)]
async fn a_new_object_of_a_name_wakes_the_old_ones_task_and_follows_it() {
    let mut stage = Stage::of(&[&vm("web", "")]);
    let web = key("web");
    let id = *stage.supervisor.names.keys().next().unwrap();
    stage.undeclare(&web);
    stage.remove_vm(&web);
    stage.woken([&web]);
    done(stage.rig.declare(&vm("web", "")));
    assert_eq!(stage.woken([&web]), [1], "of equal generation, and yet another one");
    stage.supervisor.ended(Ok((id, ())));
    assert_eq!(stage.supervisor.running[&web].uid, stage.uid(&web));

    let id = *stage.supervisor.names.keys().next().unwrap();
    stage.undeclare(&web);
    stage.remove_vm(&web);
    stage.supervisor.ended(Ok((id, ())));
    assert!(stage.supervisor.running.is_empty(), "none is started for what is gone");
}
