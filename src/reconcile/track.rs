//! What an object is doing, taken down as spans: at most one is open, and each look goes on to the next.

use std::time::Duration;

use crate::object::ObjectKey;
use crate::timeline::{OpenSpan, Outcome, Phase, Recorder, Subject};

/// What an object does now.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Activity {
    /// The phase; none while it rests.
    pub phase: Option<Phase>,
    /// Whether what it did before has failed; then the detail says why.
    pub failed: bool,
    /// What people should know of it.
    pub detail: String,
    /// The digest of the image that is waited for.
    pub awaits: Option<String>,
}

/// A phase that was left.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Left {
    pub phase: Phase,
    pub took: Duration,
    pub failed: bool,
}

/// One object's open span.
pub(super) struct Track {
    recorder: Recorder,
    subject: Subject,
    open: Option<OpenSpan>,
}

impl Track {
    pub(super) fn new(recorder: Recorder, key: ObjectKey) -> Self {
        Track { recorder, subject: Subject::Object(key), open: None }
    }

    /// Goes on to what the object does now. Returns the phase that is over, if one is.
    pub(super) fn enter(&mut self, now: &Activity) -> Option<Left> {
        let before = self.open.as_ref().map(OpenSpan::phase);
        if before == now.phase {
            return None;
        }
        let left = self.open.take().map(|span| Left {
            phase: span.phase(),
            failed: now.failed,
            took: if now.failed { span.fail(&now.detail) } else { span.end(Outcome::Done) },
        });
        let open = |phase| {
            let (subject, awaits) = (self.subject.clone(), now.awaits.clone());
            self.recorder.open(subject, phase, &now.detail, awaits)
        };
        self.open = now.phase.map(open);
        left
    }

    /// The object is gone, as it should be.
    pub(super) fn finish(&mut self) {
        if let Some(span) = self.open.take() {
            span.end(Outcome::Done);
        }
    }
}

#[cfg(test)]
#[test]
fn a_phase_that_failed_is_drawn_as_one() {
    let recorder = Recorder::new(super::clock::Clock::Host);
    let mut track = Track::new(recorder.clone(), ObjectKey::new(crate::object::Kind::Vm, "default", "web"));
    let boots = Activity { phase: Some(Phase::Boot), ..Activity::default() };
    track.enter(&boots);
    track.enter(&Activity {
        phase: Some(Phase::Backoff),
        failed: true,
        detail: "x".to_owned(),
        awaits: None,
    });
    track.enter(&boots);
    let ends: Vec<_> = recorder.timeline().spans.iter().map(|span| span.outcome).collect();
    assert_eq!(ends, [Some(Outcome::Failed), Some(Outcome::Done), None]);
}
