//! The real engine and store logic over a scripted host, on a paused clock.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vmlet::object::{AnyObject, Condition, Kind, ObjectKey, Quantity};
use vmlet::reconcile::{BackoffPolicy, Clock, Engine, Entropy, Retention, Settings};
use vmlet::store::{
    Capacity, Declared, Event, ImageRecord, MemoryBackend, Origin, Record, Store, StoreSettings, VmRecord,
};
use vmlet::testing::{EffectScript, Host, ImageScript, VmScript};
use vmlet::timeline::Recorder;

/// Simulated time: far beyond every backoff.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);
const SOURCE: &str = "test";

pub(crate) struct Rig {
    pub(crate) store: Store,
    pub(crate) host: Host,
    pub(crate) settings: Settings,
    backend: MemoryBackend,
    clock: Clock,
    running: Option<(Engine, JoinHandle<()>)>,
}

impl Rig {
    /// A host whose VMs boot in a second, and an engine on it.
    pub(crate) fn new() -> Self {
        Rig::with(Retention { grace: Duration::ZERO, low: 0, high: 0 })
    }

    /// The same, with another rule for base disks that nothing refers to.
    pub(crate) fn with(retention: Retention) -> Self {
        let settings = Settings {
            vms: "/simulated/vms".into(),
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
            retention,
            log_limit: None,
        };
        let clock = Clock::simulated(Timestamp::from_second(1_800_000_000).unwrap());
        let told = clock.clone();
        let timed = StoreSettings { now: Arc::new(move || told.now()), ..StoreSettings::default() };
        let (store, backend) = Store::in_memory_with(timed);
        let mut rig = Rig { store, host: Host::new(), settings, backend, clock, running: None };
        rig.start();
        rig
    }

    /// Starts an engine, as a daemon does.
    pub(crate) fn start(&mut self) {
        self.host.begin(Some(self.backend.durable()), self.settings.retention);
        let parts = self.host.parts(self.clock.clone(), Entropy::seeded(1));
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
        self.host.end();
        task.abort();
        let _ = task.await;
    }

    /// Puts an empty store in the place of the one that there is.
    pub(crate) fn forget_everything(&mut self) {
        (self.store, self.backend) = Store::in_memory();
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

    /// Waits for something that no record tells. It is noticed a thousandth too late at most.
    pub(crate) async fn eventually(&self, holds: impl Fn() -> bool) {
        let began = Instant::now();
        while !holds() {
            assert!(began.elapsed() < PATIENCE, "never");
            tokio::time::sleep(Duration::from_millis(10) + began.elapsed() / 1000).await;
        }
    }

    pub(crate) fn vm(&self, name: &str) -> Arc<VmRecord> {
        self.store.vm(&vm_key(name)).unwrap()
    }

    pub(crate) fn image(&self, name: &str) -> Arc<ImageRecord> {
        self.store.image(&image_key(name)).unwrap()
    }

    /// Sets how the starts of a VM go from now on.
    pub(crate) fn script(&self, name: &str, script: VmScript) {
        self.host.script_vm(&vm_key(name), script);
    }

    /// The time.
    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub(crate) fn clock(&self) -> Clock {
        self.clock.clone()
    }

    /// The events of a VM.
    pub(crate) fn events(&self, name: &str) -> Vec<Event> {
        self.store.events(Some(&(&vm_key(name)).into()))
    }

    /// Ends a VM's process.
    pub(crate) fn crash(&self, name: &str) {
        assert!(self.host.kill_vmm(&vm_key(name)));
    }

    /// What must hold at the end of every test.
    pub(crate) fn assert_sound(&self) {
        assert_eq!(self.host.violations(), Vec::<String>::new());
    }

    /// What must hold at the end of every test in which everything was deleted.
    pub(crate) async fn assert_nothing_left(&self) {
        self.eventually(|| self.host.disks().is_empty()).await;
        self.eventually(|| self.store.disks().is_empty()).await;
        self.assert_sound();
        assert_eq!(self.host.folders(), Vec::<PathBuf>::new());
        assert_eq!((self.host.running().len(), self.host.attached(), self.host.staged()), (0, 0, 0));
        assert!(Kind::ALL.iter().all(|kind| self.store.list(*kind, None).0.is_empty()));
    }
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

/// A VM of the image that is there.
pub(crate) fn spec(memory: &str) -> Value {
    json!({"image": {"oci": "r/a:1"}, "memory": memory})
}

/// A world with an image and a VM that has come so far.
pub(crate) async fn with_vm(script: VmScript, came_so_far: impl Fn(Option<&Record>) -> bool) -> Rig {
    let rig = Rig::new();
    rig.host.script_image("r/a:1", ImageScript::new('a', Duration::from_secs(1)));
    rig.script("web", script);
    rig.declare(vm("web", spec("256Mi"))).await;
    rig.until(&vm_key("web"), came_so_far).await;
    rig
}

/// Whether a record gives this reason for being ready or not.
pub(crate) fn says(wanted: &'static str) -> impl Fn(Option<&Record>) -> bool {
    move |record| record.is_some_and(|record| reason(record) == wanted)
}

/// So many tries fail, and may succeed later.
pub(crate) fn fails(failures: u32) -> EffectScript {
    EffectScript { failures, ..EffectScript::default() }
}

/// So many tries panic.
pub(crate) fn panics(panics: u32) -> EffectScript {
    EffectScript { panics, ..EffectScript::default() }
}
