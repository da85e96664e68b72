//! The API over a real unix socket, with a store in memory and scripted guests.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "common/storage.rs"]
mod storage;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_util::sync::{CancellationToken, DropGuard};
use vmlet::agent::{Agent, FakeGuest, FakeScript, LogSink};
use vmlet::api::channel::{Frame, PROTOCOL};
use vmlet::api::types::{List, Status, Table, WatchEvent, WatchKind};
use vmlet::api::{BindError, Guests, Limits, Sources, bind, serve_within};
use vmlet::hypervisor::GuestStream;
use vmlet::manifest::{Readiness, decode};
use vmlet::metrics::Metrics;
use vmlet::object::{Kind, ObjectKey, Uid, VmStatus};
use vmlet::reconcile::Clock;
use vmlet::store::{Origin, Severity, Store, StoreSettings, VmUpdate};
use vmlet::timeline::{Outcome, Phase, Recorder, Subject, Timeline};

/// No test waits longer for anything.
const LIMIT: Duration = Duration::from_secs(60);
const VMS: &str = "/apis/vmlet.dev/v1alpha1/namespaces/default/vms";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

#[derive(Default)]
struct Scripted {
    dir: PathBuf,
    agents: Mutex<BTreeMap<Uid, Agent>>,
}

#[async_trait]
impl Guests for Scripted {
    fn agent(&self, uid: Uid) -> Option<Agent> {
        self.agents.lock().unwrap().get(&uid).cloned()
    }

    fn vm_dir(&self, uid: Uid) -> PathBuf {
        self.dir.join(uid.to_string())
    }

    fn driver(&self) -> String {
        "qemu, tcg".to_owned()
    }

    async fn console(&self, uid: Uid) -> Result<GuestStream, String> {
        let socket = UnixStream::connect(self.vm_dir(uid).join("console.sock")).await;
        socket.map(|socket| Box::new(socket) as GuestStream).map_err(|error| error.to_string())
    }
}

struct Server {
    dir: TempDir,
    socket: PathBuf,
    store: Store,
    guests: Arc<Scripted>,
    recorder: Recorder,
    readiness: watch::Sender<Readiness>,
    _stop: DropGuard,
}

impl Server {
    async fn start() -> Self {
        Self::start_with(StoreSettings::default(), Limits::default()).await
    }

    async fn start_with(settings: StoreSettings, limits: Limits) -> Self {
        Self::start_over(Store::in_memory_with(settings).0, limits).await
    }

    async fn start_over(store: Store, limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("vmlet.sock");
        let guests = Arc::new(Scripted { dir: dir.path().to_owned(), ..Scripted::default() });
        let listener = bind(&socket).await.unwrap();
        let cancel = CancellationToken::new();
        let (readiness, read) = watch::channel(Readiness::Applied);
        let recorder = Recorder::new(Clock::Host);
        let sources = Sources {
            store: store.clone(),
            guests: guests.clone(),
            recorder: recorder.clone(),
            metrics: Metrics::new([Box::new(store.clone()) as _]),
            readiness: read,
            storage: Arc::new(storage::Scripted::default()),
        };
        tokio::spawn(serve_within(limits, listener, sources, cancel.clone()));
        Server { dir, socket, store, guests, recorder, readiness, _stop: cancel.drop_guard() }
    }

    async fn declare(&self, yaml: &str) {
        let decoded = decode(Path::new("web.yaml"), yaml.as_bytes());
        assert_eq!(decoded.diagnostics, []);
        for located in decoded.objects {
            let origin =
                Origin { source: "directory:/m".into(), path: "/m/web.yaml".into(), line: located.line };
            self.store.declare(located.object, origin, false, Timestamp::now()).await.unwrap();
        }
    }

    async fn vm(&self, name: &str, labels: &str) {
        self.declare(&format!(
            "apiVersion: vmlet.dev/v1alpha1\nkind: VM\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n\
             spec: {{image: {{oci: 'alpine:3'}}}}\n"
        ))
        .await;
    }

    fn uid(&self, name: &str) -> Uid {
        let record = self.store.vm(&ObjectKey::new(Kind::Vm, "default", name)).unwrap();
        record.object.metadata.uid.unwrap()
    }

    async fn phase(&self, name: &str, phase: &str) {
        let status = VmStatus { phase: phase.to_owned(), ..VmStatus::default() };
        let update = VmUpdate { status: Some(status), ..VmUpdate::default() };
        let key = ObjectKey::new(Kind::Vm, "default", name);
        self.store.publish_vm(&key, self.uid(name), update).await.unwrap();
    }

    async fn send(&self, method: Method, path: &str, accept: &str) -> Response<Incoming> {
        self.order(method, path, accept, "").await
    }

    async fn order(&self, method: Method, path: &str, accept: &str, body: &str) -> Response<Incoming> {
        let stream = UnixStream::connect(&self.socket).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::builder().method(method).uri(path).header("host", "vmlet");
        let request = request.header("accept", accept).body(Full::<Bytes>::from(body.to_owned())).unwrap();
        timeout(LIMIT, sender.send_request(request)).await.unwrap().unwrap()
    }

    async fn get_as(&self, path: &str, accept: &str) -> (u16, Value) {
        let response = self.send(Method::GET, path, accept).await;
        let code = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (code, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    async fn get(&self, path: &str) -> Value {
        let (code, value) = self.get_as(path, "application/json").await;
        assert_eq!(code, 200, "{value}");
        value
    }

    async fn refused(&self, path: &str) -> Status {
        let (code, value) = self.get_as(path, "application/json").await;
        let status: Status = serde_json::from_value(value).unwrap();
        assert_eq!((status.kind.as_str(), status.code), ("Status", code));
        status
    }

    async fn watch(&self, path: &str, accept: &str) -> Lines {
        let response = self.send(Method::GET, path, accept).await;
        assert_eq!(response.status(), 200);
        Lines { body: response.into_body(), text: Vec::new() }
    }

    async fn session(&self, path: &str) -> WebSocketStream<UnixStream> {
        let stream = UnixStream::connect(&self.socket).await.unwrap();
        let mut request = format!("ws://vmlet{path}").into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static(PROTOCOL));
        let (socket, answer) = tokio_tungstenite::client_async(request, stream).await.unwrap();
        assert_eq!(answer.headers()["sec-websocket-protocol"], PROTOCOL);
        socket
    }

    async fn connect_guest(&self, name: &str) -> FakeGuest {
        let guest = FakeGuest::new(FakeScript::default());
        let log = LogSink::new(self.dir.path().join("fake.log"), 1 << 20);
        let agent = Agent::connect(guest.connect(), log).await.unwrap();
        self.guests.agents.lock().unwrap().insert(self.uid(name), agent);
        guest
    }
}

struct Lines {
    body: Incoming,
    text: Vec<u8>,
}

impl Lines {
    async fn more(&mut self) -> bool {
        match timeout(LIMIT, self.body.frame()).await.expect("the answer goes on or ends in time") {
            Some(frame) => {
                self.text.extend(frame.unwrap().into_data().unwrap_or_default());
                true
            }
            None => false,
        }
    }

    async fn event(&mut self) -> Option<WatchEvent> {
        loop {
            if let Some(end) = self.text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.text.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            if !self.more().await {
                return None;
            }
        }
    }

    async fn named(&mut self) -> (WatchKind, String) {
        let event = self.event().await.expect("another event");
        (event.kind, event.object["metadata"]["name"].as_str().unwrap_or_default().to_owned())
    }

    async fn until(&mut self, text: &str) {
        while String::from_utf8_lossy(&self.text) != text {
            assert!(self.more().await, "{:?} is not {text:?}", String::from_utf8_lossy(&self.text));
        }
    }
}

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn discovery_says_what_there_is() {
    let server = Server::start().await;
    assert_eq!(server.get("/api").await["versions"], json!(["v1"]));
    assert_eq!(server.get("/apis").await["groups"][0]["name"], "vmlet.dev");
    let resources = server.get("/apis/vmlet.dev/v1alpha1").await;
    let resources: Vec<&str> =
        resources["resources"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert!(["vms", "vms/status", "vms/exec", "images"].iter().all(|name| resources.contains(name)));
    assert!(server.get("/version").await["gitVersion"].as_str().unwrap().starts_with('v'));
    for probe in ["/healthz", "/readyz"] {
        assert_eq!(server.get_as(probe, "*/*").await.0, 200);
    }
}

#[tokio::test]
async fn readiness_follows_the_manifests() {
    let server = Server::start().await;
    let why = "the manifests are being read";
    server.readiness.send_replace(Readiness::Reading(why.to_owned()));
    assert_eq!(server.get_as("/healthz", "*/*").await.0, 200);
    assert_eq!(server.refused("/readyz").await.message, why);
    server.readiness.send_replace(Readiness::Applied);
    assert_eq!(server.get_as("/readyz", "*/*").await.0, 200);
}

#[tokio::test]
async fn numbers_and_timelines() {
    let server = Server::start().await;
    server.vm("web", "").await;
    let response = server.send(Method::GET, "/metrics", "*/*").await;
    let media = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!(
        (response.status().as_u16(), &response.headers()["content-type"]),
        (200, &media.parse().unwrap())
    );
    let page = response.into_body().collect().await.unwrap().to_bytes();
    let page = String::from_utf8(page.to_vec()).unwrap();
    assert!(
        page.contains("\nvmlet_store_rows{table=\"object\"} 1.0\n") && page.ends_with("# EOF\n"),
        "{page}"
    );
    let web = Subject::Object(ObjectKey::new(Kind::Vm, "default", "web"));
    server.recorder.open(web.clone(), Phase::Boot, "", None).end(Outcome::Done);
    let timeline: Timeline = serde_json::from_value(server.get("/timeline").await).unwrap();
    assert_eq!((timeline.spans.len(), &timeline.spans[0].subject), (1, &web));
}

#[tokio::test]
async fn lists_and_objects() {
    let server = Server::start().await;
    server.vm("web", "tier: front").await;
    server.vm("db", "tier: back").await;
    let list: List = serde_json::from_value(server.get(VMS).await).unwrap();
    assert_eq!((list.kind.as_str(), list.items.len()), ("VMList", 2));
    assert_ne!(list.metadata.resource_version, "");
    let web = server.get(&format!("{VMS}/web")).await;
    assert_eq!((web["kind"].as_str(), web["metadata"]["generation"].as_i64()), (Some("VM"), Some(1)));
    assert_eq!(web["metadata"]["annotations"]["vmlet.dev/declared-in"], "/m/web.yaml:1");
    assert_eq!(web, server.get(&format!("{VMS}/web/status")).await);
    assert_eq!(names(&server.get("/apis/vmlet.dev/v1alpha1/vms").await).len(), 2);
    assert_eq!(names(&server.get("/apis/vmlet.dev/v1alpha1/namespaces/other/vms").await).len(), 0);
}

#[tokio::test]
async fn selectors_select() {
    let server = Server::start().await;
    server.vm("a", "tier: front").await;
    server.vm("b", "tier: back").await;
    server.vm("c", "").await;
    for (query, expected) in [
        ("labelSelector=tier%3Dfront", vec!["a"]),
        ("labelSelector=tier!%3Dfront", vec!["b", "c"]),
        ("labelSelector=tier%20in%20(front,back)", vec!["a", "b"]),
        ("labelSelector=tier,tier%20notin%20(back)", vec!["a"]),
        ("labelSelector=!tier", vec!["c"]),
        ("fieldSelector=metadata.name%3Db", vec!["b"]),
        ("fieldSelector=metadata.namespace!%3Ddefault", vec![]),
        ("limit=1", vec!["a", "b", "c"]),
    ] {
        assert_eq!(names(&server.get(&format!("{VMS}?{query}")).await), expected, "{query}");
    }
    for query in ["labelSelector=tier%20in", "fieldSelector=spec.cpus%3D1", "watch=1&resourceVersion=x"] {
        assert_eq!(server.refused(&format!("{VMS}?{query}")).await.code, 400, "{query}");
    }
}

#[tokio::test]
async fn tables_have_the_columns_of_the_design() {
    let server = Server::start().await;
    server.vm("web", "").await;
    server.phase("web", "Running").await;
    let table: Table = serde_json::from_value(server.get_as(VMS, TABLE).await.1).unwrap();
    let columns: Vec<&str> = table
        .column_definitions
        .iter()
        .filter(|column| column.priority == 0)
        .map(|column| column.name.as_str())
        .collect();
    assert_eq!(columns, ["Name", "Ready", "Status", "Image", "Address", "Restarts", "Age"]);
    assert_eq!(
        table.rows[0].cells[..6],
        json!(["web", "False", "Running", "alpine:3", "<none>", 0]).as_array().unwrap()[..]
    );
    assert_eq!(table.rows[0].object["kind"], "PartialObjectMetadata");
    let one: Table = serde_json::from_value(server.get_as(&format!("{VMS}/web"), TABLE).await.1).unwrap();
    assert_eq!(one.rows.len(), 1);
    let (code, _) = server.get_as(VMS, "application/vnd.kubernetes.protobuf").await;
    assert_eq!(code, 406);
}

#[tokio::test]
async fn errors_are_statuses() {
    let server = Server::start().await;
    server.vm("web", "").await;
    let missing = server.refused(&format!("{VMS}/nope")).await;
    assert_eq!((missing.code, missing.reason.as_str()), (404, "NotFound"));
    assert_eq!(missing.details.unwrap().name, "nope");
    assert_eq!(server.refused("/apis/other.dev").await.code, 404);
    let response = server.send(Method::DELETE, &format!("{VMS}/web"), "application/json").await;
    assert_eq!(response.status(), 403);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let status: Status = serde_json::from_slice(&body).unwrap();
    assert_eq!(status.cause("DeclaredIn"), Some("/m/web.yaml:1"));
    assert!(status.message.contains("vm/web is declared in /m/web.yaml:1"), "{}", status.message);
    assert_eq!(server.send(Method::POST, VMS, "application/json").await.status(), 405);
    assert_eq!(server.refused(&format!("{VMS}/web/stats")).await.code, 409);
    assert_eq!(server.refused(&format!("{VMS}/web/exec?command=sh")).await.code, 400);
    assert!(server.refused(&format!("{VMS}/web/log")).await.message.contains("has no workload.log"));
}

/// A folder that an earlier daemon read is nobody's business now: what it left can be deleted here.
#[tokio::test]
async fn what_no_folder_looks_after_is_deleted_when_somebody_asks() {
    let (before, backend) = Store::in_memory();
    let web =
        "apiVersion: vmlet.dev/v1alpha1\nkind: VM\nmetadata: {name: web}\nspec: {image: {oci: 'a:1'}}\n";
    let object = decode(Path::new("web.yaml"), web.as_bytes()).objects.remove(0).object;
    let origin = Origin { source: "directory:/old".into(), path: "web.yaml".into(), line: 1 };
    before.declare(object, origin, false, Timestamp::now()).await.unwrap();
    let server = Server::start_over(backend.crash(0).0, Limits::default()).await;
    server.store.attend("directory:/old");
    let refused = server.send(Method::DELETE, &format!("{VMS}/web"), "application/json").await;
    assert_eq!(refused.status(), 403, "its folder is read");
    let server = Server::start_over(backend.crash(0).0, Limits::default()).await;
    server.store.attend("directory:/m");
    let deleted = server.send(Method::DELETE, &format!("{VMS}/web"), "application/json").await;
    assert_eq!(deleted.status(), 200);
    let body = deleted.into_body().collect().await.unwrap().to_bytes();
    let object: Value = serde_json::from_slice(&body).unwrap();
    assert!(object["metadata"]["deletionTimestamp"].is_string(), "{object}");
}

#[tokio::test]
async fn a_watch_continues_its_list_without_a_gap() {
    let server = Server::start().await;
    server.vm("before", "").await;
    let version = server.get(VMS).await["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    // Between the list and the watch.
    server.vm("between", "").await;
    let mut watch = server.watch(&format!("{VMS}?watch=true&resourceVersion={version}"), "*/*").await;
    assert_eq!(watch.named().await, (WatchKind::Added, "between".to_owned()));
    server.phase("before", "Running").await;
    assert_eq!(watch.named().await, (WatchKind::Modified, "before".to_owned()));
    let key = ObjectKey::new(Kind::Vm, "default", "between");
    assert!(server.store.undeclare(&key, "directory:/m", Timestamp::now()).await.unwrap());
    assert_eq!(watch.named().await, (WatchKind::Modified, "between".to_owned()));
    server.store.remove_vm(&key, server.uid("between")).await.unwrap();
    assert_eq!(watch.named().await, (WatchKind::Deleted, "between".to_owned()));
}

#[tokio::test]
async fn initial_events_end_with_a_bookmark() {
    let server = Server::start().await;
    server.vm("a", "").await;
    let query =
        "watch=true&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan";
    let mut watch = server.watch(&format!("{VMS}?{query}"), "*/*").await;
    assert_eq!(watch.named().await, (WatchKind::Added, "a".to_owned()));
    let bookmark = watch.event().await.unwrap();
    assert_eq!(bookmark.kind, WatchKind::Bookmark);
    assert_eq!(bookmark.object["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
}

#[tokio::test]
async fn a_selected_watch_tells_who_comes_and_goes() {
    let server = Server::start().await;
    server.vm("a", "tier: front").await;
    server.vm("b", "tier: back").await;
    let mut watch = server.watch(&format!("{VMS}?watch=true&labelSelector=tier%3Dfront"), "*/*").await;
    assert_eq!(watch.named().await, (WatchKind::Added, "a".to_owned()));
    server.vm("b", "tier: front").await;
    assert_eq!(watch.named().await, (WatchKind::Added, "b".to_owned()));
    server.vm("a", "tier: back").await;
    assert_eq!(watch.named().await, (WatchKind::Deleted, "a".to_owned()));
    server.phase("a", "Running").await; // not selected any more
    server.phase("b", "Running").await;
    assert_eq!(watch.named().await, (WatchKind::Modified, "b".to_owned()));
}

#[tokio::test]
async fn a_table_watch_has_columns_once() {
    let server = Server::start().await;
    server.vm("a", "").await;
    let mut watch = server.watch(&format!("{VMS}?watch=true"), TABLE).await;
    let first: Table = serde_json::from_value(watch.event().await.unwrap().object).unwrap();
    server.phase("a", "Running").await;
    let second: Table = serde_json::from_value(watch.event().await.unwrap().object).unwrap();
    assert!(!first.column_definitions.is_empty() && second.column_definitions.is_empty());
    assert_eq!((first.rows.len(), second.rows.len()), (1, 1));
}

#[tokio::test]
async fn trimmed_history_is_gone() {
    let settings = StoreSettings { history: 4, ..StoreSettings::default() };
    let server = Server::start_with(settings, Limits::default()).await;
    for number in 0..10 {
        server.vm(&format!("vm-{number}"), "").await;
    }
    let status = server.refused(&format!("{VMS}?watch=true&resourceVersion=1")).await;
    assert_eq!((status.code, status.reason.as_str()), (410, "Expired"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_watcher_is_closed_and_delays_nobody() {
    let limits = Limits { connections: 1, stall: Duration::from_millis(200), ..Limits::default() };
    let server = Server::start_with(StoreSettings::default(), limits).await;
    server.vm("a", "").await;
    let mut slow = server.watch(&format!("{VMS}?watch=true"), "*/*").await;
    assert_eq!(slow.named().await, (WatchKind::Added, "a".to_owned()));
    // Far more than the buffers on the way hold, and nobody reads it: the store goes on all the same.
    let filler = "x".repeat(64 << 10);
    for number in 0..200 {
        server.phase("a", &format!("{number}{filler}")).await;
    }
    // The one connection there may be is free again when the watcher's was closed.
    let freed = async { while server.get_as(VMS, "*/*").await.0 != 200 {} };
    timeout(LIMIT, freed).await.expect("the slow watcher is closed");
    assert!(slow.body.frame().await.is_some(), "what was under way is still there");
}

#[tokio::test]
async fn a_connection_too_many_is_told_so() {
    let limits = Limits { connections: 1, ..Limits::default() };
    let server = Server::start_with(StoreSettings::default(), limits).await;
    let _held = server.watch(&format!("{VMS}?watch=true"), "*/*").await;
    assert_eq!(server.refused(VMS).await.code, 503);
}

#[tokio::test]
async fn events_are_core_v1() {
    let server = Server::start().await;
    server.vm("a", "").await;
    server.vm("b", "").await;
    let say = |name: &str, message: &str| {
        let key = ObjectKey::new(Kind::Vm, "default", name);
        server.store.record_event(&key, None, Severity::Warning, "Boom", message, Timestamp::now());
    };
    say("a", "one");
    say("b", "two");
    let path = "/api/v1/namespaces/default/events";
    let of_a = server.get(&format!("{path}?fieldSelector=involvedObject.name%3Da")).await;
    assert_eq!(of_a["items"].as_array().unwrap().len(), 1);
    let event = &of_a["items"][0];
    assert_eq!((event["reason"].as_str(), event["type"].as_str()), (Some("Boom"), Some("Warning")));
    assert_eq!(event["involvedObject"]["kind"], "VM");
    let version = server.get(path).await["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let mut watch = server.watch(&format!("{path}?watch=true&resourceVersion={version}"), "*/*").await;
    say("a", "three");
    assert_eq!(watch.event().await.unwrap().object["message"], "three");
}

#[tokio::test]
async fn a_log_is_followed_through_rotation_and_truncation() {
    let server = Server::start().await;
    server.vm("web", "").await;
    let dir = server.guests.vm_dir(server.uid("web"));
    std::fs::create_dir(&dir).unwrap();
    let log = dir.join("workload.log");
    std::fs::write(&log, "one\ntwo\nthree\n").unwrap();
    let mut tail = server.watch(&format!("{VMS}/web/log?tailLines=2"), "*/*").await;
    tail.until("two\nthree\n").await;
    assert!(!tail.more().await);
    let mut follow = server.watch(&format!("{VMS}/web/log?follow=true&tailLines=1"), "*/*").await;
    follow.until("three\n").await;
    append(&log, "four\n");
    std::fs::rename(&log, dir.join("workload.log.1")).unwrap();
    std::fs::write(&log, "five\n").unwrap();
    follow.until("three\nfour\nfive\n").await;
    std::fs::write(&log, "six\n").unwrap();
    follow.until("three\nfour\nfive\nsix\n").await;
    let mut previous = server.watch(&format!("{VMS}/web/log?previous=true"), "*/*").await;
    previous.until("one\ntwo\nthree\nfour\n").await;
    // It ends with the VM.
    let key = ObjectKey::new(Kind::Vm, "default", "web");
    server.store.undeclare(&key, "directory:/m", Timestamp::now()).await.unwrap();
    server.store.remove_vm(&key, server.uid("web")).await.unwrap();
    assert!(!follow.more().await);
}

fn append(path: &Path, text: &str) {
    let mut file = std::fs::OpenOptions::new().append(true).open(path).unwrap();
    std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
}

#[tokio::test]
async fn logs_follow_no_links() {
    let server = Server::start().await;
    server.vm("web", "").await;
    let dir = server.guests.vm_dir(server.uid("web"));
    std::fs::create_dir(&dir).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", dir.join("console.log")).unwrap();
    assert_eq!(server.refused(&format!("{VMS}/web/console")).await.code, 500);
}

async fn frame(socket: &mut WebSocketStream<UnixStream>) -> Frame {
    loop {
        let message = timeout(LIMIT, socket.next()).await.unwrap().expect("the session goes on").unwrap();
        if let Message::Binary(message) = message {
            return Frame::decode(message).unwrap().unwrap();
        }
    }
}

async fn say(socket: &mut WebSocketStream<UnixStream>, frame: Frame) {
    socket.send(Message::Binary(frame.encode())).await.unwrap();
}

#[tokio::test]
async fn commands_run_over_a_websocket() {
    let server = Server::start().await;
    server.vm("web", "").await;
    let guest = server.connect_guest("web").await;
    let mut cat = server.session(&format!("{VMS}/web/exec?command=cat&stdin=true")).await;
    say(&mut cat, Frame::Stdin("hello".into())).await;
    assert_eq!(frame(&mut cat).await, Frame::Stdout("hello".into()));
    say(&mut cat, Frame::StdinClosed).await;
    let Frame::Ended(status) = frame(&mut cat).await else { panic!("the end was due") };
    assert_eq!(status.status, "Success");

    let mut exit = server.session(&format!("{VMS}/web/exec?command=exit&command=3")).await;
    let Frame::Ended(status) = frame(&mut exit).await else { panic!("the end was due") };
    assert_eq!((status.reason.as_str(), status.cause("ExitCode")), ("NonZeroExitCode", Some("3")));

    let mut lost = server.session(&format!("{VMS}/web/exec?command=cat&stdin=true")).await;
    guest.power_off();
    let Frame::Ended(status) = frame(&mut lost).await else { panic!("the end was due") };
    assert_eq!(status.reason, "InternalError");
}

async fn answer(response: Response<Incoming>) -> (u16, String) {
    let code = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (code, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn disk_space_is_told_and_given_back() {
    let server = Server::start().await;
    let report = server.get("/storage").await;
    assert_eq!(
        (&report["disks"][1]["keptUntil"], &report["filesystem"]["free"]),
        (&json!("2026-01-01T00:06:00Z"), &json!(61_u64 << 30))
    );
    let remove = async |digest: &str| {
        answer(server.send(Method::DELETE, &format!("/storage/disks/{digest}"), "*/*").await).await
    };
    let (code, body) = remove(&storage::digest('a').to_string()).await;
    let status: Status = serde_json::from_str(&body).unwrap();
    assert_eq!((code, status.reason.as_str()), (409, "InUse"));
    assert_eq!(status.causes("UsedBy").collect::<Vec<_>>(), ["image/debian", "vm/web"]);
    let (code, body) = remove(&storage::digest('b').to_string()).await;
    assert_eq!(
        (code, serde_json::from_str::<Value>(&body).unwrap()["allocated"].as_u64()),
        (200, Some(7 << 20))
    );
    assert_eq!(remove(&storage::digest('b').to_string()).await.0, 404);
    assert_eq!(remove("sha256:no").await.0, 400);
    let prune =
        async |body: &str| answer(server.order(Method::POST, "/storage/prune", "*/*", body).await).await;
    assert_eq!(prune("").await, (200, r#"{"disks":[],"blobs":0,"allocated":0}"#.to_owned()));
    assert_eq!(prune(r#"{"dryRun": 7}"#).await.0, 400);
    assert_eq!(prune(&" ".repeat(1 << 20)).await.0, 400, "bodies are bounded");
}

#[tokio::test]
async fn a_pull_on_demand_is_lines_of_updates() {
    let server = Server::start().await;
    let pull = async |source: &str| {
        let body = json!({"source": source}).to_string();
        answer(server.order(Method::POST, "/storage/pull", "*/*", &body).await).await
    };
    let (code, body) = pull("debian:13").await;
    let types: Vec<Value> =
        body.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["type"].clone()).collect();
    assert_eq!(code, 200);
    assert_eq!(types, ["resolving", "queued", "pulling", "pulling", "pulling", "done"]);
    let (code, body) = pull("Not A Reference").await;
    assert!(code == 400 && body.contains("is not an OCI reference"), "{body}");
}

#[tokio::test]
async fn a_console_is_attached_to() {
    let server = Server::start().await;
    server.vm("web", "").await;
    let dir = server.guests.vm_dir(server.uid("web"));
    std::fs::create_dir(&dir).unwrap();
    let console = tokio::net::UnixListener::bind(dir.join("console.sock")).unwrap();
    let mut session = server.session(&format!("{VMS}/web/console")).await;
    let (mut guest, _) = timeout(LIMIT, console.accept()).await.unwrap().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut guest, b"login: ").await.unwrap();
    assert_eq!(frame(&mut session).await, Frame::Stdout("login: ".into()));
    say(&mut session, Frame::Stdin("root\n".into())).await;
    let mut typed = [0; 5];
    tokio::io::AsyncReadExt::read_exact(&mut guest, &mut typed).await.unwrap();
    assert_eq!(&typed, b"root\n");
    drop(guest);
    assert!(matches!(frame(&mut session).await, Frame::Ended(_)));
}

#[tokio::test]
async fn a_socket_has_one_daemon_and_a_private_mode() {
    let server = Server::start().await;
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&server.socket).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o660);
    assert!(matches!(bind(&server.socket).await, Err(BindError::InUse(_))));
    let stale = server.dir.path().join("stale.sock");
    drop(bind(&stale).await.unwrap());
    bind(&stale).await.unwrap();
    let file = server.dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(matches!(bind(&file).await, Err(BindError::NotASocket(_))));
}
