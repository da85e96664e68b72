//! The daemon's wiring: what is made in which order, and how it ends.
//!
//! Start: folders, store, socket, network, images, driver, engine; then the manifests are watched
//! and the API answers. End (SIGTERM, SIGINT, or a store that cannot write any more): the engine stops and
//! leaves every VM as it is, then the store is closed, and the bridge goes if no VM is left to use it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::agent::Agent;
use crate::api::{self, Guests, Sources};
use crate::boot::{self, BootCache};
use crate::config::{AcceleratorChoice, NetworkChoice, Settings};
use crate::hypervisor::GuestStream;
use crate::hypervisor::qemu::{AcceleratorSetting, QemuDriver, QemuSettings};
use crate::image::{self, ImageStore};
use crate::manifest::{self, DirectorySource, MassDeleteSettings, Readiness, Snapshot, keep};
use crate::memory;
use crate::metrics::Metrics;
use crate::metrics::process::Process;
use crate::network::{HostNetwork, HostSettings, Network, UserNetwork, forwarding_warnings, resolvers};
use crate::object::{Kind, Quantity, Uid};
use crate::reconcile::{self, BackoffPolicy, Clock, Engine, Entropy, HostRoom, Parts, Retention, Room};
use crate::store::{Capacity, Record, Store, StoreSettings, sync_dir};

/// How long a boot may take until the guest is heard of: generous, since an emulated guest among
/// many others is slow.
const BOOT_TIMEOUT: Duration = Duration::from_secs(300);
/// How waits after failures grow.
const BACKOFF: BackoffPolicy =
    BackoffPolicy { first: Duration::from_secs(1), longest: Duration::from_secs(300) };
/// A workload's log file, in bytes; one old file of the same size is kept.
const LOG_LIMIT: u64 = 10 << 20;

/// Takes all the open files that the daemon may have: every VM needs some, and the limit that is usual is meant
/// for programs that use `select`. VMMs get their own.
fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// Runs the daemon until it is asked to stop.
///
/// # Errors
/// Whatever keeps it from starting, or the engine from accounting for what is there.
pub async fn run(settings: Settings) -> Result<()> {
    raise_open_files();
    let retention = retention(&settings)?;
    let folders = Folders::make(&settings.state)?;
    let store_dir = folders.store.clone();
    let store =
        tokio::task::spawn_blocking(move || Store::open(&store_dir, StoreSettings::default())).await??;
    let listener = api::bind(&settings.socket).await?;
    let host = host_network(&settings).await?;
    let engine = engine(&settings, retention, &folders, &store, host.clone()).await?;
    let cancel = CancellationToken::new();
    let tasks = TaskTracker::new();
    let readiness = watch_manifests(&settings, &store, &tasks, &cancel);
    tasks.spawn(api::serve(listener, sources(&store, &engine, readiness), cancel.clone()));
    let at_rest = memory::give_back_at_rest(store.clone());
    tasks.spawn(cancel.clone().run_until_cancelled_owned(at_rest));
    let running = engine.run(cancel.clone());
    tracing::info!(socket = %settings.socket.display(), manifests = %settings.manifests.display(), "vmlet is running");
    let ended = tokio::select! {
        ended = until_asked_to_stop(running, &cancel) => ended,
        // Whoever keeps daemons running starts the next one, which finds what is really on the disk.
        failure = store.failure() => Err(failure.into()),
    };
    cancel.cancel();
    tasks.close();
    tasks.wait().await;
    stop_network(&store, host.as_deref()).await;
    store.close().await;
    // A socket that stays is replaced by the next daemon; one that goes says at once that nobody listens.
    let _ = std::fs::remove_file(&settings.socket);
    ended
}

/// Runs the engine until a signal comes or it fails.
async fn until_asked_to_stop(
    running: impl Future<Output = Result<(), reconcile::RecoveryError>>,
    cancel: &CancellationToken,
) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be handled")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be handled")?;
    let asked = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("asked to stop; VMs keep running");
        cancel.cancel();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        ended = running => Ok(ended?),
        () = asked => Ok(()),
    }
}

/// The daemon's own folders. Users of VMMs pass through the outer ones, and read none of them.
struct Folders {
    state: PathBuf,
    store: PathBuf,
    vms: PathBuf,
    boot: PathBuf,
}

impl Folders {
    fn make(state: &Path) -> Result<Self> {
        let state = std::path::absolute(state)?;
        let folders =
            Folders { store: state.join("store"), vms: state.join("vms"), boot: state.join("boot"), state };
        for (folder, mode) in
            [(&folders.state, 0o711), (&folders.store, 0o700), (&folders.vms, 0o711), (&folders.boot, 0o711)]
        {
            std::fs::create_dir_all(folder)
                .and_then(|()| std::fs::set_permissions(folder, std::fs::Permissions::from_mode(mode)))
                // What the store acknowledges must not lose its folder to a power loss.
                .and_then(|()| folder.parent().map_or(Ok(()), sync_dir))
                .with_context(|| {
                    format!("the folder {} cannot be made; choose another with --state", folder.display())
                })?;
        }
        Ok(folders)
    }
}

/// The bridge, where one is wanted and can be had.
async fn host_network(settings: &Settings) -> Result<Option<Arc<HostNetwork>>> {
    let root = nix::unistd::geteuid().is_root();
    if settings.network == NetworkChoice::User || (settings.network == NetworkChoice::Auto && !root) {
        return Ok(None);
    }
    let subnet = settings.subnet.to_string().parse()?;
    let network = HostNetwork::start(HostSettings { bridge: settings.bridge.clone(), subnet })
        .await
        .context("the bridge cannot be made (--network user needs none)")?;
    for warning in forwarding_warnings(&settings.bridge).await {
        tracing::warn!(fix = warning.fix, "{}", warning.detail);
    }
    Ok(Some(Arc::new(network)))
}

/// How long base disks are kept that nothing refers to.
fn retention(settings: &Settings) -> Result<Retention> {
    let Settings { image_grace: grace, disk_low: low, disk_high: high, .. } = *settings;
    if high < low {
        bail!("--disk-high ({high}) is below --disk-low ({low}): name the higher share with --disk-high");
    }
    Ok(Retention { grace, low, high })
}

async fn engine(
    settings: &Settings,
    retention: Retention,
    folders: &Folders,
    store: &Store,
    host: Option<Arc<HostNetwork>>,
) -> Result<Engine> {
    let images = image_settings(settings)?;
    let state = folders.state.clone();
    let images = tokio::task::spawn_blocking(move || ImageStore::open(&state, images)).await??;
    let driver = driver(settings).await?;
    let kernels = kernels(settings, folders, &driver).await?;
    if let Some(host) = &host {
        remove_foreign_taps(store, host).await;
    }
    let subnet = host.as_ref().map(|_| settings.subnet);
    let network: Arc<dyn Network> = match host {
        Some(host) => host,
        None => Arc::new(UserNetwork),
    };
    let root = nix::unistd::geteuid().is_root();
    let behaviour = reconcile::Settings {
        vms: folders.vms.clone(),
        max_pulls: settings.max_pulls.get(),
        max_boots: settings.max_boots.get(),
        subnet,
        resolvers: resolvers().await.iter().map(ToString::to_string).collect(),
        vmm_users: root.then(|| settings.vmm_users.0.clone()),
        capacity: capacity(settings, &folders.state)?,
        patience: Duration::from_secs(settings.patience.into()),
        boot_timeout: BOOT_TIMEOUT,
        backoff: BACKOFF,
        retention,
        log_limit: Some(LOG_LIMIT),
    };
    let parts = Parts {
        images: Arc::new(images),
        kernels: Arc::new(kernels),
        driver: Arc::new(driver),
        network,
        clock: Clock::Host,
        entropy: Entropy::Host,
        room: Arc::new(HostRoom { state: folders.state.clone() }),
    };
    Ok(Engine::new(store.clone(), parts, behaviour))
}

fn image_settings(settings: &Settings) -> Result<image::Settings> {
    let registries = match settings.registries_file() {
        Some(file) => image::Registries::read(&file).map_err(|wrong| {
            let wrong: Vec<String> = wrong.iter().map(ToString::to_string).collect();
            anyhow::anyhow!("the settings of registries cannot be used\n{}", wrong.join("\n"))
        })?,
        None => image::Registries::default(),
    };
    let mut limits = image::Limits::default();
    settings.image_limit.iter().for_each(|limit| limit.apply(&mut limits));
    Ok(image::Settings {
        limits,
        plain_http: settings.insecure_registry.clone(),
        registries,
        auth_files: settings.auth_files(),
        blob_cache: settings.blob_cache_size.as_bytes(),
        ..image::Settings::default()
    })
}

async fn kernels(settings: &Settings, folders: &Folders, driver: &QemuDriver) -> Result<BootCache> {
    let boot = boot::Settings {
        kernel: settings.kernel.clone(),
        modules: settings.modules.clone(),
        cache: folders.boot.clone(),
    };
    let form = driver.kernel_form();
    let open = move || BootCache::open(&boot, crate::guest_image::GUEST, form);
    let kernels =
        tokio::task::spawn_blocking(open).await?.context("making the host's kernel ready for VMs")?;
    tracing::info!(release = kernels.host().release, "the host's kernel is ready");
    Ok(kernels)
}

async fn driver(settings: &Settings) -> Result<QemuDriver> {
    let mut qemu = QemuSettings {
        accelerator: match settings.accelerator {
            AcceleratorChoice::Auto => AcceleratorSetting::Auto,
            AcceleratorChoice::Kvm => AcceleratorSetting::Kvm,
            AcceleratorChoice::Tcg => AcceleratorSetting::Tcg,
        },
        ..QemuSettings::default()
    };
    if let Some(binary) = &settings.qemu {
        qemu.binary.clone_from(binary);
    }
    Ok(QemuDriver::new(qemu).await?)
}

/// Nine tenths of the host's memory, ten times the free disk (private disks are sparse), or as told.
fn capacity(settings: &Settings, state: &Path) -> Result<Capacity> {
    let host = || -> Result<u64> {
        let text = std::fs::read_to_string("/proc/meminfo")?;
        let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"));
        Ok(total.context("/proc/meminfo has no MemTotal")?.parse::<u64>()? * 1024)
    };
    let free = || -> Result<u64> {
        let room = HostRoom { state: state.to_owned() };
        Ok(room.space().context("the state folder's file system does not say what is free")?.free)
    };
    let memory =
        settings.memory_capacity.map_or_else(|| host().map(|all| Quantity::bytes(all / 10 * 9)), Ok)?;
    let disk = settings
        .disk_capacity
        .map_or_else(|| free().map(|free| Quantity::bytes(free.saturating_mul(10))), Ok)?;
    Ok(Capacity { memory, cpus: settings.cpu_capacity, disk })
}

/// Taps without a reservation are left of a store that was replaced.
async fn remove_foreign_taps(store: &Store, host: &HostNetwork) {
    let (vms, _) = store.list(Kind::Vm, None);
    let taps = host.list_taps().await.unwrap_or_default();
    for tap in taps.iter().filter(|tap| !vms.iter().any(|vm| reserves(vm, tap))) {
        if let Err(error) = host.remove_tap(tap).await {
            tracing::warn!(tap, %error, "a tap that no VM reserves was not removed");
        }
    }
}

fn reserves(record: &Record, tap: &str) -> bool {
    let Record::Vm(vm) = record else { return false };
    let nic = vm.reservation.as_ref().and_then(|held| held.nic.as_ref());
    nic.is_some_and(|nic| nic.link.tap() == Some(tap))
}

/// What the API shows.
fn sources(store: &Store, engine: &Engine, readiness: watch::Receiver<Readiness>) -> Sources {
    Sources {
        store: store.clone(),
        guests: Arc::new(engine.clone()),
        recorder: engine.recorder().clone(),
        metrics: Metrics::new([
            Box::new(Process) as _,
            Box::new(store.clone()) as _,
            Box::new(engine.clone()) as _,
        ]),
        readiness,
        storage: Arc::new(engine.clone()),
    }
}

fn watch_manifests(
    settings: &Settings,
    store: &Store,
    tasks: &TaskTracker,
    cancel: &CancellationToken,
) -> watch::Receiver<Readiness> {
    let root = std::path::absolute(&settings.manifests).unwrap_or_else(|_| settings.manifests.clone());
    let (sender, snapshots) = watch::channel(Arc::new(Snapshot::default()));
    let guard = MassDeleteSettings { percent: settings.mass_delete_percent, ..MassDeleteSettings::default() };
    let source = DirectorySource::new(root.clone(), manifest::Settings::default());
    tasks.spawn(source.run(sender, cancel.clone()));
    let (sender, readiness) = watch::channel(Readiness::default());
    tasks.spawn(keep(store.clone(), &root, snapshots, guard, sender, Clock::Host, cancel.clone()));
    readiness
}

/// The bridge stays as long as VMs are on it.
async fn stop_network(store: &Store, host: Option<&HostNetwork>) {
    let Some(host) = host else { return };
    let (vms, _) = store.list(Kind::Vm, None);
    let used = vms.iter().any(|vm| matches!(vm, Record::Vm(vm) if vm.reservation.is_some()));
    if !used && let Err(error) = host.stop().await {
        tracing::warn!(%error, "the bridge was not removed");
    }
}

#[async_trait]
impl Guests for Engine {
    fn agent(&self, uid: Uid) -> Option<Agent> {
        Engine::agent(self, uid)
    }

    fn vm_dir(&self, uid: Uid) -> PathBuf {
        Engine::vm_dir(self, uid)
    }

    fn driver(&self) -> String {
        Engine::driver(self)
    }

    async fn console(&self, uid: Uid) -> Result<GuestStream, String> {
        Engine::console(self, uid).await.map_err(|error| error.to_string())
    }
}
