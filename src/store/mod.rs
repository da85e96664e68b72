//! The store: every record, every lease, every transaction. sled lives here and nowhere else.

mod record;

pub use record::{
    DiskRecord, DiskState, Event, ImageRecord, Origin, PinnedImage, Problem, Record, Reservation, Run,
    Severity, Stopping, VmRecord,
};
