//! What a request asks for: query parameters, the form of the answer, the selection of objects.

use axum::http::{HeaderMap, header};

use super::error::ApiError;
use super::selector::{FieldSelector, LabelSelector};
use crate::object::{AnyObject, ObjectMeta};

/// The query's parameters, in order. Unknown ones are ignored, as Kubernetes does.
#[derive(Clone, Debug, Default)]
pub(super) struct Params(pub(super) Vec<(String, String)>);

impl Params {
    /// The first value of a parameter.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Every value of a parameter.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Whether a parameter is set to anything but `false` or `0`.
    pub(super) fn flag(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| !matches!(value, "false" | "0"))
    }

    /// A parameter that is a whole number. Empty is absent.
    pub(super) fn number(&self, name: &str) -> Result<Option<u64>, ApiError> {
        let Some(text) = self.get(name).filter(|text| !text.is_empty()) else { return Ok(None) };
        let number = text.parse();
        number.map(Some).map_err(|_| ApiError::bad_request(format!("{name}={text:?} is not a whole number")))
    }
}

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// The objects themselves.
    Objects,
    /// A table with so much of each object in its row.
    Table(Include),
}

/// How much of an object is in a table's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Include {
    /// Nothing.
    None,
    /// Its metadata.
    Metadata,
    /// All of it.
    Object,
}

impl Form {
    /// The first form of the Accept header that can be answered.
    pub(super) fn negotiate(headers: &HeaderMap, params: &Params) -> Result<Form, ApiError> {
        let Some(accept) = headers.get(header::ACCEPT) else { return Ok(Form::Objects) };
        let accept = accept.to_str().map_err(|_| ApiError::not_acceptable())?;
        for wish in accept.split(',') {
            let mut parts = wish.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default();
            if !matches!(media, "application/json" | "application/*" | "*/*" | "") {
                continue;
            }
            let parameters: Vec<(&str, &str)> = parts.filter_map(|part| part.split_once('=')).collect();
            let value = |name| parameters.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
            match (value("as"), value("v"), value("g")) {
                (None, ..) => return Ok(Form::Objects),
                (Some("Table"), Some("v1"), Some("meta.k8s.io")) => {
                    return Ok(Form::Table(match params.get("includeObject") {
                        Some("None") => Include::None,
                        Some("Object") => Include::Object,
                        _ => Include::Metadata,
                    }));
                }
                _ => {}
            }
        }
        Err(ApiError::not_acceptable())
    }
}

/// Which objects of a kind are meant.
#[derive(Clone, Debug, Default)]
pub(super) struct Selection {
    /// Only this namespace.
    pub(super) namespace: Option<String>,
    labels: LabelSelector,
    fields: FieldSelector,
}

impl Selection {
    /// Reads `labelSelector` and `fieldSelector`.
    pub(super) fn new(namespace: Option<String>, params: &Params) -> Result<Self, ApiError> {
        let refuse = |error: super::selector::SelectorError| ApiError::bad_request(error.to_string());
        let labels = LabelSelector::parse(params.get("labelSelector").unwrap_or_default()).map_err(refuse)?;
        let fields = params.get("fieldSelector").unwrap_or_default();
        let fields =
            FieldSelector::parse(fields, &["metadata.name", "metadata.namespace"]).map_err(refuse)?;
        Ok(Selection { namespace, labels, fields })
    }

    /// Whether the object is, and will for ever be, outside the selection: names do not change.
    pub(super) fn excludes(&self, metadata: &ObjectMeta) -> bool {
        let here = self.namespace.as_ref().is_none_or(|namespace| *namespace == metadata.namespace);
        let named = self.fields.matches(|field| match field {
            "metadata.name" => &metadata.name,
            _ => &metadata.namespace,
        });
        !(here && named)
    }

    /// Whether the object is selected as it is now.
    pub(super) fn matches(&self, object: &AnyObject) -> bool {
        !self.excludes(object.metadata()) && self.labels.matches(&object.metadata().labels)
    }

    /// Whether an edit can move an object into or out of the selection.
    pub(super) fn can_change(&self) -> bool {
        !self.labels.is_empty()
    }
}
