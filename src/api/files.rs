//! What a VM has written: the workload's log and the console.

use std::io;
use std::path::Path;

use axum::Extension;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{Path as UrlPath, Query, State};
use axum::http::HeaderMap;
use axum::response::Response;

use super::error::{Answer, ApiError};
use super::follow::Follower;
use super::request::Params;
use super::resources::Place;
use super::stall::Patience;
use super::watch::streamed;
use super::{Api, session};
use crate::object::{Kind, ObjectKey, Uid};
use crate::store::VmRecord;

/// The workload's output, in a VM's folder; the one before rotation has `.1` after it.
const LOG: &str = "workload.log";
/// What the guest wrote on its console.
const CONSOLE: &str = "console.log";

/// `GET …/log?follow=&tailLines=&previous=`.
pub(super) async fn log(
    State(api): State<Api>,
    UrlPath(place): UrlPath<Place>,
    Query(params): Query<Vec<(String, String)>>,
) -> Answer {
    let params = Params(params);
    let file = if params.flag("previous") { format!("{LOG}.1") } else { LOG.to_owned() };
    stream(&api, place.key(Kind::Vm), &file, &params).await
}

/// `GET …/console?follow=&tailLines=`, or a WebSocket to the console itself.
pub(super) async fn console(
    State(api): State<Api>,
    UrlPath(place): UrlPath<Place>,
    Query(params): Query<Vec<(String, String)>>,
    Extension(patience): Extension<Patience>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Answer {
    let key = place.key(Kind::Vm);
    if headers.contains_key("upgrade") {
        let upgrade = upgrade.map_err(|error| ApiError::bad_request(error.to_string()))?;
        return session::attach(&api, &key, patience, upgrade).await;
    }
    stream(&api, key, CONSOLE, &Params(params)).await
}

/// The VM's record, with its uid.
pub(super) fn find_vm(api: &Api, key: &ObjectKey) -> Result<(std::sync::Arc<VmRecord>, Uid), ApiError> {
    let record = api.store.vm(key).ok_or_else(|| ApiError::not_found(key))?;
    let uid = record.object.metadata.uid;
    uid.map(|uid| (record, uid)).ok_or_else(|| ApiError::internal(format!("{key} has no uid")))
}

async fn stream(api: &Api, key: ObjectKey, file: &str, params: &Params) -> Result<Response, ApiError> {
    let (record, uid) = find_vm(api, &key)?;
    let path = api.guests.vm_dir(uid).join(file);
    let alive = {
        let (store, key) = (api.store.clone(), key.clone());
        move || store.vm(&key).is_some_and(|record| record.object.metadata.uid == Some(uid))
    };
    let (tail, follow) = (params.number("tailLines")?, params.flag("follow"));
    let follower = Follower::open(path.clone(), tail, follow, alive, api.cancel.clone()).await;
    let follower = follower.map_err(|error| unreadable(&key, &record, &path, &error))?;
    Ok(streamed(follower, "text/plain; charset=utf-8"))
}

fn unreadable(key: &ObjectKey, record: &VmRecord, path: &Path, error: &io::Error) -> ApiError {
    if error.kind() == io::ErrorKind::NotFound {
        let file = path.file_name().unwrap_or_default().display();
        let phase = &record.object.status.phase;
        let phase = if phase.is_empty() { "Pending" } else { phase };
        return ApiError::bad_request(format!("{key} has no {file} (yet): it is {phase}"));
    }
    ApiError::internal(format!("cannot read {}: {error}", path.display()))
}
