//! The store's guard and its flush, and reservations against the same transactions on bare sled.

mod common;

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use common::{Target, figure};
use serde_json::json;
use sled::transaction::ConflictableTransactionError;
use uuid::Uuid;
use vmlet::boot::Boot;
use vmlet::hypervisor::ProcessIdentity;
use vmlet::image::{Digest, ImageConfig};
use vmlet::object::{API_VERSION, AnyObject, Kind, ObjectKey, Quantity, VmSpec};
use vmlet::store::{Capacity, Declared, NetworkClaim, Origin, Run, Store, StoreSettings, VmClaim, VmUpdate};

/// Objects that are changed at the same time.
const OBJECTS: usize = 64;
/// How long each kind of transaction is made.
const SPAN: Duration = Duration::from_secs(4);
/// A VM's record as it is on disk, about.
const RECORD: usize = 2000;

fn main() {
    let runtime = common::runtime();
    let dir = common::folder();
    let store = Store::open(&dir.path().join("store"), StoreSettings::default()).expect("a new store");
    let uids = runtime.block_on(fill(&store));

    let rate = runtime.block_on(lives(&store, &uids));
    let (guard, flush) = (store.guard_histogram(), store.flush_histogram());
    figure("64 objects at once: transactions", rate, "/s", Target::None);
    figure("  guard held, p50", guard.p50_us as f64, "us", Target::None);
    figure("  guard held, p99", guard.p99_us as f64, "us", Target::AtMost(1000.0));
    figure("  guard held, longest", guard.max_us as f64, "us", Target::None);
    figure("  flush (write + fsync, behind it), p50", flush.p50_us as f64, "us", Target::None);
    figure("  flush, p99", flush.p99_us as f64, "us", Target::None);

    // In turns, so that what the machine does besides hits all of them.
    let (mut ours, mut alone, mut grouped) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..3 {
        ours.push(runtime.block_on(reservations(&store, &uids)));
        alone.push(bare_sled(&dir.path().join(format!("alone-{round}")), 1));
        grouped.push(bare_sled(&dir.path().join(format!("grouped-{round}")), OBJECTS));
    }
    let (ours, alone, grouped) = (median(ours), median(alone), median(grouped));
    figure("durable reservations, 64 at once", ours, "/s", Target::None);
    figure("  bare sled, one fsync each", alone, "/s", Target::None);
    figure("  bare sled, one fsync for all who wait", grouped, "/s", Target::None);
    figure("  ratio to one fsync each", ours / alone, "x", Target::AtLeast(1.0));
    figure("  ratio to one fsync for all who wait", ours / grouped, "x", Target::AtLeast(1.0));
    runtime.block_on(store.close());
}

fn key(number: usize) -> ObjectKey {
    ObjectKey::new(Kind::Vm, "default", format!("vm-{number}"))
}

fn digest() -> Digest {
    format!("sha256:{}", "0".repeat(64)).parse().expect("a digest")
}

fn spec() -> VmSpec {
    serde_json::from_value(json!({"image": {"name": "base"}, "command": ["httpd", "-f"]})).expect("a spec")
}

/// A base disk and the VMs.
async fn fill(store: &Store) -> Vec<Uuid> {
    let claim = Uuid::new_v4();
    store.claim_disk(&digest(), claim).await.expect("claimed");
    let config = ImageConfig::default();
    store.publish_disk(&digest(), claim, "/d".into(), Quantity::bytes(1), config).await.expect("published");
    let mut uids = Vec::new();
    for number in 0..OBJECTS {
        let object = json!({"apiVersion": API_VERSION, "kind": "VM", "metadata": {"name": key(number).name},
                            "spec": spec()});
        let object = AnyObject::Vm(serde_json::from_value(object).expect("a VM"));
        let origin = Origin { source: "bench".to_owned(), path: "a.yaml".into(), line: 1 };
        match store.declare(object, origin, false, jiff::Timestamp::now()).await {
            Ok(Declared::Created { uid }) => uids.push(uid),
            other => panic!("{other:?}"),
        }
    }
    uids
}

fn claim(number: usize, uid: Uuid) -> VmClaim {
    VmClaim {
        key: key(number),
        uid,
        generation: 1,
        image: digest(),
        network: NetworkClaim::Bridge {
            subnet: "10.64.0.0/16".parse().expect("a subnet"),
            fixed: None,
            ports: Vec::new(),
        },
        vmm_users: Some(3_000_000..3_065_536),
        memory: Quantity::mebibytes(1),
        cpus: 1,
        disk: Quantity::mebibytes(1),
        capacity: Capacity {
            memory: Quantity::mebibytes(1 << 20),
            cpus: 1 << 20,
            disk: Quantity::mebibytes(1 << 20),
        },
        impatient: false,
    }
}

/// Reserve, up, down, release, for every object at once. Returns transactions a second.
async fn lives(store: &Store, uids: &[Uuid]) -> f64 {
    let store = store.clone();
    each(uids, move |number, uid| {
        let store = store.clone();
        async move {
            store.reserve_vm(claim(number, uid)).await.expect("there is room");
            let process = ProcessIdentity { pid: 1, start_time: 1, boot_id: String::new() };
            let (spec, since) = (spec().into(), jiff::Timestamp::now());
            for run in [Run::Up { process, spec, boot: Boot::default(), since, stopping: None }, Run::Idle] {
                let update = VmUpdate { run: Some(run), ..VmUpdate::default() };
                store.publish_vm(&key(number), uid, update).await.expect("nothing else changed");
            }
            store.release_vm(&key(number), uid).await.expect("it is down");
            4
        }
    })
    .await
}

/// Reserve and release, for every object at once. Returns transactions a second.
async fn reservations(store: &Store, uids: &[Uuid]) -> f64 {
    let store = store.clone();
    each(uids, move |number, uid| {
        let store = store.clone();
        async move {
            store.reserve_vm(claim(number, uid)).await.expect("there is room");
            store.release_vm(&key(number), uid).await.expect("it is down");
            2
        }
    })
    .await
}

/// Repeats a piece of work for each object for a while; it returns how many transactions it made.
async fn each<F: Future<Output = u32> + Send + 'static>(
    uids: &[Uuid],
    work: impl Fn(usize, Uuid) -> F + Clone + Send + 'static,
) -> f64 {
    let start = Instant::now();
    let tasks = uids.iter().copied().enumerate().map(|(number, uid)| {
        let work = work.clone();
        let repeat = async move {
            let mut made = 0;
            while start.elapsed() < SPAN {
                made += work(number, uid).await;
            }
            made
        };
        tokio::spawn(repeat)
    });
    let mut made = 0;
    for task in tasks.collect::<Vec<_>>() {
        made += task.await.expect("the work does not panic");
    }
    f64::from(made) / start.elapsed().as_secs_f64()
}

/// Transactions a second on bare sled that write what a reservation writes: the record, the version
/// and a check row. Made by so many threads; each waits until its own is durable, by an fsync that
/// serves all who wait.
fn bare_sled(dir: &Path, threads: usize) -> f64 {
    let db = sled::Config::new().path(dir).cache_capacity(32 << 20).flush_every_ms(None);
    let db = db.open().expect("a new log");
    let log = File::options().write(true).open(dir.join("db")).expect("sled made it");
    let group = Arc::new(Group { db, log, state: Mutex::default(), done: Condvar::new() });
    let start = Instant::now();
    let workers = (0..threads).map(|number| {
        let group = group.clone();
        std::thread::spawn(move || {
            let (key, record) = (format!("vm/default/vm-{number}"), vec![b'r'; RECORD]);
            let mut made = 0_u32;
            while start.elapsed() < SPAN {
                group.transaction(&key, &record);
                made += 1;
            }
            made
        })
    });
    let workers: Vec<_> = workers.collect();
    let made: u32 = workers.into_iter().map(|worker| worker.join().expect("sled does not panic")).sum();
    f64::from(made) / start.elapsed().as_secs_f64()
}

struct Group {
    db: sled::Db,
    log: File,
    state: Mutex<Flushes>,
    done: Condvar,
}

/// Who is first flushes for all that were made by then; the others wait.
#[derive(Default)]
struct Flushes {
    made: u64,
    durable: u64,
    flushing: bool,
}

impl Group {
    fn transaction(&self, key: &str, record: &[u8]) {
        let transaction = self.db.transaction(|rows| {
            rows.get(key)?;
            rows.insert(key, record)?;
            rows.insert("version", &b"1234567"[..])?;
            rows.insert("!check", &b"{\"generation\":1,\"rows\":1,\"sum\":1}"[..])?;
            Ok::<_, ConflictableTransactionError>(())
        });
        transaction.expect("the disk takes it");
        let mut state = self.state.lock().expect("nobody panics");
        state.made += 1;
        let own = state.made;
        while state.durable < own {
            if state.flushing {
                state = self.done.wait(state).expect("nobody panics");
                continue;
            }
            state.flushing = true;
            let made = state.made;
            drop(state);
            self.db.flush().expect("the disk takes it");
            self.log.sync_data().expect("the disk takes it");
            state = self.state.lock().expect("nobody panics");
            (state.flushing, state.durable) = (false, made);
            self.done.notify_all();
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
