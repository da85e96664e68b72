//! The API: HTTP on a unix socket, shaped like Kubernetes'.
//!
//! In: requests, and what there is to show ([`Sources`]). Out: JSON in the envelopes of [`types`].
//! Nothing here changes an object: all of them are declared by files. Every request is bounded in
//! size, every stalled connection is closed after a while, and none of them slows the store down.

mod age;
pub mod channel;
mod declarations;
mod discovery;
mod error;
mod events;
mod files;
mod follow;
mod introspect;
mod render;
mod request;
mod resources;
mod selector;
mod server;
mod session;
mod socket;
mod stall;
mod storage;
pub mod types;
mod watch;
mod why;

#[cfg(test)]
mod tests;

pub use age::age;
pub(crate) use age::human;
pub(crate) use render::phase;
pub use render::{DECLARED_IN, PROBLEM};
pub use server::{Limits, serve, serve_within};
pub use socket::{BindError, bind};

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use axum::Router;
use axum::http::{Method, Uri};
use axum::routing::get;
use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::watch::Receiver;
use tokio_util::sync::CancellationToken;

use crate::agent::Agent;
use crate::hypervisor::GuestStream;
use crate::manifest::Readiness;
use crate::metrics::Metrics;
use crate::object::{API_VERSION, GROUP, Kind, Uid};
use crate::storage::Storage;
use crate::store::{Record, Store};
use crate::timeline::Recorder;
use error::ApiError;
use request::Include;
use types::Table;

/// The table of `vmlet get`, of records that are at hand.
pub(crate) fn table<'a>(kind: Kind, records: impl IntoIterator<Item = &'a Record>, now: Timestamp) -> Table {
    render::table(kind, records, String::new(), Include::Metadata, now)
}

/// A record's object as the API shows it.
pub(crate) fn object(record: &Record) -> Value {
    render::value(record)
}

/// The running VMs, as the engine knows them.
#[async_trait]
pub trait Guests: Send + Sync + 'static {
    /// The link to a VM's guest, while there is one.
    fn agent(&self, uid: Uid) -> Option<Agent>;

    /// The VM's folder on the host; it need not exist.
    fn vm_dir(&self, uid: Uid) -> PathBuf;

    /// What runs them, for people: `qemu, tcg`.
    fn driver(&self) -> String;

    /// A connection to the VM's console.
    ///
    /// # Errors
    /// When there is none to be had; then a sentence that says why.
    async fn console(&self, uid: Uid) -> Result<GuestStream, String>;
}

/// What the API shows.
#[derive(Clone)]
pub struct Sources {
    /// Records and changes.
    pub store: Store,
    /// The running VMs.
    pub guests: Arc<dyn Guests>,
    /// What overlapped with what.
    pub recorder: Recorder,
    /// The numbers.
    pub metrics: Metrics,
    /// How far the manifests have been read.
    pub readiness: Receiver<Readiness>,
    /// What takes disk space.
    pub storage: Arc<dyn Storage>,
}

/// What the handlers of objects work with.
#[derive(Clone)]
struct Api {
    store: Store,
    guests: Arc<dyn Guests>,
    cancel: CancellationToken,
}

fn router(sources: Sources, cancel: CancellationToken) -> Router {
    let api = Api { store: sources.store.clone(), guests: sources.guests.clone(), cancel };
    let mut router = Router::new()
        .route("/version", get(discovery::version))
        .route("/api", get(discovery::core_versions))
        .route("/api/v1", get(discovery::core_resources))
        .route("/api/v1/events", get(events::list))
        .route("/api/v1/namespaces/{namespace}/events", get(events::list))
        .route("/apis", get(discovery::groups))
        .route(&format!("/apis/{GROUP}"), get(discovery::group))
        .route(&format!("/apis/{API_VERSION}"), get(discovery::resources))
        .route(&format!("/apis/{API_VERSION}/declarations"), get(declarations::list));
    for kind in Kind::ALL {
        let all = format!("/apis/{API_VERSION}/{}", kind.plural());
        let in_namespace = format!("/apis/{API_VERSION}/namespaces/{{namespace}}/{}", kind.plural());
        let one = format!("{in_namespace}/{{name}}");
        let list = get(move |state, path, query, headers| resources::list(kind, state, path, query, headers));
        let read = get(move |state, path, query, headers| resources::get(kind, state, path, query, headers));
        router = router
            .route(&all, list.clone())
            .route(&in_namespace, list)
            .route(&format!("{one}/status"), read.clone())
            .route(&format!("{one}/why"), get(move |state, path| why::get(kind, state, path)))
            .route(&one, read.delete(move |state, path| resources::delete(kind, state, path)));
    }
    let vm = format!("/apis/{API_VERSION}/namespaces/{{namespace}}/vms/{{name}}");
    router
        .route(&format!("{vm}/log"), get(files::log))
        .route(&format!("{vm}/console"), get(files::console))
        .route(&format!("{vm}/stats"), get(session::stats))
        .route(&format!("{vm}/exec"), get(session::exec))
        .fallback(async |uri: Uri| ApiError::no_such_path(uri.path()))
        .method_not_allowed_fallback(async |method: Method| ApiError::method_not_allowed(method.as_str()))
        .with_state(api)
        .merge(storage::router(sources.storage.clone()))
        .merge(introspect::router(sources))
}
