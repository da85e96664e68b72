//! The store's numbers.

use std::fmt;

use super::Store;
use crate::metrics::{Histogram, Page, Report};

impl Store {
    /// How long the store's one guard was held, each time.
    pub(crate) fn guard_times(&self) -> &Histogram {
        self.engine().guard_times()
    }
}

impl Report for Store {
    fn report(&self, page: &mut Page<'_>) -> fmt::Result {
        let engine = self.engine();
        let (objects, disks, events) =
            engine.read(|state| (state.objects.len(), state.disks.len(), state.events.count()));
        let rows: Vec<_> = [("object", objects), ("disk", disks), ("event", events)]
            .map(|(table, rows)| ([("table", table)], rows as f64))
            .into();
        let rows: Vec<_> = rows.iter().map(|(label, rows)| (&label[..], *rows)).collect();
        page.gauges("vmlet_store_rows", "Rows of the store", &rows)?;
        let help = "Batches of changes that were made durable, each by one flush";
        page.counter("vmlet_store_batches", help, engine.batches() as f64)?;
        let help = "How long batches took to be encoded, written and made durable";
        page.moments("vmlet_store_flush_seconds", help, &[(&[], &engine.flush_times)])?;
        let failed = f64::from(u8::from(engine.failed().is_some()));
        page.gauge("vmlet_store_failed", "1 once a write failed: nothing is changed any more", failed)
    }
}
