//! Takes spans down.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::{Outcome, Phase, Span, Subject, Timeline};
use crate::metrics::{Guarded, Histogram, Page, Report};
use crate::reconcile::Clock;

/// Ended spans that are remembered: the starts of about a thousand VMs, in about 3 MB. Open spans come
/// on top: at most one for each object and each pull.
const REMEMBERED: usize = 8192;
/// Characters of a detail; messages may carry what a registry or a guest said.
const MAX_DETAIL: usize = 240;

/// A handle on the one recorder of an engine: cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    shared: Arc<Shared>,
}

struct Shared {
    clock: Clock,
    /// Guards the lists: a push, a move, or a copy of them.
    spans: Guarded<Spans>,
    /// How long phases took that were done, by phase.
    took: [Histogram; Phase::ALL.len()],
}

#[derive(Default)]
struct Spans {
    next: u64,
    open: BTreeMap<u64, Span>,
    ended: VecDeque<Span>,
    forgotten: u64,
}

/// A phase that goes on. Dropping it ends it as cancelled.
#[must_use = "dropping it ends the phase"]
pub struct OpenSpan {
    recorder: Recorder,
    id: u64,
    phase: Phase,
    /// On the clock that nobody sets.
    began: Instant,
    ended: bool,
}

impl Recorder {
    /// A recorder that has seen nothing, and this clock.
    pub fn new(clock: Clock) -> Self {
        let took = std::array::from_fn(|_| Histogram::default());
        Recorder { shared: Arc::new(Shared { clock, spans: Guarded::default(), took }) }
    }

    /// A phase begins.
    pub fn open(&self, subject: Subject, phase: Phase, detail: &str, awaits: Option<String>) -> OpenSpan {
        let start = self.shared.clock.now();
        let detail = bounded(detail);
        let span = Span { subject, phase, start, end: None, outcome: None, detail, awaits };
        let id = self.shared.spans.with(|spans| {
            spans.next += 1;
            spans.open.insert(spans.next, span);
            spans.next
        });
        OpenSpan { recorder: self.clone(), id, phase, began: Instant::now(), ended: false }
    }

    /// Everything that is remembered.
    pub fn timeline(&self) -> Timeline {
        let now = self.shared.clock.now();
        let (mut spans, forgotten) = self.shared.spans.with(|spans| {
            let all: Vec<Span> = spans.ended.iter().chain(spans.open.values()).cloned().collect();
            (all, spans.forgotten)
        });
        // Stable: what began at once stays in the order in which it was recorded.
        spans.sort_by_key(|span| span.start);
        Timeline { now, forgotten, spans }
    }

    fn close(&self, id: u64, end: Timestamp, outcome: Outcome, detail: Option<&str>) {
        let detail = detail.map(bounded);
        self.shared.spans.with(|spans| {
            let Some(mut span) = spans.open.remove(&id) else { return };
            (span.end, span.outcome) = (Some(end), Some(outcome));
            if let Some(detail) = detail {
                span.detail = detail;
            }
            if spans.ended.len() == REMEMBERED {
                spans.ended.pop_front();
                spans.forgotten += 1;
            }
            spans.ended.push_back(span);
        });
    }
}

impl OpenSpan {
    /// The phase.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The phase is over. Returns how long it took.
    pub fn end(self, outcome: Outcome) -> Duration {
        self.finish(outcome, None)
    }

    /// The phase has failed, and why.
    pub fn fail(self, why: &str) -> Duration {
        self.finish(Outcome::Failed, Some(why))
    }

    fn finish(mut self, outcome: Outcome, detail: Option<&str>) -> Duration {
        let shared = &self.recorder.shared;
        let end = shared.clock.now();
        let took = self.began.elapsed();
        if outcome == Outcome::Done {
            shared.took[self.phase as usize].record(took);
        }
        self.recorder.close(self.id, end, outcome, detail);
        self.ended = true;
        took
    }
}

impl Drop for OpenSpan {
    fn drop(&mut self) {
        if !self.ended {
            let end = self.recorder.shared.clock.now();
            self.recorder.close(self.id, end, Outcome::Cancelled, None);
        }
    }
}

impl Report for Recorder {
    fn report(&self, page: &mut Page<'_>) -> fmt::Result {
        let shared = &self.shared;
        let mut open = [0.0; Phase::ALL.len()];
        shared.spans.with(|spans| {
            for span in spans.open.values() {
                open[span.phase as usize] += 1.0;
            }
        });
        let labels = Phase::ALL.map(|phase| [("phase", phase.label())]);
        let now: Vec<_> = labels.iter().zip(open).map(|(label, open)| (&label[..], open)).collect();
        page.gauges("vmlet_phase_subjects", "Objects and pulls that are in a phase now", &now)?;
        let took = Phase::ALL.into_iter().filter(|phase| !phase.lasts());
        let took: Vec<_> =
            took.map(|phase| (&labels[phase as usize][..], &shared.took[phase as usize])).collect();
        page.periods("vmlet_phase_seconds", "How long phases took that were done", &took)?;
        Ok(())
    }
}

impl Recorder {
    /// How long the recorder's guard was held.
    pub(crate) fn guard_times(&self) -> &Histogram {
        self.shared.spans.held()
    }
}

fn bounded(text: &str) -> String {
    match text.char_indices().nth(MAX_DETAIL) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
