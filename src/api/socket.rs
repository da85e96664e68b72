//! The unix socket that the API is served on.

use std::fs::Permissions;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

/// Who may connect: the owner and the group.
const MODE: u32 = 0o660;

/// Why the socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// A live daemon answers on it.
    #[error("a daemon already answers on {0}; stop it first, or use another --socket")]
    InUse(PathBuf),
    /// There is something else of that name.
    #[error("{0} exists and is not a socket; remove it, or use another --socket")]
    NotASocket(PathBuf),
    /// The file system refuses.
    #[error("cannot listen on {path}: {source}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// Listens on a socket that owner and group may use. A stale one, on which nobody answers, is
/// replaced. The folder is made if it is missing.
///
/// # Errors
/// When a daemon answers there already, or the socket cannot be made.
pub async fn bind(path: &Path) -> Result<UnixListener, BindError> {
    let failed = |source| BindError::Io { path: path.to_owned(), source };
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(failed)?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(BindError::NotASocket(path.to_owned()));
        }
        Ok(_) => match UnixStream::connect(path).await {
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => {}
            Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(failed(error)),
            // WouldBlock: somebody listens, with a full backlog.
            Ok(_) | Err(_) => return Err(BindError::InUse(path.to_owned())),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    // Made under another name, so that nobody connects before the mode is right, and renamed over
    // the stale one.
    let staged = path.with_extension(format!("{}.new", std::process::id()));
    let _ = std::fs::remove_file(&staged);
    let listener = UnixListener::bind(&staged).map_err(failed)?;
    std::fs::set_permissions(&staged, Permissions::from_mode(MODE))
        .and_then(|()| std::fs::rename(&staged, path))
        .map_err(failed)?;
    Ok(listener)
}
