//! Errors as the API sends them: a `Status` with the HTTP code it names.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::types::{Status, StatusCause, StatusDetails};
use crate::object::{GROUP, ObjectKey};
use crate::store::Origin;

/// An error answer.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.message)]
pub(super) struct ApiError(Box<Status>);

/// What a handler answers.
pub(super) type Answer = Result<Response, ApiError>;

impl ApiError {
    fn new(code: StatusCode, reason: &str, message: impl Into<String>) -> Self {
        ApiError(Box::new(Status::failure(code.as_u16(), reason, message)))
    }

    fn about(mut self, key: &ObjectKey) -> Self {
        self.0.details = Some(StatusDetails {
            name: key.name.clone(),
            group: GROUP.to_owned(),
            kind: key.kind.plural().to_owned(),
            causes: Vec::new(),
        });
        self
    }

    /// The request makes no sense; the message says what would.
    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    /// No such object.
    pub(super) fn not_found(key: &ObjectKey) -> Self {
        // The wording is that of Kubernetes, which scripts look for.
        let message = format!("{}.{GROUP} {:?} not found", key.kind.plural(), key.name);
        Self::new(StatusCode::NOT_FOUND, "NotFound", message).about(key)
    }

    /// The same, with what to do about it.
    pub(super) fn hints(mut self, hints: &[String]) -> Self {
        let causes =
            hints.iter().map(|hint| StatusCause { reason: "Hint".to_owned(), message: hint.clone() });
        self.0.details.get_or_insert_default().causes.extend(causes);
        self
    }

    /// No such path.
    pub(super) fn no_such_path(path: &str) -> Self {
        let message = format!("the server could not find the requested resource {path:?}");
        Self::new(StatusCode::NOT_FOUND, "NotFound", message)
    }

    /// The path exists, the method does not.
    pub(super) fn method_not_allowed(method: &str) -> Self {
        let message = format!(
            "{method} is not supported here: objects are changed by editing the manifest files that declare them"
        );
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message)
    }

    /// Nothing that the client accepts can be sent.
    pub(super) fn not_acceptable() -> Self {
        Self::new(StatusCode::NOT_ACCEPTABLE, "NotAcceptable", "only application/json can be sent")
    }

    /// The object belongs to a file.
    pub(super) fn owned_by_file(key: &ObjectKey, origin: &Origin) -> Self {
        let message = format!("{key} is declared in {origin}: remove it from that file to delete it");
        let mut error = Self::new(StatusCode::FORBIDDEN, "Forbidden", message).about(key);
        if let Some(details) = &mut error.0.details {
            details.causes =
                vec![StatusCause { reason: "DeclaredIn".to_owned(), message: origin.to_string() }];
        }
        error
    }

    /// The history that a watch asked for is gone.
    pub(super) fn expired() -> Self {
        Self::new(StatusCode::GONE, "Expired", "too old resource version: list again and watch from there")
    }

    /// The VM is not in a state in which this can be done.
    pub(super) fn conflict(key: &ObjectKey, message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "Conflict", message).about(key)
    }

    /// No such base disk.
    pub(super) fn no_such_disk(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFound", message)
            .hints(&["`vmlet image ls` shows what there is".to_owned()])
    }

    /// A base disk is on its way into its place.
    pub(super) fn disk_installing(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "Installing", message).hints(&["try again in a moment".to_owned()])
    }

    /// Something keeps a base disk; the causes say what.
    pub(super) fn disk_in_use(message: impl Into<String>, users: impl IntoIterator<Item = String>) -> Self {
        let mut error = Self::new(StatusCode::CONFLICT, "InUse", message);
        let users = users.into_iter().map(|user| StatusCause { reason: "UsedBy".to_owned(), message: user });
        error.0.details.get_or_insert_default().causes.extend(users);
        error.hints(&["it can go when nothing refers to it: remove or edit those manifests first".to_owned()])
    }

    /// Something behind the API failed.
    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message)
    }

    /// The daemon is stopping, or too busy.
    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", message)
    }

    /// The error as the object of a watch event.
    pub(super) fn into_status(self) -> Status {
        *self.0
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let code = StatusCode::from_u16(self.0.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (code, Json(self.into_status())).into_response()
    }
}
