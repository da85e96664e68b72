//! `GET /apis/GROUP/VERSION/declarations`: every object as it is declared, by whom, and the process that runs of
//! it. What `vmlet diff` compares manifests with.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::Api;
use super::types::{Declaration, List, ListMeta};
use crate::object::{API_VERSION, AnyObject, Kind};
use crate::store::{Record, Run};

pub(super) async fn list(State(api): State<Api>) -> Json<List> {
    let lists = Kind::ALL.map(|kind| api.store.list(kind, None));
    // From the older list on nothing is missed.
    let version = lists.iter().map(|(_, version)| *version).min().unwrap_or(0);
    let records = lists.iter().flat_map(|(records, _)| records);
    Json(List {
        api_version: API_VERSION.to_owned(),
        kind: "DeclarationList".to_owned(),
        metadata: ListMeta { resource_version: version.to_string(), ..ListMeta::default() },
        items: records.map(|record| json!(declaration(record))).collect(),
    })
}

fn declaration(record: &Record) -> Declaration {
    let (object, origin) = (record.object(), record.origin());
    let metadata = object.metadata();
    let spec = match &object {
        AnyObject::Vm(vm) => json!(vm.spec),
        AnyObject::Image(image) => json!(image.spec),
    };
    let (started, ended, exit_code) = process(record);
    Declaration {
        object: json!({
            "apiVersion": API_VERSION,
            "kind": record.key().kind,
            "metadata": {
                "name": metadata.name, "namespace": metadata.namespace,
                "labels": metadata.labels, "annotations": metadata.annotations,
            },
            "spec": spec,
        }),
        source: origin.source.clone(),
        path: origin.path.clone(),
        line: origin.line,
        terminating: metadata.deletion_timestamp.is_some(),
        started,
        ended,
        exit_code,
    }
}

/// The spec that runs or ran, whether it has ended, and how.
fn process(record: &Record) -> (Option<Value>, bool, Option<i32>) {
    let Record::Vm(vm) = record else { return (None, false, None) };
    match &vm.run {
        Run::Idle => (None, false, None),
        Run::Up { spec, .. } => (Some(json!(spec)), false, None),
        Run::Ended { spec } => (Some(json!(spec)), true, vm.last_exit.as_ref().and_then(|exit| exit.code)),
    }
}
