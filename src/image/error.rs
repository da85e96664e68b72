//! The kinds of [`ImageError`], and how they travel through `std::io`.

use std::fmt::Display;
use std::io;
use std::path::Path;

use super::{ImageError, ReferenceError, Source};

/// Readers and writers of the layer pipeline speak `io::Error`; this carries an [`ImageError`] in one.
impl From<ImageError> for io::Error {
    fn from(error: ImageError) -> io::Error {
        io::Error::other(error)
    }
}

impl From<ReferenceError> for ImageError {
    fn from(error: ReferenceError) -> Self {
        ImageError { reason: "InvalidReference", message: error.to_string(), transient: false }
    }
}

impl ImageError {
    /// The reason of an error for want of room on the host.
    pub const NO_SPACE: &str = "NoSpace";

    /// The registry does not have it. A later push can change that.
    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        ImageError { reason: "NotFound", message: message.into(), transient: true }
    }

    /// It is not on this host, and no registry may be asked. Others may bring it.
    pub(crate) fn not_present(source: &Source) -> Self {
        let message = format!(
            "the base disk of {source} is not on this host, and pullPolicy is Never; let an Image or VM of this reference pull it, or change the policy"
        );
        ImageError { reason: "NotPresent", message, transient: true }
    }

    /// The registry refuses us. It may be told otherwise.
    pub(crate) fn unauthorized(message: impl Into<String>) -> Self {
        ImageError { reason: "Unauthorized", message: message.into(), transient: true }
    }

    /// The registry cannot be reached, or fails.
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        ImageError { reason: "RegistryUnavailable", message: message.into(), transient: true }
    }

    /// What arrived is not what its digest promised: it broke on the way, or the registry lies.
    pub(crate) fn digest(message: impl Into<String>) -> Self {
        ImageError { reason: "DigestMismatch", message: message.into(), transient: true }
    }

    /// A layer on this host's disk is not what it was, and is removed: the next attempt fetches it anew.
    pub(crate) fn damaged(message: impl Into<String>) -> Self {
        ImageError { reason: ImageError::DAMAGED, message: message.into(), transient: true }
    }

    /// The reason of [`ImageError::damaged`].
    pub(crate) const DAMAGED: &str = "DamagedLayer";

    /// The image is malformed, or not one that can run here.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        ImageError { reason: "InvalidImage", message: message.into(), transient: false }
    }

    /// The image is over one of the [`Limits`](super::Limits).
    pub(crate) fn limit(what: &str, name: &str, bound: impl Display) -> Self {
        ImageError {
            reason: "LimitExceeded",
            message: format!(
                "{what} exceeds the limit of {bound}; if you trust the image, start the daemon with a higher one: `--image-limit {name}=…`"
            ),
            transient: false,
        }
    }

    /// The pull was dropped, or one of its parts failed and takes the others along.
    pub(crate) fn cancelled() -> Self {
        ImageError { reason: "Cancelled", message: "the pull was cancelled".to_owned(), transient: true }
    }

    /// A file that the spec names cannot be read.
    pub(crate) fn file(path: &Path, error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => ImageError::not_found(format!("{} does not exist", path.display())),
            _ => ImageError::host(path.display(), error),
        }
    }

    /// There is no room, or will not be.
    pub(crate) fn no_space(message: impl Display) -> Self {
        let message = format!("{message}; free space in the state directory");
        ImageError { reason: Self::NO_SPACE, message, transient: true }
    }

    /// The host failed at `what`.
    pub(crate) fn host(what: impl Display, error: &io::Error) -> Self {
        if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            return ImageError::no_space(format!("{what}: {error}"));
        }
        ImageError { reason: "HostError", message: format!("{what}: {error}"), transient: true }
    }

    /// An error that came out of a reader: one of ours, one of the operating system, or a decoder
    /// that does not like its input.
    pub(crate) fn from_read(what: impl Display, error: io::Error) -> Self {
        match error.downcast::<ImageError>() {
            Ok(ours) => ours,
            Err(error) if error.raw_os_error().is_some() => ImageError::host(what, &error),
            Err(error) => ImageError::invalid(format!("{what}: {error}")),
        }
    }

    /// The same error, with what may have led to it.
    pub(crate) fn because(mut self, why: Option<&str>) -> Self {
        if let Some(why) = why {
            self.message = format!("{} ({why})", self.message);
        }
        self
    }

    /// The same error, saying where it happened.
    pub(crate) fn at(mut self, place: impl Display) -> Self {
        self.message = format!("{place}: {}", self.message);
        self
    }
}

/// A name from an image or a registry as one short printable line.
pub(crate) fn printable(text: &[u8]) -> String {
    const SHOWN: usize = 200;
    let shown = String::from_utf8_lossy(&text[..text.len().min(SHOWN)]).escape_debug().to_string();
    if text.len() > SHOWN { format!("{shown}…") } else { shown }
}
