//! What an image may cost, and how patiently a registry is asked.
//!
//! Registries and layers are hostile until proven otherwise, so everything that they control has a
//! bound here. An image that meets a bound fails with `LimitExceeded`, which names the setting.

use std::path::PathBuf;
use std::time::Duration;

use super::{ImageError, Registries, ext4};

/// Bounds on one image. Sizes are bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// A manifest or an index. The OCI distribution spec asks registries to take at least 4 MiB.
    pub manifest_bytes: u64,
    /// An image's config.
    pub config_bytes: u64,
    /// Layers of an image. Each one is an open file while the image is pulled.
    pub layers: usize,
    /// Compressed bytes of all layers together.
    pub compressed_bytes: u64,
    /// Uncompressed bytes of all layers together, tar headers included.
    pub unpacked_bytes: u64,
    /// Length of the base disk, file system structures included.
    pub disk_bytes: u64,
    /// How many times its compressed size a layer may inflate to, once it is past
    /// [`Limits::INFLATE_FREE_BYTES`].
    pub inflate_ratio: u64,
    /// Tar entries of all layers together.
    pub entries: u64,
    /// Length of a path, of a link target, and of all symlinks together that one path leads through, in
    /// bytes (Linux' PATH_MAX).
    pub path_bytes: usize,
    /// Directories on the way to a file.
    pub depth: usize,
    /// Names and values of an entry's extended attributes.
    pub xattr_bytes: usize,
    /// A PAX or GNU long-name header, which is read into memory.
    pub header_bytes: u64,
    /// Data segments of a sparse file.
    pub sparse_segments: usize,
}

impl Limits {
    /// What [`Limits::set`] knows.
    pub const NAMES: [&str; 13] = [
        "manifest_bytes",
        "config_bytes",
        "layers",
        "compressed_bytes",
        "unpacked_bytes",
        "disk_bytes",
        "inflate_ratio",
        "entries",
        "path_bytes",
        "depth",
        "xattr_bytes",
        "header_bytes",
        "sparse_segments",
    ];

    /// Sets the bound that messages give this name. Returns whether there is one.
    pub fn set(&mut self, name: &str, value: u64) -> bool {
        let count = usize::try_from(value).unwrap_or(usize::MAX);
        match name {
            "manifest_bytes" => self.manifest_bytes = value,
            "config_bytes" => self.config_bytes = value,
            "layers" => self.layers = count,
            "compressed_bytes" => self.compressed_bytes = value,
            "unpacked_bytes" => self.unpacked_bytes = value,
            "disk_bytes" => self.disk_bytes = value,
            "inflate_ratio" => self.inflate_ratio = value,
            "entries" => self.entries = value,
            "path_bytes" => self.path_bytes = count,
            "depth" => self.depth = count,
            "xattr_bytes" => self.xattr_bytes = count,
            "header_bytes" => self.header_bytes = value,
            "sparse_segments" => self.sparse_segments = count,
            _ => return false,
        }
        true
    }

    /// The share of the disk's writer.
    pub(crate) fn disk(&self) -> ext4::Limits {
        let max_inodes = u32::try_from(self.entries).unwrap_or(u32::MAX);
        ext4::Limits { max_bytes: self.disk_bytes, max_inodes }
    }

    /// Up to here a layer may inflate at any ratio: a file of zeros is no attack.
    pub const INFLATE_FREE_BYTES: u64 = 1 << 30;

    /// Fails if so many compressed bytes may not inflate to so many.
    pub(crate) fn check_ratio(&self, what: &str, inflated: u64, compressed: u64) -> Result<(), ImageError> {
        let ratio = self.inflate_ratio;
        if inflated > Limits::INFLATE_FREE_BYTES && inflated / ratio.max(1) > compressed {
            return Err(ImageError::limit(what, "inflate_ratio", ratio));
        }
        Ok(())
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            manifest_bytes: 4 << 20,
            config_bytes: 8 << 20,
            layers: 128,
            compressed_bytes: 64 << 30,
            unpacked_bytes: 64 << 30,
            disk_bytes: 72 << 30,
            inflate_ratio: 250,
            entries: 4_000_000,
            path_bytes: 4096,
            depth: 256,
            xattr_bytes: 64 << 10,
            header_bytes: 1 << 20,
            sparse_segments: 1 << 20,
        }
    }
}

/// Fails with `LimitExceeded` if `value` is over `bound`, the limit called `name`.
pub(crate) fn check<T>(what: &str, name: &str, value: T, bound: T) -> Result<(), ImageError>
where
    T: PartialOrd + std::fmt::Display,
{
    if value > bound { Err(ImageError::limit(what, name, bound)) } else { Ok(()) }
}

/// How images are pulled.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Bounds on one image.
    pub limits: Limits,
    /// Registries, as `host` or `host:port`, that are asked in plain HTTP. Loopback ones always are.
    pub plain_http: Vec<String>,
    /// Mirrors, TLS and plain HTTP by registry.
    pub registries: Registries,
    /// Files of credentials in the form of Docker's config.json; the first one that exists counts.
    pub auth_files: Vec<PathBuf>,
    /// Compressed layers that are kept beyond the running pulls, in bytes; 0 keeps none.
    pub blob_cache: u64,
    /// Layers of one image that are downloaded at once.
    pub downloads: usize,
    /// Time to open a connection.
    pub connect_timeout: Duration,
    /// Time without a byte after which a request is given up.
    pub idle_timeout: Duration,
    /// Bytes a second below which a body, over each stretch of `idle_timeout`, is given up.
    pub slowest: u64,
    /// Time for one image from the manifest to the finished disk.
    pub pull_timeout: Duration,
    /// Attempts in a row that may fail without moving at least [`Settings::PROGRESS_BYTES`].
    pub attempts: u32,
    /// Pause after the first failed attempt; it doubles with each one, give or take half of it.
    pub backoff: Duration,
    /// The longest pause, also when the registry asks for more (`Retry-After`).
    pub backoff_max: Duration,
}

impl Settings {
    /// A broken download that got this far is not counted as failed.
    pub const PROGRESS_BYTES: u64 = 1 << 20;
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            limits: Limits::default(),
            plain_http: Vec::new(),
            registries: Registries::default(),
            auth_files: Vec::new(),
            blob_cache: 4 << 30,
            downloads: 4,
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(30),
            slowest: 1 << 10,
            pull_timeout: Duration::from_secs(2 * 60 * 60),
            attempts: 5,
            backoff: Duration::from_millis(500),
            backoff_max: Duration::from_secs(30),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_the_most_that_is_let_in() {
        assert!(check("it", "entries", 5, 5).is_ok());
        let error = check("it", "entries", 6, 5).unwrap_err();
        assert_eq!((error.reason, error.transient), ("LimitExceeded", false));
        assert!(error.message.contains("--image-limit entries="), "{error}");
    }

    #[test]
    fn only_much_may_not_come_of_little() {
        let limits = Limits { inflate_ratio: 10, ..Limits::default() };
        let much = Limits::INFLATE_FREE_BYTES + 10;
        let fits = |inflated, compressed| limits.check_ratio("it", inflated, compressed).is_ok();
        assert!(fits(Limits::INFLATE_FREE_BYTES, 0) && fits(much, much) && fits(much, much / 10));
        let error = limits.check_ratio("it", much, much / 10 - 1).unwrap_err();
        assert!(error.reason == "LimitExceeded" && error.message.contains("inflate_ratio"), "{error}");
        let none = Limits { inflate_ratio: 0, ..limits };
        assert!(none.check_ratio("it", much, 1).is_err(), "no division by it");
    }

    #[test]
    fn every_bound_can_be_set() {
        for name in Limits::NAMES {
            let mut limits = Limits::default();
            assert!(limits.set(name, 7), "{name}");
            let text = format!("{limits:?}");
            assert!(text.contains(&format!("{name}: 7")), "{text}");
        }
        let bounds = format!("{:?}", Limits::default()).matches(": ").count();
        assert_eq!(bounds, Limits::NAMES.len(), "each bound has a name");
        assert!(!Limits::default().set("patience", 7));
    }
}
