//! Talks to registries: manifests into memory, blobs into files.
//!
//! ```text
//! reference ─▶ endpoint (mirrors, registry) ─▶ auth (credentials, helper, challenge) ─▶ transport (HTTP, TLS, redirects)
//! ```
//!
//! `oci_distribution` gives references their meaning (default registry, `library/`). Its client is not
//! used: it reads manifests, tokens and error bodies into memory whatever their size, and hides
//! `Content-Range`, `Retry-After` and an expired token, all of which a registry controls. The protocol
//! (OCI distribution-spec, "Pull") is two GET requests.
//!
//! Guarantees: every body is bounded, every wait ends, HTTPS is never left for plain HTTP except
//! for registries that are loopback or configured so, credentials go only to the registry that they
//! belong to and to its token service, and are never shown.

mod auth;
mod backoff;
mod challenge;
mod credentials;
mod download;
mod endpoint;
mod fetch;
mod helper;
mod hosts;
mod transport;

pub use hosts::Registries;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use reqwest::header::{ACCEPT, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE, RETRY_AFTER};
use reqwest::{Response, StatusCode, Url};
use sha2::{Digest as _, Sha256};

use super::error::printable;
use super::limits::check;
use super::manifest::{self, Descriptor, Document, IndexEntry, MAX_INDEXES, Manifest};
use super::{Digest, ImageError, Reference, Settings};
use auth::{Entry, Sessions};
use backoff::Backoff;
use challenge::challenges;
use credentials::Credentials;
use endpoint::{Endpoint, Resting};
pub(crate) use fetch::check_url;
use transport::Transport;

/// Of an error's body, this much is read to find the registry's own words.
const ERROR_BYTES: u64 = 8 << 10;
/// A document that fits into memory may take so many times [`Settings::idle_timeout`]: one that drips would
/// otherwise take an hour.
const SMALL_PATIENCE: u32 = 10;
/// How often one request is authorized anew: with what another request just got, and for itself.
const RENEWALS: u32 = 2;

/// A client for all registries.
pub(crate) struct Registry {
    settings: Arc<Settings>,
    transport: Transport,
    credentials: Credentials,
    sessions: Sessions,
    resting: Resting,
}

/// A failed attempt.
struct Failure {
    error: ImageError,
    /// Whether another attempt right away can help, and the pause that the registry asks for.
    retry: Option<Option<Duration>>,
    /// Whether the next attempt had better ask for the whole.
    no_range: bool,
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        Failure { error, retry: None, no_range: false }
    }
}

impl Failure {
    fn broken(message: String) -> Self {
        Failure { error: ImageError::unavailable(message), retry: Some(None), no_range: false }
    }

    /// The server is overloaded or failing, and may say when to come back.
    fn asked_to_wait(message: String, headers: &HeaderMap) -> Self {
        let retry = Some(backoff::retry_after(headers, SystemTime::now()));
        Failure { retry, ..Failure::broken(message) }
    }
}

/// A document that fits into memory.
struct Small<'a> {
    path: String,
    what: &'a str,
    limit_name: &'a str,
    limit: u64,
    digest: Option<&'a Digest>,
}

impl Registry {
    /// # Errors
    ///
    /// `HostError` if the host's certificates cannot be read (`SSL_CERT_FILE` names others), or what
    /// is wrong with a registry's certificates.
    pub(crate) fn new(settings: Arc<Settings>) -> Result<Self, ImageError> {
        Ok(Registry {
            transport: Transport::new(settings.clone())?,
            credentials: Credentials::new(settings.auth_files.clone()),
            settings,
            sessions: Sessions::default(),
            resting: Resting::default(),
        })
    }

    /// The digest of this platform's manifest.
    pub(crate) async fn resolve(&self, reference: &Reference) -> Result<Digest, ImageError> {
        let (mut bytes, mut digest) = match reference.inner().digest() {
            Some(digest) => {
                let digest = Digest::try_from(digest.to_owned()).map_err(ImageError::invalid)?;
                (self.manifest_bytes(reference, digest.as_str(), Some(&digest)).await?, digest)
            }
            None => {
                let tag = reference.inner().tag().unwrap_or("latest");
                let bytes = self.manifest_bytes(reference, tag, None).await?;
                let digest = Digest::sha256(Sha256::digest(&bytes).into());
                (bytes, digest)
            }
        };
        let at = |error: ImageError| error.at(reference);
        for _ in 0..=MAX_INDEXES {
            match Document::parse(&bytes, &self.settings.limits).map_err(at)? {
                Document::Image(_) => return Ok(digest),
                Document::Index(IndexEntry { digest, is_index: false }) => return Ok(digest),
                Document::Index(inner) => digest = inner.digest,
            }
            bytes = self.manifest_bytes(reference, digest.as_str(), Some(&digest)).await?;
        }
        Err(at(ImageError::invalid(format!("more than {MAX_INDEXES} indexes lie within each other"))))
    }

    /// The image manifest of this digest.
    pub(crate) async fn manifest(
        &self,
        reference: &Reference,
        digest: &Digest,
    ) -> Result<Manifest, ImageError> {
        let bytes = self.manifest_bytes(reference, digest.as_str(), Some(digest)).await?;
        match Document::parse(&bytes, &self.settings.limits)? {
            Document::Image(manifest) => Ok(manifest),
            Document::Index(_) => {
                Err(ImageError::invalid(format!("{digest} is an index where an image was expected")))
            }
        }
    }

    async fn manifest_bytes(
        &self,
        reference: &Reference,
        name: &str,
        digest: Option<&Digest>,
    ) -> Result<Vec<u8>, ImageError> {
        let limit = self.settings.limits.manifest_bytes;
        let path = format!("manifests/{name}");
        let small = Small { path, what: "the manifest", limit_name: "manifest_bytes", limit, digest };
        self.small(reference, &small).await
    }

    /// A blob that fits into memory.
    pub(crate) async fn config(
        &self,
        reference: &Reference,
        blob: &Descriptor,
    ) -> Result<Vec<u8>, ImageError> {
        let limit = self.settings.limits.config_bytes;
        let (path, digest) = (format!("blobs/{}", blob.digest), Some(&blob.digest));
        let small = Small { path, what: "the image's config", limit_name: "config_bytes", limit, digest };
        self.small(reference, &small).await
    }

    /// Reads a small document from the first endpoint that has it, with retries.
    async fn small(&self, reference: &Reference, small: &Small<'_>) -> Result<Vec<u8>, ImageError> {
        let mut last = ImageError::not_found(reference.to_string());
        for endpoint in self.endpoints(reference)? {
            let mut backoff = Backoff::new(&self.settings, endpoint.attempts(&self.settings));
            last = loop {
                let patience = self.settings.idle_timeout * SMALL_PATIENCE;
                let answer = self.small_from(&endpoint, reference, small);
                let answer = tokio::time::timeout(patience, answer).await.unwrap_or_else(|_| {
                    let message = format!("{}: {} takes more than {patience:?}", endpoint.host, small.what);
                    Err(Failure::broken(message))
                });
                match answer {
                    Ok(bytes) => return Ok(bytes),
                    Err(failure) => match backoff.after(failure, false).await {
                        Ok(()) => {}
                        Err(error) => break error,
                    },
                }
            };
            self.failed(&endpoint, &last);
        }
        Err(last)
    }

    /// Reads a small document and checks its digest.
    async fn small_from(
        &self,
        endpoint: &Endpoint,
        reference: &Reference,
        small: &Small<'_>,
    ) -> Result<Vec<u8>, Failure> {
        let Small { path, what, limit_name, limit, digest } = small;
        let response = self.get(endpoint, reference, path, None).await?;
        let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        if kind.is_some_and(|kind| kind.starts_with("text/html")) {
            let place = place(response.url());
            let message =
                format!("{place}: is a web page and not {what}; is that a registry, or a proxy's login?");
            return Err(ImageError::unavailable(message).into());
        }
        check(what, limit_name, response.content_length().unwrap_or(0), *limit)?;
        let bytes = self.transport.body(response, limit.saturating_add(1)).await?;
        check(what, limit_name, bytes.len() as u64, *limit)?;
        let actual = Digest::sha256(Sha256::digest(&bytes).into());
        match digest {
            Some(expected) if actual != **expected => {
                let message = format!("{}: the registry sent {actual} for {expected}", endpoint.host);
                Err(ImageError::digest(message).into())
            }
            _ => Ok(bytes),
        }
    }

    /// One GET below `/v2/<repository>/`, with whatever authorization the registry wants.
    async fn get(
        &self,
        endpoint: &Endpoint,
        reference: &Reference,
        path: &str,
        from: Option<u64>,
    ) -> Result<Response, Failure> {
        let url = endpoint.url(path)?;
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(manifest::ACCEPT));
        if let Some(from) = from {
            let range = HeaderValue::from_str(&format!("bytes={from}-")).expect("digits are printable");
            headers.insert(RANGE, range);
        }
        let mut used = self.sessions.get(endpoint);
        let mut trouble = None;
        let mut renewals = 0;
        loop {
            let response = self.transport.get(&endpoint.host, &url, &headers, used.as_ref()).await?;
            // Where it redirects to has no say in what our credentials are sent to.
            let own = response.url().origin() == url.origin();
            if own && response.status() == StatusCode::UNAUTHORIZED && renewals < RENEWALS {
                renewals += 1;
                let challenges = challenges(response.headers());
                let entry = match self.sessions.get(endpoint) {
                    Some(newer) if used.as_ref() != Some(&newer) => {
                        Entry { authorization: Some(newer), trouble: None }
                    }
                    _ => self.authorize(endpoint, &challenges).await?,
                };
                trouble = entry.trouble;
                if entry.authorization.is_some() {
                    used = entry.authorization;
                    continue;
                }
            }
            if own && matches!(response.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
                self.sessions.forget(endpoint);
            }
            return self.accept(response, &url, reference, trouble.as_deref()).await;
        }
    }

    /// Turns everything but success into an error.
    async fn accept(
        &self,
        response: Response,
        url: &Url,
        reference: &Reference,
        trouble: Option<&str>,
    ) -> Result<Response, Failure> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let headers = response.headers().clone();
        let said = self.transport.body(response, ERROR_BYTES).await.map(|bytes| said(&bytes));
        let message = format!("{}: {status}{}", place(url), said.unwrap_or_default());
        Err(match status {
            StatusCode::NOT_FOUND => {
                ImageError::not_found(format!("{reference} is not in the registry ({message})")).into()
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let message =
                    format!("{message}; the image does not exist, or is private: is it in the auth file?");
                ImageError::unauthorized(message).because(trouble).into()
            }
            StatusCode::RANGE_NOT_SATISFIABLE => Failure { no_range: true, ..Failure::broken(message) },
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
                Failure::asked_to_wait(message, &headers)
            }
            _ if status.is_server_error() => Failure::asked_to_wait(message, &headers),
            _ => ImageError::unavailable(message).into(),
        })
    }
}

/// A URL as it may be shown: without a query, which can hold a signature.
fn place(url: &Url) -> String {
    format!("{}{}", url.origin().ascii_serialization(), url.path())
}

/// An error and its causes. The URL goes: redirects put signatures into it.
fn chain(error: &reqwest::Error) -> String {
    let mut text = if error.is_timeout() {
        "timed out".to_owned()
    } else if error.is_builder() {
        "cannot be used".to_owned()
    } else if error.is_connect() {
        "cannot connect".to_owned()
    } else {
        "the connection broke".to_owned()
    };
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// The registry's own words in an error's body (distribution-spec, "Error Codes").
fn said(body: &[u8]) -> String {
    let value: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let error = &value["errors"][0];
    match (error["code"].as_str(), error["message"].as_str()) {
        (None, None) => String::new(),
        (code, message) => {
            let words = [code, message].map(|text| printable(text.unwrap_or_default().as_bytes()));
            format!(", {}", words.join(" ").trim())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_quote_the_registry_briefly() {
        assert_eq!(said(br#"{"errors": [{"code": "DENIED", "message": "a\nb"}]}"#), ", DENIED a\\nb");
        assert_eq!(said(br#"{"errors": [{"message": "only"}]}"#), ", only");
        assert_eq!(said(b"<html>"), "");
        assert_eq!(said(b"[]"), "");
    }
}
