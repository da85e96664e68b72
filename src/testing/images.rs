//! A scripted registry.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use uuid::Uuid;

use crate::image::{
    BaseDisk, Digest, ImageConfig, ImageError, Images, Progress, Reference, Root, Source, StagedDisk,
};

/// How one reference behaves.
#[derive(Clone, Debug)]
pub struct ImageScript {
    /// What it resolves to; none is not found.
    pub digest: Option<Digest>,
    /// How long a pull takes.
    pub pull: Duration,
    /// So many pulls fail before one succeeds.
    pub failures: u32,
    /// So many pulls panic before one does not.
    pub panics: u32,
    /// Its files are not what they were: VMs do not start on it.
    pub changed: bool,
}

impl ImageScript {
    /// An image whose digest repeats one hexadecimal digit, pulled in the given time.
    ///
    /// # Panics
    /// If `digit` is not a lower-case hexadecimal digit.
    pub fn new(digit: char, pull: Duration) -> Self {
        let digest = format!("sha256:{}", digit.to_string().repeat(64));
        let digest = digest.parse().expect("64 hexadecimal digits are a digest");
        ImageScript { digest: Some(digest), pull, failures: 0, panics: 0, changed: false }
    }

    /// A source that is there, with a digest of its own, and pulled in three seconds.
    pub fn of(source: &str) -> Self {
        let digest = Digest::sha256(Sha256::digest(canonical(source).as_bytes()).into());
        ImageScript {
            digest: Some(digest),
            pull: Duration::from_secs(3),
            failures: 0,
            panics: 0,
            changed: false,
        }
    }
}

/// The scripted images. Staging and installed disks are real folders, so that what is left behind
/// can be seen.
#[derive(Debug)]
pub struct FakeImages {
    root: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    scripts: HashMap<String, ImageScript>,
    pulling: usize,
    most_pulling: usize,
    pulls: HashMap<String, u32>,
    removals: u32,
}

impl FakeImages {
    /// Keeps its folders under `root`.
    ///
    /// # Errors
    /// When the folders cannot be made.
    pub fn new(root: &Path) -> std::io::Result<Self> {
        fs::create_dir_all(root.join("staging"))?;
        fs::create_dir_all(root.join("images"))?;
        Ok(FakeImages { root: root.to_owned(), state: Mutex::default() })
    }

    /// Sets how a reference behaves from now on.
    pub fn script(&self, reference: &str, script: ImageScript) {
        self.lock().scripts.insert(canonical(reference), script);
    }

    /// Pulls that ran at once, at most.
    pub fn most_pulling(&self) -> usize {
        self.lock().most_pulling
    }

    /// Pulls of a reference that were begun.
    pub fn pulls(&self, reference: &str) -> u32 {
        self.lock().pulls.get(&canonical(reference)).copied().unwrap_or(0)
    }

    /// Disks that were removed.
    pub fn removals(&self) -> u32 {
        self.lock().removals
    }

    /// Staging folders that exist now.
    pub fn staged(&self) -> usize {
        count(&self.root.join("staging"))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, source: &Source) -> Result<ImageScript, ImageError> {
        let script = self.lock().scripts.get(&name(source)).cloned();
        script.filter(|script| script.digest.is_some()).ok_or_else(|| ImageError {
            reason: "NotFound",
            message: format!("{source} is not in the registry"),
            transient: true,
        })
    }

    fn place(&self, digest: &Digest) -> PathBuf {
        self.root.join("images").join(digest.folder())
    }
}

/// The one name of a source: references get their registry and tag, others stay as they are.
pub(super) fn canonical(source: &str) -> String {
    source.parse::<Reference>().map_or_else(|_| source.to_owned(), |reference| reference.to_string())
}

/// What scripts and fates of a source go by.
pub(super) fn name(source: &Source) -> String {
    canonical(&source.to_string())
}

fn count(folder: &Path) -> usize {
    fs::read_dir(folder).map(Iterator::count).unwrap_or(0)
}

fn io_error(error: &std::io::Error) -> ImageError {
    ImageError { reason: "NoSpace", message: error.to_string(), transient: true }
}

/// Counts a pull for as long as it runs, cancelled or not.
struct Inside<'a>(&'a FakeImages);

impl<'a> Inside<'a> {
    fn enter(images: &'a FakeImages, source: &Source) -> Self {
        let mut state = images.lock();
        state.pulling += 1;
        state.most_pulling = state.most_pulling.max(state.pulling);
        *state.pulls.entry(name(source)).or_default() += 1;
        Inside(images)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.lock().pulling -= 1;
    }
}

#[async_trait]
impl Images for FakeImages {
    async fn resolve(&self, source: &Source) -> Result<Digest, ImageError> {
        tokio::task::yield_now().await;
        Ok(self.find(source)?.digest.expect("found scripts have a digest"))
    }

    async fn stage(
        &self,
        source: &Source,
        digest: &Digest,
        progress: &watch::Sender<Progress>,
    ) -> Result<StagedDisk, ImageError> {
        let _inside = Inside::enter(self, source);
        let script = self.find(source)?;
        let dir = self.root.join("staging").join(Uuid::new_v4().to_string());
        fs::create_dir(&dir).map_err(|error| io_error(&error))?;
        let staged = StagedDisk {
            digest: digest.clone(),
            dir: Some(dir),
            held: None,
            size: 1 << 20,
            config: ImageConfig::default(),
        };
        progress.send_replace(Progress { layers: 1, layers_done: 0, bytes: 100, bytes_done: 50 });
        tokio::time::sleep(script.pull).await;
        if script.panics > 0 {
            if let Some(script) = self.lock().scripts.get_mut(&name(source)) {
                script.panics -= 1;
            }
            panic!("a pull panics as scripted");
        }
        if script.failures > 0 {
            if let Some(script) = self.lock().scripts.get_mut(&name(source)) {
                script.failures -= 1;
            }
            let message = format!("{source}: connection reset by peer");
            return Err(ImageError { reason: "RegistryUnavailable", message, transient: true });
        }
        Ok(staged)
    }

    async fn stage_root(
        &self,
        _: Root,
        _: &Digest,
        _: &watch::Sender<Progress>,
    ) -> Result<StagedDisk, ImageError> {
        Err(ImageError { reason: "NotScripted", message: "no VM is promoted".to_owned(), transient: false })
    }

    async fn install(&self, mut staged: StagedDisk) -> Result<BaseDisk, ImageError> {
        let place = self.place(&staged.digest);
        if let Some(dir) = staged.dir.as_ref().filter(|_| !place.exists()) {
            fs::rename(dir, &place).map_err(|error| io_error(&error))?;
            staged.dir = None;
        }
        self.disk(&staged.digest).await.ok_or_else(|| ImageError {
            reason: "InvalidImage",
            message: "the staged disk has no folder".to_owned(),
            transient: false,
        })
    }

    async fn disk(&self, digest: &Digest) -> Option<BaseDisk> {
        let path = self.place(digest);
        let config = ImageConfig::default();
        path.exists().then(|| BaseDisk {
            digest: digest.clone(),
            path: path.join("disk.ext4"),
            size: 1 << 20,
            config,
            kernel: None,
        })
    }

    async fn remove(&self, digest: &Digest) -> Result<(), ImageError> {
        self.lock().removals += 1;
        match fs::remove_dir_all(self.place(digest)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io_error(&error)),
            _ => Ok(()),
        }
    }

    async fn installed(&self) -> Result<Vec<Digest>, ImageError> {
        let entries = fs::read_dir(self.root.join("images")).map_err(|error| io_error(&error))?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        Ok(names.filter_map(|name| name.replacen('-', ":", 1).parse().ok()).collect())
    }
}
