//! HTTP: which client speaks to whom, redirects, and bodies that neither end nor move.
//!
//! Redirects are followed here, not by `reqwest`, so that each hop is judged: credentials and client
//! certificates go to the host that was asked and to no other, HTTPS is never left.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Client, RequestBuilder, Response, Url};
use tokio::time::Instant;

use super::endpoint::authority;
use super::hosts::{ClientCertificate, canonical};
use super::{Failure, chain, place};
use crate::image::{ImageError, Settings};
use crate::metrics::Guarded;

const MAX_REDIRECTS: usize = 5;
/// PEM files are far smaller.
const PEM_BYTES: u64 = 4 << 20;

/// Whom a client trusts, and as whom it speaks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Identity {
    ca_file: Option<PathBuf>,
    certificate: Option<ClientCertificate>,
    /// Without a proxy: what listens on this machine is not reached through another.
    direct: bool,
}

/// All HTTP clients.
pub(super) struct Transport {
    settings: Arc<Settings>,
    clients: Guarded<HashMap<Identity, Client>>,
}

impl Transport {
    /// Makes the clients of all configured registries, so that their files are known to be good.
    pub(super) fn new(settings: Arc<Settings>) -> Result<Self, ImageError> {
        // Fails if the process has chosen a provider already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let transport = Transport { settings: settings.clone(), clients: Guarded::default() };
        let mut identities = vec![Identity::default()];
        for (name, host) in settings.registries.iter() {
            let url = format!("https://{name}/").parse().map_err(|_| ImageError::invalid(name.as_str()))?;
            tracing::debug!(registry = name, ?host, "configured");
            identities.push(transport.identity(name, &url));
        }
        for identity in identities {
            let client = build(&settings, &identity)?;
            transport.clients.with(|clients| clients.insert(identity, client));
        }
        Ok(transport)
    }

    /// GETs a URL of a registry or of its token service, through redirects. The authorization goes to
    /// the origin of `url` only.
    pub(super) async fn get(
        &self,
        registry: &str,
        url: &Url,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, Failure> {
        let mut at = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let client = self.client(registry, &at).await?;
            let mut request = client.get(at.clone()).headers(headers.clone());
            if let Some(authorization) = authorization.filter(|_| at.origin() == url.origin()) {
                request = request.header(AUTHORIZATION, authorization.clone());
            }
            let response = self.send(request, &at).await?;
            let Some(next) = redirect(&response, &at)? else { return Ok(response) };
            if !self.may_send(&at, &next) {
                let message = format!("{}: redirects to {}, which is not https", place(&at), place(&next));
                return Err(ImageError::unavailable(message).into());
            }
            at = next;
        }
        let message = format!("{}: more than {MAX_REDIRECTS} redirects", place(url));
        Err(ImageError::unavailable(message).into())
    }

    /// Sends one request, and waits for the head of its answer.
    pub(super) async fn send(&self, request: RequestBuilder, url: &Url) -> Result<Response, Failure> {
        let wait = self.settings.connect_timeout + self.settings.idle_timeout;
        match tokio::time::timeout(wait, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(Failure::broken(format!("{}: {}", place(url), chain(&error)))),
            Err(_) => Err(Failure::broken(format!("{}: no answer for {wait:?}", place(url)))),
        }
    }

    /// The client for a hop of a request to a registry.
    pub(super) async fn client(&self, registry: &str, url: &Url) -> Result<Client, ImageError> {
        let identity = self.identity(registry, url);
        if let Some(client) = self.clients.with(|clients| clients.get(&identity).cloned()) {
            return Ok(client);
        }
        let settings = self.settings.clone();
        crate::image::pull::blocking("setting up HTTPS", move || {
            let client = build(&settings, &identity)?;
            Ok((identity, client))
        })
        .await
        .map(|(identity, client)| {
            self.clients.with(|clients| clients.entry(identity).or_insert(client).clone())
        })
    }

    /// A registry's CA vouches for where it sends us, too; our certificate is for the registry alone.
    fn identity(&self, registry: &str, url: &Url) -> Identity {
        let host = self.settings.registries.get(registry);
        let own = canonical(&authority(url)) == registry.trim_end_matches(":443");
        Identity {
            ca_file: host.and_then(|host| host.ca_file.clone()),
            certificate: host.filter(|_| own).and_then(|host| host.client_certificate.clone()),
            direct: is_loopback(url),
        }
    }

    /// At most the first `limit` bytes of a body.
    pub(super) async fn body(&self, response: Response, limit: u64) -> Result<Vec<u8>, Failure> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let mut stream = Body::new(response, &self.settings);
        let mut body = Vec::new();
        while body.len() < limit {
            let Some(chunk) = stream.next().await? else { break };
            body.extend_from_slice(&chunk[..chunk.len().min(limit - body.len())]);
        }
        Ok(body)
    }

    /// Whether one server may name the other as where to go on. HTTPS is never left, and nobody else sends us to
    /// what listens on this machine.
    pub(super) fn may_send(&self, from: &Url, to: &Url) -> bool {
        let plain = from.scheme() == "http" && to.scheme() == "http" && self.is_plain(to);
        to.scheme() == "https" || (plain && (is_loopback(from) || !is_loopback(to)))
    }

    pub(super) fn is_plain_host(&self, host: &str) -> bool {
        format!("http://{host}/").parse().is_ok_and(|url| self.is_plain(&url))
    }

    /// Whether this host may be asked in plain HTTP: it is this machine, or configured so.
    pub(super) fn is_plain(&self, url: &Url) -> bool {
        let named = authority(url);
        let listed = |entry: &String| *entry == named || url.host_str() == Some(entry);
        is_loopback(url)
            || self.settings.plain_http.iter().any(listed)
            || self.settings.registries.is_plain(&named)
    }
}

/// A body as it arrives, given up when it stalls or drips.
pub(super) struct Body {
    stream: futures_util::stream::BoxStream<'static, reqwest::Result<bytes::Bytes>>,
    place: String,
    patience: Duration,
    /// Bytes that must arrive in each stretch of `patience`.
    least: u64,
    waited: Duration,
    arrived: u64,
}

impl Body {
    pub(super) fn new(response: Response, settings: &Settings) -> Self {
        let patience = settings.idle_timeout;
        let least = (patience.as_secs_f64() * settings.slowest as f64) as u64;
        let place = place(response.url());
        let stream = response.bytes_stream().boxed();
        Body { stream, place, patience, least, waited: Duration::ZERO, arrived: 0 }
    }

    /// The next chunk; none at the end. Only the time spent waiting in here counts: a slow disk is
    /// not the registry's fault.
    pub(super) async fn next(&mut self) -> Result<Option<bytes::Bytes>, Failure> {
        let since = Instant::now();
        let chunk = match tokio::time::timeout(self.patience, self.stream.next()).await {
            Ok(Some(Ok(chunk))) => chunk,
            Ok(Some(Err(error))) => {
                return Err(Failure::broken(format!("{}: {}", self.place, chain(&error))));
            }
            Ok(None) => return Ok(None),
            Err(_) => {
                return Err(Failure::broken(format!("{}: not a byte for {:?}", self.place, self.patience)));
            }
        };
        self.waited += since.elapsed();
        self.arrived += chunk.len() as u64;
        if self.waited >= self.patience {
            if self.arrived < self.least {
                let message = format!("{}: only {} bytes in {:?}", self.place, self.arrived, self.patience);
                return Err(Failure::broken(message));
            }
            (self.waited, self.arrived) = (Duration::ZERO, 0);
        }
        Ok(Some(chunk))
    }
}

/// Where an answer sends us.
fn redirect(response: &Response, at: &Url) -> Result<Option<Url>, ImageError> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
    match location.and_then(|location| at.join(location).ok()) {
        Some(url) if matches!(url.scheme(), "http" | "https") => Ok(Some(url)),
        _ => Err(ImageError::unavailable(format!("{}: redirects to nowhere", place(at)))),
    }
}

fn build(settings: &Settings, identity: &Identity) -> Result<Client, ImageError> {
    let mut client = Client::builder()
        .user_agent(concat!("vmlet/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(settings.connect_timeout)
        .redirect(reqwest::redirect::Policy::none());
    if identity.direct {
        client = client.no_proxy();
    }
    if let Some(path) = &identity.ca_file {
        let certificates = reqwest::Certificate::from_pem_bundle(&read(path)?).ok();
        let certificates = certificates.filter(|certificates| !certificates.is_empty()).ok_or_else(|| {
            ImageError::invalid(format!("{}: holds no certificate in PEM form", path.display()))
        })?;
        client = client.tls_certs_merge(certificates);
    }
    if let Some(ClientCertificate { cert_file, key_file }) = &identity.certificate {
        let pem = [read(cert_file)?, b"\n".to_vec(), read(key_file)?].concat();
        let pair = reqwest::Identity::from_pem(&pem).map_err(|error| {
            let (certificate, key) = (cert_file.display(), key_file.display());
            ImageError::invalid(format!("{certificate}, {key}: {}", chain(&error)))
        })?;
        client = client.identity(pair);
    }
    client.build().map_err(|error| match &identity.certificate {
        Some(files) => ImageError::invalid(format!("{}: {}", files.cert_file.display(), chain(&error))),
        None => ImageError::host("setting up HTTPS", &io::Error::other(chain(&error))),
    })
}

fn read(path: &PathBuf) -> Result<Vec<u8>, ImageError> {
    use io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(PEM_BYTES).read_to_end(&mut bytes))
        .map_err(|error| ImageError::host(path.display(), &error))?;
    Ok(bytes)
}

pub(super) fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_this_machine_and_where_configured() {
        let plain_http = vec!["registry.lan:5000".to_owned(), "10.0.0.9".to_owned()];
        let text = b"registries: {plain.lan: {plainHTTP: true}, a.lan: {mirrors: ['http://mirror.lan']}}";
        let registries = super::super::Registries::parse("registries.yaml".as_ref(), text).unwrap();
        let settings = Settings { plain_http, registries, ..Settings::default() };
        let transport = Transport::new(Arc::new(settings)).unwrap();
        let plain = |url: &str| transport.is_plain(&url.parse().unwrap());
        for url in
            ["http://localhost:5000/", "http://127.9.9.9/", "http://[::1]:5000/", "http://registry.lan:5000/"]
        {
            assert!(plain(url), "{url}");
        }
        assert!(plain("http://plain.lan/") && plain("http://mirror.lan/") && !plain("http://a.lan/"));
        assert!(plain("http://10.0.0.9:5000/"), "without a port, any port is meant");
        let may = |from: &str, to: &str| transport.may_send(&from.parse().unwrap(), &to.parse().unwrap());
        let (lan, here) = ("http://registry.lan:5000/", "http://localhost:5000/");
        assert!(
            may(lan, "https://cdn.example/")
                && may(lan, "http://10.0.0.9/")
                && may(here, lan)
                && may(here, here)
        );
        assert!(!may(lan, here), "others have no business on this machine");
        assert!(!may("https://registry.lan/", lan), "https is not left");
        assert!(!may(lan, "ftp://10.0.0.9/") && !may(lan, "http://cdn.example/"));
        for url in [
            "http://registry.lan/",
            "http://registry.lan:5001/",
            "http://localhost.evil.example/",
            "http://10.0.0.8/",
        ] {
            assert!(!plain(url), "{url}");
        }
    }
}
