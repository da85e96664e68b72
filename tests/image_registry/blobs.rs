//! Layers on the host: shared, kept, resumed, verified, bounded.

use std::fs;
use std::path::PathBuf;
use std::time::SystemTime;

use super::*;

fn no_cache() -> Settings {
    Settings { blob_cache: 0, ..quick() }
}

fn files(state: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> =
        fs::read_dir(state.join("blobs")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Where a complete layer is kept.
fn kept(state: &Path, blob: &str) -> PathBuf {
    state.join("blobs").join(blob.replace(':', "-"))
}

/// Two images on one layer of 300 KB, and the digest of its blob.
fn two_images() -> (Image, Image, String) {
    let base = || Layer::plain(&tar(&[Item::file("noise", noise(1, 300_000))]));
    let top = Layer::gzip(&tar(&[Item::file("top", "top")]));
    let blob = digest(&base().blob);
    (Image::new(vec![base()]), Image::new(vec![base(), top]), blob)
}

/// Pulls until this many bytes are there, then drops the pull.
async fn interrupted(setup: &Setup, bytes: u64) {
    let (progress, mut seen) = watch::channel(Progress::default());
    let source = setup.source();
    let mut stage = std::pin::pin!(setup.store.stage(&source, &setup.digest, &progress));
    let arrived = seen.wait_for(|progress| progress.bytes_done >= bytes);
    tokio::select! {
        _ = &mut stage => panic!("the pull cannot end"),
        arrived = limited(arrived) => { arrived.unwrap(); }
    }
}

/// The partial file, once it holds this many bytes.
async fn partial(state: &Path, bytes: u64) -> PathBuf {
    limited(async {
        loop {
            let files = files(state);
            if let [file] = &files[..]
                && fs::metadata(file).is_ok_and(|data| data.len() >= bytes)
            {
                return file.clone();
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pulls_share_a_download() {
    let (one, two, blob) = two_images();
    let wanted = blob.clone();
    // The layer is sent once the other image is asked for; nothing is kept, so sharing is all that helps.
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let registry = ScriptedRegistry::start_images(
        &[&one, &two],
        None,
        |_, _| None,
        move |path, _| {
            if path == wanted {
                tokio::task::block_in_place(|| wait.lock().unwrap().recv().unwrap());
            }
            Reply::Serve
        },
    )
    .await;
    let setup = Setup::with(&one, no_cache(), registry);
    let source = Source::Oci(format!("{}/other/app:2", setup.registry.address()));
    let digest = two.digest().parse().unwrap();
    let (progress, mut seen) = watch::channel(Progress::default());
    let other = async {
        let release = async {
            // Its own layer is there, so the other one is waited for.
            seen.wait_for(|progress| progress.bytes_done > 0).await.unwrap();
            go.send(()).unwrap();
        };
        tokio::join!(setup.store.stage(&source, &digest, &progress), release).0
    };
    let (first, second) = limited(async { tokio::join!(setup.stage(), other) }).await;
    drop((first.unwrap(), second.unwrap()));
    assert_eq!(setup.registry.asked(&blob).len(), 1);
    assert!(is_empty(&setup.state.path().join("blobs")));
    let seen = seen.borrow();
    assert_eq!(seen.bytes_done, seen.bytes, "both see the progress");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_registry_fails_at_fails_all_who_wait() {
    let (one, two, blob) = two_images();
    let wanted = blob.clone();
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let script = move |path: &str, nth: usize| {
        if path != wanted {
            return Reply::Serve;
        }
        if nth == 0 {
            tokio::task::block_in_place(|| wait.lock().unwrap().recv().unwrap());
        }
        Reply::Break(10)
    };
    let registry = ScriptedRegistry::start_images(&[&one, &two], None, |_, _| None, script).await;
    let setup = Setup::with(&one, Settings { attempts: 3, ..no_cache() }, registry);
    let source = Source::Oci(format!("{}/app:2", setup.registry.address()));
    let digest = two.digest().parse().unwrap();
    let (progress, mut seen) = watch::channel(Progress::default());
    let other = async {
        let release = async {
            // Its own layer is there, so the other one is waited for.
            seen.wait_for(|progress| progress.bytes_done > 0).await.unwrap();
            go.send(()).unwrap();
        };
        tokio::join!(setup.store.stage(&source, &digest, &progress), release).0
    };
    let (first, second) = limited(async { tokio::join!(setup.stage(), other) }).await;
    for end in [first.map(drop), second.map(drop)] {
        assert_eq!(end.unwrap_err().reason, "RegistryUnavailable");
    }
    assert_eq!(setup.registry.asked(&blob).len(), 3, "one asked for both");
}

#[tokio::test]
async fn who_waits_goes_on_when_who_downloads_is_dropped() {
    let (one, two, blob) = two_images();
    let wanted = blob.clone();
    let registry = ScriptedRegistry::start_images(
        &[&one, &two],
        None,
        |_, _| None,
        move |path, nth| match nth {
            0 if path == wanted => Reply::Stall(100_000),
            _ => Reply::Serve,
        },
    )
    .await;
    let setup = Setup::with(&one, Settings { blob_cache: 0, ..Settings::default() }, registry);
    let (source, digest) =
        (Source::Oci(format!("{}/app:2", setup.registry.address())), two.digest().parse().unwrap());
    let (of_first, mut first_seen) = watch::channel(Progress::default());
    let (of_second, mut second_seen) = watch::channel(Progress::default());
    let first_source = setup.source();
    let mut second = std::pin::pin!(setup.store.stage(&source, &digest, &of_second));
    {
        let mut first = std::pin::pin!(setup.store.stage(&first_source, &setup.digest, &of_first));
        tokio::select! {
            _ = &mut first => panic!("the pull cannot end"),
            seen = limited(first_seen.wait_for(|progress| progress.bytes_done >= 100_000)) => drop(seen.unwrap()),
        }
        tokio::select! {
            _ = &mut first => panic!("the pull cannot end"),
            _ = &mut second => panic!("the pull cannot end"),
            seen = limited(second_seen.wait_for(|progress| progress.bytes_done >= 100_000)) => drop(seen.unwrap()),
        }
    }
    drop(limited(second).await.unwrap());
    let asked = setup.registry.asked(&blob);
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert_eq!(asked[1].range.as_deref(), Some("bytes=100000-"));
}

#[tokio::test]
async fn kept_layers_are_not_fetched_again() {
    let (one, two, blob) = two_images();
    let registry =
        ScriptedRegistry::start_images(&[&one, &two], None, |_, _| None, |_, _| Reply::Serve).await;
    let setup = Setup::with(&one, quick(), registry);
    drop(setup.stage().await.unwrap());
    let (source, digest) =
        (Source::Oci(format!("{}/app:2", setup.registry.address())), two.digest().parse().unwrap());
    let (progress, seen) = watch::channel(Progress::default());
    drop(limited(setup.store.stage(&source, &digest, &progress)).await.unwrap());
    assert_eq!(setup.registry.asked(&blob).len(), 1);
    assert_eq!(seen.borrow().bytes_done, seen.borrow().bytes);
    let mut listed = setup.store.blobs().await.unwrap();
    listed.sort_by_key(|blob| blob.size);
    assert_eq!(listed.len(), 2);
    assert_eq!((listed[1].digest.as_str(), listed[1].partial), (&*blob, false));
    assert_eq!(listed[1].size, one.blobs[&blob].len() as u64);
}

#[tokio::test]
async fn damaged_layers_are_fetched_anew() {
    let layer = Layer::gzip(&tar(&[Item::file("text", "text ".repeat(100_000))]));
    let blob = digest(&layer.blob);
    let image = Image::new(vec![layer]);
    let length = image.blobs[&blob].len();
    let whole = image.blobs[&blob].clone();
    let changed = [20, length / 2, length - 1].map(|damage| {
        let mut wrong = whole.clone();
        wrong[damage] ^= 0x55;
        wrong
    });
    let of_other_lengths = [whole[..length - 1].to_vec(), [&whole[..], &[0]].concat(), Vec::new()];
    for (case, wrong) in changed.into_iter().chain(of_other_lengths).enumerate() {
        let setup = Setup::new(&image, quick(), |_, _| Reply::Serve).await;
        fs::write(kept(setup.state.path(), &blob), &wrong).unwrap();
        drop(setup.stage().await.unwrap());
        assert_eq!(setup.registry.asked(&blob).len(), 1, "case {case}");
        assert_eq!(fs::read(kept(setup.state.path(), &blob)).unwrap(), whole);
    }
}

#[tokio::test]
async fn interrupted_downloads_go_on_after_a_restart() {
    let (image, blob) = image();
    let wanted = blob.clone();
    let mut setup = Setup::new(&image, Settings::default(), move |path, nth| match nth {
        0 if path == wanted => Reply::Stall(100_000),
        _ => Reply::Serve,
    })
    .await;
    interrupted(&setup, 100_000).await;
    let file = partial(setup.state.path(), 100_000).await;
    setup.store = ImageStore::open(setup.state.path(), quick()).unwrap();
    assert!(setup.store.blobs().await.unwrap()[0].partial);
    drop(setup.stage().await.unwrap());
    assert_eq!(setup.registry.asked(&blob)[1].range.as_deref(), Some("bytes=100000-"));
    assert_eq!(files(setup.state.path()), [kept(setup.state.path(), &blob)]);
    // Interrupted between its last byte and its name.
    fs::rename(kept(setup.state.path(), &blob), file).unwrap();
    let (progress, seen) = watch::channel(Progress::default());
    drop(limited(setup.store.stage(&setup.source(), &setup.digest, &progress)).await.unwrap());
    assert_eq!(setup.registry.asked(&blob).len(), 2, "all of it is there");
    assert_eq!(seen.borrow().bytes_done, seen.borrow().bytes);
}

#[tokio::test]
async fn what_a_crash_spoilt_is_fetched_anew() {
    let (image, blob) = image();
    let wanted = blob.clone();
    let mut setup = Setup::new(&image, Settings::default(), move |path, nth| match nth {
        0 if path == wanted => Reply::Stall(100_000),
        _ => Reply::Serve,
    })
    .await;
    interrupted(&setup, 100_000).await;
    let file = partial(setup.state.path(), 100_000).await;
    // As after a power loss: long enough, and not what was written.
    fs::write(&file, vec![0; 200_000]).unwrap();
    setup.store = ImageStore::open(setup.state.path(), quick()).unwrap();
    drop(setup.stage().await.unwrap());
    let ranges = || setup.registry.asked(&blob).into_iter().map(|asked| asked.range).collect::<Vec<_>>();
    assert_eq!(ranges(), [None, Some("bytes=200000-".to_owned()), None]);
    // What is longer than the layer is no part of it.
    let kept = kept(setup.state.path(), &blob);
    fs::remove_file(&kept).unwrap();
    fs::write(&file, vec![0; 1_000_000]).unwrap();
    drop(setup.stage().await.unwrap());
    assert_eq!(ranges()[3..], [None]);
    assert!(fs::read(&kept).unwrap() == image.blobs[&blob]);
}

#[tokio::test]
async fn what_is_kept_is_bounded() {
    let image = |seed| Image::new(vec![Layer::plain(&tar(&[Item::file("noise", noise(seed, 300_000))]))]);
    let images = [image(1), image(2), image(3)];
    let registry =
        ScriptedRegistry::start_images(&images.each_ref(), None, |_, _| None, |_, _| Reply::Serve).await;
    let settings = Settings { blob_cache: 700_000, ..quick() };
    let setup = Setup::with(&images[0], settings, registry);
    let stage = async |number: usize| {
        let source = Source::Oci(format!("{}/app:{}", setup.registry.address(), number + 1));
        let digest = images[number].digest().parse().unwrap();
        let (progress, _) = watch::channel(Progress::default());
        drop(limited(setup.store.stage(&source, &digest, &progress)).await.unwrap());
    };
    let layer = |number: usize| {
        let blobs = &images[number].blobs;
        let name = blobs.iter().find(|(_, blob)| blob.len() > 300_000).unwrap().0;
        kept(setup.state.path(), name)
    };
    let long_ago = |number: usize, days: u64| {
        let then = SystemTime::now() - Duration::from_secs(days * 24 * 60 * 60);
        fs::File::options().write(true).open(layer(number)).unwrap().set_modified(then).unwrap();
    };
    stage(0).await;
    stage(1).await;
    long_ago(0, 3);
    long_ago(1, 2);
    // The older one is used again, so the other one goes.
    stage(0).await;
    stage(2).await;
    assert!(layer(0).exists() && !layer(1).exists() && layer(2).exists());

    let freed = setup.store.prune_blobs(0).await.unwrap();
    assert!(freed > 600_000, "{freed}");
    assert!(is_empty(&setup.state.path().join("blobs")));
}

#[tokio::test]
async fn stale_downloads_go_at_the_start() {
    let (image, blob) = image();
    let setup = Setup::new(&image, quick(), |_, _| Reply::Serve).await;
    let at = |name: &str, days: u64| {
        let path = setup.state.path().join("blobs").join(name);
        fs::write(&path, "part").unwrap();
        let then = SystemTime::now() - Duration::from_secs(days * 24 * 60 * 60);
        fs::File::options().write(true).open(&path).unwrap().set_modified(then).unwrap();
        path
    };
    let name = kept(setup.state.path(), &blob).file_name().unwrap().to_str().unwrap().to_owned();
    let stale = at(&format!("{name}.0123456789abcdef.partial"), 2);
    let fresh = at(&format!("{name}.fedcba9876543210.partial"), 0);
    let old = at(&name, 2);
    drop(ImageStore::open(setup.state.path(), quick()).unwrap());
    assert!(!stale.exists() && fresh.exists() && old.exists());
    drop(ImageStore::open(setup.state.path(), no_cache()).unwrap());
    assert!(is_empty(&setup.state.path().join("blobs")));
}

#[tokio::test]
async fn what_one_repository_lacks_another_may_have() {
    // Both are asked at once; one repository refuses the layer, which fails no pull of the other. It may
    // follow the other's download, though: its manifest names the layer's digest.
    let (image, blob) = image();
    let wanted = blob.clone();
    let gate = move |asked: &Asked, _| {
        (asked.path.contains("/poor/") && asked.path.ends_with(&wanted)).then(|| bare(404, &[]))
    };
    let registry = ScriptedRegistry::start_gated(&image, gate).await;
    let setup = Setup::with(&image, no_cache(), registry);
    let poor = Source::Oci(format!("{}/poor/app:1", setup.registry.address()));
    let (progress, _) = watch::channel(Progress::default());
    let both = async { tokio::join!(setup.store.stage(&poor, &setup.digest, &progress), setup.stage()) };
    let (poor, rich) = limited(both).await;
    drop(rich.unwrap());
    if let Err(error) = poor {
        assert_eq!(error.reason, "NotFound", "{error}");
    }
}
