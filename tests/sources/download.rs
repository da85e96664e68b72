//! Bundles from web servers, which fail, lie and stall.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use futures_util::{StreamExt, stream};
use vmlet::image::{Digest, Limits, Place, Registries, Settings, Source};

use super::Setup;
use super::bundle::{at, sum, whole};
use super::common::oci::gzip;
use super::common::tls::{Authority, TlsListener};

/// Bytes of a download that a server sends before it breaks off.
const PART: usize = 1000;

pub(crate) struct Server {
    body: Bytes,
    /// `http://…` or `https://…`, with the port.
    origin: String,
    /// Another server.
    elsewhere: String,
    asked: Mutex<Vec<String>>,
}

impl Server {
    /// Serves what the path says (see `answer`), over TLS if it is given an authority.
    pub(crate) async fn start(body: &[u8], authority: Option<&Authority>, elsewhere: &str) -> Arc<Server> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let scheme = if authority.is_some() { "https" } else { "http" };
        let server = Arc::new(Server {
            body: Bytes::copy_from_slice(body),
            origin: format!("{scheme}://localhost:{port}"),
            elsewhere: elsewhere.to_owned(),
            asked: Mutex::default(),
        });
        let router = axum::Router::new().fallback(answer).with_state(server.clone());
        let tls = authority.map(|authority| authority.server("localhost", None));
        tokio::spawn(async move {
            match tls {
                Some(tls) => axum::serve(TlsListener { listener, acceptor: tls.into() }, router).await,
                None => axum::serve(listener, router).await,
            }
        });
        server
    }

    fn host(&self) -> &str {
        self.origin.split_once("://").unwrap().1
    }

    pub(crate) fn source(&self, path: &str, sha256: &Digest) -> Source {
        at(Place::Url(format!("{}/{path}", self.origin)), Some(sha256.clone()))
    }

    /// How often a path was asked for.
    fn times(&self, path: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|asked| *asked == path).count()
    }
}

/// Some bytes of a body whose length is told, and then nothing more, or the end of the connection.
fn part(body: &Bytes, stalls: bool) -> Response {
    let first = body.slice(..PART);
    let first = stream::once(async move { Ok::<_, std::io::Error>(first) });
    let rest = async move {
        if stalls {
            std::future::pending::<()>().await;
        }
        // Makes hyper send what it has before it learns of the end.
        tokio::task::yield_now().await;
        Err(std::io::Error::other("broken on purpose"))
    };
    let answer = Response::builder().header("content-length", body.len());
    answer.body(Body::from_stream(first.chain(stream::once(rest)))).unwrap()
}

async fn answer(State(server): State<Arc<Server>>, request: Request) -> Response {
    let path = request.uri().path().trim_start_matches('/').to_owned();
    server.asked.lock().unwrap().push(path.clone());
    let attempt = server.times(&path);
    let whole = || Response::new(Body::from(server.body.clone()));
    let moved =
        |to: String| Response::builder().status(302).header("location", to).body(Body::empty()).unwrap();
    let status = |status: u16| Response::builder().status(status).body(Body::empty()).unwrap();
    match path.as_str() {
        "good" => whole(),
        "busy" if attempt < 3 => status(503),
        "cut" if attempt < 3 => part(&server.body, false),
        "stalls" if attempt < 2 => part(&server.body, true),
        "busy" | "cut" | "stalls" => whole(),
        "always-cut" => part(&server.body, false),
        "moved" => moved("/good".to_owned()),
        "away" => moved(format!("{}/good", server.elsewhere)),
        "loop" => moved("/loop".to_owned()),
        "nowhere" => moved("file:///etc/passwd".to_owned()),
        "forbidden" => status(403),
        "odd" => status(418),
        "endless" => {
            let chunk = Bytes::from(vec![7; 64 << 10]);
            Response::new(Body::from_stream(stream::repeat_with(move || {
                Ok::<_, std::io::Error>(chunk.clone())
            })))
        }
        _ => status(404),
    }
}

fn quick() -> Settings {
    let (backoff, backoff_max) = (Duration::from_millis(1), Duration::from_millis(5));
    Settings { backoff, backoff_max, ..Settings::default() }
}

/// A server's authority is trusted.
fn trusting(server: &Server, authority: &Authority) -> Settings {
    let text = format!("registries:\n  {}: {{{}}}\n", server.host(), authority.ca());
    Settings { registries: Registries::parse(Path::new("r.yaml"), text.as_bytes()).unwrap(), ..quick() }
}

fn bundle() -> (Vec<u8>, Digest) {
    let setup = Setup::new();
    let bytes = gzip(&whole(&setup.ext4("root.ext4", "^has_journal")));
    let sha256 = sum(&bytes);
    (bytes, sha256)
}

#[tokio::test]
async fn over_https_with_an_authority_of_ones_own() {
    let (bytes, sha256) = bundle();
    let (ours, other) = (Authority::new(), Authority::new());
    let server = Server::start(&bytes, Some(&ours), "").await;
    let setup = Setup::with(trusting(&server, &ours));
    let disk = setup.get(&server.source("good", &sha256)).await;
    assert_eq!((disk.digest, disk.size), (sha256.clone(), 4 << 20));
    let once = Settings { attempts: 1, ..trusting(&server, &other) };
    for settings in [once, Settings { attempts: 1, ..quick() }] {
        let error = Setup::with(settings).refused(&server.source("good", &sha256)).await;
        assert!(error.starts_with("RegistryUnavailable") && error.contains("certificate"), "{error}");
    }
    assert_eq!(server.times("good"), 1, "nobody else came as far as to ask");
}

#[tokio::test]
async fn what_has_another_digest_is_refused() {
    let (bytes, sha256) = bundle();
    let (authority, asked_for) = (Authority::new(), sum(b"else"));
    let server = Server::start(&bytes, Some(&authority), "").await;
    let setup = Setup::with(trusting(&server, &authority));
    let error = setup.refused(&server.source("good", &asked_for)).await;
    assert!(error.starts_with("DigestMismatch"), "{error}");
    assert!(error.contains(sha256.as_str()) && error.contains(asked_for.as_str()), "{error}");
    assert_eq!(server.times("good"), 1, "the next attempt is the image's, with its pauses");
}

#[tokio::test]
async fn broken_downloads_begin_again() {
    let (bytes, sha256) = bundle();
    let authority = Authority::new();
    let server = Server::start(&bytes, Some(&authority), "").await;
    // The first of the parts that stall has no end; a busy machine makes no others of it for so long.
    let settings = Settings { idle_timeout: Duration::from_secs(1), ..trusting(&server, &authority) };
    let setup = Setup::with(settings);
    for (path, times) in [("cut", 3), ("stalls", 2), ("busy", 3)] {
        assert_eq!(setup.get(&server.source(path, &sha256)).await.digest, sha256, "{path}");
        assert_eq!(server.times(path), times, "{path}");
        setup.store_is_emptied().await;
    }
    let error = setup.refused(&server.source("always-cut", &sha256)).await;
    assert!(error.starts_with("RegistryUnavailable"), "{error}");
    assert_eq!(server.times("always-cut"), 5);
    for (path, reason) in
        [("none", "NotFound"), ("forbidden", "Unauthorized"), ("odd", "RegistryUnavailable")]
    {
        let error = setup.refused(&server.source(path, &sha256)).await;
        assert!(error.starts_with(reason), "{path}: {error}");
        assert_eq!(server.times(path), 1, "{path}: asking again changes nothing");
    }
}

#[tokio::test]
async fn redirects_are_followed_as_far_as_they_are_safe() {
    let (bytes, sha256) = bundle();
    let authority = Authority::new();
    let plain = Server::start(&bytes, None, "").await;
    let second = Server::start(&bytes, Some(&authority), &plain.origin).await;
    let first = Server::start(&bytes, Some(&authority), &second.origin).await;
    // The authority that vouches for a server vouches for where it sends us.
    let setup = Setup::with(trusting(&first, &authority));
    for path in ["moved", "away"] {
        assert_eq!(setup.get(&first.source(path, &sha256)).await.digest, sha256, "{path}");
        setup.store_is_emptied().await;
    }
    assert_eq!((first.times("good"), second.times("good")), (1, 1));
    let setup = Setup::with(trusting(&second, &authority));
    for (path, words) in [("away", "not https"), ("loop", "redirects"), ("nowhere", "redirects to nowhere")] {
        let error = setup.refused(&second.source(path, &sha256)).await;
        assert!(error.starts_with("RegistryUnavailable") && error.contains(words), "{path}: {error}");
    }
    assert_eq!(plain.times("good"), 0);
    assert_eq!(setup.get(&plain.source("moved", &sha256)).await.digest, sha256, "plain http on loopback");
}

#[tokio::test]
async fn a_download_that_is_too_long_is_given_up() {
    let (bytes, sha256) = bundle();
    let authority = Authority::new();
    let server = Server::start(&bytes, Some(&authority), "").await;
    let limits = Limits { compressed_bytes: PART as u64, ..Limits::default() };
    let setup = Setup::with(Settings { limits, ..trusting(&server, &authority) });
    for path in ["good", "endless"] {
        let error = setup.refused(&server.source(path, &sha256)).await;
        assert!(error.contains("--image-limit compressed_bytes=…"), "{path}: {error}");
        assert_eq!(server.times(path), 1, "{path}: trying again changes nothing");
    }
}
