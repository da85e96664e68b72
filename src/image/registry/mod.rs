//! Talks to registries: manifests into memory, blobs into files.
//!
//! `oci_distribution` gives references their meaning (default registry, `library/`, mirrors'
//! namespaces). Its client is not used: it reads manifests, tokens and error bodies into memory whatever their
//! size, and hides `Content-Range`, `Retry-After` and an expired token, all of which a registry
//! controls. The protocol (OCI distribution-spec, "Pull") is two GET requests.
//!
//! Guarantees: every body is bounded, every wait ends, HTTPS is never left for plain HTTP except
//! for registries that are loopback or configured so, a token is sent only to the registry that
//! asked for it.

mod auth;
mod backoff;
mod download;
mod fetch;

use std::sync::Arc;

use futures_util::StreamExt;
use reqwest::header::{ACCEPT, CONTENT_RANGE, RANGE, RETRY_AFTER};
use reqwest::{Response, StatusCode, Url};
use sha2::{Digest as _, Sha256};
use std::time::Duration;

use super::error::printable;
use super::limits::check;
use super::manifest::{self, Descriptor, Document, Manifest};
use super::{Digest, ImageError, Reference, Settings};
use auth::Tokens;
use backoff::Backoff;
pub(crate) use fetch::check_url;

/// Of an error's body, this much is read to find the registry's own words.
const ERROR_BYTES: u64 = 8 << 10;

/// A client for all registries.
pub(crate) struct Registry {
    http: reqwest::Client,
    settings: Arc<Settings>,
    tokens: Tokens,
}

/// A failed attempt.
struct Failure {
    error: ImageError,
    /// Whether another attempt right away can help, and the pause that the registry asks for.
    retry: Option<Option<Duration>>,
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        Failure { error, retry: None }
    }
}

impl Failure {
    fn broken(message: String) -> Self {
        Failure { error: ImageError::unavailable(message), retry: Some(None) }
    }
}

impl Registry {
    /// # Errors
    ///
    /// `HostError` if the host's certificates cannot be read (`SSL_CERT_FILE` names others).
    pub(crate) fn new(settings: Arc<Settings>) -> Result<Self, ImageError> {
        // Fails if the process has chosen a provider already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let plain_http = settings.plain_http.clone();
        let redirects = reqwest::redirect::Policy::custom(move |attempt| {
            let leaves_https = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
            if attempt.previous().len() > 5 {
                attempt.error("more than 5 redirects")
            } else if attempt.url().scheme() == "https"
                || (!leaves_https && is_plain(&plain_http, attempt.url()))
            {
                attempt.follow()
            } else {
                attempt.error("redirected to plain http")
            }
        });
        let http = reqwest::Client::builder()
            .user_agent(concat!("vmlet/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(settings.connect_timeout)
            .redirect(redirects)
            .build()
            .map_err(|error| ImageError::host("setting up HTTPS", &std::io::Error::other(chain(&error))))?;
        Ok(Registry { http, settings, tokens: Tokens::default() })
    }

    /// The digest of this platform's manifest.
    pub(crate) async fn resolve(&self, reference: &Reference) -> Result<Digest, ImageError> {
        let (bytes, digest) = match reference.inner().digest() {
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
        match Document::parse(&bytes, &self.settings.limits).map_err(at)? {
            Document::Image(_) => Ok(digest),
            Document::Index(digest) => Ok(digest),
        }
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
        expected: Option<&Digest>,
    ) -> Result<Vec<u8>, ImageError> {
        let path = format!("manifests/{name}");
        self.small(
            reference,
            &path,
            "the manifest",
            "manifest_bytes",
            self.settings.limits.manifest_bytes,
            expected,
        )
        .await
    }

    /// A blob that fits into memory.
    pub(crate) async fn config(
        &self,
        reference: &Reference,
        blob: &Descriptor,
    ) -> Result<Vec<u8>, ImageError> {
        let path = format!("blobs/{}", blob.digest);
        let limit = self.settings.limits.config_bytes;
        self.small(reference, &path, "the image's config", "config_bytes", limit, Some(&blob.digest)).await
    }

    /// Reads a small document, with retries, and checks its digest.
    async fn small(
        &self,
        reference: &Reference,
        path: &str,
        what: &str,
        limit_name: &str,
        limit: u64,
        expected: Option<&Digest>,
    ) -> Result<Vec<u8>, ImageError> {
        let mut backoff = Backoff::new(&self.settings);
        loop {
            let attempt = async {
                let response = self.get(reference, path, None).await?;
                check(what, limit_name, response.content_length().unwrap_or(0), limit)?;
                let bytes = self.body(response, limit.saturating_add(1)).await?;
                check(what, limit_name, bytes.len() as u64, limit)?;
                Ok::<_, Failure>(bytes)
            };
            match attempt.await {
                Ok(bytes) => {
                    let actual = Digest::sha256(Sha256::digest(&bytes).into());
                    return match expected {
                        Some(expected) if actual != *expected => Err(ImageError::digest(format!(
                            "{}: the registry sent {actual} for {expected}",
                            reference.inner().resolve_registry()
                        ))),
                        _ => Ok(bytes),
                    };
                }
                Err(failure) => backoff.after(failure).await?,
            }
        }
    }

    /// One GET below `/v2/<repository>/`, with a token if the registry wants one.
    async fn get(&self, reference: &Reference, path: &str, from: Option<u64>) -> Result<Response, Failure> {
        let registry = reference.inner().resolve_registry();
        let repository = reference.inner().repository();
        let scheme = if self.is_plain(registry) { "http" } else { "https" };
        let url: Url = format!("{scheme}://{registry}/v2/{repository}/{path}")
            .parse()
            .map_err(|error| ImageError::invalid(format!("{reference}: {error}")))?;
        let mut token = self.tokens.get(registry, repository);
        let mut renewed = false;
        loop {
            let mut request = self.http.get(url.clone()).header(ACCEPT, manifest::ACCEPT);
            if let Some(token) = &token {
                request = request.bearer_auth(token);
            }
            if let Some(from) = from {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            let response = self.send(request, &url).await?;
            if response.status() == StatusCode::UNAUTHORIZED
                && !renewed
                && let Some(challenge) = auth::challenge(response.headers())
            {
                token = Some(self.fetch_token(registry, repository, &challenge).await?);
                renewed = true;
                continue;
            }
            return self.accept(response, &url, reference).await;
        }
    }

    async fn send(&self, request: reqwest::RequestBuilder, url: &Url) -> Result<Response, Failure> {
        let wait = self.settings.connect_timeout + self.settings.idle_timeout;
        match tokio::time::timeout(wait, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(Failure::broken(format!("{}: {}", place(url), chain(&error)))),
            Err(_) => Err(Failure::broken(format!("{}: no answer for {wait:?}", place(url)))),
        }
    }

    /// Turns everything but success into an error.
    async fn accept(
        &self,
        response: Response,
        url: &Url,
        reference: &Reference,
    ) -> Result<Response, Failure> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let after = response.headers().get(RETRY_AFTER);
        let after = after.and_then(|text| text.to_str().ok()?.parse().ok()).map(Duration::from_secs);
        let said = self.body(response, ERROR_BYTES).await.map(|bytes| said(&bytes)).unwrap_or_default();
        let message = format!("{}: {status}{said}", place(url));
        Err(match status {
            StatusCode::NOT_FOUND => {
                ImageError::not_found(format!("{reference} is not in the registry ({message})")).into()
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                ImageError::unauthorized(format!("{message}; the image is private or does not exist")).into()
            }
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::REQUEST_TIMEOUT
            | StatusCode::RANGE_NOT_SATISFIABLE => {
                Failure { error: ImageError::unavailable(message), retry: Some(after) }
            }
            _ if status.is_server_error() => {
                Failure { error: ImageError::unavailable(message), retry: Some(after) }
            }
            _ => ImageError::unavailable(message).into(),
        })
    }

    /// At most the first `limit` bytes of a body.
    async fn body(&self, response: Response, limit: u64) -> Result<Vec<u8>, Failure> {
        let place = place(response.url());
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let mut stream = response.bytes_stream();
        let mut body = Vec::new();
        while body.len() < limit {
            match tokio::time::timeout(self.settings.idle_timeout, stream.next()).await {
                Ok(Some(Ok(chunk))) => body.extend_from_slice(&chunk[..chunk.len().min(limit - body.len())]),
                Ok(Some(Err(error))) => return Err(Failure::broken(format!("{place}: {}", chain(&error)))),
                Ok(None) => break,
                Err(_) => return Err(self.stalled(&place)),
            }
        }
        Ok(body)
    }

    fn stalled(&self, place: &str) -> Failure {
        Failure::broken(format!("{place}: not a byte for {:?}", self.settings.idle_timeout))
    }

    fn is_plain(&self, registry: &str) -> bool {
        // Only its host and port matter.
        format!("http://{registry}/").parse().is_ok_and(|url| is_plain(&self.settings.plain_http, &url))
    }
}

/// Whether this host may be asked in plain HTTP: it is this machine, or configured so.
fn is_plain(configured: &[String], url: &Url) -> bool {
    let Some(host) = url.host_str() else { return false };
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    let named = match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    };
    host == "localhost"
        || address.is_ok_and(|address| address.is_loopback())
        || configured.iter().any(|entry| *entry == named || entry == host)
}

/// A URL as it may be shown: without a query, which can hold a signature.
fn place(url: &Url) -> String {
    format!("{}{}", url.origin().ascii_serialization(), url.path())
}

/// An error and its causes. The URL goes: redirects put signatures into it.
fn chain(error: &reqwest::Error) -> String {
    let mut text = if error.is_timeout() {
        "timed out".to_owned()
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
    fn plain_http_is_for_this_machine_and_where_configured() {
        let configured = ["registry.lan:5000".to_owned(), "10.0.0.9".to_owned()];
        let plain = |url: &str| is_plain(&configured, &url.parse().unwrap());
        for url in
            ["http://localhost:5000/", "http://127.9.9.9/", "http://[::1]:5000/", "http://registry.lan:5000/"]
        {
            assert!(plain(url), "{url}");
        }
        assert!(plain("http://10.0.0.9:5000/"), "without a port, any port is meant");
        for url in [
            "http://registry.lan/",
            "http://registry.lan:5001/",
            "http://localhost.evil.example/",
            "http://10.0.0.8/",
        ] {
            assert!(!plain(url), "{url}");
        }
    }

    #[test]
    fn errors_quote_the_registry_briefly() {
        assert_eq!(said(br#"{"errors": [{"code": "DENIED", "message": "a\nb"}]}"#), ", DENIED a\\nb");
        assert_eq!(said(br#"{"errors": [{"message": "only"}]}"#), ", only");
        assert_eq!(said(b"<html>"), "");
        assert_eq!(said(b"[]"), "");
    }
}
