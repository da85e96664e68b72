//! A state folder without room: pulls that do not fit, and what makes room for them.

use std::path::PathBuf;

use super::*;
use crate::common::disk::SmallDisk;

const MIB: u64 = 1 << 20;

/// A store on 32 MiB, and a registry.
struct Small {
    disk: SmallDisk,
    store: ImageStore,
    registry: ScriptedRegistry,
}

impl Small {
    async fn new(images: &[&Image]) -> Small {
        let disk = SmallDisk::new(32 * MIB);
        let store = ImageStore::open(&disk.path().join("state"), quick()).unwrap();
        let registry = ScriptedRegistry::start_images(images, None, |_, _| None, |_, _| Reply::Serve).await;
        Small { disk, store, registry }
    }

    /// Pulls the image of this tag, and forgets its disk again; its layers are kept.
    async fn pull(&self, image: &Image, tag: usize) -> Result<(), ImageError> {
        let source = Source::Oci(format!("{}/app:{tag}", self.registry.address()));
        let (progress, _) = watch::channel(Progress::default());
        let digest = image.digest().parse().unwrap();
        limited(self.store.stage(&source, &digest, &progress)).await.map(drop)
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.disk.path().join("state").join(name)
    }

    fn is_kept(&self, image: &Image) -> bool {
        self.folder("blobs").join(layer(image).replace(':', "-")).exists()
    }

    /// What is refused for want of room leaves nothing.
    async fn refused(&self, image: &Image, tag: usize) -> ImageError {
        let error = self.pull(image, tag).await.unwrap_err();
        assert_eq!((error.reason, error.transient), ("NoSpace", true), "{error}");
        assert!(error.message.ends_with("free space in the state directory"), "{error}");
        for name in ["staging", "images", "blobs"] {
            assert!(is_empty(&self.folder(name)), "{name}");
        }
        error
    }
}

/// One layer of so many bytes that cannot be compressed.
fn image_of(seed: u64, bytes: u64) -> Image {
    Image::new(vec![Layer::plain(&tar(&[Item::file("noise", noise(seed, bytes as usize))]))])
}

/// One that is small until it is inflated.
fn inflating(bytes: u64) -> Image {
    let piece = noise(7, 64 << 10);
    let content = piece.repeat(bytes as usize / piece.len());
    Image::new(vec![Layer::zstd(&tar(&[Item::file("noise", content)]))])
}

fn layer(image: &Image) -> String {
    let manifest: serde_json::Value = serde_json::from_slice(&image.manifest).unwrap();
    manifest["layers"][0]["digest"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_pull_that_does_not_fit_is_not_begun() {
    let image = image_of(1, 4 * MIB);
    let small = Small::new(&[&image]).await;
    small.disk.fill(7 * MIB);
    let error = small.refused(&image, 1).await;
    assert!(error.message.contains("has 7 MiB free, 0 MiB of that promised"), "{error}");
    assert!(error.message.contains("will take about 8 MiB"), "{error}");
    assert_eq!(small.registry.asked(&layer(&image)).len(), 0);
    small.disk.fill(9 * MIB);
    small.pull(&image, 1).await.unwrap();
}

#[tokio::test]
async fn a_compressed_layer_is_expected_to_double() {
    let image = Image::new(vec![Layer::gzip(&tar(&[Item::file("noise", noise(1, 4 << 20))]))]);
    let small = Small::new(&[&image]).await;
    small.disk.fill(11 * MIB);
    let error = small.refused(&image, 1).await;
    assert!(error.message.contains("will take about 12 MiB"), "{error}");
    small.disk.fill(13 * MIB);
    small.pull(&image, 1).await.unwrap();
}

#[tokio::test]
async fn kept_layers_make_room_the_longest_unused_first() {
    let [first, second, large] = [image_of(1, 3 * MIB), image_of(2, 2 * MIB), image_of(3, 5 * MIB)];
    let small = Small::new(&[&first, &second, &large]).await;
    small.pull(&first, 1).await.unwrap();
    small.pull(&second, 2).await.unwrap();
    assert!(small.is_kept(&first) && small.is_kept(&second));
    small.disk.fill(9 * MIB);
    small.pull(&large, 3).await.unwrap();
    assert!(!small.is_kept(&first), "it had to go");
    assert!(small.is_kept(&second), "it had not");
    // A pull's own layers are no room for it.
    small.disk.fill(9 * MIB);
    small.pull(&large, 3).await.unwrap();
    assert_eq!(small.registry.asked(&layer(&large)).len(), 1);
}

#[tokio::test]
async fn a_disk_that_runs_full_in_the_middle_takes_kept_layers_too() {
    let [other, large] = [image_of(1, 4 * MIB), inflating(8 * MIB)];
    let small = Small::new(&[&other, &large]).await;
    small.pull(&other, 1).await.unwrap();
    small.disk.fill(6 * MIB);
    small.pull(&large, 2).await.unwrap();
    assert!(!small.is_kept(&other));
}

#[tokio::test]
async fn what_does_not_fit_after_all_leaves_nothing() {
    let [other, large] = [image_of(1, MIB), inflating(8 * MIB)];
    let small = Small::new(&[&other, &large]).await;
    small.pull(&other, 1).await.unwrap();
    small.disk.fill(5 * MIB);
    let error = small.refused(&large, 2).await;
    assert!(error.message.contains("No space left on device"), "{error}");
    small.disk.fill(12 * MIB);
    small.pull(&large, 2).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_runs_full_while_a_layer_arrives_costs_an_error() {
    let image = image_of(1, 4 * MIB);
    let wanted = layer(&image);
    let (filled, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let disk = SmallDisk::new(32 * MIB);
    let store = ImageStore::open(&disk.path().join("state"), quick()).unwrap();
    // What follows the first MiB is sent once the disk is full.
    let registry = ScriptedRegistry::start(&image, move |path, nth| match nth {
        _ if path != wanted => Reply::Serve,
        0 => Reply::Break(MIB as usize),
        1 => {
            tokio::task::block_in_place(|| wait.lock().unwrap().recv().unwrap());
            Reply::Serve
        }
        _ => Reply::Serve,
    })
    .await;
    let small = Small { disk, store, registry };
    let (progress, mut seen) = watch::channel(Progress::default());
    let (source, digest) = (Source::Oci(small.registry.reference()), image.digest().parse().unwrap());
    let fills = async {
        seen.wait_for(|progress| progress.bytes_done >= MIB).await.unwrap();
        small.disk.fill(0);
        filled.send(()).unwrap();
    };
    let staged = async { tokio::join!(small.store.stage(&source, &digest, &progress), fills).0 };
    let error = limited(staged).await.map(drop).unwrap_err();
    assert_eq!((error.reason, error.transient), ("NoSpace", true), "{error}");
    assert_eq!(small.registry.asked(&layer(&image)).len(), 2, "what cannot be written is not asked for");
    for name in ["staging", "images", "blobs"] {
        assert!(is_empty(&small.folder(name)), "{name}");
    }
}
