//! The real engine and store logic over a scripted world, on a paused clock.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vmlet::agent::{FakeGuest, FakeScript, GuestState};
use vmlet::hypervisor::VmmExit;
use vmlet::hypervisor::fake::{Behaviour, FakeDriver};
use vmlet::object::{AnyObject, Condition, Kind, ObjectKey, Quantity};
use vmlet::reconcile::{BackoffPolicy, Clock, Engine, Entropy, Parts, Settings};
use vmlet::store::{Capacity, Declared, Event, ImageRecord, Origin, Record, Store, VmRecord};
use vmlet::testing::{FakeImages, FakeNetwork};
use vmlet::timeline::Recorder;

/// Simulated time: far beyond every backoff.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);
const SOURCE: &str = "test";

type Guests = Arc<Mutex<HashMap<PathBuf, FakeGuest>>>;

pub(crate) struct Rig {
    pub(crate) store: Store,
    pub(crate) images: Arc<FakeImages>,
    pub(crate) driver: FakeDriver,
    pub(crate) network: Arc<FakeNetwork>,
    pub(crate) settings: Settings,
    guests: Guests,
    /// Whether guests that boot from now on shut down when they are asked to.
    obedient: Arc<AtomicBool>,
    clock: Clock,
    running: Option<(Engine, JoinHandle<()>)>,
    dir: TempDir,
}

impl Rig {
    /// A world whose VMs boot in a second, and an engine over it.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let guests = Guests::default();
        let obedient = Arc::new(AtomicBool::new(true));
        let settings = Settings {
            vms: dir.path().join("vms"),
            max_pulls: 4,
            max_boots: 8,
            subnet: Some("10.63.0.0/24".parse().unwrap()),
            resolvers: Vec::new(),
            vmm_users: Some(2_000_000..2_000_100),
            capacity: Capacity {
                memory: Quantity::mebibytes(1 << 20),
                cpus: 1 << 20,
                disk: Quantity::mebibytes(1 << 30),
            },
            patience: Duration::from_secs(120),
            boot_timeout: Duration::from_secs(60),
            backoff: BackoffPolicy { first: Duration::from_secs(1), longest: Duration::from_secs(300) },
            log_limit: Some(1 << 20),
        };
        let mut rig = Rig {
            store: Store::in_memory().0,
            images: Arc::new(FakeImages::new(dir.path()).unwrap()),
            driver: driver(&guests, &obedient),
            network: Arc::default(),
            settings,
            guests,
            obedient,
            clock: Clock::Tokio { start: Timestamp::from_second(1_800_000_000).unwrap(), at: Instant::now() },
            running: None,
            dir,
        };
        rig.start();
        rig
    }

    /// Starts an engine, as a daemon does.
    pub(crate) fn start(&mut self) {
        let parts = Parts {
            images: self.images.clone(),
            kernels: vmlet::testing::host_kernels(),
            driver: Arc::new(self.driver.clone()),
            network: self.network.clone(),
            clock: self.clock,
            entropy: Entropy::seeded(1),
        };
        let engine = Engine::new(self.store.clone(), parts, self.settings.clone());
        let runs = engine.clone();
        let task = tokio::spawn(async move { runs.run(CancellationToken::new()).await.unwrap() });
        self.running = Some((engine, task));
    }

    /// The engine that runs.
    pub(crate) fn engine(&self) -> Engine {
        self.running.as_ref().unwrap().0.clone()
    }

    pub(crate) fn recorder(&self) -> Recorder {
        self.engine().recorder().clone()
    }

    /// Ends the engine wherever it is, as a kill does.
    pub(crate) async fn kill(&mut self) {
        let (_, task) = self.running.take().unwrap();
        task.abort();
        let _ = task.await;
    }

    pub(crate) async fn declare(&self, object: Value) -> Declared {
        let object = match object["kind"].as_str() {
            Some("VM") => AnyObject::Vm(serde_json::from_value(object).unwrap()),
            _ => AnyObject::Image(serde_json::from_value(object).unwrap()),
        };
        let origin = Origin { source: SOURCE.to_owned(), path: "test.yaml".into(), line: 1 };
        self.store.declare(object, origin, false, self.clock.now()).await.unwrap()
    }

    pub(crate) async fn undeclare(&self, key: &ObjectKey) {
        assert!(self.store.undeclare(key, SOURCE, self.clock.now()).await.unwrap());
    }

    /// Waits until a record is as wanted. None stands for its absence.
    pub(crate) async fn until(
        &self,
        key: &ObjectKey,
        wanted: impl Fn(Option<&Record>) -> bool,
    ) -> Option<Record> {
        let watch = async {
            loop {
                let mut changes = self.store.watch(None).unwrap();
                let record = self.store.record(key);
                if wanted(record.as_ref()) {
                    return record;
                }
                changes.next().await.unwrap();
            }
        };
        match tokio::time::timeout(PATIENCE, watch).await {
            Ok(record) => record,
            Err(_) => panic!("{key} is not as wanted: {:#?}", self.store.record(key)),
        }
    }

    pub(crate) async fn ready(&self, key: &ObjectKey) {
        self.until(key, |record| record.is_some_and(is_ready)).await;
    }

    pub(crate) async fn gone(&self, key: &ObjectKey) {
        self.until(key, |record| record.is_none()).await;
    }

    /// Waits for something that no record tells.
    pub(crate) async fn eventually(&self, holds: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds() {
            assert!(Instant::now() < deadline, "never");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) fn vm(&self, name: &str) -> Arc<VmRecord> {
        self.store.vm(&vm_key(name)).unwrap()
    }

    pub(crate) fn image(&self, name: &str) -> Arc<ImageRecord> {
        self.store.image(&image_key(name)).unwrap()
    }

    pub(crate) fn guest(&self, name: &str) -> FakeGuest {
        let uid = self.vm(name).object.metadata.uid.unwrap();
        self.guests.lock().unwrap()[&self.settings.vms.join(uid.to_string())].clone()
    }

    /// Guests that boot from now on do not shut down when they are asked to.
    pub(crate) fn let_guests_stay(&self) {
        self.obedient.store(false, Ordering::Relaxed);
    }

    /// The time.
    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub(crate) fn clock(&self) -> Clock {
        self.clock
    }

    /// The events of a VM.
    pub(crate) fn events(&self, name: &str) -> Vec<Event> {
        self.store.events(Some(&(&vm_key(name)).into()))
    }

    /// Ends a VM's process.
    pub(crate) fn crash(&self, name: &str) {
        let uid = self.vm(name).object.metadata.uid.unwrap();
        let exit = VmmExit { code: None, signal: Some(9), workload: None, message: String::new() };
        assert!(self.driver.end(&self.settings.vms.join(uid.to_string()), exit));
    }

    /// What must hold at the end of every test in which everything was deleted.
    pub(crate) async fn assert_nothing_left(&self) {
        let installed = self.dir.path().join("images");
        self.eventually(|| std::fs::read_dir(&installed).unwrap().count() == 0).await;
        self.eventually(|| self.store.disks().is_empty()).await;
        assert_eq!(self.driver.violations(), Vec::<String>::new());
        assert_eq!(self.driver.folders(), Vec::<PathBuf>::new());
        assert_eq!((self.driver.running().len(), self.network.attached(), self.images.staged()), (0, 0, 0));
        assert!(Kind::ALL.iter().all(|kind| self.store.list(*kind, None).0.is_empty()));
    }
}

/// A driver whose guests come up Ready, and power off when they are asked to.
fn driver(guests: &Guests, obedient: &Arc<AtomicBool>) -> FakeDriver {
    let driver: Arc<OnceLock<FakeDriver>> = Arc::default();
    let (guests, obedient, later) = (guests.clone(), obedient.clone(), driver.clone());
    let made = FakeDriver::new(move |dir: &Path| {
        // The workload's log is a real file.
        std::fs::create_dir_all(dir).unwrap();
        let mut guests = guests.lock().unwrap();
        let running = guests.get(dir).filter(|guest| *guest.state().borrow() == GuestState::Ready).cloned();
        let guest = running.unwrap_or_else(|| {
            let guest = FakeGuest::new(FakeScript {
                obeys_shutdown: obedient.load(Ordering::Relaxed),
                ..FakeScript::default()
            });
            guest.set_state(GuestState::Ready);
            let driver = later.get().expect("set right below").clone();
            tokio::spawn(power_off(guest.clone(), driver, dir.to_owned()));
            guest
        });
        guests.insert(dir.to_owned(), guest.clone());
        guest.connect()
    });
    made.set_behaviour(Behaviour::default());
    driver.set(made.clone()).ok().expect("set once");
    made
}

/// Ends the process of a guest whose workload has ended.
async fn power_off(guest: FakeGuest, driver: FakeDriver, dir: PathBuf) {
    let mut state = guest.state();
    let ended = state.wait_for(|state| matches!(state, GuestState::Exited { .. })).await;
    let workload = ended.ok().and_then(|state| match *state {
        GuestState::Exited { code } => Some(code),
        _ => None,
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    guest.power_off();
    driver.end(&dir, VmmExit { code: Some(0), signal: None, workload, message: String::new() });
}

pub(crate) fn conditions(record: &Record) -> Vec<Condition> {
    record.object().conditions().to_vec()
}

pub(crate) fn is_ready(record: &Record) -> bool {
    let generation = record.object().metadata().generation;
    conditions(record)
        .iter()
        .any(|c| c.kind == "Ready" && c.status == true.into() && c.observed_generation == generation)
}

pub(crate) fn reason(record: &Record) -> String {
    conditions(record).iter().find(|c| c.kind == "Ready").map(|c| c.reason.clone()).unwrap_or_default()
}

pub(crate) fn vm_key(name: &str) -> ObjectKey {
    ObjectKey::new(Kind::Vm, "default", name)
}

pub(crate) fn image_key(name: &str) -> ObjectKey {
    ObjectKey::new(Kind::Image, "default", name)
}

pub(crate) fn vm(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "vmlet.dev/v1alpha1", "kind": "VM", "metadata": {"name": name}, "spec": spec})
}

pub(crate) fn image(name: &str, reference: &str) -> Value {
    json!({"apiVersion": "vmlet.dev/v1alpha1", "kind": "Image", "metadata": {"name": name},
           "spec": {"source": {"oci": {"reference": reference}}}})
}
