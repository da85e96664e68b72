//! What travels over the API: the envelopes of `meta.k8s.io/v1` that Kubernetes clients expect.
//!
//! The server writes these and the command line reads them. Objects in them are plain JSON, so that
//! a client of another version keeps the fields it does not know.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The metadata of an answer that is not one object (`metav1.ListMeta`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListMeta {
    /// The version at which the answer was true; a watch goes on from it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
    /// Whether more follows; never set, because lists are answered whole.
    #[serde(default, rename = "continue", skip_serializing_if = "String::is_empty")]
    pub continue_token: String,
}

/// A list of objects: `VMList`, `ImageList`, `EventList`, `List`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct List {
    /// The items' API version; `v1` for a mixed `List`.
    pub api_version: String,
    /// The kind of list.
    pub kind: String,
    /// The list's version.
    #[serde(default)]
    pub metadata: ListMeta,
    /// The objects, by namespace and name.
    pub items: Vec<Value>,
}

/// One line of a watch (`metav1.WatchEvent`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WatchEvent {
    /// What happened.
    #[serde(rename = "type")]
    pub kind: WatchKind,
    /// The object, a [`Table`] with one row, or a [`Status`] for an error.
    pub object: Value,
}

/// The kinds of [`WatchEvent`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum WatchKind {
    /// The object appeared, or began to match the selector.
    Added,
    /// It changed.
    Modified,
    /// It is gone, or ceased to match the selector. The object is its last state.
    Deleted,
    /// Nothing happened up to this version.
    Bookmark,
    /// The watch has failed and ends.
    Error,
}

/// The outcome of a request that does not answer with an object (`metav1.Status`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// `Status`.
    pub kind: String,
    /// `v1`.
    pub api_version: String,
    /// Empty.
    #[serde(default)]
    pub metadata: ListMeta,
    /// `Success` or `Failure`.
    pub status: String,
    /// A sentence for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// One CamelCase word for programs.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// What the failure is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<StatusDetails>,
    /// The HTTP status code; 0 when there is none.
    #[serde(default)]
    pub code: u16,
}

/// What a [`Status`] is about.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusDetails {
    /// The object's name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Its API group.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Its resource: `vms`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Single causes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<StatusCause>,
}

/// One cause of a [`Status`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusCause {
    /// `ExitCode`, `DeclaredIn`, `Hint`.
    pub reason: String,
    /// The cause's text: the exit code, the file.
    #[serde(default)]
    pub message: String,
}

impl Status {
    /// A failure.
    pub fn failure(code: u16, reason: &str, message: impl Into<String>) -> Self {
        Status {
            kind: "Status".to_owned(),
            api_version: "v1".to_owned(),
            metadata: ListMeta::default(),
            status: "Failure".to_owned(),
            message: message.into(),
            reason: reason.to_owned(),
            details: None,
            code,
        }
    }

    /// How a command in a VM ended, as `v5.channel.k8s.io` reports it on its error channel.
    pub fn of_exit(code: i32) -> Self {
        if code == 0 {
            let success = Status::failure(0, "", "");
            return Status { status: "Success".to_owned(), ..success };
        }
        let message = format!("command terminated with exit code {code}");
        let cause = StatusCause { reason: "ExitCode".to_owned(), message: code.to_string() };
        let details = StatusDetails { causes: vec![cause], ..StatusDetails::default() };
        Status { details: Some(details), ..Status::failure(500, "NonZeroExitCode", message) }
    }

    /// The text of the first cause with this reason.
    pub fn cause(&self, reason: &str) -> Option<&str> {
        self.causes(reason).next()
    }

    /// The texts of the causes with this reason.
    pub fn causes(&self, reason: &str) -> impl Iterator<Item = &str> {
        let causes = self.details.iter().flat_map(|details| &details.causes);
        causes.filter(move |cause| cause.reason == reason).map(|cause| cause.message.as_str())
    }
}

/// A list as people read it (`meta.k8s.io/v1` Table).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Table {
    /// `meta.k8s.io/v1`.
    pub api_version: String,
    /// `Table`.
    pub kind: String,
    /// The list's version.
    #[serde(default)]
    pub metadata: ListMeta,
    /// The columns. Absent from all but the first table of a watch.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub column_definitions: Vec<Column>,
    /// One row an object.
    pub rows: Vec<Row>,
}

/// Kubernetes servers send `null` for the columns of later watch events.
fn null_is_empty<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<Column>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A column of a [`Table`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Its heading, in title case.
    pub name: String,
    /// `string` or `integer`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `name` for the column that identifies the row.
    pub format: String,
    /// What the column says.
    pub description: String,
    /// 0 is always shown, others only in wide output.
    pub priority: i32,
}

/// A row of a [`Table`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// One cell a column.
    pub cells: Vec<Value>,
    /// The object, or only its metadata, as the request wished.
    #[serde(default)]
    pub object: Value,
}

/// What `/apis/GROUP/VERSION` tells of one resource (`metav1.APIResource`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ApiResource {
    /// `vms`, or `vms/status`.
    pub name: String,
    /// `vm`.
    pub singular_name: String,
    /// Whether it lives in a namespace.
    pub namespaced: bool,
    /// `VM`.
    pub kind: String,
    /// What can be done with it.
    pub verbs: Vec<String>,
    /// What else it is called.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub short_names: Vec<String>,
    /// Groups that it is listed with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub categories: Vec<String>,
}

/// Which build answers (`version.Info`, the fields that make sense here).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VersionInfo {
    /// `0`.
    pub major: String,
    /// `1`.
    pub minor: String,
    /// `v0.1.0`.
    pub git_version: String,
    /// `linux/amd64`.
    pub platform: String,
    /// Anything else, for clients of other versions.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

/// An object as its source declares it, and the process that runs of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Declaration {
    /// The object: spec, name, namespace, labels and annotations only.
    pub object: Value,
    /// Who declares it: `directory:/etc/vmlet/manifests`.
    pub source: String,
    /// The file, below the source's folder.
    pub path: PathBuf,
    /// Where in it, from 1.
    pub line: u32,
    /// It is being deleted.
    #[serde(default)]
    pub terminating: bool,
    /// The spec that a VM's process was started with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Value>,
    /// The process has ended and is not started again as things are.
    #[serde(default)]
    pub ended: bool,
    /// The ended workload's exit code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
}

/// Why an object is as it is: the answer of `…/why`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Why {
    /// `vm/web`.
    pub object: String,
    /// Whether it is Ready.
    pub ready: bool,
    /// The Ready condition's reason.
    pub reason: String,
    /// The Ready condition's sentence.
    pub message: String,
    /// Others that wait for the same pull.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shared_with: Vec<String>,
    /// The file and line that declare it.
    pub declared: String,
    /// The spec's generation.
    pub generation: i64,
    /// The generation that the status speaks of.
    pub observed_generation: i64,
    /// When this generation was first seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen: Option<Timestamp>,
    /// What is wrong with the declaration; the last good spec is in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// What it holds of the host: address, MAC, memory, disk, ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reserved: Vec<String>,
    /// The last thing that went well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_step: Option<Happened>,
    /// What it waits for, the nearest first; each waits for the next.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blocked_by: Vec<Blocker>,
    /// The last thing that went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<Happened>,
    /// When a failed step is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_try: Option<Timestamp>,
    /// What comes when nothing blocks it any more, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub then: Vec<String>,
}

/// An event, in short.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Happened {
    /// One word for programs.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
    /// When it last happened.
    pub at: Timestamp,
    /// How often.
    pub count: u32,
}

/// What an object waits for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Blocker {
    /// An object (`image/debian`), or a limit (`boot permits`).
    pub what: String,
    /// One word for programs.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
    /// The last thing that went wrong there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<Happened>,
    /// When it is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_try: Option<Timestamp>,
}
