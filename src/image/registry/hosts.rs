//! What is configured of registries: mirrors, plain HTTP and TLS, by host.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use reqwest::Url;
use schemars::JsonSchema;
use serde::Deserialize;

use super::endpoint::authority;
use crate::manifest::{Diagnostic, Page};

/// The largest settings file, in bytes.
const MAX_FILE_SIZE: u64 = 1 << 20;

/// All of Docker Hub's names mean the one that references have.
pub(super) const DOCKER_HUB: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

/// The settings of registries, from the file that `--registries` names.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Registries {
    /// By `host` or `host:port`, as references name them.
    #[serde(default)]
    registries: BTreeMap<String, Host>,
}

/// The settings of one registry, or of a mirror.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Host {
    /// URLs that are asked first, in this order; a path goes in front of the repository.
    pub(super) mirrors: Vec<String>,
    /// Whether it is spoken to over plain HTTP.
    #[serde(rename = "plainHTTP")]
    pub(super) plain_http: bool,
    /// Certificates (PEM) that are trusted beside the host's.
    pub(super) ca_file: Option<PathBuf>,
    /// How we prove to it who we are.
    pub(super) client_certificate: Option<ClientCertificate>,
}

/// A certificate and its key, both PEM.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ClientCertificate {
    /// The certificate, and those between it and its CA.
    pub(super) cert_file: PathBuf,
    /// The private key.
    pub(super) key_file: PathBuf,
}

impl Registries {
    /// Reads the settings file.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn read(path: &Path) -> Result<Self, Vec<Diagnostic>> {
        let mut bytes = Vec::new();
        std::fs::File::open(path)
            .and_then(|file| file.take(MAX_FILE_SIZE + 1).read_to_end(&mut bytes))
            .map_err(|error| vec![Diagnostic::of_file(path, &format!("cannot be read: {error}"))])?;
        Registries::parse(path, &bytes)
    }

    /// Decodes the settings file.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, Vec<Diagnostic>> {
        let (mut read, mut page) = Page::read::<Registries>(path, bytes, "registries file")?;
        let mut faulty = false;
        for (name, host) in &read.registries {
            for (field, of_name, message, hint) in violations(name, host) {
                let field = format!("registries.{name}{field}");
                page.refuse(&field, of_name, &format!("{field} {message}"), Some(hint));
                faulty = true;
            }
        }
        if faulty {
            return Err(page.diagnostics());
        }
        let named = std::mem::take(&mut read.registries);
        read.registries = named.into_iter().map(|(name, host)| (canonical(&name).to_owned(), host)).collect();
        Ok(read)
    }

    /// What is configured of a registry.
    pub(super) fn get(&self, host: &str) -> Option<&Host> {
        self.registries.get(canonical(host))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&String, &Host)> {
        self.registries.iter()
    }

    /// Whether this host is named as one that is spoken to over plain HTTP: by itself, or as a mirror.
    pub(super) fn is_plain(&self, host: &str) -> bool {
        let mirrors = |host: &Host| host.mirrors.iter().filter_map(|mirror| mirror.parse().ok()).collect();
        self.get(host).is_some_and(|host| host.plain_http)
            || self.registries.values().any(|configured| {
                let mirrors: Vec<Url> = mirrors(configured);
                mirrors.iter().any(|mirror| mirror.scheme() == "http" && authority(mirror) == host)
            })
    }
}

/// The name that references use.
pub(super) fn canonical(host: &str) -> &str {
    if DOCKER_HUB.contains(&host) { DOCKER_HUB[0] } else { host }
}

type Violation = (String, bool, &'static str, &'static str);

fn violations(name: &str, host: &Host) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut refuse = |field: String, name: bool, message, hint| found.push((field, name, message, hint));
    // With a path or a user in it, it is more than the authority.
    if !format!("https://{name}/").parse().is_ok_and(|url| authority(&url) == name) {
        refuse(String::new(), true, "is not a registry", "write a host, or host:port, in lower case");
    }
    for (index, mirror) in host.mirrors.iter().enumerate() {
        let field = format!(".mirrors[{index}]");
        match mirror.parse::<Url>() {
            Ok(url) if !url.username().is_empty() || url.password().is_some() => {
                refuse(field, false, "holds credentials", "put them into the auth file");
            }
            Ok(url)
                if matches!(url.scheme(), "http" | "https")
                    && url.query().is_none()
                    && url.fragment().is_none() => {}
            _ => refuse(field, false, "is not a mirror's URL", "write for example https://mirror.example"),
        }
    }
    let certificate = host.client_certificate.as_ref();
    let files = [
        (".caFile", host.ca_file.as_ref()),
        (".clientCertificate.certFile", certificate.map(|files| &files.cert_file)),
        (".clientCertificate.keyFile", certificate.map(|files| &files.key_file)),
    ];
    for (field, path) in files {
        if path.is_some_and(|path| !path.is_absolute()) {
            refuse(field.to_owned(), false, "is not an absolute path", "begin it with /");
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Registries, Vec<Diagnostic>> {
        Registries::parse(Path::new("registries.yaml"), text.as_bytes())
    }

    #[test]
    fn settings_by_host() {
        let text = "registries:\n  index.docker.io: {mirrors: ['http://mirror.lan:5000/hub']}\n  a.lan: {plainHTTP: true}\n";
        let read = parse(text).unwrap();
        assert_eq!(read.get("docker.io").unwrap().mirrors, ["http://mirror.lan:5000/hub"]);
        assert!(read.is_plain("a.lan") && read.is_plain("mirror.lan:5000"));
        assert!(!read.is_plain("a.lan:5000") && !read.is_plain("mirror.lan") && !read.is_plain("docker.io"));
        assert_eq!(parse("{}").unwrap(), Registries::default());
    }

    #[test]
    fn errors_have_a_place_and_advice() {
        let text = "registries:\n  a.lan:\n    mirror: [x]\n";
        let shown = parse(text).unwrap_err()[0].to_string();
        assert!(
            shown.contains("registries.yaml:3:5") && shown.contains("did you mean `mirrors`?"),
            "{shown}"
        );
        for (text, words) in [
            ("registries: {'https://a.lan': {}}", "is not a registry"),
            ("registries: {A.lan: {}}", "is not a registry"),
            ("registries: {a.lan/x: {}}", "is not a registry"),
            ("registries: {u@a.lan: {}}", "is not a registry"),
            ("registries: {a.lan: {mirrors: [mirror.lan]}}", "mirrors[0] is not a mirror's URL"),
            ("registries: {a.lan: {mirrors: ['https://u:p@mirror.lan']}}", "holds credentials"),
            ("registries: {a.lan: {mirrors: ['https://:p@mirror.lan']}}", "holds credentials"),
            ("registries: {a.lan: {mirrors: ['ftp://mirror.lan']}}", "is not a mirror's URL"),
            ("registries: {a.lan: {mirrors: ['https://mirror.lan/?a']}}", "is not a mirror's URL"),
            ("registries: {a.lan: {mirrors: ['https://mirror.lan/#a']}}", "is not a mirror's URL"),
            ("registries: {a.lan: {caFile: ca.pem}}", "caFile is not an absolute path"),
            ("registries: {a.lan: {clientCertificate: {certFile: /c}}}", "keyFile is missing"),
            ("registries: {a.lan: {insecure: true}}", "not a field"),
            ("", "holds no registries file"),
        ] {
            let shown = parse(text).unwrap_err()[0].to_string();
            assert!(shown.contains(words), "{text}: {shown}");
        }
    }
}
