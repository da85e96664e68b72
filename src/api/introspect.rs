//! How the daemon is doing: `/readyz`, `/metrics`, `/timeline`.

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
