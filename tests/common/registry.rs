//! Registries: Debian's real one, and one in this process that fails on demand.

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use futures_util::StreamExt;
use tempfile::TempDir;

use super::oci::Image;
use super::tls::TlsListener;

/// Debian's `docker-registry` on a port of its own, gone when dropped.
pub(crate) struct DockerRegistry {
    child: Child,
    pub(crate) address: SocketAddr,
    _storage: TempDir,
}

impl DockerRegistry {
    pub(crate) async fn start() -> Self {
        // Another process may take the port in between: then the registry exits, and we choose anew.
        for _ in 0..10 {
            let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let address = free.local_addr().unwrap();
            drop(free);
            if let Some(registry) = DockerRegistry::start_at(address).await {
                return registry;
            }
        }
        panic!("docker-registry does not start");
    }

    async fn start_at(address: SocketAddr) -> Option<Self> {
        let storage = tempfile::tempdir().unwrap();
        let config = storage.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: {address}}}\n",
            storage.path().join("data").display()
        );
        std::fs::write(&config, text).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("docker-registry: {error}; apt-get install docker-registry"));
        let mut registry = DockerRegistry { child, address, _storage: storage };
        let deadline = Instant::now() + Duration::from_secs(60);
        while Instant::now() < deadline {
            if registry.child.try_wait().unwrap().is_some() {
                return None;
            }
            let answer = client().get(format!("http://{address}/v2/")).send().await;
            if answer.is_ok_and(|answer| answer.status().is_success()) {
                return Some(registry);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("docker-registry does not answer");
    }

    /// Pushes an image as `name:tag` and returns the reference to it.
    pub(crate) async fn push(&self, image: &Image, name: &str, tag: &str) -> String {
        for (digest, blob) in &image.blobs {
            let url = format!("http://{}/v2/{name}/blobs/uploads/", self.address);
            let answer = client().post(url).send().await.unwrap().error_for_status().unwrap();
            let upload = answer.headers()["location"].to_str().unwrap().to_owned();
            let url = format!("{upload}&digest={digest}");
            client().put(url).body(blob.clone()).send().await.unwrap().error_for_status().unwrap();
        }
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        self.put_manifest(name, tag, media_type, image.manifest.clone()).await;
        format!("{}/{name}:{tag}", self.address)
    }

    /// Puts a manifest or an index; what it names must be there.
    pub(crate) async fn put_manifest(&self, name: &str, tag: &str, media_type: &str, bytes: Vec<u8>) {
        let url = format!("http://{}/v2/{name}/manifests/{tag}", self.address);
        let answer = client().put(url).header("content-type", media_type).body(bytes).send().await.unwrap();
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}

/// What the scripted registry does with a request.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    Serve,
    /// The whole blob, whatever range was asked for.
    IgnoreRange,
    /// This many bytes, then the connection breaks.
    Break(usize),
    /// This many bytes, then silence.
    Stall(usize),
    Status(u16),
    /// 429 with `Retry-After` in seconds.
    Throttle(u64),
    /// The whole document, so many bytes at a time, with pauses.
    Drip(usize, Duration),
    /// A part that says to start at this byte.
    WrongRange(usize),
    /// Something else altogether.
    Bytes(Vec<u8>),
    /// A body without end, in chunks of this.
    Endless(Vec<u8>),
}

/// One request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) range: Option<String>,
    pub(crate) authorization: Option<String>,
    pub(crate) body: String,
}

type Script = dyn Fn(&str, usize) -> Reply + Send + Sync;
/// Sees requests first, with the server's address, and may answer them.
type Gate = dyn Fn(&Asked, SocketAddr) -> Option<Response> + Send + Sync;

/// An answer without a body.
pub(crate) fn bare(status: u16, headers: &[(&str, &str)]) -> Response {
    let answer = headers
        .iter()
        .fold(Response::builder().status(status), |answer, (name, value)| answer.header(*name, *value));
    answer.body(Body::empty()).unwrap()
}

struct Server {
    documents: BTreeMap<String, Vec<u8>>,
    script: Box<Script>,
    gate: Box<Gate>,
    address: SocketAddr,
    asked: Mutex<Vec<Asked>>,
    counts: Mutex<HashMap<String, usize>>,
}

/// A registry in this process with one image, `app:1`. The script is asked with the path's last part (`1`, a
/// digest) and how often it was asked for before.
pub(crate) struct ScriptedRegistry {
    server: Arc<Server>,
}

impl ScriptedRegistry {
    pub(crate) async fn start(
        image: &Image,
        script: impl Fn(&str, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        ScriptedRegistry::start_with(image, None, |_, _| None, script).await
    }

    /// Lets a gate answer first, which may let requests pass.
    pub(crate) async fn start_gated(
        image: &Image,
        gate: impl Fn(&Asked, SocketAddr) -> Option<Response> + Send + Sync + 'static,
    ) -> Self {
        ScriptedRegistry::start_with(image, None, gate, |_, _| Reply::Serve).await
    }

    /// Asks for a Bearer token, which it hands out to everybody who asks for this repository.
    pub(crate) async fn start_private(image: &Image, token: &str) -> Self {
        let token = token.to_owned();
        ScriptedRegistry::start_gated(image, move |asked, address| {
            if asked.path == "/token" {
                let right = asked.query.contains("scope=repository%3Aapp%3Apull")
                    && asked.query.contains("service=test");
                let body = if right { format!(r#"{{"token": "{token}"}}"#) } else { "{}".to_owned() };
                return Some(Response::new(Body::from(body)));
            }
            let challenge = format!(r#"Bearer realm="http://{address}/token",service="test""#);
            let right = asked.authorization == Some(format!("Bearer {token}"));
            (!right).then(|| bare(401, &[("www-authenticate", &challenge)]))
        })
        .await
    }

    /// Over TLS if told how.
    pub(crate) async fn start_with(
        image: &Image,
        tls: Option<Arc<rustls::ServerConfig>>,
        gate: impl Fn(&Asked, SocketAddr) -> Option<Response> + Send + Sync + 'static,
        script: impl Fn(&str, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        ScriptedRegistry::start_images(&[image], tls, gate, script).await
    }

    /// With several images: `app:1`, `app:2` …
    pub(crate) async fn start_images(
        images: &[&Image],
        tls: Option<Arc<rustls::ServerConfig>>,
        gate: impl Fn(&Asked, SocketAddr) -> Option<Response> + Send + Sync + 'static,
        script: impl Fn(&str, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let mut documents = BTreeMap::new();
        for (tag, image) in images.iter().enumerate() {
            documents.extend(image.blobs.clone());
            documents.insert(image.digest(), image.manifest.clone());
            documents.insert((tag + 1).to_string(), image.manifest.clone());
        }
        let server = Arc::new(Server {
            documents,
            script: Box::new(script),
            gate: Box::new(gate),
            address: listener.local_addr().unwrap(),
            asked: Mutex::default(),
            counts: Mutex::default(),
        });
        let router = axum::Router::new().fallback(answer).with_state(server.clone());
        tokio::spawn(async move {
            match tls {
                Some(tls) => axum::serve(TlsListener { listener, acceptor: tls.into() }, router).await,
                None => axum::serve(listener, router).await,
            }
        });
        ScriptedRegistry { server }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.server.address
    }

    pub(crate) fn reference(&self) -> String {
        format!("{}/app:1", self.server.address)
    }

    /// The requests for this last part of a path.
    pub(crate) fn asked(&self, last: &str) -> Vec<Asked> {
        let asked = self.server.asked.lock().unwrap();
        asked.iter().filter(|asked| asked.path.ends_with(last)).cloned().collect()
    }
}

async fn answer(State(server): State<Arc<Server>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let header = |name: &str| parts.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    let body = axum::body::to_bytes(body, 64 << 10).await.unwrap();
    let asked = Asked {
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        range: header("range"),
        authorization: header("authorization"),
        body: String::from_utf8(body.to_vec()).unwrap(),
    };
    server.asked.lock().unwrap().push(asked.clone());
    if let Some(answer) = (server.gate)(&asked, server.address) {
        return answer;
    }
    let Asked { path, range, .. } = asked;
    let last = path.rsplit('/').next().unwrap().to_owned();
    let before = {
        let mut counts = server.counts.lock().unwrap();
        let count = counts.entry(last.clone()).or_default();
        std::mem::replace(count, *count + 1)
    };
    let Some(document) = server.documents.get(&last) else {
        let body = r#"{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}"#;
        return Response::builder().status(404).body(Body::from(body)).unwrap();
    };
    let from = range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    reply((server.script)(&last, before), document, from)
}

fn reply(reply: Reply, document: &[u8], from: Option<usize>) -> Response {
    let (status, start) = match (&reply, from) {
        (Reply::IgnoreRange, _) | (_, None) => (200, 0),
        (_, Some(from)) => (206, from),
    };
    let rest = Bytes::copy_from_slice(&document[start..]);
    let answer = Response::builder().status(status);
    let answer = match status {
        206 => {
            let start = if let Reply::WrongRange(start) = reply { start } else { start };
            answer.header("content-range", format!("bytes {start}-{}/{}", document.len() - 1, document.len()))
        }
        _ => answer,
    };
    let first = |length: usize| {
        let bytes = rest.slice(..length.min(rest.len()));
        futures_util::stream::once(async move { Ok::<_, std::io::Error>(bytes) })
    };
    let answer = match &reply {
        Reply::Break(_) | Reply::Stall(_) => answer.header("content-length", rest.len()),
        _ => answer,
    };
    match reply {
        Reply::Serve | Reply::IgnoreRange | Reply::WrongRange(_) => answer.body(Body::from(rest)),
        Reply::Break(length) => {
            let broken = async {
                // Makes hyper send what it has before it learns of the end.
                tokio::task::yield_now().await;
                Err(std::io::Error::other("broken on purpose"))
            };
            answer.body(Body::from_stream(first(length).chain(futures_util::stream::once(broken))))
        }
        Reply::Stall(length) => {
            answer.body(Body::from_stream(first(length).chain(futures_util::stream::pending())))
        }
        Reply::Drip(length, pause) => {
            let drops: Vec<Bytes> = rest.chunks(length).map(|drop| rest.slice_ref(drop)).collect();
            let drops = futures_util::stream::iter(drops).then(move |drop| async move {
                tokio::time::sleep(pause).await;
                Ok::<_, std::io::Error>(drop)
            });
            answer.body(Body::from_stream(drops))
        }
        Reply::Status(status) => Response::builder().status(status).body(Body::from("not json")),
        Reply::Throttle(seconds) => {
            Response::builder().status(429).header("retry-after", seconds).body(Body::empty())
        }
        Reply::Bytes(bytes) => Response::builder().body(Body::from(bytes)),
        Reply::Endless(chunk) => {
            let chunk = Bytes::from(chunk);
            let chunks = futures_util::stream::repeat_with(move || Ok::<_, std::io::Error>(chunk.clone()));
            Response::builder().body(Body::from_stream(chunks))
        }
    }
    .unwrap()
}
