//! What the server offers, as Kubernetes clients ask for it: `/api`, `/apis`, `/version`.

use axum::Json;
use serde_json::{Value, json};

use super::types::{ApiResource, VersionInfo};
use crate::object::{API_VERSION, GROUP, Kind, VERSION};

/// `GET /version`.
pub(super) async fn version() -> Json<VersionInfo> {
    let number = env!("CARGO_PKG_VERSION");
    let mut parts = number.split('.').map(str::to_owned);
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    Json(VersionInfo {
        major: parts.next().unwrap_or_default(),
        minor: parts.next().unwrap_or_default(),
        git_version: format!("v{number}"),
        platform: format!("linux/{arch}"),
        other: Default::default(),
    })
}

/// `GET /api`: the core group, of which only events are served.
pub(super) async fn core_versions() -> Json<Value> {
    Json(json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}))
}

/// `GET /api/v1`.
pub(super) async fn core_resources() -> Json<Value> {
    let events = ApiResource {
        name: "events".to_owned(),
        singular_name: "event".to_owned(),
        namespaced: true,
        kind: "Event".to_owned(),
        verbs: words(&["list", "watch"]),
        short_names: words(&["ev"]),
        categories: Vec::new(),
    };
    Json(json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "v1", "resources": [events]}))
}

/// `GET /apis`.
pub(super) async fn groups() -> Json<Value> {
    Json(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": [group_value()]}))
}

/// `GET /apis/GROUP`.
pub(super) async fn group() -> Json<Value> {
    let mut group = group_value();
    group["kind"] = "APIGroup".into();
    group["apiVersion"] = "v1".into();
    Json(group)
}

fn group_value() -> Value {
    let version = json!({"groupVersion": API_VERSION, "version": VERSION});
    json!({"name": GROUP, "versions": [version], "preferredVersion": version})
}

/// `GET /apis/GROUP/VERSION`.
pub(super) async fn resources() -> Json<Value> {
    let mut resources = Vec::new();
    for kind in Kind::ALL {
        resources.push(resource(kind, "", &["delete", "get", "list", "watch"]));
        resources.push(resource(kind, "/status", &["get"]));
        resources.push(resource(kind, "/why", &["get"]));
    }
    for subresource in ["/log", "/console", "/stats", "/exec"] {
        resources.push(resource(Kind::Vm, subresource, &["get"]));
    }
    Json(json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": API_VERSION, "resources": resources,
    }))
}

fn resource(kind: Kind, subresource: &str, verbs: &[&str]) -> ApiResource {
    let whole = subresource.is_empty();
    ApiResource {
        name: format!("{}{subresource}", kind.plural()),
        singular_name: if whole { kind.singular().to_owned() } else { String::new() },
        namespaced: true,
        kind: kind.as_str().to_owned(),
        verbs: words(verbs),
        short_names: Vec::new(),
        categories: if whole { words(&["all"]) } else { Vec::new() },
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
