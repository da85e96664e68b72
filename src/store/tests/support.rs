//! What the store's tests are written with.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use futures_util::FutureExt;
use jiff::Timestamp;
use serde_json::json;
use uuid::Uuid;

use super::super::*;
use crate::boot::Boot;
use crate::hypervisor::ProcessIdentity;
use crate::image::ImageConfig;
use crate::object::{AnyObject, Port, Protocol, Quantity, Uid};

/// The result of a future that has nothing to wait for, as all in memory have.
pub(super) fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("nothing waits in memory")
}

pub(super) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

pub(super) fn key(name: &str) -> ObjectKey {
    ObjectKey::new(Kind::Vm, "default", name)
}

pub(super) fn image_key(name: &str) -> ObjectKey {
    ObjectKey::new(Kind::Image, "default", name)
}

pub(super) fn digest(number: u8) -> Digest {
    format!("sha256:{}", hex::encode([number; 32])).parse().unwrap()
}

pub(super) fn origin(path: &str) -> Origin {
    Origin { source: "directory:/m".to_owned(), path: PathBuf::from(path), line: 1 }
}

pub(super) fn vm(name: &str) -> AnyObject {
    vm_with(name, json!({"image": {"name": "base"}}))
}

pub(super) fn vm_with(name: &str, spec: serde_json::Value) -> AnyObject {
    let object = json!({
        "apiVersion": crate::object::API_VERSION, "kind": "VM",
        "metadata": {"name": name}, "spec": spec
    });
    AnyObject::Vm(serde_json::from_value(object).unwrap())
}

pub(super) fn image(name: &str) -> AnyObject {
    let object = json!({
        "apiVersion": crate::object::API_VERSION, "kind": "Image",
        "metadata": {"name": name}, "spec": {"source": {"oci": {"reference": "127.0.0.1:5055/a:1"}}}
    });
    AnyObject::Image(serde_json::from_value(object).unwrap())
}

pub(super) fn declare(store: &Store, object: AnyObject) -> Uid {
    match now(store.declare(object, origin("a.yaml"), false, at(1))).unwrap() {
        Declared::Created { uid } => uid,
        other => panic!("not created but {other:?}"),
    }
}

/// A store with an installed disk, [`digest`]`(1)`.
pub(super) fn store_with_disk() -> (Store, MemoryBackend) {
    let (store, backend) = Store::in_memory();
    install(&store, &digest(1));
    (store, backend)
}

pub(super) fn install(store: &Store, digest: &Digest) {
    let claim = Uuid::new_v4();
    assert_eq!(now(store.claim_disk(digest, claim)).unwrap(), DiskClaim::Granted);
    let path = PathBuf::from("/disks").join(digest.folder());
    now(store.publish_disk(digest, claim, path, Quantity::mebibytes(64), ImageConfig::default())).unwrap();
}

pub(super) fn claim(name: &str, uid: Uid) -> VmClaim {
    VmClaim {
        key: key(name),
        uid,
        generation: 1,
        image: digest(1),
        network: bridge(None, &[]),
        vmm_users: Some(1000..1010),
        memory: Quantity::mebibytes(256),
        cpus: 1,
        disk: Quantity::mebibytes(1024),
        capacity: Capacity { memory: Quantity::mebibytes(1024), cpus: 8, disk: Quantity::mebibytes(4096) },
        impatient: false,
    }
}

/// A subnet of five VMs: 10.63.0.2 to 10.63.0.6.
pub(super) fn bridge(fixed: Option<[u8; 4]>, ports: &[u16]) -> NetworkClaim {
    let ports = ports.iter().map(|host| Port { host: *host, guest: 80, protocol: Protocol::Tcp });
    NetworkClaim::Bridge {
        subnet: "10.63.0.0/29".parse().unwrap(),
        fixed: fixed.map(Ipv4Addr::from),
        ports: ports.collect(),
    }
}

pub(super) fn running() -> Run {
    let AnyObject::Vm(vm) = vm("x") else { unreachable!() };
    Run::Up {
        process: ProcessIdentity { pid: 7, start_time: 8, boot_id: "b".to_owned() },
        spec: vm.spec,
        boot: Boot::default(),
        since: at(5),
        stopping: None,
    }
}

pub(super) fn phase(text: &str) -> Option<crate::object::VmStatus> {
    Some(crate::object::VmStatus { phase: text.to_owned(), ..Default::default() })
}

pub(super) fn version(record: &Record) -> u64 {
    record.metadata().resource_version.parse().unwrap()
}

/// A clock that stands where it is set, from the epoch on.
#[derive(Clone)]
pub(super) struct Hands(Arc<Mutex<Timestamp>>);

impl Hands {
    pub(super) fn set(&self, time: Timestamp) {
        *self.0.lock().unwrap() = time;
    }

    pub(super) fn get(&self) -> Timestamp {
        *self.0.lock().unwrap()
    }
}

/// An empty store whose time is told by hand.
pub(super) fn timed() -> (Store, MemoryBackend, Hands) {
    let hands = Hands(Arc::new(Mutex::new(at(0))));
    let read = hands.clone();
    let settings = StoreSettings { now: Arc::new(move || read.get()), ..StoreSettings::default() };
    let (store, backend) = Store::in_memory_with(settings);
    (store, backend, hands)
}
