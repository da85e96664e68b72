//! Numbers about the daemon, as Prometheus reads them.
//!
//! In: whatever [`Report`]s, each looked at when somebody asks. Out: one page of OpenMetrics text.
//! Guaranteed: every label's values are a bounded set (kinds, phases, reasons of the code; never a
//! name, a digest or a message), units are seconds and bytes and stand in the names.

mod counts;
mod guard;
mod histogram;
pub mod process;

pub use counts::Counts;
pub use guard::Guarded;
pub use histogram::{Histogram, HistogramSnapshot};

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, MetricEncoder, NoLabelSet, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::Registry;

use histogram::Shown;

/// The media type of the page.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Labels of one value: names and values.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

/// Something that has numbers.
pub trait Report: Send + Sync + 'static {
    /// Writes them on the page, as they are now.
    ///
    /// # Errors
    /// Those of the page.
    fn report(&self, page: &mut Page<'_>) -> fmt::Result;
}

/// All that reports.
#[derive(Clone, Default)]
pub struct Metrics {
    registry: Arc<Registry>,
}

impl Metrics {
    /// A page of these reports, in this order.
    pub fn new(reports: impl IntoIterator<Item = Box<dyn Report>>) -> Self {
        let mut registry = Registry::default();
        for report in reports {
            registry.register_collector(Box::new(Source(report)));
        }
        Metrics { registry: Arc::new(registry) }
    }

    /// The page, of the type [`CONTENT_TYPE`].
    pub fn text(&self) -> String {
        let mut page = String::new();
        text::encode(&mut page, &self.registry).expect("writing to memory does not fail");
        page
    }
}

struct Source(Box<dyn Report>);

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Source")
    }
}

impl Collector for Source {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.0.report(&mut Page { encoder })
    }
}

/// The page being written.
pub struct Page<'a> {
    encoder: DescriptorEncoder<'a>,
}

impl Page<'_> {
    /// One value that goes up and down.
    ///
    /// # Errors
    /// Those of the page, here and below.
    pub fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        self.gauges(name, help, &[(&[], value)])
    }

    /// Several of one name, told apart by their labels.
    pub fn gauges(&mut self, name: &str, help: &str, values: &[(Labels<'_>, f64)]) -> fmt::Result {
        self.family(name, help, MetricType::Gauge, values, |encoder, value| encode_gauge(encoder, *value))
    }

    /// One value that only grows. `_total` is added to the name.
    pub fn counter(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        self.counters(name, help, &[(&[], value)])
    }

    /// Several of one name, told apart by their labels.
    pub fn counters(&mut self, name: &str, help: &str, values: &[(Labels<'_>, f64)]) -> fmt::Result {
        self.family(name, help, MetricType::Counter, values, |encoder, value| encode_counter(encoder, *value))
    }

    /// How long something brief took, in seconds: buckets from 1 µs to 10 s. The name ends in
    /// `_seconds`.
    pub fn moments(&mut self, name: &str, help: &str, values: &[(Labels<'_>, &Histogram)]) -> fmt::Result {
        let shown = Shown { from: Duration::from_micros(1), to: Duration::from_secs(10) };
        self.family(name, help, MetricType::Histogram, values, |encoder, histogram| {
            encode_histogram(encoder, histogram, shown)
        })
    }

    /// How long something slow took, in seconds: buckets from 1 ms to 1,000 s. The name ends in
    /// `_seconds`.
    pub fn periods(&mut self, name: &str, help: &str, values: &[(Labels<'_>, &Histogram)]) -> fmt::Result {
        let shown = Shown { from: Duration::from_millis(1), to: Duration::from_secs(1000) };
        self.family(name, help, MetricType::Histogram, values, |encoder, histogram| {
            encode_histogram(encoder, histogram, shown)
        })
    }

    /// What was counted under these labels.
    pub fn counts<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        labels: [&str; N],
        counts: &Counts<N>,
    ) -> fmt::Result {
        let counted = counts.all();
        if N == 0 && counted.is_empty() {
            return self.counter(name, help, 0.0);
        }
        let counted: Vec<(Vec<(&str, &str)>, f64)> = counted
            .iter()
            .map(|(values, count)| {
                let values = values.iter().map(String::as_str);
                (labels.iter().copied().zip(values).collect(), *count as f64)
            })
            .collect();
        let counted: Vec<_> = counted.iter().map(|(labels, count)| (&labels[..], *count)).collect();
        self.counters(name, help, &counted)
    }

    fn family<T>(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        values: &[(Labels<'_>, T)],
        encode: impl Fn(MetricEncoder<'_>, &T) -> fmt::Result,
    ) -> fmt::Result {
        let mut encoder = self.encoder.encode_descriptor(name, help, None, kind)?;
        match values {
            // Without empty braces.
            [([], value)] => encode(encoder, value),
            values => {
                values.iter().try_for_each(|(labels, value)| encode(encoder.encode_family(labels)?, value))
            }
        }
    }
}

fn encode_gauge(mut encoder: MetricEncoder<'_>, value: impl EncodeGaugeValue) -> fmt::Result {
    encoder.encode_gauge(&value)
}

fn encode_counter(mut encoder: MetricEncoder<'_>, value: impl EncodeCounterValue) -> fmt::Result {
    encoder.encode_counter(&value, None::<&Exemplar<NoLabelSet, f64>>)
}

fn encode_histogram(mut encoder: MetricEncoder<'_>, histogram: &Histogram, shown: Shown) -> fmt::Result {
    let (sum, buckets) = histogram.export(shown);
    let count = buckets.iter().map(|(_, count)| count).sum();
    encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Two(Histogram);

    impl Report for Two {
        fn report(&self, page: &mut Page<'_>) -> fmt::Result {
            page.counters("vmlet_pulls", "Pulls", &[(&[("outcome", "done")], 3.0)])?;
            page.periods("vmlet_phase_seconds", "Time", &[(&[("phase", "boot")], &self.0)])
        }
    }

    #[test]
    fn a_page_is_openmetrics_text() {
        let histogram = Histogram::default();
        histogram.record(Duration::from_millis(1500));
        let page = Metrics::new([Box::new(Two(histogram)) as Box<dyn Report>]).text();
        for line in [
            "# TYPE vmlet_pulls counter",
            "vmlet_pulls_total{outcome=\"done\"} 3.0",
            "vmlet_phase_seconds_sum{phase=\"boot\"} 1.5",
            "vmlet_phase_seconds_bucket{le=\"1.0\",phase=\"boot\"} 0",
            "vmlet_phase_seconds_bucket{le=\"2.0\",phase=\"boot\"} 1",
            "vmlet_phase_seconds_bucket{le=\"+Inf\",phase=\"boot\"} 1",
            "# EOF",
        ] {
            assert!(page.lines().any(|other| other == line), "{line} is not in:\n{page}");
        }
    }
}
