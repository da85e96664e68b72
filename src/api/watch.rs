//! Watches: a stream of JSON lines, from a version on.
//!
//! No change is lost between a list and the watch that continues it, because the watch starts from
//! the list's version. A client that reads too slowly falls out of the store's history and is told
//! so (410 Expired); it never slows a writer down.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use super::error::{Answer, ApiError};
use super::request::{Form, Params, Selection};
use super::types::{Table, WatchEvent, WatchKind};
use super::{Api, render};
use crate::object::{API_VERSION, Kind, ObjectKey};
use crate::store::{Change, ChangeKind, Record, Watch};

/// How long a watch lasts at most; clients then start the next one.
const LONGEST: Duration = Duration::from_secs(60 * 60);
/// How often a quiet watch tells its version, to clients that want to know.
const BOOKMARK_PERIOD: Duration = Duration::from_secs(60);

/// Starts a watch of the objects of a kind.
pub(super) fn objects(api: Api, kind: Kind, selection: Selection, form: Form, params: &Params) -> Answer {
    let from = params.number("resourceVersion")?.filter(|version| *version != 0);
    let initial = params.get("sendInitialEvents").map(|_| params.flag("sendInitialEvents"));
    // Without a version, Kubernetes starts with the present state too ("get state and start at any").
    let send_state = initial.unwrap_or(from.is_none());
    let (records, version) = api.store.list(kind, selection.namespace.as_deref());
    let start = if send_state { version } else { from.unwrap_or(version) };
    let watch = match api.store.watch(Some(start)) {
        Ok(watch) => watch,
        Err(_) => return Err(ApiError::expired()),
    };
    let mut watcher = Watcher {
        api,
        kind,
        watch,
        output: Output { kind, form, headed: false },
        matched: known_matches(&records, &selection, start),
        selection,
        queue: VecDeque::new(),
        version: start,
        bookmarks: params.flag("allowWatchBookmarks"),
        next_bookmark: Instant::now() + BOOKMARK_PERIOD,
        until: Instant::now() + lasts(params)?,
        ended: false,
    };
    if send_state {
        for record in records.iter().filter(|record| watcher.selection.matches(&record.object())) {
            let line = watcher.output.object(WatchKind::Added, record);
            watcher.queue.push_back(line);
        }
        if initial == Some(true) {
            let line = watcher.output.bookmark(start, true);
            watcher.queue.push_back(line);
        }
    }
    Ok(streamed(watcher, "application/json"))
}

/// How long the client wants to watch (`timeoutSeconds`), within bounds.
pub(super) fn lasts(params: &Params) -> Result<Duration, ApiError> {
    let wish = params.number("timeoutSeconds")?.filter(|seconds| *seconds > 0);
    Ok(wish.map_or(LONGEST, |seconds| Duration::from_secs(seconds).min(LONGEST)))
}

/// What an answer that goes on consists of.
pub(super) trait Chunks: Send + 'static {
    /// The next part; none ends the answer. Cancel-safe.
    fn next(&mut self) -> impl Future<Output = Option<Bytes>> + Send;
}

/// An answer that goes on until there are no more chunks, or the client leaves.
pub(super) fn streamed(chunks: impl Chunks, content_type: &'static str) -> Response {
    let stream = stream::unfold(chunks, async |mut chunks| {
        let chunk = chunks.next().await?;
        Some((Ok::<_, Infallible>(chunk), chunks))
    });
    let mut response = Body::from_stream(stream).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Whether each object matched the selection at version `at`, for those that did not change since.
fn known_matches(records: &[Record], selection: &Selection, at: u64) -> BTreeMap<ObjectKey, bool> {
    if !selection.can_change() {
        return BTreeMap::new();
    }
    let unchanged = |record: &&Record| {
        record.object().metadata().resource_version.parse().is_ok_and(|version: u64| version <= at)
    };
    let matched = |record: &Record| (record.object().key(), selection.matches(&record.object()));
    records.iter().filter(unchanged).map(matched).collect()
}

struct Watcher {
    api: Api,
    kind: Kind,
    watch: Watch,
    output: Output,
    selection: Selection,
    /// Whether the client has seen the object as part of the selection, where labels decide that.
    matched: BTreeMap<ObjectKey, bool>,
    queue: VecDeque<Bytes>,
    version: u64,
    bookmarks: bool,
    next_bookmark: Instant,
    until: Instant,
    ended: bool,
}

impl Chunks for Watcher {
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(line) = self.queue.pop_front() {
            return Some(line);
        }
        while !self.ended {
            let cancel = self.api.cancel.clone();
            tokio::select! {
                () = cancel.cancelled() => break,
                () = sleep_until(self.until) => break,
                () = sleep_until(self.next_bookmark), if self.bookmarks => {
                    self.next_bookmark = Instant::now() + BOOKMARK_PERIOD;
                    return Some(self.output.bookmark(self.version, false));
                }
                change = self.watch.next() => match change {
                    Ok(change) => {
                        if let Some(line) = self.line(&change) {
                            return Some(line);
                        }
                    }
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
    /// The change as this selection sees it.
    fn line(&mut self, change: &Change) -> Option<Bytes> {
        self.version = change.version;
        let object = change.record.object();
        if object.key().kind != self.kind || self.selection.excludes(object.metadata()) {
            return None;
        }
        let kind = match change.kind {
            ChangeKind::Added => WatchKind::Added,
            ChangeKind::Modified => WatchKind::Modified,
            ChangeKind::Deleted => WatchKind::Deleted,
        };
        let kind = if self.selection.can_change() { self.as_selected(kind, &change.record)? } else { kind };
        Some(self.output.object(kind, &change.record))
    }

    /// An object that begins to match appears, and one that ceases to match disappears. What is not
    /// known of the past is told as a deletion, which a client that never saw the object ignores.
    fn as_selected(&mut self, kind: WatchKind, record: &Record) -> Option<WatchKind> {
        let object = record.object();
        let (key, now) = (object.key(), self.selection.matches(&object));
        let before = self.matched.get(&key).copied();
        if kind == WatchKind::Deleted {
            self.matched.remove(&key);
            return (before != Some(false)).then_some(WatchKind::Deleted);
        }
        self.matched.insert(key, now);
        match (before, now) {
            (Some(true), true) => Some(WatchKind::Modified),
            (Some(false), true) => Some(WatchKind::Added),
            (None, true) => Some(kind),
            (Some(true), false) => Some(WatchKind::Deleted),
            (None, false) if kind == WatchKind::Modified => Some(WatchKind::Deleted),
            (Some(false) | None, false) => None,
        }
    }
}

/// Writes the lines of one watch.
struct Output {
    kind: Kind,
    form: Form,
    /// Whether a table with columns was sent; later ones go without.
    headed: bool,
}

impl Output {
    fn object(&mut self, kind: WatchKind, record: &Record) -> Bytes {
        let object = match self.form {
            Form::Objects => render::value(record),
            Form::Table(include) => {
                let version = record.object().metadata().resource_version.clone();
                let table = render::table(self.kind, [record], version, include, Timestamp::now());
                self.table(table)
            }
        };
        line(kind, object)
    }

    fn bookmark(&mut self, version: u64, initial_end: bool) -> Bytes {
        let version = version.to_string();
        if let Form::Table(include) = self.form {
            let table = render::table(self.kind, [], version, include, Timestamp::now());
            let table = self.table(table);
            return line(WatchKind::Bookmark, table);
        }
        let mut metadata = json!({"resourceVersion": version});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = json!({"kind": self.kind.as_str(), "apiVersion": API_VERSION, "metadata": metadata});
        line(WatchKind::Bookmark, object)
    }

    fn table(&mut self, mut table: Table) -> Value {
        if std::mem::replace(&mut self.headed, true) {
            table.column_definitions.clear();
        }
        json!(table)
    }
}

/// An error as the last line of a watch.
pub(super) fn error_line(error: ApiError) -> Bytes {
    line(WatchKind::Error, json!(error.into_status()))
}

/// One line of a watch.
pub(super) fn line(kind: WatchKind, object: Value) -> Bytes {
    let mut line = serde_json::to_vec(&WatchEvent { kind, object }).expect("JSON values serialise");
    line.push(b'\n');
    line.into()
}
