//! Charts by value: spans in, pictures out.

use insta::assert_snapshot;
use jiff::{SignedDuration, Timestamp};

use super::chart::{mark, seconds};
use super::{Chart, Outcome, Phase, Recorder, Span, Subject, Timeline, svg, text};
use crate::object::{Kind, ObjectKey};
use crate::reconcile::Clock;

const START: i64 = 1_800_000_000;

fn at(millis: i64) -> Timestamp {
    Timestamp::from_second(START).unwrap().saturating_add(SignedDuration::from_millis(millis)).unwrap()
}

fn vm(name: &str) -> Subject {
    Subject::Object(ObjectKey::new(Kind::Vm, "default", name))
}

fn pull() -> Subject {
    Subject::Pull { reference: "127.0.0.1:5055/busybox:1".to_owned(), digest: "sha256:aa".to_owned() }
}

fn span(subject: Subject, phase: Phase, from: i64, to: Option<i64>) -> Span {
    let awaits = (phase == Phase::ImageWait).then(|| "sha256:aa".to_owned());
    let outcome = to.map(|_| Outcome::Done);
    Span { subject, phase, start: at(from), end: to.map(at), outcome, detail: String::new(), awaits }
}

/// Two VMs share a pull; one boots longer than the other, a third one fails.
fn timeline() -> Timeline {
    let mut spans = vec![
        span(vm("a"), Phase::Resolve, 0, Some(40)),
        span(vm("b"), Phase::Resolve, 1, Some(44)),
        span(pull(), Phase::PullWait, 40, Some(40)),
        span(pull(), Phase::Pull, 40, Some(900)),
        span(vm("a"), Phase::ImageWait, 40, Some(930)),
        span(vm("b"), Phase::ImageWait, 44, Some(931)),
        span(pull(), Phase::Install, 900, Some(930)),
        span(vm("a"), Phase::Reserve, 930, Some(932)),
        span(vm("b"), Phase::Reserve, 931, Some(934)),
        span(vm("b"), Phase::BootWait, 934, Some(2900)),
        span(vm("a"), Phase::Prepare, 932, Some(960)),
        span(vm("a"), Phase::Boot, 960, Some(2900)),
        span(vm("b"), Phase::Prepare, 2900, Some(2930)),
        span(vm("a"), Phase::Workload, 2900, Some(3000)),
        span(vm("b"), Phase::Boot, 2930, Some(4700)),
        span(vm("a"), Phase::Ready, 3000, None),
        span(vm("b"), Phase::Ready, 4700, None),
        span(vm("broken"), Phase::Resolve, 5, Some(60)),
        span(vm("broken"), Phase::Backoff, 60, None),
    ];
    spans[17].outcome = Some(Outcome::Failed);
    spans[17].detail = "no <such> image & \"more\"\u{1b}[2J".to_owned();
    Timeline { now: at(5000), forgotten: 0, spans }
}

#[test]
fn text_fits_its_columns() {
    let chart = Chart::new(&timeline()).unwrap();
    let wide = text(&chart, 100, false);
    assert!(wide.lines().all(|line| line.chars().count() <= 100), "{wide}");
    assert_snapshot!("text_100", wide);
    let narrow = text(&chart, 60, false);
    assert!(narrow.lines().all(|line| line.chars().count() <= 60), "{narrow}");
    assert_snapshot!("text_60", narrow);
}

#[test]
fn colours_change_nothing_but_colours() {
    let chart = Chart::new(&timeline()).unwrap();
    let coloured = text(&chart, 80, true);
    let mut plain = String::new();
    for (index, part) in coloured.split('\x1b').enumerate() {
        plain.push_str(if index == 0 { part } else { part.split_once('m').unwrap().1 });
    }
    assert!(coloured.contains('\x1b'));
    assert_eq!(plain, text(&chart, 80, false));
}

#[test]
fn a_picture() {
    assert_snapshot!("svg", svg(&Chart::new(&timeline()).unwrap()));
}

#[test]
fn what_is_said_of_a_span_cannot_leave_its_place() {
    let picture = svg(&Chart::new(&timeline()).unwrap());
    assert!(picture.contains("no &lt;such&gt; image &amp; &quot;more&quot;"));
    assert!(!picture.contains('\u{1b}') && !picture.contains("<such>"));
}

#[test]
fn chosen_objects_bring_their_pulls() {
    let only = |name: &'static str| timeline().of(move |key| key.name == name);
    assert!(only("a").spans.iter().any(|span| span.subject == pull()));
    assert!(only("a").spans.iter().all(|span| span.subject != vm("b")));
    assert!(only("broken").spans.iter().all(|span| span.subject == vm("broken")));
}

#[test]
fn since_cuts_what_was_before() {
    let late = timeline().since(at(2000));
    assert!(late.spans.iter().all(|span| span.start >= at(2000) && span.subject != pull()));
    assert_eq!(Chart::new(&late).unwrap().start, at(2000));
}

#[test]
fn a_vm_that_stays_ready_does_not_stretch_the_picture() {
    let mut ready = timeline();
    ready.spans.retain(|span| span.subject == vm("a"));
    ready.now = at(1_000_000);
    assert_eq!(Chart::new(&ready).unwrap().length, 3_150_000);
}

#[test]
fn overlaps_are_counted_at_their_edges() {
    let chart = Chart::new(&timeline()).unwrap();
    assert_eq!(chart.most_at_once(Phase::Boot), 1, "b boots when a has booted");
    assert_eq!(chart.most_at_once(Phase::ImageWait), 2);
    assert_eq!(chart.most_at_once(Phase::Stop), 0);
    let one = [span(vm("a"), Phase::Boot, 0, Some(10)), span(vm("b"), Phase::Boot, 10, Some(20))];
    let meeting = Timeline { now: at(20), forgotten: 0, spans: one.to_vec() };
    assert_eq!(Chart::new(&meeting).unwrap().most_at_once(Phase::Boot), 1);
}

#[test]
fn lengths_for_people() {
    let lengths = [640, 83_000, 4_250_000, 125_000_000, 4_500_000_000].map(seconds);
    assert_eq!(lengths, ["640 µs", "83 ms", "4.25 s", "2m05s", "1h15m"]);
    let marks = [0, 500_000, 2_000_000, 2_500_000, 180_000_000, 5_400_000_000].map(mark);
    assert_eq!(marks, ["0", "500ms", "2s", "2.5s", "3m", "1h30m"]);
}

#[test]
fn nothing_is_no_picture() {
    assert_eq!(Chart::new(&Timeline { now: at(0), forgotten: 0, spans: Vec::new() }), None);
}

#[test]
fn a_span_that_is_dropped_is_cancelled_and_one_that_failed_says_why() {
    let recorder = Recorder::new(Clock::Host);
    drop(recorder.open(vm("a"), Phase::Boot, "", None));
    recorder.open(vm("a"), Phase::Boot, "", None).fail("no room");
    let _open = recorder.open(vm("a"), Phase::Stop, &"long ".repeat(1000), None);
    let spans = recorder.timeline().spans;
    let seen: Vec<_> = spans.iter().map(|span| (span.outcome, span.detail.chars().count())).collect();
    assert_eq!(seen, [(Some(Outcome::Cancelled), 0), (Some(Outcome::Failed), 7), (None, 241)]);
}

#[test]
fn memory_is_bounded() {
    let recorder = Recorder::new(Clock::Host);
    for _ in 0..10_000 {
        recorder.open(vm("a"), Phase::Boot, "", None).end(Outcome::Done);
    }
    let timeline = recorder.timeline();
    assert_eq!((timeline.spans.len(), timeline.forgotten), (8192, 10_000 - 8192));
}
