//! Lists, objects and deletion of both kinds.

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::response::IntoResponse;
use jiff::Timestamp;
use serde::Deserialize;

use super::error::{Answer, ApiError};
use super::request::{Form, Params, Selection};
use super::types::{List, ListMeta};
use super::{Api, render, watch};
use crate::object::{API_VERSION, Kind, ObjectKey};
use crate::store::Record;

/// The variable parts of a path.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Place {
    /// The namespace; none means all of them.
    pub(super) namespace: Option<String>,
    /// The object's name, if one is meant.
    #[serde(default)]
    pub(super) name: String,
}

impl Place {
    pub(super) fn key(self, kind: Kind) -> ObjectKey {
        ObjectKey::new(kind, self.namespace.unwrap_or_default(), self.name)
    }
}

pub(super) async fn list(
    kind: Kind,
    State(api): State<Api>,
    Path(place): Path<Place>,
    Query(params): Query<Vec<(String, String)>>,
    headers: HeaderMap,
) -> Answer {
    let params = Params(params);
    let form = Form::negotiate(&headers, &params)?;
    let selection = Selection::new(place.namespace, &params)?;
    if params.flag("watch") {
        return watch::objects(api, kind, selection, form, &params);
    }
    // `limit` is a wish that a server may exceed: the whole list is one answer at one version.
    let (records, version) = api.store.list(kind, selection.namespace.as_deref());
    let chosen = records.iter().filter(|record| selection.matches(&record.object()));
    let version = version.to_string();
    Ok(match form {
        Form::Table(include) => {
            Json(render::table(kind, chosen, version, include, Timestamp::now())).into_response()
        }
        Form::Objects => Json(List {
            api_version: API_VERSION.to_owned(),
            kind: format!("{kind}List"),
            metadata: ListMeta { resource_version: version, ..ListMeta::default() },
            items: chosen.map(render::value).collect(),
        })
        .into_response(),
    })
}

pub(super) async fn get(
    kind: Kind,
    State(api): State<Api>,
    Path(place): Path<Place>,
    Query(params): Query<Vec<(String, String)>>,
    headers: HeaderMap,
) -> Answer {
    let form = Form::negotiate(&headers, &Params(params))?;
    let record = find(&api, &place.key(kind))?;
    let version = record.object().metadata().resource_version.clone();
    Ok(match form {
        Form::Table(include) => {
            Json(render::table(kind, [&record], version, include, Timestamp::now())).into_response()
        }
        Form::Objects => Json(render::value(&record)).into_response(),
    })
}

/// What a file declares that is read goes with its declaration, and files are never written: the answer says
/// which one. What is left of a folder that is not read any more goes at once.
pub(super) async fn delete(kind: Kind, State(api): State<Api>, Path(place): Path<Place>) -> Answer {
    let key = place.key(kind);
    let record = find(&api, &key)?;
    let origin = record.origin();
    if api.store.attends(&origin.source) {
        return Err(ApiError::owned_by_file(&key, origin));
    }
    let deleted = api.store.undeclare(&key, &origin.source, Timestamp::now()).await;
    let deleted = deleted.map_err(|error| ApiError::unavailable(error.to_string()))?;
    match api.store.record(&key) {
        // The folder that is read declares it by now.
        Some(record) if !deleted && record.metadata().deletion_timestamp.is_none() => {
            Err(ApiError::owned_by_file(&key, record.origin()))
        }
        now => Ok(Json(render::value(&now.unwrap_or(record))).into_response()),
    }
}

fn find(api: &Api, key: &ObjectKey) -> Result<Record, ApiError> {
    api.store.record(key).ok_or_else(|| ApiError::not_found(key))
}
