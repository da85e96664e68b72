//! Decisions by value: what the record says, what is seen, and the step that must follow.
//!
//! Here are the records and sights that the cases start from.

mod any;
mod exit;
mod guest;
mod running;
mod starting;
mod status;
mod stopping;
mod timings;

use std::mem::discriminant;
use std::sync::OnceLock;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use tokio::time::Instant;
use vmlet_wire::GuestState;

use super::plan::{Rules, plan};
use super::state::{Guest, ImageView, LineView, Observed};
use super::step::{Failure, Plan, Step};
use crate::boot::{Boot, KernelChoice, KernelId, KernelPaths, KernelSource};
use crate::hypervisor::{ProcessIdentity, VmmExit};
use crate::image::{ImageConfig, Source};
use crate::object::{
    AnyObject, Kind, LastExit, NetworkMode, ObjectKey, PullPolicy, Quantity, RunPolicy, Uid, Vm, VmSpec,
};
use crate::reconcile::pulls::PullState;
use crate::store::{
    Capacity, Declared, NetworkClaim, Origin, PinnedImage, PinnedKernel, Reservation, ReserveError, Run,
    Standing, Stopping, Store, VmClaim, VmRecord,
};

const RULES: Rules = Rules { boot_timeout: Duration::from_secs(60), patience: Duration::from_secs(120) };

/// A time in the daemon's life.
fn at(second: i64) -> Instant {
    static BEGIN: OnceLock<Instant> = OnceLock::new();
    *BEGIN.get_or_init(Instant::now) + Duration::from_secs(second.unsigned_abs())
}

/// The wall time then.
fn wall(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + second).unwrap()
}

fn pin(digit: char) -> PinnedImage {
    let digest = format!("sha256:{}", digit.to_string().repeat(64)).parse().unwrap();
    PinnedImage { source: Source::Oci("127.0.0.1:5055/debian:12".to_owned()), digest, kernel: None }
}

fn record() -> VmRecord {
    let mut object: Vm = serde_json::from_value(json!({
        "apiVersion": "vmlet.dev/v1alpha1", "kind": "VM", "metadata": {"name": "web"},
        "spec": {"image": {"oci": "127.0.0.1:5055/debian:12"}, "network": {"mode": "none"}}
    }))
    .unwrap();
    object.metadata.uid = Some(Uid::nil());
    object.metadata.generation = 1;
    VmRecord::new(object, Origin { source: "test".to_owned(), path: "web.yaml".into(), line: 1 })
}

fn reserved() -> VmRecord {
    let mut record = record();
    record.image = Some(pin('a'));
    record.reservation = Some(Reservation {
        image: pin('a').digest,
        nic: None,
        vmm_user: None,
        memory: record.object.spec.memory,
        cpus: record.object.spec.cpus,
        disk: record.object.spec.root_disk.size,
    });
    record
}

fn up() -> VmRecord {
    let mut record = reserved();
    record.run = Run::Up {
        process: ProcessIdentity { pid: 7, start_time: 1, boot_id: "b".to_owned() },
        spec: record.object.spec.clone(),
        boot: Boot::default(),
        since: wall(0),
        stopping: None,
    };
    record
}

fn stopping(mut record: VmRecord) -> VmRecord {
    if let Run::Up { stopping, .. } = &mut record.run {
        *stopping = Some(Stopping { since: wall(0), why: "test".to_owned() });
    }
    record
}

fn deleted(mut record: VmRecord) -> VmRecord {
    record.object.metadata.deletion_timestamp = Some(wall(0));
    record
}

fn edited(mut record: VmRecord, edit: impl FnOnce(&mut VmSpec)) -> VmRecord {
    edit(&mut record.object.spec);
    record.object.metadata.generation += 1;
    record
}

fn known(pin: PinnedImage) -> ImageView {
    image(pin, Some(ImageConfig::default()), None)
}

fn image(pin: PinnedImage, disk: Option<ImageConfig>, pull: Option<PullState>) -> ImageView {
    ImageView::Known { pin, policy: PullPolicy::default(), asked: false, disk, pull, direct: true }
}

fn seen() -> Observed {
    Observed {
        exit: None,
        stopping: Some(at(0)),
        killed: None,
        guest: Guest::Silent { ever: false, since: at(0) },
        last: None,
        image: known(pin('a')),
        permit: false,
        asked: false,
        failure: None,
        closed_until: None,
        next_try: None,
        default_network: NetworkMode::Bridge,
        dependency: None,
        line: None,
        rebooted: false,
    }
}

fn ready() -> Observed {
    let guest = Guest::Connected { state: GuestState::Ready, since: at(1) };
    Observed { guest, last: Some(GuestState::Ready), ..seen() }
}

fn exited(last: Option<GuestState>, workload: Option<i32>) -> Observed {
    let exit = VmmExit { code: Some(0), signal: None, workload, message: String::new() };
    Observed { exit: Some(exit), guest: Guest::Silent { ever: true, since: at(0) }, last, ..seen() }
}

fn decide(record: &VmRecord, seen: &Observed) -> Plan {
    plan(record, seen, RULES, at(10))
}

fn in_line(impatient: bool) -> Option<LineView> {
    let (store, _) = Store::in_memory();
    Some(LineView::Waits { standing: standing(&store), since: at(0), impatient })
}

/// What a VM is told that claims more than is free.
fn standing(store: &Store) -> Standing {
    use futures_util::FutureExt;
    let digest = pin('a').digest;
    let claim = |name: &str| {
        let object = Vm {
            metadata: crate::object::ObjectMeta { name: name.to_owned(), ..record().object.metadata },
            ..record().object
        };
        let origin = record().origin;
        let declared = store.declare(AnyObject::Vm(object), origin, false, wall(0)).now_or_never().unwrap();
        let Ok(Declared::Created { uid }) = declared else { panic!("{declared:?}") };
        VmClaim {
            key: ObjectKey::new(Kind::Vm, "default", name),
            uid,
            generation: 1,
            image: digest.clone(),
            network: NetworkClaim::None,
            vmm_users: None,
            memory: Quantity::mebibytes(4096),
            cpus: 1,
            disk: Quantity::mebibytes(64),
            capacity: Capacity {
                memory: Quantity::mebibytes(6144),
                cpus: 8,
                disk: Quantity::mebibytes(1024),
            },
            impatient: false,
        }
    };
    let install = Uid::nil();
    store.claim_disk(&digest, install).now_or_never().unwrap().unwrap();
    let published =
        store.publish_disk(&digest, install, "/d".into(), Quantity::bytes(1), ImageConfig::default());
    published.now_or_never().unwrap().unwrap();
    store.reserve_vm(claim("first")).now_or_never().unwrap().unwrap();
    match store.reserve_vm(claim("second")).now_or_never().unwrap() {
        Err(ReserveError::Waiting { line }) => line.borrow().clone().unwrap(),
        other => panic!("{other:?}"),
    }
}
