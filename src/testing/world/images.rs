//! The scripted registry and image store: staging places and base disks that are entries in the world.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use async_trait::async_trait;
use rand::Rng;
use tokio::sync::watch;

use super::tally::Pulling;
use super::{Effect, Refusal, State, World};
use crate::image::{
    BaseDisk, CachedBlob, Digest, ImageConfig, ImageError, Images, Progress, Root, Source, StagedDisk,
};
use crate::store::DiskState;
use crate::testing::images::{ImageScript, name};

/// The length of every base disk.
pub(super) const SIZE: u64 = 1 << 20;
/// A pull is heard of so often.
const LAYERS: usize = 4;

/// The registry and image store of one daemon.
pub(in crate::testing) struct ScriptedImages(pub(in crate::testing) Arc<World>);

impl From<Refusal> for ImageError {
    fn from(refusal: Refusal) -> Self {
        let Refusal { reason, message, transient } = refusal;
        ImageError { reason, message, transient }
    }
}

/// Where a base disk is.
pub(super) fn path(digest: &Digest) -> PathBuf {
    PathBuf::from("/simulated/images").join(digest.folder()).join("disk.ext4")
}

fn base_disk(digest: &Digest) -> BaseDisk {
    BaseDisk {
        digest: digest.clone(),
        path: path(digest),
        size: SIZE,
        config: ImageConfig::default(),
        kernel: None,
    }
}

impl State {
    /// How a source behaves: as scripted, or there, with a digest of its own.
    pub(in crate::testing) fn image_script(&self, source: &Source) -> ImageScript {
        let name = name(source);
        self.image_scripts.get(&name).cloned().unwrap_or_else(|| ImageScript::of(&name))
    }

    pub(in crate::testing) fn script_image(&mut self, name: String, script: ImageScript) {
        // Before the start nobody asked what it stands for.
        let asked = self.now() > Duration::ZERO;
        let before = self.image_scripts.get(&name).map_or_else(|| ImageScript::of(&name), Clone::clone);
        let meanings = self.meanings.entry(name.clone()).or_default();
        meanings.extend(before.digest.filter(|_| asked));
        meanings.extend(script.digest.clone());
        self.image_scripts.insert(name, script);
    }

    /// Everything that a source ever stood for.
    pub(in crate::testing) fn meanings(&self, source: &Source) -> BTreeSet<Digest> {
        let name = name(source);
        let unscripted = || ImageScript::of(&name).digest.into_iter().collect();
        self.meanings.get(&name).cloned().unwrap_or_else(unscripted)
    }

    fn find(&self, source: &Source) -> Result<Digest, Refusal> {
        self.image_script(source).digest.ok_or_else(|| Refusal {
            reason: "NotFound",
            message: format!("{source} is not in the registry"),
            transient: true,
        })
    }

    fn durable_disk(&self, digest: &Digest) -> Option<DiskState> {
        self.durable()?.disk(digest).map(|disk| disk.state)
    }
}

/// How a pull ends, as scripted.
fn finish_script(state: &mut State, source: &Source) -> Result<(), Refusal> {
    match state.image_scripts.get_mut(&name(source)) {
        Some(script) if script.failures > 0 => {
            script.failures -= 1;
            let message = format!("{source}: connection reset by peer");
            Err(Refusal { reason: "RegistryUnavailable", message, transient: true })
        }
        _ => Ok(()),
    }
}

/// A staging place: goes when it is dropped, unless a dead daemon drops it.
struct Staging {
    world: Arc<World>,
    number: u64,
}

impl Staging {
    fn begin(world: Arc<World>, state: &mut State, digest: &Digest) -> Self {
        let number = state.dice.random();
        state.staged.insert(number, digest.clone());
        Staging { world, number }
    }

    fn disk(self, digest: &Digest, config: ImageConfig) -> StagedDisk {
        StagedDisk { digest: digest.clone(), dir: None, held: Some(Box::new(self)), size: SIZE, config }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let mut state = self.world.lock();
        if !state.dead() {
            state.staged.remove(&self.number);
        }
    }
}

fn of_source(effect: &'static str, source: &Source) -> Effect {
    Effect { name: effect, object: None, fate: Some(name(source)) }
}

fn of_host(name: &'static str) -> Effect {
    Effect { name, object: None, fate: None }
}

#[async_trait]
impl Images for ScriptedImages {
    async fn resolve(&self, source: &Source) -> Result<Digest, ImageError> {
        let act = |state: &mut State| state.find(source);
        Ok(self.0.effect(&of_source("resolve", source), act).await?)
    }

    async fn stage(
        &self,
        source: &Source,
        digest: &Digest,
        progress: &watch::Sender<Progress>,
    ) -> Result<StagedDisk, ImageError> {
        let _pulling = Pulling::begin(&self.0, name(source));
        let world = self.0.clone();
        let begin = |state: &mut State| {
            state.find(source)?;
            Ok((Staging::begin(world, state, digest), state.image_script(source)))
        };
        let (staging, script) = self.0.effect(&of_source("begin a pull", source), begin).await?;
        for done in 0..LAYERS {
            let (layers, bytes) = (LAYERS, 100 * LAYERS as u64);
            progress.send_replace(Progress {
                layers,
                layers_done: done,
                bytes,
                bytes_done: 100 * done as u64,
            });
            tokio::time::sleep(script.pull / LAYERS as u32).await;
        }
        if script.panics > 0 {
            self.0.lock().image_scripts.entry(name(source)).and_modify(|script| script.panics -= 1);
            panic!("a pull panics as scripted");
        }
        let finish = |state: &mut State| {
            if state.space().free < SIZE {
                state.layers = 0;
            }
            if state.space().free < SIZE {
                state.starved += 1;
                let message = "the disk is full, as scripted".to_owned();
                return Err(Refusal { reason: ImageError::NO_SPACE, message, transient: true });
            }
            finish_script(state, source)
        };
        self.0.effect(&of_source("pull", source), finish).await?;
        Ok(staging.disk(digest, ImageConfig::default()))
    }

    async fn stage_root(
        &self,
        root: Root,
        digest: &Digest,
        _: &watch::Sender<Progress>,
    ) -> Result<StagedDisk, ImageError> {
        let world = self.0.clone();
        let act = |state: &mut State| {
            if !state.folders.keys().any(|dir| root.tar.starts_with(dir)) {
                state.violation(format!("{} is read and is not there", root.tar.display()));
            }
            Ok(Staging::begin(world, state, digest))
        };
        let staging = self.0.effect(&of_host("stage a root"), act).await?;
        Ok(staging.disk(digest, root.config))
    }

    async fn install(&self, staged: StagedDisk) -> Result<BaseDisk, ImageError> {
        let digest = &staged.digest;
        let act = |state: &mut State| {
            let claimed = matches!(state.durable_disk(digest), Some(DiskState::Installing { .. }));
            if state.durable().is_some() && !claimed {
                state.violation(format!("{digest} is installed without a durable claim"));
            }
            state.disks.insert(digest.clone());
            Ok(base_disk(digest))
        };
        Ok(self.0.effect(&of_host("install"), act).await?)
    }

    async fn disk(&self, digest: &Digest) -> Option<BaseDisk> {
        let act = |state: &mut State| Ok(state.disks.contains(digest).then(|| base_disk(digest)));
        // Looking cannot fail: what is not seen counts as absent.
        let effect = of_host("look for a disk");
        loop {
            if let Ok(seen) = self.0.effect(&effect, act).await {
                return seen;
            }
        }
    }

    async fn remove(&self, digest: &Digest) -> Result<(), ImageError> {
        let act = |state: &mut State| {
            state.tally.removals += 1;
            let now = state.now();
            let place = path(digest);
            let user = state.processes.all().find(|process| process.runs(now) && *process.base() == place);
            if let Some(key) = user.map(|process| process.launch.key.clone()) {
                state.violation(format!("the base disk of {key} is removed under its feet"));
            }
            if !matches!(state.durable_disk(digest), Some(DiskState::Removing) | None) {
                state.violation(format!("{digest} is removed while its record says that it stays"));
            }
            state.audit_removal(digest);
            state.disks.remove(digest);
            Ok(())
        };
        Ok(self.0.effect(&of_host("remove a disk"), act).await?)
    }

    async fn check(&self, digest: &Digest) -> Result<(), ImageError> {
        let state = self.0.lock();
        let changed = |script: &ImageScript| script.changed && script.digest.as_ref() == Some(digest);
        match state.image_scripts.values().any(changed) {
            true => Err(ImageError {
                reason: "FilesChanged",
                message: format!("the files of {digest} changed"),
                transient: true,
            }),
            false => Ok(()),
        }
    }

    async fn blobs(&self) -> Result<Vec<CachedBlob>, ImageError> {
        let size = self.0.lock().layers;
        let digest = ImageScript::of("layer").digest.into_iter().filter(|_| size > 0);
        Ok(digest.map(|digest| CachedBlob { digest, size, last_used: UNIX_EPOCH, partial: false }).collect())
    }

    async fn prune_blobs(&self, down_to: u64) -> Result<u64, ImageError> {
        let act = |state: &mut State| {
            let before = state.layers;
            state.layers = before.min(down_to);
            Ok(before - state.layers)
        };
        Ok(self.0.effect(&of_host("remove layers"), act).await?)
    }

    async fn installed(&self) -> Result<Vec<Digest>, ImageError> {
        let act = |state: &mut State| Ok(state.disks.iter().cloned().collect());
        Ok(self.0.effect(&of_host("list disks"), act).await?)
    }
}
