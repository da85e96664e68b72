//! Manifests and indexes that few tools write, and that are right.

use axum::response::Response;
use serde_json::{Value, json};

use super::*;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A registry that has these documents, too, the last one as the tag.
async fn serving(image: &Image, documents: Vec<Value>) -> Setup {
    let mut served: Vec<(String, Vec<u8>)> = Vec::new();
    for document in &documents {
        let bytes = document.to_string().into_bytes();
        served.push((digest(&bytes), bytes));
    }
    let last = served.last().unwrap().1.clone();
    served.push(("/manifests/1".to_owned(), last));
    let gate = move |asked: &Asked, _| {
        let found = served.iter().find(|(name, _)| asked.path.ends_with(name));
        found.map(|(_, bytes)| Response::new(bytes.clone().into()))
    };
    Setup::with(image, quick(), ScriptedRegistry::start_gated(image, gate).await)
}

fn index(entries: &[Value]) -> Value {
    json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries})
}

fn entry(media_type: &str, digest: &str) -> Value {
    json!({"mediaType": media_type, "digest": digest, "size": 1, "platform": {"os": "linux", "architecture": "amd64"}})
}

#[tokio::test]
async fn indexes_in_indexes_are_followed() {
    let (image, _) = image();
    let manifest = "application/vnd.oci.image.manifest.v1+json";
    let mut documents = vec![index(&[entry(manifest, &image.digest())])];
    for depth in 1..=6 {
        let setup = serving(&image, documents.clone()).await;
        let resolved = setup.resolve().await;
        if depth <= 5 {
            assert_eq!(resolved.unwrap(), setup.digest, "{depth}");
        } else {
            let error = resolved.unwrap_err();
            assert!(error.message.contains("more than 4 indexes"), "{error}");
        }
        let inner = digest(documents.last().unwrap().to_string().as_bytes());
        documents.push(index(&[entry(INDEX, &inner)]));
    }
}

#[tokio::test]
async fn an_entry_without_a_platform_is_the_last_choice() {
    let (image, _) = image();
    let manifest = "application/vnd.oci.image.manifest.v1+json";
    let bare = json!({"mediaType": manifest, "digest": image.digest(), "size": 1});
    let arm = json!({"mediaType": manifest, "digest": digest(b"arm"), "size": 1,
        "platform": {"os": "linux", "architecture": "arm64"}});
    let setup = serving(&image, vec![index(&[arm.clone(), bare])]).await;
    assert_eq!(setup.resolve().await.unwrap(), setup.digest);
    let other = json!({"mediaType": manifest, "digest": digest(b"other"), "size": 1});
    let setup = serving(&image, vec![index(&[other, arm, entry(manifest, &image.digest())])]).await;
    assert_eq!(setup.resolve().await.unwrap(), setup.digest);
}

#[tokio::test]
async fn images_of_odd_layers_are_made() {
    let one = || Layer::zstd(&tar(&[Item::file("noise", noise(1, 300_000))]));
    let blob = digest(&one().blob);
    let docker = Layer { media_type: "application/vnd.docker.image.rootfs.diff.tar.zstd", ..one() };
    let twice = Image::new(vec![one(), docker, one()]);
    let setup = Setup::new(&twice, quick(), |_, _| Reply::Serve).await;
    drop(setup.stage().await.unwrap());
    assert_eq!(setup.registry.asked(&blob).len(), 1, "one layer in three places is one download");

    let none = Image::new(Vec::new());
    let setup = Setup::new(&none, quick(), |_, _| Reply::Serve).await;
    drop(setup.stage().await.unwrap());
    let text = String::from_utf8(none.manifest.clone()).unwrap().replace("\"layers\":[]", "\"layers\":null");
    let null = Image { manifest: text.into_bytes(), ..none };
    let setup = Setup::new(&null, quick(), |_, _| Reply::Serve).await;
    drop(setup.stage().await.unwrap());
}
