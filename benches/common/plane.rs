//! The whole control plane as the daemon wires it, over a scripted world: real manifests in a real
//! folder, the real watcher, a real store on disk, the real engine; scripted images, VMs and network.
//! Time is real.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tempfile::TempDir;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vmlet::agent::{FakeGuest, FakeScript, GuestState};
use vmlet::hypervisor::fake::{Behaviour, FakeDriver};
use vmlet::manifest::{self, DirectorySource, MassDeleteSettings, Readiness, Snapshot, keep};
use vmlet::object::{Kind, ObjectKey, Quantity};
use vmlet::reconcile::{BackoffPolicy, Clock, Engine, Entropy, Parts, Settings};
use vmlet::store::{Capacity, Record, Store, StoreSettings};
use vmlet::testing::{FakeImages, FakeNetwork};

/// What a bench sets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    /// From a VM's start until its guest is heard of.
    pub(crate) boot: Duration,
    pub(crate) max_boots: usize,
}

/// A running control plane.
pub(crate) struct Plane {
    pub(crate) store: Store,
    pub(crate) images: Arc<FakeImages>,
    dir: TempDir,
    cancel: CancellationToken,
    tasks: TaskTracker,
}

/// A VM's manifest.
pub(crate) fn manifest(name: &str, image: &str, memory: u32, labels: &str) -> String {
    format!(
        "apiVersion: vmlet.dev/v1alpha1\nkind: VM\nmetadata:\n  name: {name}\n  labels: {{{labels}}}\nspec:\n  \
         image: {{oci: \"{image}\"}}\n  memory: {memory}Mi\n  rootDisk: {{size: 1Gi}}\n  \
         command: [httpd, -f, -p, \"80\"]\n  env:\n    - {{name: PORT, value: \"80\"}}\n  \
         terminationGracePeriodSeconds: 0\n"
    )
}

impl Plane {
    /// Folders without a daemon: manifests can be put into them.
    pub(crate) fn folders() -> TempDir {
        let dir = super::folder();
        std::fs::create_dir(dir.path().join("manifests")).expect("the folder is new");
        dir
    }

    /// Writes a manifest as a tool does that leaves no half-written file: beside it, then renamed.
    pub(crate) fn put(dir: &Path, name: &str, text: &str) {
        let path = dir.join("manifests").join(format!("{name}.yaml"));
        let staged = path.with_extension("tmp");
        std::fs::write(&staged, text).expect("the folder takes files");
        std::fs::rename(staged, path).expect("a file can be renamed");
    }

    /// Writes a manifest that has been there for a while.
    pub(crate) fn put_old(dir: &Path, name: &str, text: &str) {
        Plane::put(dir, name, text);
        let path = dir.join("manifests").join(format!("{name}.yaml"));
        let file = std::fs::File::options().write(true).open(path).expect("just written");
        let long_ago = SystemTime::now() - Duration::from_secs(3600);
        file.set_modified(long_ago).expect("its owner may set its times");
    }

    /// Starts a control plane in these folders.
    pub(crate) fn start(dir: TempDir, setup: Setup) -> Plane {
        let store = Store::open(&dir.path().join("store"), StoreSettings::default()).expect("a new store");
        let images = Arc::new(FakeImages::new(dir.path()).expect("folders can be made"));
        let parts = Parts {
            images: images.clone(),
            kernels: vmlet::testing::host_kernels(),
            driver: Arc::new(driver(setup.boot)),
            network: Arc::new(FakeNetwork::default()),
            clock: Clock::Host,
            entropy: Entropy::default(),
        };
        let engine = Engine::new(store.clone(), parts, settings(dir.path(), setup.max_boots));
        let (cancel, tasks) = (CancellationToken::new(), TaskTracker::new());
        let root = dir.path().join("manifests");
        let (sender, snapshots) = watch::channel(Arc::new(Snapshot::default()));
        tasks.spawn(
            DirectorySource::new(root.clone(), manifest::Settings::default()).run(sender, cancel.clone()),
        );
        let (declared, until) = (store.clone(), cancel.clone());
        let guard = MassDeleteSettings::default();
        let (ready, _) = watch::channel(Readiness::default());
        tasks.spawn(async move { keep(declared, &root, snapshots, guard, ready, Clock::Host, until).await });
        let until = cancel.clone();
        tasks.spawn(async move { engine.run(until).await.expect("nothing is left of an earlier engine") });
        Plane { store, images, dir, cancel, tasks }
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Waits until there are so many VMs.
    pub(crate) async fn declared(&self, wanted: usize) -> Instant {
        while self.store.list(Kind::Vm, None).0.len() < wanted {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Instant::now()
    }

    /// Waits until so many VMs whose names start so are Ready.
    pub(crate) async fn ready(&self, prefix: &str, wanted: usize) -> Instant {
        let of_interest = |record: &Record| {
            let key = record.key();
            (key.kind == Kind::Vm && key.name.starts_with(prefix)).then_some((key, is_ready(record)))
        };
        loop {
            let (records, version) = self.store.list(Kind::Vm, None);
            let mut ready: HashMap<ObjectKey, bool> = records.iter().filter_map(of_interest).collect();
            let mut count = ready.values().filter(|ready| **ready).count();
            let Ok(mut changes) = self.store.watch(Some(version)) else { continue };
            while count < wanted {
                let Ok(change) = changes.next().await else { break };
                let Some((key, now)) = of_interest(&change.record) else { continue };
                let before = ready.insert(key, now).unwrap_or(false);
                count = count + usize::from(now) - usize::from(before);
            }
            if count >= wanted {
                return Instant::now();
            }
        }
    }

    /// Waits until a VM's record is as wanted.
    pub(crate) async fn until(&self, name: &str, wanted: impl Fn(&Record) -> bool) -> Instant {
        let key = ObjectKey::new(Kind::Vm, "default", name);
        let mut changes = self.store.watch(None).expect("from now on");
        loop {
            if self.store.record(&key).is_some_and(|record| wanted(&record)) {
                return Instant::now();
            }
            if changes.next().await.is_err() {
                changes = self.store.watch(None).expect("from now on");
            }
        }
    }

    /// Ends it as the daemon ends, and gives its folders back.
    pub(crate) async fn stop(self) -> TempDir {
        self.cancel.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.store.close().await;
        self.dir
    }
}

pub(crate) fn is_ready(record: &Record) -> bool {
    let Record::Vm(vm) = record else { return false };
    let status = &vm.object.status;
    status.observed_generation == vm.object.metadata.generation
        && status.conditions.iter().any(|known| known.kind == "Ready" && known.status == true.into())
}

fn settings(dir: &Path, max_boots: usize) -> Settings {
    Settings {
        vms: dir.join("vms"),
        max_pulls: 4,
        max_boots,
        subnet: Some("10.64.0.0/16".parse().expect("a subnet")),
        resolvers: Vec::new(),
        vmm_users: Some(3_000_000..3_065_536),
        capacity: Capacity {
            memory: Quantity::mebibytes(1 << 30),
            cpus: 1 << 20,
            disk: Quantity::mebibytes(1 << 40),
        },
        patience: Duration::from_secs(120),
        boot_timeout: Duration::from_secs(300),
        backoff: BackoffPolicy { first: Duration::from_secs(1), longest: Duration::from_secs(300) },
        log_limit: None,
    }
}

/// A driver whose guests are Ready at once when they have booted, and power off when asked to.
fn driver(boot: Duration) -> FakeDriver {
    let guests: Mutex<HashMap<PathBuf, FakeGuest>> = Mutex::default();
    let driver = FakeDriver::new(move |dir: &Path| {
        let mut guests = guests.lock().unwrap_or_else(PoisonError::into_inner);
        let guest = guests.entry(dir.to_owned()).or_insert_with(|| {
            let guest = FakeGuest::new(FakeScript { obeys_shutdown: false, ..FakeScript::default() });
            guest.set_state(GuestState::Ready);
            guest
        });
        guest.connect()
    });
    let behaviour = Behaviour { boot: Some(boot), power_off: Some(Duration::ZERO), ..Behaviour::default() };
    driver.set_behaviour(behaviour);
    driver
}
