//! From spans to rows of bars on a time axis. Pure; what text and SVG have in common.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::{Outcome, Phase, Span, Subject, Timeline};
use crate::object::{Kind, ObjectKey};

/// How much empty time is shown behind the last thing that happened, as a part of the whole.
const MARGIN: i64 = 20;
/// A wait that is a smaller part of the whole than this is not shown.
const LEAST_WAIT: i64 = 500;

/// A picture of a timeline, in microseconds from its start.
#[derive(Clone, Debug, PartialEq)]
pub struct Chart {
    /// When the picture begins.
    pub start: Timestamp,
    /// Its length: until the last thing that happened, and some space.
    pub length: i64,
    /// When the last thing happened.
    last: i64,
    /// Pulls, then images, then VMs.
    pub rows: Vec<Row>,
    /// How many spans were forgotten before they could be drawn.
    pub forgotten: u64,
}

/// One subject's bars.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// What kind of subject it is.
    pub group: Group,
    /// Its name.
    pub label: String,
    /// More of it: the digest and who waits for it.
    pub title: String,
    /// In the order of their start.
    pub bars: Vec<Bar>,
    /// The sum of it, in a few words.
    pub note: String,
}

/// Kinds of subjects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// Pulls of digests.
    Pulls,
    /// Image objects.
    Images,
    /// VMs.
    Vms,
}

/// One phase of a row.
#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    /// The phase.
    pub phase: Phase,
    /// From here.
    pub from: i64,
    /// To here, or to the end of the picture.
    pub to: i64,
    /// How it ended; none if it goes on.
    pub outcome: Option<Outcome>,
    /// What is said of it.
    pub detail: String,
}

impl Chart {
    /// Draws a timeline; nothing if there is nothing to draw.
    pub fn new(timeline: &Timeline) -> Option<Chart> {
        let start = timeline.spans.iter().map(|span| span.start).min()?;
        let at = |time: Timestamp| time.duration_since(start).as_micros().try_into().unwrap_or(i64::MAX);
        let last = timeline.spans.iter().map(|span| at(last_news(span, timeline.now))).max().unwrap_or(0);
        let length: i64 = (last + last / MARGIN).max(1000);
        let mut rows: BTreeMap<(Group, &Subject), Vec<&Span>> = BTreeMap::new();
        for span in &timeline.spans {
            rows.entry((Group::of(&span.subject), &span.subject)).or_default().push(span);
        }
        let mut rows: Vec<(Row, i64)> = rows
            .into_iter()
            .map(|((group, subject), spans)| {
                let bar = |span: &&Span| Bar {
                    phase: span.phase,
                    from: at(span.start),
                    to: span.end.map_or(length, at).min(length),
                    outcome: span.outcome,
                    detail: span.detail.clone(),
                };
                let mut bars: Vec<Bar> = spans.iter().map(bar).collect();
                // A wait that was none only hides what followed.
                bars.retain(|bar| !bar.phase.waits() || bar.to - bar.from >= length / LEAST_WAIT);
                let first = bars.first().map_or(0, |bar| bar.from);
                let waiting = waiting(subject, &timeline.spans);
                let (label, title) = names(subject, &waiting);
                (Row { group, label, title, note: note(group, &bars, waiting.len()), bars }, first)
            })
            .collect();
        // Pulls in the order in which they began, objects by name.
        rows.sort_by_key(|(row, first)| (row.group, if row.group == Group::Pulls { *first } else { 0 }));
        let rows = rows.into_iter().map(|(row, _)| row).collect();
        Some(Chart { start, length, last, rows, forgotten: timeline.forgotten })
    }

    /// Where the time axis has its marks: at round times, few enough to be read.
    pub(super) fn marks(&self, most: i64) -> impl Iterator<Item = i64> + use<> {
        let tick = usize::try_from(tick(self.length, most.max(1))).unwrap_or(usize::MAX);
        (0..=self.length).step_by(tick)
    }

    /// The phases that occur, in the order of a life.
    pub fn phases(&self) -> Vec<Phase> {
        let seen: BTreeSet<Phase> = self.bars().map(|bar| bar.phase).collect();
        seen.into_iter().collect()
    }

    /// How many bars of a phase there are from an instant on.
    pub fn steps(&self, phase: Phase) -> Vec<(i64, usize)> {
        let edge = |bar: &Bar| [(bar.from, 1), (bar.to.max(bar.from + 1), -1)];
        let mut edges: Vec<(i64, i8)> = self.bars().filter(|bar| bar.phase == phase).flat_map(edge).collect();
        // Where one ends and another begins, there are not two: ends come first.
        edges.sort_unstable();
        let mut now = 0_usize;
        let count = |(at, edge): (i64, i8)| {
            now = now.saturating_add_signed(edge.into());
            (at, now)
        };
        edges.into_iter().map(count).collect()
    }

    /// The most bars of a phase at one time.
    pub fn most_at_once(&self, phase: Phase) -> usize {
        self.steps(phase).into_iter().map(|(_, count)| count).max().unwrap_or(0)
    }

    /// The length of a phase's longest bar; none for what lasts.
    pub fn longest(&self, phase: Phase) -> Option<i64> {
        let bars = self.bars().filter(|bar| bar.phase == phase && !phase.lasts());
        bars.map(|bar| bar.to - bar.from).max()
    }

    /// What is drawn, in a sentence.
    pub fn summary(&self) -> String {
        let count = |group| self.rows.iter().filter(|row| row.group == group).count();
        let shown = [(Group::Pulls, "pull"), (Group::Images, "image"), (Group::Vms, "VM")]
            .map(|(group, word)| (count(group), word));
        let shown: Vec<String> = shown
            .into_iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, word)| format!("{count} {word}{}", if count == 1 { "" } else { "s" }))
            .collect();
        let mut text = format!("{} in {}", shown.join(", "), seconds(self.last));
        let most = [(Phase::Pull, "pulling"), (Phase::Boot, "booting")]
            .map(|(phase, word)| (self.most_at_once(phase), word));
        let most: Vec<String> = most
            .into_iter()
            .filter(|(most, _)| *most > 0)
            .map(|(most, word)| format!("{most} {word}"))
            .collect();
        if !most.is_empty() {
            text.push_str(&format!("; at once up to {}", most.join(", ")));
        }
        text
    }

    fn bars(&self) -> impl Iterator<Item = &Bar> {
        self.rows.iter().flat_map(|row| &row.bars)
    }
}

impl Timeline {
    /// Only these subjects, with the pulls that they waited for.
    #[must_use]
    pub fn of(mut self, wanted: impl Fn(&ObjectKey) -> bool) -> Timeline {
        let of = |span: &Span| matches!(&span.subject, Subject::Object(key) if wanted(key));
        let awaited: BTreeSet<String> =
            self.spans.iter().filter(|span| of(span)).filter_map(|span| span.awaits.clone()).collect();
        self.spans.retain(|span| match &span.subject {
            Subject::Object(_) => of(span),
            Subject::Pull { digest, .. } => awaited.contains(digest),
        });
        self
    }

    /// Whether anything of the object is remembered.
    pub fn mentions(&self, key: &ObjectKey) -> bool {
        self.spans.iter().any(|span| matches!(&span.subject, Subject::Object(other) if other == key))
    }

    /// Only what went on at this time or later.
    #[must_use]
    pub fn since(mut self, time: Timestamp) -> Timeline {
        self.spans.retain(|span| span.end.is_none_or(|end| end >= time));
        for span in &mut self.spans {
            span.start = span.start.max(time);
        }
        self
    }
}

impl Group {
    fn of(subject: &Subject) -> Group {
        match subject {
            Subject::Pull { .. } => Group::Pulls,
            Subject::Object(ObjectKey { kind: Kind::Image, .. }) => Group::Images,
            Subject::Object(ObjectKey { kind: Kind::Vm, .. }) => Group::Vms,
        }
    }
}

/// When something last happened in a span: a VM that goes on being ready is no news.
fn last_news(span: &Span, now: Timestamp) -> Timestamp {
    match span.end {
        Some(end) => end,
        None if span.phase.lasts() => span.start,
        None => now,
    }
}

/// Who waits for a pull.
fn waiting(subject: &Subject, spans: &[Span]) -> BTreeSet<String> {
    let Subject::Pull { digest, .. } = subject else { return BTreeSet::new() };
    let waits = spans.iter().filter(|span| span.awaits.as_ref() == Some(digest));
    let objects = waits.filter_map(|span| match &span.subject {
        Subject::Object(key) => Some(key.to_string()),
        Subject::Pull { .. } => None,
    });
    objects.collect()
}

fn names(subject: &Subject, waiting: &BTreeSet<String>) -> (String, String) {
    match subject {
        Subject::Object(key) => (key.to_string(), key.to_string()),
        Subject::Pull { reference, digest } => {
            let waiting: Vec<&str> = waiting.iter().map(String::as_str).collect();
            let whose = if waiting.is_empty() { "nobody".to_owned() } else { waiting.join(", ") };
            // The registry is the same for most.
            let short = reference.split_once('/').map_or(reference.as_str(), |(_, path)| path);
            (format!("pull {short}"), format!("{reference}, {digest}, for {whose}"))
        }
    }
}

/// How long it took to get there, from the last time that it set out.
fn note(group: Group, bars: &[Bar], waiting: usize) -> String {
    let Some(last) = bars.last() else { return String::new() };
    if last.outcome == Some(Outcome::Failed) || last.phase == Phase::Backoff {
        return "failed".to_owned();
    }
    let goal = if group == Group::Pulls { Phase::Install } else { Phase::Ready };
    let Some(reached) = bars.iter().rposition(|bar| bar.phase == goal) else { return String::new() };
    let before = &bars[..reached];
    let set_out = before.iter().rposition(|bar| bar.phase == goal || bar.phase == Phase::Stop);
    let way = &before[set_out.map_or(0, |index| index + 1)..];
    let goal = &bars[reached];
    match (group, way.first()) {
        (Group::Pulls, first) => {
            let took = seconds(goal.to - first.map_or(goal.from, |bar| bar.from));
            if waiting > 1 { format!("{took}, for {waiting}") } else { took }
        }
        (_, Some(first)) => format!("ready in {}", seconds(goal.from - first.from)),
        (_, None) => "ready".to_owned(),
    }
}

/// A length of time for people: `640 µs`, `83 ms`, `4.25 s`, `2m05s`.
pub(super) fn seconds(micros: i64) -> String {
    match micros {
        ..1000 => format!("{micros} µs"),
        1000..1_000_000 => format!("{} ms", micros / 1000),
        1_000_000..100_000_000 => {
            let hundredths = micros / 10_000;
            format!("{}.{:02} s", hundredths / 100, hundredths % 100)
        }
        _ => {
            let all = micros / 1_000_000;
            match (all / 3600, all / 60 % 60, all % 60) {
                (0, minutes, seconds) => format!("{minutes}m{seconds:02}s"),
                (hours, minutes, _) => format!("{hours}h{minutes:02}m"),
            }
        }
    }
}

/// A mark of the axis: `0`, `500ms`, `2s`, `2.5s`, `3m`, `1h30m`.
pub(super) fn mark(micros: i64) -> String {
    let millis = micros / 1000;
    match millis {
        0 if micros > 0 => format!("{micros}µs"),
        0 => "0".to_owned(),
        1..1000 => format!("{millis}ms"),
        1000..120_000 if millis % 1000 == 0 => format!("{}s", millis / 1000),
        1000..120_000 => format!("{}.{}s", millis / 1000, millis % 1000 / 100),
        _ => {
            let minutes = millis / 60_000;
            let rest = millis / 1000 % 60;
            match (minutes / 60, minutes % 60, rest) {
                (0, minutes, 0) => format!("{minutes}m"),
                (0, minutes, rest) => format!("{minutes}m{rest:02}s"),
                (hours, 0, _) => format!("{hours}h"),
                (hours, minutes, _) => format!("{hours}h{minutes:02}m"),
            }
        }
    }
}

/// The distance of the axis' marks.
fn tick(length: i64, most: i64) -> i64 {
    const SECOND: i64 = 1_000_000;
    const MINUTE: i64 = 60 * SECOND;
    const HOUR: i64 = 60 * MINUTE;
    let small = [100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000];
    let seconds = [1, 2, 5, 10, 20, 30].map(|step| step * SECOND);
    let minutes = [1, 2, 5, 10, 20, 30].map(|step| step * MINUTE);
    let steps = small.into_iter().chain(seconds).chain(minutes);
    let hours = (0..).map(|power: u32| HOUR.saturating_mul(2_i64.saturating_pow(power)));
    steps.chain(hours).find(|step| length / step < most).unwrap_or(length)
}
