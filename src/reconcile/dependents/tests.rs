use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::object::Vm;
use crate::store::Origin;

fn vm(name: &str, depends_on: &[&str], ready: bool) -> VmRecord {
    let status = if ready { "True" } else { "False" };
    let mut object: Vm = serde_json::from_value(json!({
        "apiVersion": "vmlet.dev/v1alpha1", "kind": "VM", "metadata": {"name": name, "namespace": "default"},
        "spec": {"image": {"name": "base"}, "dependsOn": depends_on},
    }))
    .unwrap();
    object.status.phase = "Running".to_owned();
    object.status.conditions = serde_json::from_value(json!([{
        "type": "Ready", "status": status, "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z",
        "reason": "Ready", "message": ""
    }]))
    .unwrap();
    VmRecord::new(object, Origin { source: "test".to_owned(), path: "web.yaml".into(), line: 1 })
}

fn declared(vm: VmRecord) -> Record {
    Record::Vm(Arc::new(vm))
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new(Kind::Vm, "default", name)
}

#[test]
fn who_waits_looks_again_when_a_running_vm_becomes_ready() {
    let mut index = Dependents::default();
    index.declare(&declared(vm("web", &["db"], false)));
    assert_eq!(index.affected(&key("db"), Some(&vm("db", &[], false))), [key("web")]);
    assert_eq!(index.affected(&key("db"), Some(&vm("db", &[], false))), [], "nothing is new");
    assert_eq!(index.affected(&key("db"), Some(&vm("db", &[], true))), [key("web")], "it is Ready now");
    assert_eq!(index.affected(&key("db"), None), [key("web")], "it is gone");
}

#[test]
fn who_waits_for_another_by_now_is_not_woken_by_the_first() {
    let mut index = Dependents::default();
    index.declare(&declared(vm("web", &["db"], false)));
    index.declare(&declared(vm("web", &["cache"], false)));
    assert_eq!(index.affected(&key("db"), Some(&vm("db", &[], true))), []);
    assert_eq!(index.affected(&key("cache"), Some(&vm("cache", &[], true))), [key("web")]);
    index.declare(&declared(vm("web", &[], false)));
    assert_eq!(index.affected(&key("cache"), None), []);
}

#[test]
fn a_vm_that_is_being_deleted_serves_nobody_and_says_so_at_once() {
    let mut index = Dependents::default();
    index.declare(&declared(vm("web", &["db"], false)));
    let ready = vm("db", &[], true);
    let mut deleted = ready.clone();
    deleted.object.metadata.deletion_timestamp = Some(jiff::Timestamp::UNIX_EPOCH);
    index.affected(&key("db"), Some(&ready));
    assert_eq!(index.affected(&key("db"), Some(&deleted)), [key("web")]);
    let why = |vm: &VmRecord| {
        let vm = vm.clone();
        blocker("default", &["db".to_owned()], move |_| Some(Arc::new(vm.clone())))
    };
    assert_eq!(why(&ready), None);
    assert!(why(&deleted).is_some_and(|why| why.contains("vm/db is being deleted")));
}
