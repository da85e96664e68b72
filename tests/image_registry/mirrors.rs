//! Mirrors: their order, their failures, and that they cannot do harm.

use std::net::SocketAddr;

use super::*;

/// Settings in which `registry` has these mirrors.
pub(crate) fn mirrored(registry: SocketAddr, mirrors: &[String]) -> Settings {
    let text = format!("registries:\n  {registry}:\n    mirrors: [{}]\n", mirrors.join(", "));
    let registries = Registries::parse(Path::new("registries.yaml"), text.as_bytes());
    Settings { registries: registries.unwrap(), ..quick() }
}

fn url(mirror: &ScriptedRegistry) -> String {
    format!("http://{}", mirror.address())
}

#[tokio::test]
async fn mirrors_are_asked_first_and_in_order() {
    let (image, blob) = image();
    // The first one has nothing, the second one has everything, in a folder.
    let empty = ScriptedRegistry::start(&image, |_, _| Reply::Status(404)).await;
    let full = ScriptedRegistry::start(&image, |_, _| Reply::Serve).await;
    let registry = ScriptedRegistry::start(&image, |_, _| Reply::Serve).await;
    let settings = mirrored(registry.address(), &[url(&empty), format!("{}/hub/", url(&full))]);
    let setup = Setup::with(&image, settings, registry);
    assert_eq!(setup.resolve().await.unwrap(), setup.digest);
    drop(setup.stage().await.unwrap());
    assert_eq!(empty.asked(&blob).len(), 1);
    assert_eq!(full.asked(&blob)[0].path, format!("/v2/hub/app/blobs/{blob}"));
    assert!(setup.registry.asked("").is_empty());
}

#[tokio::test]
async fn what_mirrors_fail_at_the_registry_does() {
    let (image, blob) = image();
    let other = Image::new(Vec::new());
    let wanted = blob.clone();
    type Fault = Box<dyn Fn(&str, usize) -> Reply + Send + Sync>;
    let faults: [Fault; 5] = [
        Box::new(|_, _| Reply::Status(500)),
        Box::new(|_, _| Reply::Status(401)),
        Box::new(|_, _| Reply::Throttle(3600)),
        Box::new(move |path, _| match path.len() {
            71 => Reply::Bytes(other.manifest.clone()),
            _ => Reply::Serve,
        }),
        Box::new(move |path, _| if path == wanted { Reply::Break(100_000) } else { Reply::Serve }),
    ];
    for fault in faults {
        let mirror = ScriptedRegistry::start(&image, fault).await;
        let registry = ScriptedRegistry::start(&image, |_, _| Reply::Serve).await;
        let setup = Setup::with(&image, mirrored(registry.address(), &[url(&mirror)]), registry);
        assert_eq!(setup.resolve().await.unwrap(), setup.digest);
        drop(setup.stage().await.unwrap());
        assert_eq!(setup.registry.asked(&blob).len(), 1);
    }
}

#[tokio::test]
async fn a_dead_mirror_is_asked_once_in_a_while() {
    let (image, _) = image();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dead = format!("http://{}", listener.local_addr().unwrap());
    let registry = ScriptedRegistry::start(&image, |_, _| Reply::Serve).await;
    let (connect_timeout, idle_timeout) = (Duration::from_secs(1), Duration::from_millis(300));
    let settings = Settings { connect_timeout, idle_timeout, ..mirrored(registry.address(), &[dead]) };
    let setup = Setup::with(&image, settings, registry);
    // It listens and says nothing, so each attempt would take its time.
    drop(setup.stage().await.unwrap());
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_ok());
    assert!(listener.accept().is_err(), "it was asked for the manifest only");
}

#[tokio::test]
async fn a_mirror_that_lies_costs_one_attempt() {
    let (image, blob) = image();
    let mut wrong = image.blobs[&blob].clone();
    wrong[100_000] ^= 1;
    let wanted = blob.clone();
    let mirror = ScriptedRegistry::start(&image, move |path, _| match path == wanted {
        true => Reply::Bytes(wrong.clone()),
        false => Reply::Serve,
    })
    .await;
    let registry = ScriptedRegistry::start(&image, |_, _| Reply::Serve).await;
    let setup = Setup::with(&image, mirrored(registry.address(), &[url(&mirror)]), registry);
    assert_eq!(setup.stage().await.unwrap_err().reason, "DigestMismatch");
    drop(setup.stage().await.unwrap());
    assert_eq!((mirror.asked(&blob).len(), setup.registry.asked(&blob).len()), (1, 1));
}
