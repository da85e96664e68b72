//! How the daemon is doing: `/readyz`, `/metrics`, `/timeline`; and what it knows: `/store/export`.

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};

use super::Sources;
use super::error::ApiError;
use crate::manifest::Readiness;
use crate::metrics::CONTENT_TYPE;
use crate::timeline::Timeline;

pub(super) fn router(sources: Sources) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok"))
        .route("/livez", get(async || "ok"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/timeline", get(timeline))
        .route("/store/export", get(export))
        .with_state(sources)
}

/// Ready is what can answer truthfully: a store that failed cannot, nor can a daemon that does not
/// know yet what is declared.
async fn ready(State(sources): State<Sources>) -> Response {
    if let Some(why) = sources.store.failed() {
        return ApiError::unavailable(why).into_response();
    }
    match &*sources.readiness.borrow() {
        Readiness::Applied => "ok".into_response(),
        Readiness::Reading(why) => ApiError::unavailable(why).into_response(),
    }
}

async fn metrics(State(sources): State<Sources>) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], sources.metrics.text()).into_response()
}

async fn timeline(State(sources): State<Sources>) -> Json<Timeline> {
    Json(sources.recorder.timeline())
}

/// A copy of the whole store, as `export.json` has it.
async fn export(State(sources): State<Sources>) -> Response {
    let exported = tokio::task::spawn_blocking(move || {
        let export = sources.store.export().map_err(|error| error.to_string())?;
        let mut body = Vec::new();
        export.write(&mut body).map_err(|error| error.to_string())?;
        Ok(body)
    });
    match exported.await.map_err(|error| error.to_string()).flatten() {
        Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(why) => ApiError::unavailable(why).into_response(),
    }
}
