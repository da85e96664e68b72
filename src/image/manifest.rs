//! Manifests, indexes and configs: what a registry says an image is made of.
//!
//! Bytes whose digest is known flow in, checked values flow out. Follows the OCI image-spec
//! (manifest.md, image-index.md, config.md) and Docker's image manifest v2, schema 2, which has
//! the same fields.

use serde::{Deserialize, Deserializer};

use super::error::printable;
use super::limits::check;
use super::{Digest, ImageConfig, ImageError, Limits};

/// What a registry is asked for.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, \
     application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.docker.distribution.manifest.list.v2+json";

/// Types of layers that hold a file system. Whether and how one is compressed is read from its
/// first bytes, as all builders' labels are not right.
const LAYER_TYPES: [&str; 6] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];

const INDEX_TYPES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];

/// Indexes within indexes that are followed.
pub(crate) const MAX_INDEXES: usize = 4;

const CONFIG_TYPES: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// A blob: how to name it and how long it is.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

impl Descriptor {
    /// Bytes that a layer's files will take at least: less than what is usual, so that no image is refused that
    /// would have fitted.
    pub(crate) fn unpacked(&self) -> u64 {
        let compressed = self.media_type.ends_with("gzip") || self.media_type.ends_with("zstd");
        if compressed { self.size.saturating_mul(2) } else { self.size }
    }
}

/// One platform's image.
#[derive(Debug)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    /// Bottom to top.
    pub(crate) layers: Vec<Descriptor>,
}

/// What a reference can stand for.
#[derive(Debug)]
pub(crate) enum Document {
    Image(Manifest),
    Index(IndexEntry),
}

/// What an index has for this platform.
#[derive(Debug)]
pub(crate) struct IndexEntry {
    pub(crate) digest: Digest,
    /// Whether it says that it is an index itself.
    pub(crate) is_index: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: u32,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<RawIndexEntry>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawIndexEntry {
    #[serde(default)]
    media_type: String,
    digest: String,
    platform: Option<RawPlatform>,
}

#[derive(Deserialize)]
pub(crate) struct RawPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: String,
}

impl RawPlatform {
    /// How much the platform asks of this host's processor, 1 to 4 (x86-64-v1 to v4); none if it cannot run here.
    pub(crate) fn level(&self) -> Option<u8> {
        let level = match self.variant.as_str() {
            "" | "v1" => 1,
            "v2" => 2,
            "v3" => 3,
            "v4" => 4,
            _ => return None,
        };
        (is_ours(&self.os, &self.architecture) && level <= this_level()).then_some(level)
    }
}

/// Whether this is the host's platform, in one of the spellings that containerd takes for it.
fn is_ours(os: &str, architecture: &str) -> bool {
    let [os, architecture] = [os, architecture].map(str::to_ascii_lowercase);
    matches!(os.as_str(), "" | "linux") && matches!(architecture.as_str(), "amd64" | "x86_64" | "x86-64")
}

/// The highest of the x86-64 psABI's levels that this processor has.
fn this_level() -> u8 {
    use std::arch::is_x86_feature_detected as has;
    let v2 = has!("sse4.2") && has!("popcnt") && has!("cmpxchg16b");
    let v3 = v2 && has!("avx2") && has!("bmi2") && has!("fma");
    let v4 =
        v3 && has!("avx512f") && has!("avx512bw") && has!("avx512cd") && has!("avx512dq") && has!("avx512vl");
    1 + u8::from(v2) + u8::from(v3) + u8::from(v4)
}

impl Document {
    /// Reads a manifest or an index.
    pub(crate) fn parse(bytes: &[u8], limits: &Limits) -> Result<Self, ImageError> {
        let raw: RawDocument = serde_json::from_slice(bytes).map_err(|error| {
            ImageError::invalid(format!("the manifest cannot be read: {}", one_line(&error)))
        })?;
        if raw.schema_version != 2 {
            return Err(ImageError::invalid(format!(
                "the manifest has schema version {}, and only version 2 is supported; push the image again with a current tool",
                raw.schema_version
            )));
        }
        match (raw.config, raw.layers, raw.manifests) {
            // A document that is both means different images to different readers (CVE-2021-41190).
            (None, None, Some(entries)) => this_platform(&entries).map(Document::Index),
            // Go writes a list without anything in it as `null`.
            (Some(config), layers, None) => {
                Manifest::check(config, layers.unwrap_or_default(), limits).map(Document::Image)
            }
            _ => Err(ImageError::invalid(
                "the manifest is neither an image (config, layers) nor an index (manifests)",
            )),
        }
    }
}

/// The entry for linux/amd64 that asks the least of the processor; of equals the first. One that says nothing
/// of a platform is the last choice: its config will tell.
fn this_platform(entries: &[RawIndexEntry]) -> Result<IndexEntry, ImageError> {
    let level = |entry: &&RawIndexEntry| entry.platform.as_ref().map_or(Some(u8::MAX), RawPlatform::level);
    let found = entries.iter().filter(|entry| level(entry).is_some()).min_by_key(level);
    let Some(entry) = found else {
        let mut offered: Vec<String> = entries
            .iter()
            .filter_map(|entry| entry.platform.as_ref())
            .map(|platform| {
                let variant = if platform.variant.is_empty() { "" } else { "/" };
                let RawPlatform { os, architecture, variant: name } = platform;
                printable(format!("{os}/{architecture}{variant}{name}").as_bytes())
            })
            .take(20)
            .collect();
        offered.dedup();
        return Err(ImageError::invalid(format!(
            "the image has no linux/amd64 variant that runs here, only [{}]",
            offered.join(", ")
        )));
    };
    let digest: Result<Digest, _> = entry.digest.parse();
    let digest = digest.map_err(|error| ImageError::invalid(format!("in the index: {error}")))?;
    Ok(IndexEntry { digest, is_index: INDEX_TYPES.contains(&entry.media_type.as_str()) })
}

impl Manifest {
    fn check(config: Descriptor, layers: Vec<Descriptor>, limits: &Limits) -> Result<Self, ImageError> {
        if !CONFIG_TYPES.contains(&config.media_type.as_str()) {
            return Err(ImageError::invalid(format!(
                "not a container image: its config is of type \"{}\"",
                printable(config.media_type.as_bytes())
            )));
        }
        check("the image's config", "config_bytes", config.size, limits.config_bytes)?;
        check("the number of layers", "layers", layers.len(), limits.layers)?;
        let mut total = 0u64;
        for layer in &layers {
            if ["foreign", "nondistributable"].iter().any(|kind| layer.media_type.contains(kind)) {
                return Err(ImageError::invalid(format!(
                    "layer {} is foreign: its content is not where the image is, and vmlet does not fetch it from \
                     elsewhere; build the image on another base",
                    layer.digest
                )));
            }
            if layer.media_type.ends_with("+encrypted") {
                return Err(ImageError::invalid(format!(
                    "layer {} is encrypted, and vmlet has no keys; push the image unencrypted",
                    layer.digest
                )));
            }
            if !LAYER_TYPES.contains(&layer.media_type.as_str()) {
                return Err(ImageError::invalid(format!(
                    "layer {} is of type \"{}\", which is not supported",
                    layer.digest,
                    printable(layer.media_type.as_bytes())
                )));
            }
            total = total.saturating_add(layer.size);
        }
        check("the size of all layers", "compressed_bytes", total, limits.compressed_bytes)?;
        Ok(Manifest { config, layers })
    }

    /// Compressed bytes of all layers; bounded by `compressed_bytes`.
    pub(crate) fn size(&self) -> u64 {
        self.layers.iter().map(|layer| layer.size).sum()
    }
}

/// An image's config: how to run it, and the digests of its uncompressed layers.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) run: ImageConfig,
    /// Bottom to top, one per layer.
    pub(crate) diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
struct RawConfig {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    config: Option<RawRun>,
    rootfs: RawRootfs,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(default, deserialize_with = "null_is_default")]
    diff_ids: Vec<Digest>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawRun {
    #[serde(deserialize_with = "null_is_default")]
    entrypoint: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    cmd: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    env: Vec<String>,
    working_dir: Option<String>,
    user: Option<String>,
    stop_signal: Option<String>,
}

/// What the parser says, which may quote what it was given.
fn one_line(error: &serde_json::Error) -> String {
    printable(error.to_string().as_bytes())
}

/// Go writes an absent list as `null`.
pub(crate) fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl Config {
    /// Reads the config of an image with `layers` layers.
    pub(crate) fn parse(bytes: &[u8], layers: usize) -> Result<Self, ImageError> {
        let raw: RawConfig = serde_json::from_slice(bytes).map_err(|error| {
            ImageError::invalid(format!("the image's config cannot be read: {}", one_line(&error)))
        })?;
        if !is_ours(&raw.os, &raw.architecture) {
            return Err(ImageError::invalid(format!(
                "the image is for {}/{}, and this host runs linux/amd64",
                printable(raw.os.as_bytes()),
                printable(raw.architecture.as_bytes())
            )));
        }
        let diff_ids = raw.rootfs.diff_ids;
        if diff_ids.len() != layers {
            return Err(ImageError::invalid(format!(
                "the image's config names {} layers and its manifest {layers}",
                diff_ids.len()
            )));
        }
        Ok(Config { run: raw.config.unwrap_or_default().into(), diff_ids })
    }
}

impl From<RawRun> for ImageConfig {
    fn from(run: RawRun) -> Self {
        let set = |text: Option<String>| text.filter(|text| !text.is_empty());
        ImageConfig {
            entrypoint: run.entrypoint,
            cmd: run.cmd,
            env: run.env,
            working_dir: set(run.working_dir),
            user: set(run.user),
            stop_signal: set(run.stop_signal),
        }
    }
}

/// What a config says of the process, whatever else is in it.
pub(crate) fn run_config(bytes: &[u8]) -> Result<ImageConfig, ImageError> {
    #[derive(Deserialize)]
    struct Part {
        #[serde(default)]
        config: Option<RawRun>,
    }
    let part: Part = serde_json::from_slice(bytes)
        .map_err(|error| ImageError::invalid(format!("config.json cannot be read: {error}")))?;
    Ok(part.config.unwrap_or_default().into())
}
