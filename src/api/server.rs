//! Accepts connections and serves the router on them, within limits.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::error::ApiError;
use super::stall::{Patience, Unstalled};
use super::{Sources, router};

/// What clients may take of the server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time; further ones are told to come back later.
    pub connections: usize,
    /// How long a request's head may take, the wait for it on an open connection included.
    pub head: Duration,
    /// The longest request head, in bytes.
    pub head_bytes: usize,
    /// How long a client may take nothing of an answer before its connection is closed.
    pub stall: Duration,
    /// How long open requests may go on when the server stops.
    pub farewell: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 512,
            head: Duration::from_secs(30),
            head_bytes: 64 << 10,
            stall: Duration::from_secs(60),
            farewell: Duration::from_secs(2),
        }
    }
}

/// Serves the API until it is cancelled.
///
/// # Errors
/// None today; failing connections are logged and cost nothing else.
pub async fn serve(listener: UnixListener, sources: Sources, cancel: CancellationToken) -> io::Result<()> {
    serve_within(Limits::default(), listener, sources, cancel).await
}

/// Serves the API within other limits.
///
/// # Errors
/// As [`serve`].
pub async fn serve_within(
    limits: Limits,
    listener: UnixListener,
    sources: Sources,
    cancel: CancellationToken,
) -> io::Result<()> {
    let router = router(sources, cancel.clone());
    let permits = Arc::new(Semaphore::new(limits.connections));
    let tasks = TaskTracker::new();
    while let Some(accepted) = cancel.run_until_cancelled(listener.accept()).await {
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, most likely: some come back as connections close.
                tracing::warn!(%error, "cannot accept an API connection");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        match permits.clone().try_acquire_owned() {
            Ok(permit) => {
                let (router, cancel) = (router.clone(), cancel.clone());
                tasks.spawn(async move {
                    connection(stream, limits, router, cancel).await;
                    drop(permit);
                });
            }
            Err(_) => drop(tasks.spawn(timeout(limits.farewell, turn_away(stream)))),
        }
    }
    tasks.close();
    let _ = timeout(limits.farewell, tasks.wait()).await;
    Ok(())
}

fn builder(limits: Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(limits.head).max_buf_size(limits.head_bytes);
    builder
}

async fn connection(stream: UnixStream, limits: Limits, router: axum::Router, cancel: CancellationToken) {
    let patience = Patience::default();
    let stream = TokioIo::new(Unstalled::new(stream, limits.stall, patience.clone()));
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(patience.clone());
        hyper::service::Service::call(&TowerToHyperService::new(router.clone()), request)
    });
    let served = builder(limits).serve_connection(stream, service).with_upgrades();
    let mut served = std::pin::pin!(served);
    let outcome = tokio::select! {
        outcome = served.as_mut() => outcome,
        () = cancel.cancelled() => {
            served.as_mut().graceful_shutdown();
            timeout(limits.farewell, served).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "an API connection ended early");
    }
}

/// Answers the first request of a connection too many.
async fn turn_away(stream: UnixStream) {
    let service = service_fn(async |_: Request<Incoming>| {
        let busy = "too many connections are open; close watches that are not needed, or try again later";
        let mut response: Response = ApiError::unavailable(busy).into_response();
        response.headers_mut().insert("connection", axum::http::HeaderValue::from_static("close"));
        Ok::<_, Infallible>(response)
    });
    let _ = http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service).await;
}
