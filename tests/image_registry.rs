//! Pulling from a registry that fails, lies and stalls.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
#[path = "image_registry/access.rs"]
mod access;
#[path = "image_registry/blobs.rs"]
mod blobs;
mod common;
#[path = "image_registry/full_disk.rs"]
mod full_disk;
#[path = "image_registry/mirrors.rs"]
mod mirrors;
#[path = "image_registry/odd.rs"]
mod odd;
#[path = "image_registry/raw.rs"]
mod raw;
#[path = "image_registry/tls.rs"]
mod tls;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::oci::{Image, Item, Layer, digest, noise, tar};
use common::registry::{Asked, Reply, ScriptedRegistry, bare};
use tempfile::TempDir;
use tokio::sync::watch;
use vmlet::image::{
    Digest, ImageError, ImageStore, Images, Limits, Progress, Registries, Settings, Source, StagedDisk,
};

/// Tries again at once, so that tests are quick.
fn quick() -> Settings {
    let (backoff, backoff_max) = (Duration::from_millis(1), Duration::from_millis(5));
    Settings { backoff, backoff_max, ..Settings::default() }
}

/// For registries whose silence is what is tested: a busy machine keeps others silent for as long now and then.
fn impatient() -> Settings {
    Settings { idle_timeout: Duration::from_millis(300), ..quick() }
}

struct Setup {
    state: TempDir,
    store: ImageStore,
    registry: ScriptedRegistry,
    digest: Digest,
}

impl Setup {
    async fn new(
        image: &Image,
        settings: Settings,
        script: impl Fn(&str, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let registry = ScriptedRegistry::start(image, script).await;
        Setup::with(image, settings, registry)
    }

    fn with(image: &Image, settings: Settings, registry: ScriptedRegistry) -> Self {
        let state = tempfile::tempdir().unwrap();
        let store = ImageStore::open(state.path(), settings).unwrap();
        Setup { state, store, registry, digest: image.digest().parse().unwrap() }
    }

    fn source(&self) -> Source {
        Source::Oci(self.registry.reference())
    }

    async fn resolve(&self) -> Result<Digest, ImageError> {
        limited(self.store.resolve(&self.source())).await
    }

    async fn stage(&self) -> Result<StagedDisk, ImageError> {
        let (progress, _) = watch::channel(Progress::default());
        limited(self.store.stage(&self.source(), &self.digest, &progress)).await
    }
}

async fn limited<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("it takes too long")
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).unwrap().next().is_none()
}

/// An image of one layer of 300 KB, and the digest of its blob.
fn image() -> (Image, String) {
    let layer = Layer::plain(&tar(&[Item::file("noise", noise(1, 300_000))]));
    let blob = digest(&layer.blob);
    (Image::new(vec![layer]), blob)
}

#[tokio::test]
async fn broken_connections_are_resumed() {
    let (image, blob) = image();
    let wanted = blob.clone();
    let setup = Setup::new(&image, quick(), move |path, nth| match nth {
        _ if path != wanted => Reply::Serve,
        0..3 => Reply::Break(70_000),
        _ => Reply::Serve,
    })
    .await;
    let (progress, seen) = watch::channel(Progress::default());
    drop(limited(setup.store.stage(&setup.source(), &setup.digest, &progress)).await.unwrap());
    let asked = setup.registry.asked(&blob);
    assert_eq!(asked.len(), 4);
    assert_eq!(asked[0].range, None);
    assert!(
        asked[1..].iter().all(|asked| asked.range.as_deref().unwrap().starts_with("bytes=")),
        "{asked:?}"
    );
    let seen = seen.borrow();
    assert_eq!((seen.layers, seen.layers_done), (1, 1));
    assert_eq!(
        (seen.bytes, seen.bytes_done),
        (image.blobs[&blob].len() as u64, image.blobs[&blob].len() as u64)
    );
}

#[tokio::test]
async fn a_registry_may_ignore_ranges() {
    let (image, blob) = image();
    let setup = Setup::new(&image, quick(), move |path, nth| match nth {
        0 if path == blob => Reply::Break(100_000),
        _ => Reply::IgnoreRange,
    })
    .await;
    drop(setup.stage().await.unwrap());
}

#[tokio::test]
async fn a_stalled_registry_is_asked_again() {
    let (image, blob) = image();
    let setup = Setup::new(&image, impatient(), move |path, nth| match nth {
        0 if path == blob => Reply::Stall(100_000),
        _ => Reply::Serve,
    })
    .await;
    drop(setup.stage().await.unwrap());
}

#[tokio::test]
async fn a_registry_that_drips_is_asked_again() {
    let (image, blob) = image();
    let setup = Setup::new(&image, impatient(), move |path, nth| match nth {
        // Never silent for long, and never done.
        0 if path == blob => Reply::Drip(1, Duration::from_millis(50)),
        _ => Reply::Serve,
    })
    .await;
    drop(setup.stage().await.unwrap());

    let settings = Settings { idle_timeout: Duration::from_secs(1), attempts: 2, ..quick() };
    let setup = Setup::new(&image, settings, |_, _| Reply::Drip(1, Duration::from_millis(50))).await;
    let error = setup.resolve().await.unwrap_err();
    assert_eq!((error.reason, error.transient), ("RegistryUnavailable", true), "{error}");
    assert!(error.message.contains("only "), "{error}");
}

#[tokio::test]
async fn wrong_ranges_are_refused_and_refused_ranges_done_without() {
    let (image, blob) = image();
    for wrong in [Reply::WrongRange(5), Reply::Status(416)] {
        let (wanted, wrong) = (blob.clone(), Arc::new(wrong));
        let setup = Setup::new(&image, quick(), move |path, nth| match nth {
            _ if path != wanted => Reply::Serve,
            0 => Reply::Break(100_000),
            1 => (*wrong).clone(),
            _ => Reply::Serve,
        })
        .await;
        drop(setup.stage().await.unwrap());
        assert_eq!(setup.registry.asked(&blob).len(), 3);
    }
}

#[tokio::test]
async fn a_registry_that_refuses_ranges_is_asked_for_the_whole() {
    let (image, blob) = image();
    let wanted = blob.clone();
    let gate = |asked: &Asked, _: SocketAddr| asked.range.as_ref().map(|_| bare(416, &[]));
    let registry = ScriptedRegistry::start_with(&image, None, gate, move |path, nth| match nth {
        0 if path == wanted => Reply::Break(100_000),
        _ => Reply::Serve,
    })
    .await;
    let setup = Setup::with(&image, quick(), registry);
    drop(setup.stage().await.unwrap());
    let ranges: Vec<_> = setup.registry.asked(&blob).into_iter().map(|asked| asked.range).collect();
    assert_eq!(ranges, [None, Some("bytes=100000-".to_owned()), None]);
}

#[tokio::test]
async fn a_whole_of_another_length_is_another_blob() {
    let (image, blob) = image();
    let (wanted, bytes) = (blob.clone(), image.blobs[&blob].clone());
    let gate = move |asked: &Asked, _: SocketAddr| {
        let from: usize = asked.range.as_ref()?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()?;
        let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len() + 1);
        Some(bare(206, &[("content-range", &range)]).map(|_| bytes[from..].to_vec().into()))
    };
    let registry = ScriptedRegistry::start_with(&image, None, gate, move |path, _| match path == wanted {
        true => Reply::Break(100_000),
        false => Reply::Serve,
    })
    .await;
    let setup = Setup::with(&image, quick(), registry);
    let error = setup.stage().await.unwrap_err();
    assert_eq!((error.reason, error.transient), ("InvalidImage", false), "{error}");
    assert_eq!(setup.registry.asked(&blob).len(), 2);
}

#[tokio::test]
async fn a_download_that_gets_on_is_not_given_up() {
    let layer = Layer::plain(&tar(&[Item::file("noise", noise(1, 6 << 20))]));
    let blob = digest(&layer.blob);
    let wanted = blob.clone();
    let settings = Settings { attempts: 2, ..quick() };
    let setup = Setup::new(&Image::new(vec![layer]), settings, move |path, nth| match nth {
        0..5 if path == wanted => Reply::Break(Settings::PROGRESS_BYTES as usize + 1000),
        _ => Reply::Serve,
    })
    .await;
    drop(setup.stage().await.unwrap());
    assert_eq!(setup.registry.asked(&blob).len(), 6);
}

#[tokio::test]
async fn what_no_retry_mends_is_asked_once() {
    let (image, _) = image();
    for status in [400, 405, 451] {
        let setup = Setup::new(&image, quick(), move |_, _| Reply::Status(status)).await;
        let error = setup.resolve().await.unwrap_err();
        assert_eq!((error.reason, error.transient), ("RegistryUnavailable", true), "{error}");
        assert_eq!(setup.registry.asked("/1").len(), 1, "{status}");
    }
}

#[tokio::test]
async fn web_pages_are_no_manifests() {
    let (image, _) = image();
    let page =
        |asked: &Asked, _| asked.path.ends_with("/1").then(|| bare(200, &[("content-type", "text/html")]));
    let setup = Setup::with(&image, quick(), ScriptedRegistry::start_gated(&image, page).await);
    let error = setup.resolve().await.unwrap_err();
    assert_eq!((error.reason, error.transient), ("RegistryUnavailable", true), "{error}");
    assert!(error.message.contains("web page"), "{error}");
}

#[tokio::test]
async fn what_headers_say_of_a_digest_does_not_matter() {
    let (image, _) = image();
    let manifest = image.manifest.clone();
    let lie = move |asked: &Asked, _| {
        asked.path.ends_with("/1").then(|| {
            let answer = bare(200, &[("docker-content-digest", &digest(b"another"))]);
            answer.map(|_| manifest.clone().into())
        })
    };
    let setup = Setup::with(&image, quick(), ScriptedRegistry::start_gated(&image, lie).await);
    assert_eq!(setup.resolve().await.unwrap(), setup.digest);
}

#[tokio::test]
async fn redirects_end() {
    let (image, blob) = image();
    let round = move |asked: &Asked, _| {
        asked.path.ends_with(&blob).then(|| bare(307, &[("location", asked.path.as_str())]))
    };
    let setup = Setup::with(&image, quick(), ScriptedRegistry::start_gated(&image, round).await);
    let error = setup.stage().await.unwrap_err();
    assert_eq!((error.reason, error.transient), ("RegistryUnavailable", true), "{error}");
    assert!(error.message.contains("more than 5 redirects"), "{error}");
}

#[tokio::test]
async fn overload_is_waited_for() {
    let (image, _) = image();
    let setup = Setup::new(&image, quick(), |_, nth| match nth {
        0 => Reply::Status(503),
        1 => Reply::Throttle(3600),
        _ => Reply::Serve,
    })
    .await;
    assert_eq!(setup.resolve().await.unwrap(), setup.digest);
    drop(setup.stage().await.unwrap());
}

#[tokio::test]
async fn a_dead_registry_is_given_up() {
    let (image, blob) = image();
    let wanted = blob.clone();
    let setup = Setup::new(&image, quick(), move |path, _| match path == wanted {
        true => Reply::Break(10),
        false => Reply::Serve,
    })
    .await;
    let error = setup.stage().await.unwrap_err();
    assert_eq!((error.reason, error.transient), ("RegistryUnavailable", true), "{error}");
    assert_eq!(setup.registry.asked(&blob).len(), 5);
    assert!(is_empty(&setup.state.path().join("staging")));
}

#[tokio::test]
async fn what_will_not_fit_is_not_begun() {
    let mut layer = Layer::plain(&tar(&[Item::file("noise", noise(1, 1000))]));
    let blob = digest(&layer.blob);
    layer.size = 1 << 48;
    let image = Image::new(vec![layer]);
    let limits = Limits { compressed_bytes: 1 << 50, ..Limits::default() };
    let setup = Setup::new(&image, Settings { limits, ..quick() }, |_, _| Reply::Serve).await;
    let error = setup.stage().await.unwrap_err();
    assert_eq!((error.reason, error.transient), ("NoSpace", true), "{error}");
    assert!(error.message.contains("the image will take about 536870912 MiB"), "{error}");
    assert!(setup.registry.asked(&blob).is_empty(), "nothing is downloaded");
    assert!(is_empty(&setup.state.path().join("staging")));
}

#[tokio::test]
async fn what_is_not_there_may_come() {
    let (image, _) = image();
    let setup = Setup::new(&image, quick(), |_, _| Reply::Serve).await;
    let source = Source::Oci(format!("{}x", setup.registry.reference()));
    let error = limited(setup.store.resolve(&source)).await.unwrap_err();
    assert_eq!((error.reason, error.transient), ("NotFound", true));
    assert!(error.message.contains("manifest unknown"), "{error}");
}

#[tokio::test]
async fn wrong_bytes_are_refused() {
    let (image, blob) = image();
    let mut wrong = image.blobs[&blob].clone();
    // In the file's data: only the digest can tell.
    wrong[100_000] ^= 1;
    let setup = Setup::new(&image, quick(), move |path, _| match path == blob {
        true => Reply::Bytes(wrong.clone()),
        false => Reply::Serve,
    })
    .await;
    let error = setup.stage().await.unwrap_err();
    assert_eq!(error.reason, "DigestMismatch", "{error}");
    assert!(is_empty(&setup.state.path().join("staging")));
}

#[tokio::test]
async fn a_wrong_manifest_is_refused() {
    let (image, _) = image();
    let other = Image::new(Vec::new());
    let setup = Setup::new(&image, quick(), move |path, _| match path.len() {
        71 => Reply::Bytes(other.manifest.clone()),
        _ => Reply::Serve,
    })
    .await;
    assert_eq!(setup.stage().await.unwrap_err().reason, "DigestMismatch");
}

#[tokio::test]
async fn sizes_must_be_right() {
    for lie in [-1i64, 1] {
        let mut layer = Layer::plain(&tar(&[Item::file("noise", noise(1, 300_000))]));
        layer.size = layer.size.checked_add_signed(lie).unwrap();
        let blob = digest(&layer.blob);
        let setup = Setup::new(&Image::new(vec![layer]), quick(), |_, _| Reply::Serve).await;
        let error = setup.stage().await.unwrap_err();
        assert_eq!((error.reason, error.transient), ("InvalidImage", false), "{error}");
        assert_eq!(setup.registry.asked(&blob).len(), 1, "the length is told before the first byte");
    }
}

#[tokio::test]
async fn endless_bodies_end() {
    let (image, blob) = image();
    let setup = Setup::new(&image, quick(), |_, _| Reply::Endless(vec![b' '; 100_000])).await;
    let error = setup.resolve().await.unwrap_err();
    assert_eq!((error.reason, error.transient), ("LimitExceeded", false));
    assert!(error.message.contains("manifest_bytes"), "{error}");

    let setup = Setup::new(&image, quick(), move |path, _| match path == blob {
        true => Reply::Endless(vec![0; 100_000]),
        false => Reply::Serve,
    })
    .await;
    let error = setup.stage().await.unwrap_err();
    assert!(["InvalidImage", "DigestMismatch"].contains(&error.reason), "{error}");
}

#[tokio::test]
async fn limits_are_named() {
    let (image, _) = image();
    type Set = fn(&mut Limits);
    let cases: [(&str, Set); 6] = [
        ("compressed_bytes", |limits| limits.compressed_bytes = 1000),
        ("unpacked_bytes", |limits| limits.unpacked_bytes = 1000),
        ("disk_bytes", |limits| limits.disk_bytes = 128 << 10),
        ("entries", |limits| limits.entries = 0),
        ("layers", |limits| limits.layers = 0),
        ("config_bytes", |limits| limits.config_bytes = 1),
    ];
    for (name, set) in cases {
        let mut settings = quick();
        set(&mut settings.limits);
        let setup = Setup::new(&image, settings, |_, _| Reply::Serve).await;
        let error = setup.stage().await.unwrap_err();
        assert_eq!((error.reason, error.transient), ("LimitExceeded", false), "{name}: {error}");
        assert!(error.message.contains(name), "{name}: {error}");
    }
}

#[tokio::test]
async fn tokens_are_fetched_and_kept() {
    let (image, _) = image();
    let registry = ScriptedRegistry::start_private(&image, "secret").await;
    let setup = Setup::with(&image, quick(), registry);
    assert_eq!(setup.resolve().await.unwrap(), setup.digest);
    drop(setup.stage().await.unwrap());
    assert_eq!(setup.registry.asked("/token").len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn different_images_are_pulled_at_once() {
    // Each registry sends its blob only once the other was asked for its own.
    let (left, left_blob) = image();
    let layer = Layer::gzip(&tar(&[Item::file("other", noise(2, 1000))]));
    let right_blob = digest(&layer.blob);
    let right = Image::new(vec![layer]);
    let barrier = Arc::new(std::sync::Barrier::new(2));
    let script = |blob: String, barrier: Arc<std::sync::Barrier>| {
        move |path: &str, _| {
            if path == blob {
                tokio::task::block_in_place(|| barrier.wait());
            }
            Reply::Serve
        }
    };
    let (left_script, right_script) = (script(left_blob, barrier.clone()), script(right_blob, barrier));
    let left_registry = ScriptedRegistry::start(&left, left_script).await;
    let right_registry = ScriptedRegistry::start(&right, right_script).await;
    let setup = Setup::with(&left, quick(), left_registry);
    let (progress, _) = watch::channel(Progress::default());
    let (source, digest) = (Source::Oci(right_registry.reference()), right.digest().parse().unwrap());
    let both = async { tokio::join!(setup.stage(), setup.store.stage(&source, &digest, &progress)) };
    let (one, other) = limited(both).await;
    drop(one.unwrap());
    drop(other.unwrap());
}

#[tokio::test]
async fn a_dropped_pull_leaves_nothing() {
    let (image, blob) = image();
    let setup = Setup::new(&image, Settings::default(), move |path, _| match path == blob {
        true => Reply::Stall(100_000),
        false => Reply::Serve,
    })
    .await;
    let (progress, mut seen) = watch::channel(Progress::default());
    let source = setup.source();
    {
        let mut stage = std::pin::pin!(setup.store.stage(&source, &setup.digest, &progress));
        let under_way = seen.wait_for(|progress| progress.bytes_done >= 100_000);
        tokio::select! {
            _ = &mut stage => panic!("the pull cannot end"),
            under_way = limited(under_way) => { under_way.unwrap(); }
        }
        assert!(!is_empty(&setup.state.path().join("staging")));
    }
    assert!(is_empty(&setup.state.path().join("staging")));
    // The threads hold a sender each while they run.
    drop(progress);
    limited(async { while seen.changed().await.is_ok() {} }).await;
}
