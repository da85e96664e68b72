//! Who we are to a registry: Docker's `config.json`, and the helpers that it names.
//!
//! The file is read again when it has changed. Passwords and tokens are [`Secret`]s from the moment
//! they are decoded: they cannot be printed, and errors quote nothing of the file.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;

use super::helper;
use super::hosts::DOCKER_HUB;
use crate::metrics::Guarded;

/// The largest auth file, in bytes.
const MAX_FILE_SIZE: u64 = 1 << 20;
/// Tools differ in whether they pad.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A text that is never shown.
#[derive(Clone, PartialEq, Deserialize)]
#[serde(transparent)]
pub(super) struct Secret(String);

impl Secret {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Secret(text.into())
    }

    /// The text itself, to be sent where it belongs.
    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// What is shown to a registry or to its token service.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Credential {
    Password {
        username: String,
        password: Secret,
    },
    /// A refresh token, which a token service gave out for a password.
    Identity(Secret),
}

/// What is known about a repository's credentials.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Found {
    pub(super) credential: Option<Credential>,
    /// What kept us from finding more. A public image can be had nevertheless.
    pub(super) trouble: Option<String>,
}

/// The credentials of all registries.
pub(super) struct Credentials {
    /// The first one that exists counts.
    files: Vec<PathBuf>,
    read: Guarded<Option<(Stamp, Arc<Outcome>)>>,
}

type Outcome = Result<AuthFile, String>;

/// What changes with a file's content.
#[derive(Clone, PartialEq)]
struct Stamp {
    path: PathBuf,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Credentials {
    pub(super) fn new(files: Vec<PathBuf>) -> Self {
        Credentials { files, read: Guarded::default() }
    }

    /// The credentials for a repository. Runs a helper if the auth file says so.
    pub(super) async fn find(&self, registry: &str, repository: &str) -> Found {
        let file = match self.file().await {
            None => return Found::default(),
            Some(outcome) => outcome,
        };
        let file = match file.as_ref() {
            Ok(file) => file,
            Err(trouble) => return Found { credential: None, trouble: Some(trouble.clone()) },
        };
        match file.look_up(registry, repository) {
            LookUp::None => Found::default(),
            LookUp::Here(credential) => Found { credential: Some(credential), trouble: None },
            LookUp::Ask(helper) => match helper::ask(&helper, server(registry)).await {
                Ok(credential) => Found { credential, trouble: None },
                Err(trouble) => Found { credential: None, trouble: Some(trouble) },
            },
        }
    }

    /// The auth file as it is now; none if there is none.
    async fn file(&self) -> Option<Arc<Outcome>> {
        let known = self.read.with(|read| read.clone());
        let files = self.files.clone();
        let read = tokio::task::spawn_blocking(move || read_again(&files, known)).await.ok()?;
        self.read.with(|last| last.clone_from(&read));
        read.map(|(_, outcome)| outcome)
    }
}

/// Reads the first file that exists, unless it is as it was.
fn read_again(files: &[PathBuf], known: Option<(Stamp, Arc<Outcome>)>) -> Option<(Stamp, Arc<Outcome>)> {
    let (path, data) = files.iter().find_map(|path| Some((path, std::fs::metadata(path).ok()?)))?;
    let stamp = Stamp {
        path: path.clone(),
        inode: data.ino(),
        size: data.size(),
        modified: (data.mtime(), data.mtime_nsec()),
        changed: (data.ctime(), data.ctime_nsec()),
    };
    if let Some(known) = known.filter(|(before, _)| *before == stamp) {
        return Some(known);
    }
    let outcome = read(path).map_err(|error| format!("{}: {error}", path.display()));
    if let Err(error) = &outcome {
        tracing::warn!("the auth file cannot be used: {error}");
    }
    Some((stamp, Arc::new(outcome)))
}

fn read(path: &Path) -> Result<AuthFile, String> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE_SIZE + 1).read_to_end(&mut bytes))
        .map_err(|error| error.to_string())?;
    if bytes.len() as u64 > MAX_FILE_SIZE {
        return Err(format!("larger than {} MiB", MAX_FILE_SIZE >> 20));
    }
    AuthFile::parse(&bytes)
}

/// What helpers know a registry as: Docker Hub by its oldest URL.
fn server(registry: &str) -> &str {
    if DOCKER_HUB.contains(&registry) { "https://index.docker.io/v1/" } else { registry }
}

/// Where a credential is.
#[derive(Debug, PartialEq)]
enum LookUp {
    None,
    Here(Credential),
    Ask(String),
}

/// The parts of `config.json` that matter here.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct AuthFile {
    auths: Option<HashMap<String, Entry>>,
    cred_helpers: Option<HashMap<String, String>>,
    creds_store: Option<String>,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase", default)]
struct Entry {
    auth: Option<Secret>,
    username: Option<String>,
    password: Option<Secret>,
    identitytoken: Option<Secret>,
}

impl AuthFile {
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        // The error's own words may quote a password.
        serde_json::from_slice(bytes).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            format!("line {line}, column {column}: not what Docker's config.json looks like")
        })
    }

    fn look_up(&self, registry: &str, repository: &str) -> LookUp {
        let scopes = scopes(registry, repository);
        if let Some(helper) = first(self.cred_helpers.as_ref(), &scopes, |helper| Some(helper.clone())) {
            return LookUp::Ask(helper);
        }
        if let Some(credential) = first(self.auths.as_ref(), &scopes, Entry::credential) {
            return LookUp::Here(credential);
        }
        match &self.creds_store {
            Some(helper) if !helper.is_empty() => LookUp::Ask(helper.clone()),
            _ => LookUp::None,
        }
    }
}

/// The value of the narrowest scope that has one.
fn first<T, R>(map: Option<&HashMap<String, T>>, scopes: &[String], value: fn(&T) -> Option<R>) -> Option<R> {
    let map = map?;
    scopes.iter().find_map(|scope| {
        let exact = map.get(scope).and_then(value);
        let legacy = || map.iter().filter(|(key, _)| legacy_host(key) == Some(scope));
        exact.or_else(|| legacy().find_map(|(_, entry)| value(entry)))
    })
}

/// `host/a/b`, `host/a`, `host`, as podman scopes credentials; for each of the registry's names.
fn scopes(registry: &str, repository: &str) -> Vec<String> {
    let hub = DOCKER_HUB.contains(&registry);
    let names = if hub { DOCKER_HUB.to_vec() } else { vec![registry] };
    let mut paths = vec![format!("/{repository}")];
    while let Some((parent, _)) = paths[paths.len() - 1].rsplit_once('/') {
        paths.push(parent.to_owned());
    }
    paths.iter().flat_map(|path| names.iter().map(move |name| format!("{name}{path}"))).collect()
}

/// The host of a key that is a URL, such as `https://index.docker.io/v1/`.
fn legacy_host(key: &str) -> Option<&str> {
    let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://"))?;
    rest.split('/').next()
}

impl Entry {
    fn credential(&self) -> Option<Credential> {
        let set = |secret: &Option<Secret>| secret.clone().filter(|secret| !secret.reveal().is_empty());
        if let Some(token) = set(&self.identitytoken) {
            return Some(Credential::Identity(token));
        }
        if let Some(auth) = set(&self.auth) {
            let text = String::from_utf8(BASE64.decode(auth.reveal().trim()).ok()?).ok()?;
            let (username, password) = text.split_once(':')?;
            let password = Secret::new(password.trim_end_matches('\0'));
            return Some(Credential::Password { username: username.to_owned(), password });
        }
        let username = self.username.clone().filter(|name| !name.is_empty())?;
        Some(Credential::Password { username, password: set(&self.password)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(username: &str, password: &str) -> LookUp {
        LookUp::Here(Credential::Password { username: username.to_owned(), password: Secret::new(password) })
    }

    fn look_up(file: &str, registry: &str, repository: &str) -> LookUp {
        AuthFile::parse(file.as_bytes()).unwrap().look_up(registry, repository)
    }

    #[test]
    fn the_narrowest_scope_counts() {
        let file = r#"{"auths": {
            "a.lan": {"auth": "dTpwOnE="}, "a.lan/team": {"username": "t", "password": "x"},
            "a.lan/team/app": {"identitytoken": "i", "auth": "dTpwOnE"}, "a.lan/empty": {},
            "https://b.lan:5000/v2/": {"auth": "dTpwOnE"}}}"#;
        assert_eq!(look_up(file, "a.lan", "other"), password("u", "p:q"));
        assert_eq!(look_up(file, "a.lan", "teams"), password("u", "p:q"));
        assert_eq!(look_up(file, "a.lan", "empty/x"), password("u", "p:q"));
        assert_eq!(look_up(file, "a.lan", "team/x/y"), password("t", "x"));
        let identity = LookUp::Here(Credential::Identity(Secret::new("i")));
        assert_eq!(look_up(file, "a.lan", "team/app"), identity);
        assert_eq!(look_up(file, "b.lan:5000", "x"), password("u", "p:q"));
        assert_eq!(look_up(file, "b.lan", "x"), LookUp::None);
        assert_eq!(look_up(file, "evil-a.lan", "x"), LookUp::None);
    }

    #[test]
    fn docker_hub_has_many_names() {
        for key in ["https://index.docker.io/v1/", "docker.io", "index.docker.io", "docker.io/library"] {
            let file = format!(r#"{{"auths": {{"{key}": {{"auth": "dTpw"}}}}}}"#);
            assert_eq!(look_up(&file, "docker.io", "library/alpine"), password("u", "p"), "{key}");
        }
        assert_eq!(server("docker.io"), "https://index.docker.io/v1/");
        assert_eq!(server("a.lan:5000"), "a.lan:5000");
    }

    #[test]
    fn helpers_are_asked_for_what_they_keep() {
        let file = r#"{"auths": {"a.lan": {}, "b.lan": {"auth": "dTpw"}}, "credHelpers": {"b.lan": "b"}, "credsStore": "all"}"#;
        assert_eq!(look_up(file, "a.lan", "x"), LookUp::Ask("all".to_owned()));
        assert_eq!(look_up(file, "b.lan", "x"), LookUp::Ask("b".to_owned()));
        assert_eq!(look_up(r#"{"credsStore": ""}"#, "a.lan", "x"), LookUp::None);
        assert_eq!(look_up(r#"{"auths": null, "other": [1]}"#, "a.lan", "x"), LookUp::None);
    }

    #[test]
    fn secrets_are_not_shown() {
        let file = r#"{"auths": {"a.lan": {"auth": "dTpod25ldA==", "identitytoken": "hunter2"}}}"#;
        let file = AuthFile::parse(file.as_bytes()).unwrap();
        let shown = format!("{file:?} {:?}", file.look_up("a.lan", "x"));
        assert!(!shown.contains("hunter2") && !shown.contains("dTpod"), "{shown}");
        for broken in [r#"{"auths": "hunter2"}"#, r#"{"auths": {"a": {"auth": ["hunter2"]}}}"#, "hunter2"] {
            let error = AuthFile::parse(broken.as_bytes()).unwrap_err();
            assert!(!error.contains("hunter2") && error.starts_with("line 1"), "{error}");
        }
        assert_eq!(look_up(r#"{"auths": {"a.lan": {"auth": "%%%"}}}"#, "a.lan", "x"), LookUp::None);
        let empty =
            r#"{"auths": {"a.lan": {"identitytoken": "", "auth": "", "username": "", "password": "p"}}}"#;
        assert_eq!(look_up(empty, "a.lan", "x"), LookUp::None);
        let half = r#"{"auths": {"a.lan": {"username": "u", "password": ""}}}"#;
        assert_eq!(look_up(half, "a.lan", "x"), LookUp::None);
    }

    #[tokio::test]
    async fn a_changed_file_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("auth.json");
        let credentials = Credentials::new(vec![folder.path().join("absent"), path.clone()]);
        assert_eq!(credentials.find("a.lan", "x").await, Found::default());
        for user in ["one", "two"] {
            let text = format!(r#"{{"auths": {{"a.lan": {{"username": "{user}", "password": "p"}}}}}}"#);
            // As editors and tools do it: another file takes its place.
            std::fs::write(path.with_extension("new"), text).unwrap();
            std::fs::rename(path.with_extension("new"), &path).unwrap();
            let Some(Credential::Password { username, .. }) = credentials.find("a.lan", "x").await.credential
            else {
                panic!("no password")
            };
            assert_eq!(username, user);
        }
        // JSON may end in any number of blanks.
        for (length, fits) in [(MAX_FILE_SIZE, true), (MAX_FILE_SIZE + 1, false)] {
            std::fs::write(&path, format!("{{}}{}", " ".repeat(length as usize - 2))).unwrap();
            let trouble = credentials.find("a.lan", "x").await.trouble;
            assert_eq!(trouble.is_some_and(|trouble| trouble.contains("larger than 1 MiB")), !fits);
        }
        std::fs::write(&path, "{").unwrap();
        let trouble = credentials.find("a.lan", "x").await.trouble.unwrap();
        assert!(trouble.contains("auth.json: line 1"), "{trouble}");
    }
}
