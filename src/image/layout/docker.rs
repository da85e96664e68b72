//! Docker archives: `manifest.json` with a config and layers by file name (moby, image/spec).

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::super::error::printable;
use super::super::limits::check;
use super::super::manifest::{Config, Descriptor, null_is_default};
use super::super::{Digest, ImageError};
use super::{Blob, Finder, Layout, expect, index};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    #[serde(default, deserialize_with = "null_is_default")]
    repo_tags: Vec<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    layers: Vec<String>,
}

/// The image called `reference`, else the only one.
pub(super) fn find(
    finder: &Finder<'_>,
    manifest: &[u8],
    reference: Option<&str>,
) -> Result<Layout, ImageError> {
    let entries: Vec<Entry> = serde_json::from_slice(manifest)
        .map_err(|error| ImageError::invalid(format!("manifest.json cannot be read: {error}")))?;
    let names = || -> Vec<String> {
        let tags = entries.iter().flat_map(|entry| &entry.repo_tags);
        tags.map(|tag| printable(tag.as_bytes())).collect()
    };
    let entry = match (reference, &entries[..]) {
        (Some(wanted), entries) => entries
            .iter()
            .find(|entry| entry.repo_tags.iter().any(|tag| index::same(tag, wanted)))
            .ok_or_else(|| index::not_there(wanted, &names()))?,
        (None, [entry]) => entry,
        (None, []) => return Err(ImageError::invalid("manifest.json names no image")),
        (None, _) => return Err(index::several(&names())),
    };
    layout(finder, entry)
}

fn layout(finder: &Finder<'_>, entry: &Entry) -> Result<Layout, ImageError> {
    let limits = finder.job.limits();
    check("the number of layers", "layers", entry.layers.len(), limits.layers)?;
    let get = |name: &str| {
        let missing = || ImageError::not_found(format!("\"{}\" is missing", printable(name.as_bytes())));
        finder.blobs.get(name)?.ok_or_else(missing)
    };
    let config = get(&entry.config)?.bytes("the image's config", "config_bytes", limits.config_bytes)?;
    let digest = Digest::sha256(Sha256::digest(&config).into());
    if let Some(promised) = digest_in(&entry.config) {
        expect(&promised, &digest)?;
    }
    let config = Config::parse(&config, entry.layers.len())?;
    let (mut layers, mut total) = (Vec::new(), 0u64);
    for (name, diff_id) in entry.layers.iter().zip(&config.diff_ids) {
        let section = get(name)?;
        total = total.saturating_add(section.size);
        // Elsewhere the name is the digest of the inflated layer, if it is one at all.
        let promised = digest_in(name).filter(|_| name.starts_with("blobs/"));
        let (verified, digest) = (promised.is_some(), promised.unwrap_or_else(|| diff_id.clone()));
        let descriptor = Descriptor { media_type: String::new(), digest, size: section.size };
        layers.push(Blob { section, descriptor, verified });
    }
    check("the size of all layers", "compressed_bytes", total, limits.compressed_bytes)?;
    Ok(Layout { digest, config, layers })
}

/// `blobs/sha256/<hex>`, `<hex>.json`.
fn digest_in(name: &str) -> Option<Digest> {
    let name = name.rsplit('/').next()?;
    format!("sha256:{}", name.strip_suffix(".json").unwrap_or(name)).parse().ok()
}
