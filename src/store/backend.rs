//! What the durable log behind the state has to do.

/// One row to write, or to remove.
pub(super) type EncodedRow = (Vec<u8>, Option<Vec<u8>>);

/// Keeps rows. Used by one flusher at a time; any error is final: the store stops taking changes,
/// because nobody knows what reached the disk.
pub(super) trait Backend: Send + 'static {
    /// Writes a batch, atomically: after a crash all of it is there or nothing. Not durable yet.
    fn apply(&mut self, batch: Vec<EncodedRow>) -> Result<(), BackendError>;

    /// Makes everything applied durable. False if that is still to come; only a backend for tests
    /// says so.
    fn flush(&mut self) -> Result<bool, BackendError>;
}

/// Why a write failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct BackendError(pub(super) String);
