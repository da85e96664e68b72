//! Pulls in a process of its own: what it uses is theirs alone.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinSet;
use vmlet::image::{ImageStore, Images, Progress, Settings, Source};

use super::common;

/// What a child measured.
#[derive(Serialize, Deserialize)]
pub(crate) struct Pulled {
    /// From the first request to the last base disk, installed and durable.
    pub(crate) seconds: f64,
    /// Processor time of the process.
    pub(crate) cpu_seconds: f64,
    pub(crate) peak_bytes: u64,
    /// Asking for the last one again.
    pub(crate) again_seconds: f64,
}

/// The first argument of a child.
const CHILD: &str = "pull";

/// Pulls these images at once into an empty state folder.
pub(crate) fn pull(references: &[String]) -> Pulled {
    let state = common::folder();
    let own = std::env::current_exe().expect("/proc is mounted");
    let mut command = Command::new(own);
    command.arg(CHILD).arg(state.path()).args(references).stderr(Stdio::inherit());
    let output = command.output().expect("a process can be started");
    assert!(output.status.success(), "the child failed");
    serde_json::from_slice(&output.stdout).expect("the child prints what it measured")
}

/// Is this process a child? Then it works and prints.
pub(crate) fn run() -> bool {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [first, state, references @ ..] = arguments.as_slice() else { return false };
    if first != CHILD {
        return false;
    }
    let pulled = common::runtime().block_on(pull_all(Path::new(state), references));
    println!("{}", serde_json::to_string(&pulled).expect("it is plain data"));
    true
}

async fn pull_all(state: &Path, references: &[String]) -> Pulled {
    // A daemon has it open long before.
    let store = Arc::new(ImageStore::open(state, Settings::default()).expect("a new state folder"));
    let start = Instant::now();
    let mut pulls = JoinSet::new();
    for reference in references {
        let source = Source::Oci(reference.clone());
        let store = store.clone();
        pulls.spawn(async move { pull_one(&store, &source).await });
    }
    pulls.join_all().await;
    let seconds = start.elapsed().as_secs_f64();
    let (cpu_seconds, peak_bytes) = (common::cpu_time().as_secs_f64(), common::peak_bytes());
    let start = Instant::now();
    let source = Source::Oci(references.last().expect("at least one").clone());
    pull_one(&store, &source).await;
    Pulled { seconds, cpu_seconds, peak_bytes, again_seconds: start.elapsed().as_secs_f64() }
}

/// As the engine pulls: what is there is not built again.
async fn pull_one(store: &ImageStore, source: &Source) {
    let digest = store.resolve(source).await.expect("the registry has it");
    if store.disk(&digest).await.is_none() {
        let (progress, _) = watch::channel(Progress::default());
        let staged = store.stage(source, &digest, &progress).await.expect("the image is fine");
        store.install(staged).await.expect("there is room");
    }
}
