//! Blobs on disk.
