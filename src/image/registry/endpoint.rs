//! Where an image is asked for: the mirrors of its registry, then the registry itself.

use std::collections::HashMap;
use std::time::Duration;

use reqwest::Url;
use tokio::time::Instant;

use super::{Registry, Settings};
use crate::image::{ImageError, Reference};
use crate::metrics::Guarded;

/// For so long a mirror that failed is not asked.
const REST: Duration = Duration::from_secs(60);

/// One place that may have a repository.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Endpoint {
    /// `https://host/`.
    root: Url,
    /// `host` or `host:port`, as credentials and settings name it.
    pub(super) host: String,
    pub(super) repository: String,
    /// Whether another one is asked after it.
    pub(super) mirror: bool,
}

impl Endpoint {
    /// The URL of a path below `/v2/<repository>/`.
    pub(super) fn url(&self, path: &str) -> Result<Url, ImageError> {
        self.root
            .join(&format!("v2/{}/{path}", self.repository))
            .map_err(|error| ImageError::invalid(format!("{}/{}: {error}", self.host, self.repository)))
    }

    /// How often it is asked in vain.
    pub(super) fn attempts(&self, settings: &Settings) -> u32 {
        if self.mirror { 1 } else { settings.attempts }
    }
}

/// Mirrors that failed, and until when they are passed over.
pub(super) type Resting = Guarded<HashMap<String, Instant>>;

impl Registry {
    /// Where to ask for an image, in this order.
    pub(super) fn endpoints(&self, reference: &Reference) -> Result<Vec<Endpoint>, ImageError> {
        let name = reference.inner().registry();
        let repository = reference.inner().repository();
        let mut endpoints = Vec::new();
        let configured = self.settings.registries.get(name);
        for mirror in configured.map(|host| host.mirrors.as_slice()).unwrap_or_default() {
            // They were checked when the settings were read.
            let Ok(mut root) = mirror.parse::<Url>() else { continue };
            let repository = format!("{}/{repository}", root.path().trim_matches('/'));
            root.set_path("/");
            let host = authority(&root);
            if !self.is_resting(&host) {
                let repository = repository.trim_start_matches('/').to_owned();
                endpoints.push(Endpoint { root, host, repository, mirror: true });
            }
        }
        let address = reference.inner().resolve_registry();
        let scheme = if self.transport.is_plain_host(address) { "http" } else { "https" };
        let root = format!("{scheme}://{address}/")
            .parse()
            .map_err(|error| ImageError::invalid(format!("{reference}: {error}")))?;
        let repository = repository.to_owned();
        endpoints.push(Endpoint { root, host: name.to_owned(), repository, mirror: false });
        Ok(endpoints)
    }

    /// Passes over a mirror for a while if it cannot be reached or is wrong; that it has no such
    /// image says nothing about others.
    pub(super) fn failed(&self, endpoint: &Endpoint, error: &ImageError) {
        if !endpoint.mirror {
            return;
        }
        tracing::warn!(mirror = endpoint.host, %error, "a mirror failed, asking the next");
        if !matches!(error.reason, "NotFound" | "Unauthorized") {
            self.resting.with(|resting| resting.insert(endpoint.host.clone(), Instant::now() + REST));
        }
    }

    fn is_resting(&self, host: &str) -> bool {
        self.resting.with(|resting| resting.get(host).is_some_and(|until| *until > Instant::now()))
    }
}

/// `host`, or `host:port` if the port is not the scheme's own.
pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::image::Registries;

    #[tokio::test(start_paused = true)]
    async fn a_mirror_that_failed_rests_for_a_while() {
        let text = b"registries: {a.lan: {mirrors: ['https://one.lan/x', 'https://two.lan']}}";
        let registries = Registries::parse(Path::new("registries.yaml"), text).unwrap();
        let registry = Registry::new(Arc::new(Settings { registries, ..Settings::default() })).unwrap();
        let reference: Reference = "a.lan/app:1".parse().unwrap();
        let endpoints = || registry.endpoints(&reference).unwrap();
        let hosts = || endpoints().into_iter().map(|endpoint| endpoint.host).collect::<Vec<_>>();
        let all = endpoints();
        assert_eq!(hosts(), ["one.lan", "two.lan", "a.lan"]);
        for endpoint in &all {
            registry.failed(endpoint, &ImageError::not_found("it"));
            registry.failed(endpoint, &ImageError::unauthorized("it"));
        }
        assert_eq!(hosts(), ["one.lan", "two.lan", "a.lan"], "it may have other images");
        all.iter().skip(1).for_each(|endpoint| registry.failed(endpoint, &ImageError::unavailable("it")));
        assert_eq!(hosts(), ["one.lan", "a.lan"], "the registry itself never rests");
        tokio::time::advance(REST).await;
        assert_eq!(hosts(), ["one.lan", "two.lan", "a.lan"]);
        assert_eq!((all[0].repository.as_str(), all[0].url("x").unwrap().path()), ("x/app", "/v2/x/app/x"));
    }
}
