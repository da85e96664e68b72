//! `/storage`: what takes disk space; pulls, removals and prunes on demand.
//!
//! ```text
//! GET    /storage                       the report
//! POST   /storage/pull    {source}      lines of updates, the last says how it ended
//! DELETE /storage/disks/DIGEST          409 with the users while something refers to it
//! POST   /storage/prune   {all, dryRun} what was removed, or would be
//! ```

use std::sync::Arc;

use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::error::{Answer, ApiError};
use super::watch::{Chunks, streamed};
use crate::image::{Digest, Reference, Source};
use crate::storage::{PruneOrder, PullUpdate, RemovalError, Report, Storage};
use crate::store::RemoveDiskError;

/// The longest request body, in bytes.
const MAX_BODY: usize = 16 << 10;

type Shared = Arc<dyn Storage>;

pub(super) fn router(storage: Shared) -> Router {
    Router::new()
        .route("/storage", get(report))
        .route("/storage/pull", post(pull))
        .route("/storage/disks/{digest}", delete(remove))
        .route("/storage/prune", post(prune))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(storage)
}

async fn report(State(storage): State<Shared>) -> Json<Report> {
    Json(storage.report().await)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PullOrder {
    /// An OCI reference.
    source: String,
}

async fn pull(State(storage): State<Shared>, body: Result<Bytes, BytesRejection>) -> Answer {
    let order: PullOrder = parse(body, r#"{"source": "debian:12"}"#)?;
    let refuse = |error: crate::image::ReferenceError| ApiError::bad_request(error.to_string());
    order.source.parse::<Reference>().map_err(refuse)?;
    Ok(streamed(Lines(storage.pull(Source::Oci(order.source))), "application/json"))
}

async fn remove(State(storage): State<Shared>, Path(digest): Path<String>) -> Answer {
    let parsed = digest.parse::<Digest>();
    let digest =
        parsed.map_err(|_| ApiError::bad_request(format!("{digest:?} is no digest: write sha256:…")))?;
    match storage.remove(digest.clone()).await {
        Ok(removed) => Ok(Json(removed).into_response()),
        Err(error) => Err(refusal(Some(&digest), &error)),
    }
}

async fn prune(
    State(storage): State<Shared>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let order: PruneOrder = parse(body, r#"{"all": true}"#)?;
    let pruned = storage.prune(order).await.map_err(|error| refusal(None, &error))?;
    Ok(Json(pruned).into_response())
}

fn refusal(digest: Option<&Digest>, error: &RemovalError) -> ApiError {
    let about = digest.map(|digest| format!("base disk {digest}: ")).unwrap_or_default();
    let message = format!("{about}{error}");
    match error {
        RemovalError::Refused(RemoveDiskError::Unknown) => ApiError::no_such_disk(message),
        RemovalError::Refused(RemoveDiskError::InUse { by }) => {
            ApiError::disk_in_use(message, by.iter().map(ToString::to_string))
        }
        RemovalError::Refused(RemoveDiskError::Installing) => ApiError::disk_installing(message),
        RemovalError::Refused(RemoveDiskError::Store(_)) | RemovalError::Stopping => {
            ApiError::unavailable(message)
        }
        RemovalError::Files { .. } | RemovalError::Blobs(_) => ApiError::internal(message),
    }
}

/// A JSON body, whatever its declared type; an empty one is an empty object.
fn parse<T: DeserializeOwned>(body: Result<Bytes, BytesRejection>, example: &str) -> Result<T, ApiError> {
    let body = body.map_err(|error| ApiError::bad_request(error.to_string()))?;
    let text = if body.is_empty() { &b"{}"[..] } else { &body };
    let refuse = |error| ApiError::bad_request(format!("{error}; send for example {example}"));
    serde_json::from_slice(text).map_err(refuse)
}

/// Updates as JSON lines.
struct Lines(BoxStream<'static, PullUpdate>);

impl Chunks for Lines {
    async fn next(&mut self) -> Option<Bytes> {
        let update = self.0.next().await?;
        let mut line = serde_json::to_vec(&update).expect("updates are plain data");
        line.push(b'\n');
        Some(line.into())
    }
}
