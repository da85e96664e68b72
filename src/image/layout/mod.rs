//! Images in a folder or tar of the host: OCI image layouts (image-spec, image-layout.md) and what
//! `docker save` and `podman save` write (`manifest.json`), which newer ones do in one file.
//!
//! A path flows in; a digest, a config and layers flow out, of which every byte is checked against the
//! digests that lead to it, as those of a registry are. The folder or tar is read where it is.
//!
//! The digest of an image is its manifest's. A docker archive has no manifest with a digest: there it is the
//! config's, the "image ID", which covers the layers by their diff_ids.

mod blobs;
mod docker;
mod index;

use std::io::Read;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use self::index::Choice;
use super::local::Job;
use super::manifest::{Config, Descriptor, Document, MAX_INDEXES, Manifest};
use super::{Digest, ImageError};

pub(crate) use blobs::{Blobs, Member, Section, copy, drain, members, plain};

/// An image that was found, its layers not yet read.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) digest: Digest,
    pub(crate) config: Config,
    /// Bottom to top, one per diff_id.
    pub(crate) layers: Vec<Blob>,
}

/// A layer.
#[derive(Debug)]
pub(crate) struct Blob {
    pub(crate) section: Section,
    pub(crate) descriptor: Descriptor,
    /// Whether the bytes are to have the descriptor's digest. Otherwise only what they inflate to is known.
    pub(crate) verified: bool,
}

impl Layout {
    /// Finds the image called `reference`, or else the only one. If it is to be the one of digest `pinned`, it
    /// is that one, whatever its name is by now.
    pub(crate) fn open(
        path: &Path,
        reference: Option<&str>,
        pinned: Option<&Digest>,
        job: &Job,
    ) -> Result<Layout, ImageError> {
        let finder = Finder { blobs: Blobs::open(path, job)?, job };
        let found = finder.find(reference);
        let Some(pinned) = pinned else { return found };
        match found {
            Ok(found) if found.digest == *pinned => Ok(found),
            // The name may mean another image by now.
            found => match finder.blob(pinned)? {
                Some(_) => finder.image(pinned.clone()),
                None => Err(ImageError::not_found(format!(
                    "{pinned} is not there any more, only {}; to use that one, edit the image or declare it anew",
                    found?.digest
                ))),
            },
        }
    }
}

/// Looks for an image.
struct Finder<'a> {
    blobs: Blobs,
    job: &'a Job,
}

impl Finder<'_> {
    fn find(&self, reference: Option<&str>) -> Result<Layout, ImageError> {
        let bound = self.job.limits().manifest_bytes;
        let document = |name: &str| -> Result<Option<Vec<u8>>, ImageError> {
            let section = self.blobs.get(name)?;
            section.map(|section| section.bytes(name, "manifest_bytes", bound)).transpose()
        };
        let missing = match document("index.json")? {
            Some(index) => match index::choose(&index, reference)? {
                Choice::Found(digest) => return self.image(digest),
                Choice::Missing(names) => names,
            },
            None => Vec::new(),
        };
        let Some(manifest) = document("manifest.json")? else {
            return Err(match reference.filter(|_| !missing.is_empty()) {
                Some(reference) => index::not_there(reference, &missing),
                None => ImageError::invalid(
                    "it is neither an OCI image layout (no index.json) nor a docker archive (no manifest.json)",
                ),
            });
        };
        docker::find(self, &manifest, reference)
    }

    /// The image of a manifest's digest, or of an index'.
    fn image(&self, mut digest: Digest) -> Result<Layout, ImageError> {
        let limits = self.job.limits();
        for _ in 0..=MAX_INDEXES {
            let manifest =
                self.small(&digest, None, "the manifest", "manifest_bytes", limits.manifest_bytes)?;
            match Document::parse(&manifest, limits)? {
                Document::Index(inner) => digest = inner.digest,
                Document::Image(manifest) => return self.layout(digest, manifest),
            }
        }
        Err(ImageError::invalid(format!("more than {MAX_INDEXES} indexes lie within each other")))
    }

    fn layout(&self, digest: Digest, manifest: Manifest) -> Result<Layout, ImageError> {
        let Manifest { config, layers } = manifest;
        let bound = self.job.limits().config_bytes;
        let config =
            self.small(&config.digest, Some(config.size), "the image's config", "config_bytes", bound)?;
        let config = Config::parse(&config, layers.len())?;
        let layers = layers.into_iter().map(|descriptor| {
            let section = self.sized(&descriptor.digest, Some(descriptor.size))?;
            Ok(Blob { section, descriptor, verified: true })
        });
        Ok(Layout { digest, config, layers: layers.collect::<Result<_, ImageError>>()? })
    }

    fn blob(&self, digest: &Digest) -> Result<Option<Section>, ImageError> {
        self.blobs.get(&format!("blobs/sha256/{}", digest.hex()))
    }

    /// A blob that must be there, with the size that was promised.
    fn sized(&self, digest: &Digest, size: Option<u64>) -> Result<Section, ImageError> {
        let Some(section) = self.blob(digest)? else {
            return Err(ImageError::not_found(format!("blob {digest} is missing")));
        };
        match size {
            Some(size) if size != section.size => Err(ImageError::invalid(format!(
                "blob {digest} is of {} bytes, and {size} were promised",
                section.size
            ))),
            _ => Ok(section),
        }
    }

    /// A blob that fits into memory.
    fn small(
        &self,
        digest: &Digest,
        size: Option<u64>,
        what: &str,
        limit: &str,
        bound: u64,
    ) -> Result<Vec<u8>, ImageError> {
        let bytes = self.sized(digest, size)?.bytes(what, limit, bound)?;
        expect(digest, &Digest::sha256(Sha256::digest(&bytes).into()))?;
        Ok(bytes)
    }
}

impl Blob {
    /// Reads all and checks the digest; `read` is told of each piece.
    pub(crate) fn verify(&self, job: &Job, read: impl Fn(u64)) -> Result<(), ImageError> {
        if !self.verified {
            read(self.section.size);
            return Ok(());
        }
        let (mut reader, mut hash, mut buffer) = (self.section.reader(), Sha256::new(), vec![0; 256 << 10]);
        loop {
            job.go_on()?;
            match reader.read(&mut buffer).map_err(|error| ImageError::host("reading a layer", &error))? {
                0 => return expect(&self.descriptor.digest, &Digest::sha256(hash.finalize().into())),
                count => {
                    hash.update(&buffer[..count]);
                    read(count as u64);
                }
            }
        }
    }
}

fn expect(digest: &Digest, actual: &Digest) -> Result<(), ImageError> {
    if digest == actual {
        return Ok(());
    }
    Err(ImageError::digest(format!("blob {digest} is damaged: its content has digest {actual}")))
}
