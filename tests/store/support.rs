//! Objects to store, and stores to break.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use jiff::Timestamp;
use serde_json::json;
use tempfile::TempDir;
use uuid::Uuid;
use vmlet::image::{Digest, ImageConfig};
use vmlet::object::{API_VERSION, AnyObject, Kind, ObjectKey, Quantity};
use vmlet::store::{
    Capacity, Declared, NetworkClaim, OpenError, Origin, Record, Store, StoreSettings, VmClaim, VmUpdate,
};

pub(crate) fn open(dir: &Path) -> Result<Store, OpenError> {
    Store::open(dir, StoreSettings::default())
}

pub(crate) fn key(name: &str) -> ObjectKey {
    ObjectKey::new(Kind::Vm, "default", name)
}

pub(crate) fn vm(name: &str, env: &str) -> AnyObject {
    let object = json!({
        "apiVersion": API_VERSION, "kind": "VM", "metadata": {"name": name},
        "spec": {"image": {"name": "base"}, "env": [{"name": "E", "value": env}]}
    });
    AnyObject::Vm(serde_json::from_value(object).unwrap())
}

pub(crate) async fn declare(store: &Store, object: AnyObject) -> Uuid {
    let origin = Origin { source: "directory:/m".to_owned(), path: "a.yaml".into(), line: 1 };
    match store.declare(object, origin, false, Timestamp::UNIX_EPOCH).await.unwrap() {
        Declared::Created { uid } => uid,
        other => panic!("not created but {other:?}"),
    }
}

pub(crate) async fn starts(store: &Store, name: &str, uid: Uuid, starts: u32) {
    let update = VmUpdate { starts: Some(starts), ..VmUpdate::default() };
    store.publish_vm(&key(name), uid, update).await.unwrap();
}

pub(crate) fn objects(store: &Store) -> BTreeMap<ObjectKey, Record> {
    let records = Kind::ALL.into_iter().flat_map(|kind| store.list(kind, None).0);
    records.map(|record| (record.key(), record)).collect()
}

/// A folder in memory, for what needs no disk.
pub(crate) fn scratch() -> TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

/// A closed store of 100 VMs, changed often enough that its log holds old rows, too. One is so large
/// that sled keeps it in a file of its own.
pub(crate) async fn filled(dir: &Path) -> BTreeMap<ObjectKey, Record> {
    let store = open(dir).unwrap();
    for number in 0..100 {
        let name = format!("vm-{number}");
        let uid = declare(&store, vm(&name, &"e".repeat(if number == 50 { 200_000 } else { 300 }))).await;
        starts(&store, &name, uid, number).await;
    }
    let objects = objects(&store);
    store.close().await;
    objects
}

pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The digest of the one base disk.
pub(crate) fn digest() -> Digest {
    format!("sha256:{}", "0".repeat(64)).parse().unwrap()
}

/// Installs the one base disk.
pub(crate) async fn install_disk(store: &Store) {
    let install = Uuid::new_v4();
    store.claim_disk(&digest(), install).await.unwrap();
    let config = ImageConfig::default();
    store.publish_disk(&digest(), install, "/d".into(), Quantity::bytes(1), config).await.unwrap();
}

/// What a VM wants of a host that has room for 64.
pub(crate) fn claim(name: &str, uid: Uuid) -> VmClaim {
    VmClaim {
        key: key(name),
        uid,
        generation: 1,
        image: digest(),
        network: NetworkClaim::Bridge {
            subnet: "10.63.0.0/24".parse().unwrap(),
            fixed: None,
            ports: Vec::new(),
        },
        vmm_users: Some(1000..1064),
        memory: Quantity::mebibytes(1),
        cpus: 1,
        disk: Quantity::mebibytes(1),
        capacity: Capacity { memory: Quantity::mebibytes(64), cpus: 64, disk: Quantity::mebibytes(64) },
        impatient: false,
    }
}
