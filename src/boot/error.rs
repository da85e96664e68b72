//! Why there is nothing to boot.

use std::io;
use std::path::PathBuf;

/// Why a kernel cannot be made ready.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// No kernel in the usual place.
    #[error("no kernel with modules found ({boot}/vmlinuz-RELEASE and {modules}/RELEASE)")]
    NoKernel {
        /// Where kernels were looked for.
        boot: PathBuf,
        /// Where modules were looked for.
        modules: PathBuf,
    },
    /// The kernel lacks a driver.
    #[error(
        "{modules} has no module {name}, and it is not built in either; guests cannot boot with this kernel"
    )]
    NoModule {
        /// The module.
        name: String,
        /// Where it should be.
        modules: PathBuf,
    },
    /// A kernel without modules lacks a driver.
    #[error(
        "{kernel} has no {name} built in, and its modules are not in /lib/modules; say where they are in \
         `modules`, or use another kernel"
    )]
    NotBuiltIn {
        /// The driver.
        name: &'static str,
        /// The kernel.
        kernel: PathBuf,
    },
    /// A file that is no kernel, or one that cannot be started.
    #[error("{path} is no kernel that can be booted: {why}")]
    NotBootable {
        /// The kernel.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// A module that cannot be unpacked.
    #[error("{path} cannot be unpacked: {why}")]
    Packed {
        /// The module.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// A disk that cannot be read.
    #[error("{path} cannot be read as an ext4 file system: {why}")]
    Disk {
        /// The disk.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// A file that is not what it should be.
    #[error("{path}: {problem}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A file over its limit.
    #[error("{path} is longer than {limit} bytes, which is the limit")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// In bytes.
        limit: u64,
    },
    /// A file that cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl BootError {
    pub(super) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> BootError {
        let path = path.into();
        |source| BootError::Io { path, source }
    }
}

/// Why an image's kernel cannot be made ready, for its condition.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct KernelError {
    /// One CamelCase word.
    pub reason: &'static str,
    /// What is wrong and what to do about it.
    pub message: String,
    /// Whether trying again without any change of the spec can help.
    pub transient: bool,
}

impl KernelError {
    /// `place`: where the error's paths are, if not on the host.
    pub(super) fn new(error: &BootError, place: Option<&str>) -> Self {
        let (reason, hint) = match error {
            BootError::NoKernel { .. } => {
                ("KernelNotFound", "; install one there, or choose another in spec.kernel")
            }
            BootError::NoModule { .. } | BootError::NotBuiltIn { .. } => ("KernelLacksDriver", ""),
            BootError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                ("KernelNotFound", "")
            }
            BootError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => ("NoSpace", ""),
            BootError::Io { .. } => ("KernelUnreadable", ""),
            _ => ("InvalidKernel", ""),
        };
        // What the host refuses today it may grant tomorrow; what a disk holds stays as it is.
        let transient = matches!(error, BootError::Io { source, .. } if source.raw_os_error().is_some());
        let place = place.map(|place| format!("{place}: ")).unwrap_or_default();
        KernelError { reason, message: format!("{place}{error}{hint}"), transient }
    }

    pub(super) fn internal(why: impl std::fmt::Display) -> Self {
        let message = format!("making the kernel failed unexpectedly: {why}; please report this");
        KernelError { reason: "InternalError", message, transient: true }
    }
}
