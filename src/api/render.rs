//! Records as the API shows them: objects and tables.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::age::age;
use super::request::Include;
use super::types::{Column, ListMeta, Row, Table};
use crate::network::Link;
use crate::object::{AnyObject, ConditionStatus, Image, Kind, NetworkMode, ObjectMeta, Quantity};
use crate::store::{Record, VmRecord};

/// The annotation that says where an object is declared: `FILE:LINE`.
pub const DECLARED_IN: &str = "vmlet.dev/declared-in";
/// The annotation that says what is wrong with the declaration, while something is.
pub const PROBLEM: &str = "vmlet.dev/problem";

/// Shown for what an object does not have.
const NONE: &str = "<none>";

/// The object with what the store knows about its declaration, as annotations.
pub(super) fn object(record: &Record) -> AnyObject {
    let mut object = record.object();
    let annotations = &mut object.metadata_mut().annotations;
    annotations.insert(DECLARED_IN.to_owned(), record.origin().to_string());
    match record.problem() {
        Some(problem) => {
            annotations.insert(PROBLEM.to_owned(), format!("{}: {}", problem.reason, problem.message))
        }
        // A manifest made of an old answer must not bring an old problem back.
        None => annotations.remove(PROBLEM),
    };
    object
}

/// The object as JSON.
pub(super) fn value(record: &Record) -> Value {
    json_of(&object(record))
}

fn json_of<T: serde::Serialize>(data: &T) -> Value {
    serde_json::to_value(data).expect("API types are plain data with string keys")
}

/// A table of objects of one kind.
pub(super) fn table<'a>(
    kind: Kind,
    records: impl IntoIterator<Item = &'a Record>,
    version: String,
    include: Include,
    now: Timestamp,
) -> Table {
    let rows = records.into_iter().map(|record| row(record, include, now)).collect();
    table_of(columns(kind), rows, version)
}

/// A table of rows that are made already.
pub(super) fn table_of(columns: Vec<Column>, rows: Vec<Row>, version: String) -> Table {
    Table {
        api_version: "meta.k8s.io/v1".to_owned(),
        kind: "Table".to_owned(),
        metadata: ListMeta { resource_version: version, ..ListMeta::default() },
        column_definitions: columns,
        rows,
    }
}

/// The columns of a kind.
pub(super) fn columns(kind: Kind) -> Vec<Column> {
    match kind {
        Kind::Vm => vec![
            column("Name", 0, "The VM's name."),
            column("Ready", 0, "The Ready condition."),
            column("Status", 0, "What the VM is doing."),
            column("Image", 0, "The Image object or OCI reference that it runs on."),
            column("Address", 0, "Its first address."),
            column("Restarts", 0, "How often it was started again."),
            column("Age", 0, "The time since it was first seen."),
            column("Mode", 1, "The kind of network."),
            column("Ports", 1, "Forwarded ports, host:guest."),
            column("Digest", 1, "The digest of the image that runs."),
            column("PID", 1, "The VMM's process on the host."),
            column("Driver", 1, "What runs the VM."),
        ],
        Kind::Image => vec![
            column("Name", 0, "The image's name."),
            column("Ready", 0, "The Ready condition."),
            column("Status", 0, "What is being done."),
            column("Source", 0, "Where the image comes from."),
            column("Digest", 0, "What the image is known by."),
            column("Size", 0, "The base disk's length."),
            column("Age", 0, "The time since it was first seen."),
        ],
    }
}

/// A column by its heading; the heading tells type and format.
pub(super) fn column(name: &str, priority: i32, description: &str) -> Column {
    Column {
        name: name.to_owned(),
        kind: if matches!(name, "Restarts" | "Count") { "integer" } else { "string" }.to_owned(),
        format: if name == "Name" { "name" } else { "" }.to_owned(),
        description: description.to_owned(),
        priority,
    }
}

/// What of the object rides in its row.
pub(super) fn row_object(metadata: &ObjectMeta, include: Include, whole: impl FnOnce() -> Value) -> Value {
    match include {
        Include::None => Value::Null,
        Include::Metadata => json!({
            "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": json_of(metadata),
        }),
        Include::Object => whole(),
    }
}

fn row(record: &Record, include: Include, now: Timestamp) -> Row {
    let object = object(record);
    let cells = match (record, &object) {
        (Record::Vm(record), _) => vm_cells(record, &object, now),
        (_, AnyObject::Image(image)) => image_cells(image, &object, now),
        (Record::Image(_), AnyObject::Vm(_)) => Vec::new(),
    };
    Row { cells, object: row_object(object.metadata(), include, || json_of(&object)) }
}

fn vm_cells(record: &VmRecord, object: &AnyObject, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&record.object.spec, &record.object.status);
    let image = spec.image.name.as_deref().or(spec.image.oci.as_deref()).unwrap_or(NONE);
    let ports: Vec<String> = status
        .ports
        .iter()
        .map(|port| format!("{}:{}/{}", port.host, port.guest, text(&port.protocol)))
        .collect();
    let digest = status.image.as_ref().and_then(|image| image.digest.as_deref());
    vec![
        record.object.metadata.name.clone().into(),
        ready(object).into(),
        phase(object.metadata(), &status.phase).into(),
        image.into(),
        status.addresses.first().map_or(NONE, String::as_str).into(),
        status.restarts.into(),
        age_of(object.metadata(), now).into(),
        mode(record).into(),
        if ports.is_empty() { NONE.into() } else { ports.join(",").into() },
        short_digest(digest).into(),
        status.pid.map_or(NONE.to_owned(), |pid| pid.to_string()).into(),
        status.driver.as_deref().unwrap_or(NONE).into(),
    ]
}

fn image_cells(image: &Image, object: &AnyObject, now: Timestamp) -> Vec<Value> {
    let status = &image.status;
    vec![
        image.metadata.name.clone().into(),
        ready(object).into(),
        phase(&image.metadata, &status.phase).into(),
        image
            .spec
            .source
            .chosen(&image.metadata.namespace)
            .map_or_else(|| NONE.to_owned(), |source| source.to_string())
            .into(),
        short_digest(status.digest.as_deref()).into(),
        status.disk.as_ref().map_or(NONE.to_owned(), |disk| human_size(disk.size)).into(),
        age_of(&image.metadata, now).into(),
    ]
}

/// The network that the VM has, or else asks for.
fn mode(record: &VmRecord) -> &'static str {
    let link =
        record.reservation.as_ref().and_then(|reservation| reservation.nic.as_ref()).map(|nic| &nic.link);
    match (link, record.object.spec.network.mode) {
        (Some(Link::Bridge { .. }), _) | (None, Some(NetworkMode::Bridge)) => "bridge",
        (Some(Link::User), _) | (None, Some(NetworkMode::User)) => "user",
        (None, Some(NetworkMode::None) | None) => NONE,
    }
}

fn ready(object: &AnyObject) -> &'static str {
    let ready = object.conditions().iter().find(|condition| condition.kind == "Ready");
    match ready.map(|condition| condition.status) {
        Some(ConditionStatus::True) => "True",
        Some(ConditionStatus::False) | None => "False",
        Some(ConditionStatus::Unknown) => "Unknown",
    }
}

/// What an object does, in a word.
pub(crate) fn phase<'a>(metadata: &ObjectMeta, phase: &'a str) -> &'a str {
    match phase {
        _ if metadata.deletion_timestamp.is_some() => "Terminating",
        "" => "Pending",
        phase => phase,
    }
}

fn age_of(metadata: &ObjectMeta, now: Timestamp) -> String {
    metadata.creation_timestamp.map_or_else(|| "<unknown>".to_owned(), |since| age(since, now))
}

/// `sha256:` and the first 12 digits.
fn short_digest(digest: Option<&str>) -> String {
    digest.map_or(NONE.to_owned(), |digest| digest.chars().take(19).collect())
}

/// A length with one decimal of the largest fitting binary unit: `1.2Gi`.
fn human_size(size: Quantity) -> String {
    let bytes = size.as_bytes() as f64;
    let units = [("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)];
    let unit = units.iter().find(|(_, shift)| bytes >= f64::from(2_u32).powi(*shift));
    unit.map_or_else(
        || size.to_string(),
        |(name, shift)| format!("{:.1}{name}", bytes / f64::from(2_u32).powi(*shift)),
    )
}

fn text<T: serde::Serialize>(data: &T) -> String {
    json_of(data).as_str().unwrap_or_default().to_owned()
}
