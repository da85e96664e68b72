//! The kinds of [`ImageError`], and how they travel through `std::io`.

use std::fmt::Display;
use std::io;
use std::path::Path;

use super::{ImageError, ReferenceError};

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
    /// The registry does not have it. A later push can change that.
    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        ImageError { reason: "NotFound", message: message.into(), transient: true }
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

    /// The host failed at `what`.
    pub(crate) fn host(what: impl Display, error: &io::Error) -> Self {
        if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            let message = format!("{what}: {error}; free space in the state directory");
            return ImageError { reason: "NoSpace", message, transient: true };
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
