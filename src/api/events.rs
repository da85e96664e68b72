//! Events as `core/v1` shows them: lists, tables and watches.
//!
//! Events are not part of the store's history. Their version is the time at which they last
//! happened, in microseconds: good enough to continue a list without missing any.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::response::IntoResponse;
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, sleep_until};

use super::Api;
use super::age::age;
use super::error::{Answer, ApiError};
use super::render::{column, table_of};
use super::request::{Form, Include, Params};
use super::resources::Place;
use super::selector::FieldSelector;
use super::types::{List, ListMeta, Row, Table, WatchKind};
use super::watch::{Chunks, error_line, lasts, line, streamed};
use crate::object::{API_VERSION, DEFAULT_NAMESPACE};
use crate::store::{Event, EventWatch, Severity, Subject};

/// What events can be selected by.
const FIELDS: [&str; 8] = [
    "involvedObject.kind",
    "involvedObject.name",
    "involvedObject.namespace",
    "involvedObject.uid",
    "metadata.name",
    "metadata.namespace",
    "reason",
    "type",
];

pub(super) async fn list(
    State(api): State<Api>,
    Path(place): Path<Place>,
    Query(params): Query<Vec<(String, String)>>,
    headers: HeaderMap,
) -> Answer {
    let params = Params(params);
    let form = Form::negotiate(&headers, &params)?;
    let fields = FieldSelector::parse(params.get("fieldSelector").unwrap_or_default(), &FIELDS)
        .map_err(|error| ApiError::bad_request(error.to_string()))?;
    let filter = Filter { namespace: place.namespace, fields };
    if params.flag("watch") {
        return watch(api, filter, form, &params);
    }
    let events = api.store.events(None);
    let version = events.iter().map(version).max().unwrap_or(0).to_string();
    let chosen = events.iter().filter(|event| filter.matches(event));
    Ok(match form {
        Form::Table(include) => Json(table(chosen, version, include)).into_response(),
        Form::Objects => Json(List {
            api_version: "v1".to_owned(),
            kind: "EventList".to_owned(),
            metadata: ListMeta { resource_version: version, ..ListMeta::default() },
            items: chosen.map(value).collect(),
        })
        .into_response(),
    })
}

fn watch(api: Api, filter: Filter, form: Form, params: &Params) -> Answer {
    let after = params.number("resourceVersion")?.unwrap_or(0);
    let send_state = params.get("sendInitialEvents").is_none() || params.flag("sendInitialEvents");
    // Subscribing before reading loses nothing; what is seen twice is dropped below.
    let watch = api.store.watch_events();
    let mut watcher = Watcher {
        cancel: api.cancel.clone(),
        watch,
        filter,
        form,
        headed: false,
        counts: BTreeMap::new(),
        queue: VecDeque::new(),
        until: Instant::now() + lasts(params)?,
        ended: false,
    };
    for event in api.store.events(None) {
        watcher.counts.insert(name(&event), event.count);
        if send_state && version(&event) > after && watcher.filter.matches(&event) {
            let line = watcher.line(&event);
            watcher.queue.push_back(line);
        }
    }
    if params.flag("sendInitialEvents") {
        let metadata = json!({
            "resourceVersion": after.to_string(), "annotations": {"k8s.io/initial-events-end": "true"},
        });
        let end = json!({"kind": "Event", "apiVersion": "v1", "metadata": metadata});
        watcher.queue.push_back(line(WatchKind::Bookmark, end));
    }
    Ok(streamed(watcher, "application/json"))
}

/// A subject as `involvedObject`. Manifests are in no namespace; as in Kubernetes, events of such things
/// are listed in `default`.
struct Involved<'a> {
    kind: &'static str,
    namespace: &'a str,
    name: Cow<'a, str>,
}

impl<'a> Involved<'a> {
    fn of(subject: &'a Subject) -> Self {
        match subject {
            Subject::Object(key) => {
                Involved { kind: key.kind.as_str(), namespace: &key.namespace, name: (&key.name).into() }
            }
            Subject::Manifest { path } => {
                Involved { kind: "Manifest", namespace: DEFAULT_NAMESPACE, name: path.to_string_lossy() }
            }
        }
    }
}

struct Filter {
    namespace: Option<String>,
    fields: FieldSelector,
}

impl Filter {
    fn matches(&self, event: &Event) -> bool {
        let involved = Involved::of(&event.subject);
        let (name, uid) = (name(event), event.uid.map(|uid| uid.to_string()).unwrap_or_default());
        self.namespace.as_ref().is_none_or(|namespace| *namespace == involved.namespace)
            && self.fields.matches(|field| match field {
                "involvedObject.kind" => involved.kind,
                "involvedObject.name" => &involved.name,
                "involvedObject.uid" => &uid,
                "metadata.name" => &name,
                "reason" => &event.reason,
                "type" => severity(event.severity),
                _ => involved.namespace,
            })
    }
}

struct Watcher {
    cancel: tokio_util::sync::CancellationToken,
    watch: EventWatch,
    filter: Filter,
    form: Form,
    headed: bool,
    /// How often each event had happened when the watch began.
    counts: BTreeMap<String, u32>,
    queue: VecDeque<Bytes>,
    until: Instant,
    ended: bool,
}

impl Chunks for Watcher {
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(line) = self.queue.pop_front() {
            return Some(line);
        }
        while !self.ended {
            tokio::select! {
                () = self.cancel.cancelled() => break,
                () = sleep_until(self.until) => break,
                event = self.watch.next() => match event {
                    Ok(event) if self.is_news(&event) => return Some(self.line(&event)),
                    Ok(_) => {}
                    Err(_) => {
                        self.ended = true;
                        return Some(error_line(ApiError::expired()));
                    }
                },
            }
        }
        None
    }
}

impl Watcher {
    fn is_news(&self, event: &Event) -> bool {
        let counted = self.counts.get(&name(event)).copied().unwrap_or(0);
        event.count > counted && self.filter.matches(event)
    }

    fn line(&mut self, event: &Event) -> Bytes {
        let kind = if event.count == 1 { WatchKind::Added } else { WatchKind::Modified };
        let object = match self.form {
            Form::Objects => value(event),
            Form::Table(include) => {
                let mut table = table([event], version(event).to_string(), include);
                if std::mem::replace(&mut self.headed, true) {
                    table.column_definitions.clear();
                }
                json!(table)
            }
        };
        line(kind, object)
    }
}

fn table<'a>(events: impl IntoIterator<Item = &'a Event>, version: String, include: Include) -> Table {
    let now = Timestamp::now();
    let columns = vec![
        column("Last Seen", 0, "The time since it last happened."),
        column("Type", 0, "Normal, or Warning if somebody should look."),
        column("Reason", 0, "One word for programs."),
        column("Object", 0, "What it happened to."),
        column("Count", 1, "How often it happened."),
        column("First Seen", 1, "The time since it first happened."),
        column("Name", 1, "The event's own name."),
        column("Message", 0, "A sentence for people."),
    ];
    let row = |event: &Event| Row {
        cells: vec![
            age(event.last_seen, now).into(),
            severity(event.severity).into(),
            event.reason.clone().into(),
            event.subject.to_string().into(),
            event.count.into(),
            age(event.first_seen, now).into(),
            name(event).into(),
            event.message.clone().into(),
        ],
        object: match include {
            Include::None => Value::Null,
            Include::Metadata => json!({
                "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata(event),
            }),
            Include::Object => value(event),
        },
    };
    table_of(columns, events.into_iter().map(row).collect(), version)
}

fn value(event: &Event) -> Value {
    let involved = Involved::of(&event.subject);
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": metadata(event),
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": involved.kind,
            "namespace": involved.namespace,
            "name": involved.name,
            "uid": event.uid,
        },
        "type": severity(event.severity),
        "reason": event.reason,
        "message": event.message,
        "count": event.count,
        "firstTimestamp": event.first_seen,
        "lastTimestamp": event.last_seen,
        "source": {"component": "vmlet"},
        "reportingComponent": "vmlet",
        "reportingInstance": "",
    })
}

fn metadata(event: &Event) -> Value {
    json!({
        "name": name(event),
        "namespace": Involved::of(&event.subject).namespace,
        "resourceVersion": version(event).to_string(),
        "creationTimestamp": event.first_seen,
    })
}

/// Equal for the repetitions of one event, and different for different ones.
fn name(event: &Event) -> String {
    let mut hash = Sha256::new();
    for part in [&event.subject.to_string(), &event.reason, &event.message] {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    if let Some(uid) = event.uid {
        hash.update(uid);
    }
    let prefix = event.subject.object().map_or("manifest", |object| object.name.as_str());
    format!("{prefix}.{}", hex::encode(&hash.finalize()[..8]))
}

fn version(event: &Event) -> u64 {
    u64::try_from(event.last_seen.as_microsecond()).unwrap_or(0)
}

fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Normal => "Normal",
        Severity::Warning => "Warning",
    }
}
