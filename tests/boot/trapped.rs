//! A daemon that kills itself at a chosen instant: this test binary, started again.
//!
//! It runs the real engine on the real store, driver, network and images; only their effects are
//! watched from outside, so the product has no hook for this.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use vmlet::boot::{self, BootCache};
use vmlet::guest_image::GUEST;
use vmlet::hypervisor::qemu::{AcceleratorSetting, QemuDriver, QemuSettings};
use vmlet::hypervisor::{Driver, DriverError, Gated, GuestStream, Launch, ProcessIdentity, VmmExit};
use vmlet::image::{BaseDisk, Digest, ImageError, ImageStore, Images, Progress, Root, Source, StagedDisk};
use vmlet::manifest::{DirectorySource, MassDeleteSettings, Readiness, Snapshot, keep};
use vmlet::network::{HostNetwork, HostSettings, Network, NetworkError, Nic};
use vmlet::object::Quantity;
use vmlet::reconcile::{BackoffPolicy, Clock, Engine, Entropy, HostRoom, Parts, Retention, Settings};
use vmlet::store::{Capacity, ChangeKind, Record, Run, Store, StoreSettings};

use crate::host::{Host, PATIENCE};

/// What the child is told, in JSON.
const ORDER: &str = "VMLET_TEST_TRAP";

/// When a daemon kills itself.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Trap {
    /// Right before an effect on the world.
    Before(Effect),
    /// Right after it.
    After(Effect),
    /// Right after a record of a VM became durable.
    Durable(Fact),
}

/// The effects of a life, in the words of the interfaces that make them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Effect {
    Stage,
    Install,
    Prepare,
    Attach,
    Spawn,
    Release,
    Kill,
    Detach,
    RemoveDisk,
    Cleanup,
    RemoveImage,
}

/// What a VM's record says.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Fact {
    Pinned,
    Reserved,
    Up,
    Stopping,
    ExitRecorded,
    Released,
    Removed,
}

impl Fact {
    fn holds(self, kind: ChangeKind, record: &Record) -> bool {
        let Record::Vm(vm) = record else { return false };
        let deleted = vm.object.metadata.deletion_timestamp.is_some();
        match self {
            Fact::Pinned => vm.image.is_some() && vm.reservation.is_none(),
            Fact::Reserved => vm.reservation.is_some() && vm.run == Run::Idle && vm.last_exit.is_none(),
            Fact::Up => matches!(vm.run, Run::Up { stopping: None, .. }),
            Fact::Stopping => matches!(vm.run, Run::Up { stopping: Some(_), .. }),
            Fact::ExitRecorded => vm.run == Run::Idle && vm.last_exit.is_some(),
            Fact::Released => deleted && vm.reservation.is_none() && kind != ChangeKind::Deleted,
            Fact::Removed => kind == ChangeKind::Deleted,
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Order {
    trap: Trap,
    state: PathBuf,
    manifests: PathBuf,
    bridge: String,
    subnet: String,
    users: (u32, u32),
}

impl Host {
    /// Lets a daemon run until it falls into the trap.
    pub(crate) async fn die_at(&self, trap: Trap) {
        let users = self.users();
        let order = Order {
            trap,
            state: self.path("state"),
            manifests: self.path("manifests"),
            bridge: self.bridge(),
            subnet: self.subnet(),
            users: (users.start, users.end),
        };
        let log =
            std::fs::OpenOptions::new().create(true).append(true).open(self.path("daemon.log")).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "trapped::daemon", "--ignored", "--nocapture"]);
        child.env(ORDER, serde_json::to_string(&order).unwrap());
        child.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let mut child = child.spawn().unwrap();
        let pid = Pid::from_raw(child.id().try_into().unwrap());
        let ended = tokio::task::spawn_blocking(move || child.wait().unwrap());
        match tokio::time::timeout(PATIENCE, ended).await {
            Ok(status) => assert_eq!(status.unwrap().signal(), Some(9), "{trap:?}:\n{}", self.log()),
            Err(_) => {
                let _ = kill(pid, Signal::SIGKILL);
                panic!("the daemon never came to {trap:?}:\n{}", self.log());
            }
        }
    }
}

#[test]
#[ignore = "the daemon that crash tests start themselves"]
fn daemon() {
    let Ok(order) = std::env::var(ORDER) else { return };
    let order: Order = serde_json::from_str(&order).unwrap();
    tracing_subscriber::fmt().with_ansi(false).init();
    tokio::runtime::Runtime::new().unwrap().block_on(run(order));
}

fn die() -> ! {
    let _ = kill(Pid::this(), Signal::SIGKILL);
    unreachable!("nobody survives SIGKILL")
}

/// The daemon's wiring, with the trap in between.
async fn run(order: Order) {
    eprintln!("a daemon that ends at {:?}", order.trap);
    let store = Store::open(&order.state.join("store"), StoreSettings::default()).unwrap();
    let subnet = HostSettings { bridge: order.bridge, subnet: order.subnet.parse().unwrap() };
    let boot = boot::Settings { kernel: None, modules: None, cache: order.state.join("boot") };
    let qemu = QemuSettings {
        accelerator: AcceleratorSetting::Tcg,
        helper: env!("CARGO_BIN_EXE_vmlet").into(),
        ..QemuSettings::default()
    };
    let trap = order.trap;
    let driver = QemuDriver::new(qemu).await.unwrap();
    let parts = Parts {
        images: Arc::new(TrappedImages {
            inner: ImageStore::open(&order.state, vmlet::image::Settings::default()).unwrap(),
            trap,
        }),
        kernels: Arc::new(BootCache::open(&boot, GUEST, driver.kernel_form()).unwrap()),
        driver: Arc::new(TrappedDriver { inner: driver, trap }),
        network: Arc::new(TrappedNetwork { inner: HostNetwork::start(subnet).await.unwrap(), trap }),
        clock: Clock::Host,
        entropy: Entropy::Host,
        room: Arc::new(HostRoom { state: order.state.clone() }),
    };
    let settings = Settings {
        vms: order.state.join("vms"),
        max_pulls: 4,
        max_boots: 4,
        subnet: Some(order.subnet.parse().unwrap()),
        resolvers: Vec::new(),
        vmm_users: Some(order.users.0..order.users.1),
        capacity: Capacity {
            memory: Quantity::mebibytes(1 << 20),
            cpus: 1000,
            disk: Quantity::mebibytes(1 << 30),
        },
        patience: PATIENCE,
        boot_timeout: PATIENCE,
        backoff: BackoffPolicy { first: Duration::from_secs(1), longest: Duration::from_secs(300) },
        // What is left of a daemon is counted.
        retention: Retention { grace: Duration::ZERO, low: 0, high: 0 },
        log_limit: Some(1 << 20),
    };
    if let Trap::Durable(fact) = order.trap {
        tokio::spawn(die_when(store.clone(), fact));
    }
    let engine = Engine::new(store.clone(), parts, settings);
    let cancel = CancellationToken::new();
    let (sender, snapshots) = watch::channel(Arc::new(Snapshot::default()));
    let source = DirectorySource::new(order.manifests.clone(), vmlet::manifest::Settings::default());
    tokio::spawn(source.run(sender, cancel.clone()));
    let guard = MassDeleteSettings { percent: 100, ..MassDeleteSettings::default() };
    let manifests = order.manifests.clone();
    let (keeper, until) = (store.clone(), cancel.clone());
    let (ready, _) = watch::channel(Readiness::default());
    tokio::spawn(async move { keep(keeper, &manifests, snapshots, guard, ready, Clock::Host, until).await });
    engine.run(cancel).await.unwrap();
}

async fn die_when(store: Store, fact: Fact) {
    let mut changes = store.watch(None).unwrap();
    loop {
        let change = changes.next().await.unwrap();
        if fact.holds(change.kind, &change.record) {
            die();
        }
    }
}

impl Trap {
    async fn around<T>(&self, effect: Effect, work: impl Future<Output = T>) -> T {
        if *self == Trap::Before(effect) {
            die();
        }
        let done = work.await;
        if *self == Trap::After(effect) {
            die();
        }
        done
    }
}

struct TrappedImages {
    inner: ImageStore,
    trap: Trap,
}

#[async_trait]
impl Images for TrappedImages {
    async fn resolve(&self, source: &Source) -> Result<Digest, ImageError> {
        self.inner.resolve(source).await
    }

    async fn stage(
        &self,
        source: &Source,
        digest: &Digest,
        progress: &watch::Sender<Progress>,
    ) -> Result<StagedDisk, ImageError> {
        self.trap.around(Effect::Stage, self.inner.stage(source, digest, progress)).await
    }

    async fn stage_root(
        &self,
        root: Root,
        digest: &Digest,
        progress: &watch::Sender<Progress>,
    ) -> Result<StagedDisk, ImageError> {
        self.trap.around(Effect::Stage, self.inner.stage_root(root, digest, progress)).await
    }

    async fn install(&self, staged: StagedDisk) -> Result<BaseDisk, ImageError> {
        self.trap.around(Effect::Install, self.inner.install(staged)).await
    }

    async fn disk(&self, digest: &Digest) -> Option<BaseDisk> {
        self.inner.disk(digest).await
    }

    async fn remove(&self, digest: &Digest) -> Result<(), ImageError> {
        self.trap.around(Effect::RemoveImage, self.inner.remove(digest)).await
    }

    async fn installed(&self) -> Result<Vec<Digest>, ImageError> {
        self.inner.installed().await
    }
}

struct TrappedNetwork {
    inner: HostNetwork,
    trap: Trap,
}

#[async_trait]
impl Network for TrappedNetwork {
    async fn attach(&self, nic: &Nic) -> Result<(), NetworkError> {
        self.trap.around(Effect::Attach, self.inner.attach(nic)).await
    }

    async fn detach(&self, nic: &Nic) -> Result<(), NetworkError> {
        self.trap.around(Effect::Detach, self.inner.detach(nic)).await
    }
}

struct TrappedDriver {
    inner: QemuDriver,
    trap: Trap,
}

#[async_trait]
impl Driver for TrappedDriver {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    async fn prepare(&self, launch: &Launch) -> Result<(), DriverError> {
        self.trap.around(Effect::Prepare, self.inner.prepare(launch)).await
    }

    async fn spawn(&self, launch: &Launch) -> Result<Box<dyn Gated>, DriverError> {
        let gated = self.trap.around(Effect::Spawn, self.inner.spawn(launch)).await?;
        Ok(Box::new(TrappedGate { inner: gated, trap: self.trap }))
    }

    async fn connect(&self, dir: &Path) -> Result<GuestStream, DriverError> {
        self.inner.connect(dir).await
    }

    async fn exited(&self, dir: &Path, process: &ProcessIdentity) -> VmmExit {
        self.inner.exited(dir, process).await
    }

    fn alive(&self, process: &ProcessIdentity) -> bool {
        self.inner.alive(process)
    }

    fn of_this_boot(&self, process: &ProcessIdentity) -> bool {
        self.inner.of_this_boot(process)
    }

    async fn power_button(&self, dir: &Path) -> Result<(), DriverError> {
        self.inner.power_button(dir).await
    }

    async fn kill(&self, process: &ProcessIdentity) -> Result<(), DriverError> {
        self.trap.around(Effect::Kill, self.inner.kill(process)).await
    }

    async fn evict(&self, dir: &Path) -> Result<(), DriverError> {
        self.inner.evict(dir).await
    }

    async fn folders(&self, root: &Path) -> Result<Vec<PathBuf>, DriverError> {
        self.inner.folders(root).await
    }

    async fn remove_disk(&self, dir: &Path) -> Result<(), DriverError> {
        self.trap.around(Effect::RemoveDisk, self.inner.remove_disk(dir)).await
    }

    async fn cleanup(&self, dir: &Path) -> Result<(), DriverError> {
        self.trap.around(Effect::Cleanup, self.inner.cleanup(dir)).await
    }
}

struct TrappedGate {
    inner: Box<dyn Gated>,
    trap: Trap,
}

#[async_trait]
impl Gated for TrappedGate {
    fn process(&self) -> &ProcessIdentity {
        self.inner.process()
    }

    async fn release(self: Box<Self>) -> Result<(), DriverError> {
        let TrappedGate { inner, trap } = *self;
        trap.around(Effect::Release, inner.release()).await
    }
}
