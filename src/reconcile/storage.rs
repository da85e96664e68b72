//! What the engine tells of disk space, and what it removes or pulls because somebody asks.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use jiff::Timestamp;

use super::Engine;
use super::pulls::{PullState, Share};
use super::world::World;
use crate::boot::KernelSource;
use crate::image::{CachedBlob, Digest, ImageError, Source};
use crate::object::Kind;
use crate::storage::{
    BlobReport, DiskPhase, DiskReport, FileSystem, KernelReport, PruneOrder, Pruned, PullReport, PullStage,
    PullUpdate, RemovalError, Removed, Report, RetentionReport, Staging, Storage, VmDiskReport,
};
use crate::store::{DiskRecord, DiskState, PinnedImage, Record, Run};

#[async_trait]
impl Storage for Engine {
    async fn report(&self) -> Report {
        let world = self.world.clone();
        let blobs = world.images.blobs().await.unwrap_or_else(|error| {
            tracing::warn!(%error, "layers are not reported");
            Vec::new()
        });
        let walk = tokio::task::spawn_blocking(move || report(&world, blobs));
        walk.await.expect("a report does not panic and is not cancelled")
    }

    fn pull(&self, source: Source) -> BoxStream<'static, PullUpdate> {
        let request = Request { engine: self.clone(), source, stage: Stage::New };
        stream::unfold(request, |mut request| async move {
            let update = request.next().await?;
            Some((update, request))
        })
        .boxed()
    }

    async fn remove(&self, digest: Digest) -> Result<Removed, RemovalError> {
        self.world.collector.remove(digest).await
    }

    async fn prune(&self, order: PruneOrder) -> Result<Pruned, RemovalError> {
        let (disks, blobs) = if order.dry_run {
            let report = self.report().await;
            let disks = report.disks.into_iter().filter(|disk| disk.state == DiskPhase::Ready);
            let unused = disks.filter(|disk| disk.unused_since.is_some());
            let removed = unused.map(|disk| Removed { digest: disk.digest, allocated: disk.allocated });
            let blobs = report.blobs.iter().filter(|_| order.all).map(|blob| blob.size).sum();
            (removed.collect(), blobs)
        } else {
            let disks = self.world.collector.remove_unused().await?;
            (disks, if order.all { self.world.images.prune_blobs(0).await? } else { 0 })
        };
        let allocated = disks.iter().map(|disk: &Removed| disk.allocated).sum::<u64>() + blobs;
        Ok(Pruned { disks, blobs, allocated })
    }
}

/// Walks the folders of VMs and pulls.
fn report(world: &World, blobs: Vec<CachedBlob>) -> Report {
    let records: Vec<Record> =
        Kind::ALL.into_iter().flat_map(|kind| world.store.list(kind, None).0).collect();
    let users = Users::of(world, &records);
    let retention = &world.settings.retention;
    let (count, allocated) = world.room.staging();
    Report {
        now: world.clock.now(),
        disks: world.store.disks().iter().map(|disk| users.disk(world, disk)).collect(),
        pulls: world.pulls.running().into_iter().filter_map(pull_report).collect(),
        blobs: blobs.into_iter().map(blob_report).collect(),
        vm_disks: records.iter().filter_map(|record| vm_disk(world, record)).collect(),
        staging: Staging { count, allocated },
        filesystem: world.room.space().map(|space| FileSystem { free: space.free, total: space.total }),
        retention: RetentionReport {
            grace_seconds: retention.grace.as_secs(),
            disk_low: retention.low,
            disk_high: retention.high,
        },
    }
}

/// Who refers to which digest, and as what.
#[derive(Default)]
struct Users {
    objects: BTreeMap<Digest, BTreeSet<String>>,
    sources: BTreeMap<Digest, BTreeSet<String>>,
    /// What they boot on it.
    kernels: BTreeMap<Digest, Vec<KernelReport>>,
}

impl Users {
    fn of(world: &World, records: &[Record]) -> Users {
        let mut users = Users::default();
        for record in records {
            let key = record.key().to_string();
            if let Some(pin) = record.pinned() {
                users.refer(&pin.digest, &key, pin.source.to_string());
                users.boot(pin, kernel_report(world, pin, key.clone()));
                if let Some((kernel, disk)) =
                    pin.kernel.as_ref().and_then(|kernel| Some((kernel, kernel.disk.as_ref()?)))
                    && let Some(KernelSource::Oci(reference)) = &kernel.choice.source
                {
                    users.refer(disk, &key, reference.clone());
                }
            }
            if let Some(held) = record.reservation() {
                users.objects.entry(held.image.clone()).or_default().insert(key);
            }
        }
        users
    }

    fn refer(&mut self, digest: &Digest, key: &str, source: String) {
        self.objects.entry(digest.clone()).or_default().insert(key.to_owned());
        self.sources.entry(digest.clone()).or_default().insert(source);
    }

    /// Objects that boot the same are told of together.
    fn boot(&mut self, pin: &PinnedImage, kernel: KernelReport) {
        let kernels = self.kernels.entry(pin.digest.clone()).or_default();
        let what = |kernel: &KernelReport| {
            (kernel.from.clone(), kernel.release.clone(), kernel.command_line.clone())
        };
        match kernels.iter_mut().find(|known| what(known) == what(&kernel)) {
            Some(known) => known.used_by.extend(kernel.used_by),
            None => kernels.push(kernel),
        }
    }

    fn disk(&self, world: &World, disk: &DiskRecord) -> DiskReport {
        let names = |map: &BTreeMap<Digest, BTreeSet<String>>| {
            map.get(&disk.digest).into_iter().flatten().cloned().collect::<Vec<_>>()
        };
        let mut sources = names(&self.sources);
        if sources.is_empty() {
            sources.extend(disk.unused.as_ref().and_then(|unused| unused.source.clone()));
        }
        let (state, size, config) = match &disk.state {
            DiskState::Installing { .. } => (DiskPhase::Installing, 0, None),
            DiskState::Ready { size, config, .. } => {
                (DiskPhase::Ready, size.as_bytes(), Some(config.clone()))
            }
            DiskState::Removing => (DiskPhase::Removing, 0, None),
        };
        let since = disk.unused.as_ref().map(|unused| unused.since);
        DiskReport {
            digest: disk.digest.clone(),
            state,
            path: disk.path().map(|path| path.display().to_string()),
            size,
            allocated: disk.path().map_or(0, |path| world.room.taken(path)),
            sources,
            used_by: names(&self.objects),
            unused_since: since,
            kept_until: since.map(|since| world.settings.retention.until(since)),
            config,
            kernels: self.kernels.get(&disk.digest).cloned().unwrap_or_default(),
        }
    }
}

/// What an object boots.
fn kernel_report(world: &World, pin: &PinnedImage, key: String) -> KernelReport {
    let choice = pin.kernel.as_ref().map(|kernel| &kernel.choice);
    let boot = pin.boot();
    let files = boot.as_ref().and_then(|boot| world.kernels.files(boot.kernel.as_ref()));
    let from = match choice.and_then(|choice| choice.source.as_ref()) {
        Some(source) => source.to_string(),
        None if boot.is_some_and(|boot| boot.kernel.is_some()) => "the kernel that came with it".to_owned(),
        None => KernelSource::Host.to_string(),
    };
    KernelReport {
        from,
        release: files.map(|files| files.release),
        command_line: choice.and_then(|choice| choice.command_line.clone()),
        used_by: vec![key],
    }
}

fn pull_report((digest, source, state): (Digest, Source, PullState)) -> Option<PullReport> {
    let stage = match state {
        PullState::Queued => PullStage::Queued,
        PullState::Running(progress) => PullStage::Running { progress },
        PullState::Failed { message, retry, .. } => PullStage::Failed { message, retry },
        PullState::Done => return None,
    };
    Some(PullReport { digest, source: source.to_string(), stage })
}

fn blob_report(blob: CachedBlob) -> BlobReport {
    let CachedBlob { digest, size, last_used, partial } = blob;
    BlobReport { digest, size, last_used: Timestamp::try_from(last_used).unwrap_or_default(), partial }
}

/// Only a VM with a reservation has a folder.
fn vm_disk(world: &World, record: &Record) -> Option<VmDiskReport> {
    let Record::Vm(vm) = record else { return None };
    vm.reservation.as_ref()?;
    let folder = world.vm_dir(vm.object.metadata.uid?);
    Some(VmDiskReport {
        vm: record.key().to_string(),
        running: matches!(vm.run, Run::Up { .. }),
        allocated: world.room.taken(&folder),
    })
}

/// A pull that somebody watches who is no object.
struct Request {
    engine: Engine,
    source: Source,
    stage: Stage,
}

enum Stage {
    New,
    Resolving,
    /// `told` is the state that was told last; none before the first one.
    Sharing {
        share: Share,
        told: Option<PullState>,
    },
    Over,
}

impl Request {
    async fn next(&mut self) -> Option<PullUpdate> {
        match &mut self.stage {
            Stage::Over => None,
            Stage::New => {
                self.stage = Stage::Resolving;
                Some(PullUpdate::Resolving)
            }
            Stage::Resolving => Some(match self.engine.world.images.resolve(&self.source).await {
                Ok(digest) => self.begin(digest).await,
                Err(ImageError { reason, message, .. }) => self.fail(reason, message),
            }),
            Stage::Sharing { share, told } => {
                while told.as_ref() == Some(&share.state()) {
                    share.changed().await;
                }
                let (digest, state) = (share.digest().clone(), share.state());
                *told = Some(state.clone());
                Some(self.tell(digest, state).await)
            }
        }
    }

    /// A disk that is there is used as it is.
    async fn begin(&mut self, digest: Digest) -> PullUpdate {
        let world = &self.engine.world;
        if world.store.disk(&digest).is_some_and(|disk| disk.is_ready()) {
            return self.finish(digest, true).await;
        }
        let share = world.pulls.join(&self.source, &digest);
        // Of one that waits after a failure the next attempt is made now, which helps all who wait for it.
        share.hurry();
        self.stage = Stage::Sharing { share, told: None };
        PullUpdate::Queued { digest }
    }

    async fn tell(&mut self, digest: Digest, state: PullState) -> PullUpdate {
        match state {
            PullState::Queued => PullUpdate::Queued { digest },
            PullState::Running(progress) => PullUpdate::Pulling { digest, progress },
            PullState::Done => self.finish(digest, false).await,
            PullState::Failed { reason, message, .. } => self.fail(reason, message),
        }
    }

    async fn finish(&mut self, digest: Digest, already_there: bool) -> PullUpdate {
        self.stage = Stage::Over;
        let world = &self.engine.world;
        if let Err(error) = world.store.touch_disk(&digest, &self.source.to_string()).await {
            return self.fail("StoreFailed", error.to_string());
        }
        let disk = world.store.disk(&digest);
        let path = disk.as_ref().and_then(DiskRecord::path);
        let unused = disk.as_ref().and_then(|disk| disk.unused.as_ref());
        PullUpdate::Done {
            allocated: path.map_or(0, |path| world.room.taken(path)),
            already_there,
            kept_until: unused.map(|unused| world.settings.retention.until(unused.since)),
            digest,
        }
    }

    fn fail(&mut self, reason: &str, message: String) -> PullUpdate {
        self.stage = Stage::Over;
        PullUpdate::Failed { reason: reason.to_owned(), message }
    }
}
