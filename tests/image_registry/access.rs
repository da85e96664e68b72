//! Getting in: passwords, tokens, helpers; and what must not be told to whom.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::response::Response;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::*;
use crate::common::elsewhere;

const PASSWORD: &str = "correct horse";

/// Settings with an auth file of this content.
fn with_auth(folder: &TempDir, content: &str) -> Settings {
    let path = folder.path().join("auth.json");
    std::fs::write(&path, content).unwrap();
    Settings { auth_files: vec![path], ..quick() }
}

fn password_for(host: impl std::fmt::Display) -> String {
    let auth = BASE64_STANDARD.encode(format!("user:{PASSWORD}"));
    format!(r#"{{"auths": {{"{host}": {{"auth": "{auth}"}}}}}}"#)
}

fn basic() -> Option<String> {
    Some(format!("Basic {}", BASE64_STANDARD.encode(format!("user:{PASSWORD}"))))
}

fn ask_for(challenge: &str) -> Option<Response> {
    Some(bare(401, &[("www-authenticate", challenge)]))
}

fn token(text: impl Into<String>) -> Option<Response> {
    Some(Response::new(text.into().into()))
}

/// Wants the password, and lists its challenges in some order.
fn wants_password(asked: &Asked, _: SocketAddr) -> Option<Response> {
    match asked.authorization == basic() {
        true => None,
        false => ask_for(r#"Negotiate, Basic realm="a, b", charset="UTF-8""#),
    }
}

#[tokio::test]
async fn passwords_are_used_when_asked_for() {
    let (image, _) = image();
    let registry = ScriptedRegistry::start_gated(&image, wants_password).await;
    let folder = tempfile::tempdir().unwrap();
    let address = registry.address();
    let setup = Setup::with(&image, with_auth(&folder, "{}"), registry);
    let error = setup.resolve().await.unwrap_err();
    assert_eq!((error.reason, error.transient), ("Unauthorized", true), "{error}");
    assert!(error.message.contains("auth file"), "{error}");

    // The file has changed, and the same store sees it.
    with_auth(&folder, &password_for(address));
    assert_eq!(setup.resolve().await.unwrap(), setup.digest);
    drop(setup.stage().await.unwrap());
    let asked = setup.registry.asked("");
    let challenged = asked.iter().filter(|asked| asked.authorization.is_none()).count();
    assert_eq!(challenged, 2, "once without the password and once before it was asked for");

    with_auth(&folder, r#"{"auths": {"x": {"auth": ["correct horse"]}}}"#);
    let other = Setup::with(&image, with_auth(&folder, "{\"auths\": 5}"), setup.registry);
    let error = other.resolve().await.unwrap_err();
    assert!(error.message.contains("auth.json: line 1") && !error.message.contains("horse"), "{error}");
}

#[tokio::test]
async fn passwords_buy_tokens_for_one_repository() {
    let (image, _) = image();
    let gate = |asked: &Asked, address: SocketAddr| match asked.path.as_str() {
        "/token" if asked.authorization == basic() => token(r#"{"access_token": "t", "expires_in": 300}"#),
        "/token" => Some(bare(401, &[])),
        _ if asked.authorization.as_deref() == Some("Bearer t") => None,
        _ => ask_for(&format!(
            r#"Basic realm="x", Bearer service="s",realm="http://{address}/token",scope="registry:catalog:*""#
        )),
    };
    let registry = ScriptedRegistry::start_gated(&image, gate).await;
    let folder = tempfile::tempdir().unwrap();
    let settings = with_auth(&folder, &password_for(format!("{}/app", registry.address())));
    let setup = Setup::with(&image, settings, registry);
    assert_eq!(setup.resolve().await.unwrap(), setup.digest);
    drop(setup.stage().await.unwrap());
    let tokens = setup.registry.asked("/token");
    assert_eq!(tokens.len(), 1, "the token is kept");
    assert_eq!(tokens[0].query, "scope=repository%3Aapp%3Apull&service=s&account=user");
}

#[tokio::test]
async fn identity_tokens_are_posted() {
    let (image, _) = image();
    let gate = |asked: &Asked, address: SocketAddr| match asked.path.as_str() {
        "/token" if asked.method == "POST" => token(r#"{"access_token": "t"}"#),
        _ if asked.authorization.as_deref() == Some("Bearer t") => None,
        _ => ask_for(&format!(r#"Bearer realm="http://{address}/token",service=s"#)),
    };
    let registry = ScriptedRegistry::start_gated(&image, gate).await;
    let folder = tempfile::tempdir().unwrap();
    let file = format!(r#"{{"auths": {{"{}": {{"identitytoken": "re fresh"}}}}}}"#, registry.address());
    let setup = Setup::with(&image, with_auth(&folder, &file), registry);
    assert_eq!(setup.resolve().await.unwrap(), setup.digest);
    let form = "grant_type=refresh_token&client_id=vmlet&service=s&scope=repository%3Aapp%3Apull&refresh_token=re+fresh";
    assert_eq!(setup.registry.asked("/token")[0].body, form);
}

#[tokio::test]
async fn tokens_that_expire_in_the_middle_are_renewed() {
    let (image, blob) = image();
    // Each token is good for two requests, and each request for a part of the layer.
    let (given, used) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let gate = move |asked: &Asked, address: SocketAddr| {
        if asked.path == "/token" {
            used.store(0, Ordering::SeqCst);
            let number = given.fetch_add(1, Ordering::SeqCst) + 1;
            return token(format!(r#"{{"token": "t{number}"}}"#));
        }
        let right = format!("Bearer t{}", given.load(Ordering::SeqCst));
        let good = asked.authorization == Some(right) && used.fetch_add(1, Ordering::SeqCst) < 2;
        (!good)
            .then(|| bare(401, &[("www-authenticate", &format!(r#"Bearer realm="http://{address}/token""#))]))
    };
    let registry = ScriptedRegistry::start_with(&image, None, gate, move |path, nth| match nth {
        0..4 if path == blob => Reply::Break(70_000),
        _ => Reply::Serve,
    })
    .await;
    let setup = Setup::with(&image, quick(), registry);
    drop(setup.stage().await.unwrap());
    assert!(setup.registry.asked("/token").len() >= 3);
}

#[tokio::test]
async fn what_is_no_token_is_refused() {
    let (image, _) = image();
    let bodies: [fn() -> axum::body::Body; 4] = [
        || format!(r#"{{"token": "{}"}}"#, "x".repeat(100_000)).into(),
        || {
            let spaces = futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>(" ".repeat(10_000)));
            axum::body::Body::from_stream(spaces)
        },
        || r#"{"token": "a\nb"}"#.into(),
        || r#"{"token": ""}"#.into(),
    ];
    for body in bodies {
        let gate = move |asked: &Asked, address: SocketAddr| match asked.path.as_str() {
            "/token" => Some(Response::new(body())),
            _ => ask_for(&format!(r#"Bearer realm="http://{address}/token""#)),
        };
        let setup = Setup::with(&image, quick(), ScriptedRegistry::start_gated(&image, gate).await);
        let error = setup.resolve().await.unwrap_err();
        assert_eq!((error.reason, error.transient), ("Unauthorized", true), "{error}");
        assert_eq!(setup.registry.asked("/token").len(), 1);
    }
}

#[tokio::test]
async fn passwords_are_kept_from_who_asks_for_something_else() {
    let (image, _) = image();
    let gate = |_: &Asked, _| ask_for("Negotiate, Digest realm=x");
    let registry = ScriptedRegistry::start_gated(&image, gate).await;
    let folder = tempfile::tempdir().unwrap();
    let setup = Setup::with(&image, with_auth(&folder, &password_for(registry.address())), registry);
    assert_eq!(setup.resolve().await.unwrap_err().reason, "Unauthorized");
    assert!(setup.registry.asked("").iter().all(|asked| asked.authorization.is_none()));
}

#[tokio::test]
async fn token_services_may_be_busy_and_may_refuse() {
    let (image, _) = image();
    let with_service = async |folder: &TempDir, file: bool, service: fn(usize) -> Response| {
        let times = AtomicUsize::new(0);
        let gate = move |asked: &Asked, address: SocketAddr| match asked.path.as_str() {
            "/token" => Some(service(times.fetch_add(1, Ordering::SeqCst))),
            _ if asked.authorization.as_deref() == Some("Bearer t") => None,
            _ => ask_for(&format!(r#"Bearer realm="http://{address}/token""#)),
        };
        let registry = ScriptedRegistry::start_gated(&image, gate).await;
        let content = if file { password_for(registry.address()) } else { "{}".to_owned() };
        Setup::with(&image, with_auth(folder, &content), registry)
    };
    let folder = tempfile::tempdir().unwrap();
    let busy = |nth| match nth {
        0 => bare(503, &[]),
        1 => bare(429, &[("retry-after", "3600")]),
        _ => Response::new(r#"{"token": "t"}"#.into()),
    };
    let setup = with_service(&folder, false, busy).await;
    assert_eq!(setup.resolve().await.unwrap(), setup.digest);
    assert_eq!(setup.registry.asked("/token").len(), 3);
    for (file, words) in [(false, "no anonymous access"), (true, "the auth file's credentials are refused")] {
        // What comes with a refusal is no token.
        let refuses = |_| {
            let answer = Response::builder().status(403);
            answer.body(r#"{"token": "t"}"#.into()).unwrap()
        };
        let setup = with_service(&folder, file, refuses).await;
        let error = setup.resolve().await.unwrap_err();
        assert!(error.reason == "Unauthorized" && error.message.contains(words), "{error}");
        assert_eq!(setup.registry.asked("/token").len(), 1, "asking again changes nothing");
    }
    // A life of no time is none that was told.
    let setup =
        with_service(&folder, false, |_| Response::new(r#"{"token": "t", "expires_in": 0}"#.into())).await;
    drop(setup.stage().await.unwrap());
    assert_eq!(setup.registry.asked("/token").len(), 1);
}

#[tokio::test]
async fn tokens_that_are_never_good_enough_are_not_asked_for_without_end() {
    let (image, _) = image();
    let gate = |asked: &Asked, address: SocketAddr| match asked.path.as_str() {
        "/token" => token(r#"{"token": "t"}"#),
        _ => ask_for(&format!(r#"Bearer realm="http://{address}/token""#)),
    };
    let setup = Setup::with(&image, quick(), ScriptedRegistry::start_gated(&image, gate).await);
    let error = setup.resolve().await.unwrap_err();
    assert_eq!(error.reason, "Unauthorized", "{error}");
    assert_eq!(setup.registry.asked("/token").len(), 2);
}

#[tokio::test]
async fn what_is_refused_is_asked_for_anew_the_next_time() {
    let (image, _) = image();
    let valid = Arc::new(AtomicUsize::new(1));
    let now = valid.clone();
    let gate = move |asked: &Asked, address: SocketAddr| {
        let right = format!("t{}", now.load(Ordering::SeqCst));
        match (asked.path.as_str(), asked.authorization.as_deref()) {
            ("/token", _) => token(format!(r#"{{"token": "{right}", "expires_in": 3600}}"#)),
            (_, None) => ask_for(&format!(r#"Bearer realm="http://{address}/token""#)),
            (_, Some(given)) if given == format!("Bearer {right}") => None,
            // Some say so rather than that the token is none.
            _ => Some(bare(403, &[])),
        }
    };
    let setup = Setup::with(&image, quick(), ScriptedRegistry::start_gated(&image, gate).await);
    assert_eq!(setup.resolve().await.unwrap(), setup.digest);
    valid.store(2, Ordering::SeqCst);
    assert_eq!(setup.resolve().await.unwrap_err().reason, "Unauthorized");
    assert_eq!(setup.resolve().await.unwrap(), setup.digest);
}

#[tokio::test]
async fn tokens_are_not_sent_for_over_plain_http() {
    let (image, _) = image();
    let gate = |_: &Asked, _| ask_for(r#"Bearer realm="http://registry.example/token""#);
    let setup = Setup::with(&image, quick(), ScriptedRegistry::start_gated(&image, gate).await);
    let error = setup.resolve().await.unwrap_err();
    assert!(error.message.contains("http://registry.example/token is not https"), "{error}");
}

#[tokio::test]
async fn credentials_stay_with_their_host() {
    let (image, blob) = image();
    // Where layers are: it asks for everything that it can think of.
    let asks = |_: &Asked, address: SocketAddr| {
        ask_for(&format!(r#"Basic realm="x", Bearer realm="http://{address}/token""#))
    };
    let storage = ScriptedRegistry::start_gated(&image, asks).await;
    let elsewhere = format!("http://{}/{blob}", storage.address());
    let gate = move |asked: &Asked, address: SocketAddr| {
        let answer = wants_password(asked, address);
        let away = asked.path.contains("sha256").then(|| bare(307, &[("location", elsewhere.as_str())]));
        answer.or_else(|| away.filter(|_| asked.path.contains("/blobs/")))
    };
    let registry = ScriptedRegistry::start_gated(&image, gate).await;
    let folder = tempfile::tempdir().unwrap();
    let setup = Setup::with(&image, with_auth(&folder, &password_for(registry.address())), registry);
    let error = setup.stage().await.unwrap_err();
    assert_eq!(error.reason, "Unauthorized", "{error}");
    let asked = storage.asked("");
    assert!(!asked.is_empty());
    assert!(asked.iter().all(|asked| asked.authorization.is_none() && asked.path != "/token"), "{asked:?}");
}

#[tokio::test]
async fn helpers_are_asked() {
    let (image, _) = image();
    let registry = ScriptedRegistry::start_gated(&image, wants_password).await;
    let folder = tempfile::tempdir().unwrap();
    let helper = folder.path().join("docker-credential-test");
    let script = format!(
        "#!/bin/sh\nread -r server\n[ \"$1 $server\" = 'get {}' ] || exit 1\n\
         echo '{{\"Username\": \"user\", \"Secret\": \"{PASSWORD}\"}}'\n",
        registry.address()
    );
    std::fs::write(&helper, script).unwrap();
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    with_auth(&folder, r#"{"credsStore": "test"}"#);
    let path = format!("{}:/usr/bin:/bin", folder.path().display());
    elsewhere(
        "access::pulled_elsewhere",
        &[
            ("PATH", &path),
            ("AUTH", folder.path().join("auth.json").to_str().unwrap()),
            ("REFERENCE", &registry.reference()),
        ],
    )
    .await;
}

/// Resolves a reference with settings from the environment.
#[tokio::test]
#[ignore = "others run it in an environment of their making"]
async fn pulled_elsewhere() {
    let named = |name: &str| std::env::var(name).ok();
    let registries = named("REGISTRIES").map(|file| Registries::read(&PathBuf::from(file)).unwrap());
    let settings = Settings {
        auth_files: named("AUTH").map(PathBuf::from).into_iter().collect(),
        registries: registries.unwrap_or_default(),
        attempts: 1,
        ..quick()
    };
    let state = tempfile::tempdir().unwrap();
    let store = ImageStore::open(state.path(), settings).unwrap();
    limited(store.resolve(&Source::Oci(named("REFERENCE").unwrap()))).await.unwrap();
}
