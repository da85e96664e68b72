//! Which image of a layout is meant (image-spec, image-layout.md, "index.json").

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::super::error::printable;
use super::super::manifest::RawPlatform;
use super::super::{Digest, ImageError, Reference};

/// Where names are: the spec's, and the one that containerd and docker add, which has the repository too.
const NAMES: [&str; 2] = ["org.opencontainers.image.ref.name", "io.containerd.image.name"];
/// Names in an error.
const SHOWN: usize = 20;

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    digest: String,
    platform: Option<RawPlatform>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

impl Entry {
    fn names(&self) -> impl Iterator<Item = &str> {
        let annotations = self.annotations.iter();
        annotations
            .flat_map(|annotations| NAMES.iter().filter_map(|name| annotations.get(*name)))
            .map(String::as_str)
    }

    /// As an error names it.
    fn label(&self) -> String {
        let name = self.names().last().unwrap_or(&self.digest);
        printable(name.as_bytes())
    }
}

/// What an index has to offer.
pub(super) enum Choice {
    Found(Digest),
    /// Nothing of that name; the names that there are.
    Missing(Vec<String>),
}

pub(super) fn choose(index: &[u8], reference: Option<&str>) -> Result<Choice, ImageError> {
    let Index { manifests } = serde_json::from_slice(index)
        .map_err(|error| ImageError::invalid(format!("index.json cannot be read: {error}")))?;
    let meant = |entry: &&Entry| reference.is_none_or(|wanted| entry.names().any(|name| same(name, wanted)));
    let wanted: Vec<&Entry> = manifests.iter().filter(meant).collect();
    if wanted.is_empty() {
        return match reference {
            Some(_) => Ok(Choice::Missing(manifests.iter().map(Entry::label).collect())),
            None => Err(ImageError::invalid("index.json names no image")),
        };
    }
    // Signatures and attestations say that they are for no platform.
    let fits = |entry: &&Entry| entry.platform.as_ref().is_none_or(|platform| platform.level().is_some());
    let fitting: Vec<&Entry> = wanted.into_iter().filter(fits).collect();
    let digests: BTreeSet<&str> = fitting.iter().map(|entry| entry.digest.as_str()).collect();
    let labels: BTreeSet<String> =
        fitting.iter().map(|entry| entry.names().last().map(str::to_owned).unwrap_or_default()).collect();
    let platforms = fitting.iter().all(|entry| entry.platform.is_some());
    if digests.len() > 1 && (labels.len() > 1 || !platforms) {
        let labels = fitting.iter().map(|entry| entry.label()).collect::<Vec<_>>();
        return Err(several(&labels));
    }
    let level = |entry: &&Entry| entry.platform.as_ref().and_then(RawPlatform::level);
    let Some(chosen) = fitting.into_iter().min_by_key(level) else {
        return Err(ImageError::invalid("it has no image for linux/amd64 that runs here"));
    };
    let digest =
        chosen.digest.parse().map_err(|error| ImageError::invalid(format!("in index.json: {error}")))?;
    Ok(Choice::Found(digest))
}

/// Whether two names mean one image: docker leaves out what can be left out.
pub(super) fn same(name: &str, wanted: &str) -> bool {
    let parsed = |text: &str| text.parse::<Reference>().ok();
    name == wanted || parsed(name).is_some_and(|name| parsed(wanted) == Some(name))
}

pub(super) fn several(names: &[String]) -> ImageError {
    ImageError::invalid(format!("it has several images; set `reference` to one of [{}]", list(names)))
}

pub(super) fn not_there(reference: &str, names: &[String]) -> ImageError {
    ImageError::not_found(format!(
        "it has no image \"{}\", only [{}]",
        printable(reference.as_bytes()),
        list(names)
    ))
}

fn list(names: &[String]) -> String {
    let more = if names.len() > SHOWN { ", …" } else { "" };
    format!("{}{more}", names[..names.len().min(SHOWN)].join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: char = '1';
    const SECOND: char = '2';

    /// An entry of a digest, a name and a platform, if it has them.
    fn entry(digit: char, name: Option<&str>, variant: Option<&str>) -> String {
        let digest = digit.to_string().repeat(64);
        let annotations = name.map(|name| format!(r#", "annotations": {{"{}": "{name}"}}"#, NAMES[0]));
        let platform = variant.map(|variant| {
            format!(r#", "platform": {{"os": "linux", "architecture": "amd64", "variant": "{variant}"}}"#)
        });
        let (annotations, platform) = (annotations.unwrap_or_default(), platform.unwrap_or_default());
        format!(r#"{{"digest": "sha256:{digest}"{annotations}{platform}}}"#)
    }

    /// The first digit of the digest that is found, or why there is none.
    fn chosen(entries: &[String], reference: Option<&str>) -> Result<char, String> {
        let index = format!(r#"{{"manifests": [{}]}}"#, entries.join(","));
        match choose(index.as_bytes(), reference) {
            Ok(Choice::Found(digest)) => Ok(digest.hex().chars().next().unwrap()),
            Ok(Choice::Missing(names)) => Err(not_there(reference.unwrap(), &names).message),
            Err(error) => Err(error.message),
        }
    }

    #[test]
    fn variants_of_one_image_are_one_image() {
        let of = |first: (Option<&str>, Option<&str>), second: (Option<&str>, Option<&str>)| {
            chosen(&[entry(FIRST, first.0, first.1), entry(SECOND, second.0, second.1)], None)
        };
        let refused = |end: Result<char, String>| assert!(end.unwrap_err().contains("several images"));
        let name = Some("app");
        assert_eq!(of((name, Some("v2")), (name, Some("v1"))), Ok(SECOND), "which asks the least");
        assert_eq!(of((None, Some("v1")), (None, Some("v2"))), Ok(FIRST));
        refused(of((name, Some("v1")), (Some("other"), Some("v2"))));
        // Whether these are variants nobody says.
        refused(of((name, None), (name, Some("v1"))));
        refused(of((None, None), (None, None)));
        let twice = [entry(FIRST, name, None), entry(FIRST, Some("other"), None)];
        assert_eq!(chosen(&twice, None), Ok(FIRST), "one image has two names");
    }

    #[test]
    fn names_are_looked_for_and_listed() {
        let entries = [entry(FIRST, Some("app:1"), None), entry(SECOND, Some("app:2"), None)];
        assert_eq!(chosen(&entries, Some("app:2")), Ok(SECOND));
        assert_eq!(chosen(&entries, Some("docker.io/library/app:1")), Ok(FIRST), "as docker shortens it");
        let error = chosen(&entries, Some("app:3")).unwrap_err();
        assert!(error.ends_with("no image \"app:3\", only [app:1, app:2]"), "{error}");
        let many = |count: usize| (0..count).map(|_| entry(FIRST, Some("a"), None)).collect::<Vec<_>>();
        assert!(!chosen(&many(SHOWN), Some("b")).unwrap_err().contains('…'));
        assert!(chosen(&many(SHOWN + 1), Some("b")).unwrap_err().ends_with(", …]"));
        assert!(chosen(&[], None).unwrap_err().contains("names no image"));
    }
}
