//! Lines on a terminal that change in place, with a spinner or a bar for what is under way.

use std::collections::BTreeMap;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

use super::text::printable;

/// How often spinners turn.
const TICK: Duration = Duration::from_millis(120);

/// Lines by key, in the order in which they first came.
pub(super) struct Board {
    multi: MultiProgress,
    lines: BTreeMap<String, ProgressBar>,
}

/// What a line shows beside its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    /// Nothing: all is as wanted, or at rest.
    Still,
    /// A spinner: something is under way.
    Busy,
    /// A bar: so many percent of it are done.
    Percent(u8),
}

impl Board {
    /// A board on stdout or stderr.
    pub(super) fn new(target: ProgressDrawTarget) -> Self {
        Board { multi: MultiProgress::with_draw_target(target), lines: BTreeMap::new() }
    }

    /// Adds or changes a line.
    pub(super) fn set(&mut self, key: &str, text: String, sign: Sign) {
        let line = self.lines.entry(key.to_owned()).or_insert_with(|| {
            let line = self.multi.add(ProgressBar::new(100));
            line.enable_steady_tick(TICK);
            line
        });
        let template = match sign {
            Sign::Still => "  {wide_msg}",
            Sign::Busy => "{spinner} {wide_msg}",
            Sign::Percent(_) => "{spinner} {wide_msg} [{bar:12}] {pos:>3} %",
        };
        line.set_style(ProgressStyle::with_template(template).expect("the templates are right"));
        if let Sign::Percent(percent) = sign {
            line.set_position(u64::from(percent));
        }
        line.set_message(beside(text, sign));
    }

    /// Removes a line.
    pub(super) fn remove(&mut self, key: &str) {
        if let Some(line) = self.lines.remove(key) {
            line.finish_and_clear();
            self.multi.remove(&line);
        }
    }

    /// Removes all lines.
    pub(super) fn clear(&mut self) {
        self.lines.clear();
        // A board that cannot be cleared is on a terminal that is gone.
        let _ = self.multi.clear();
    }
}

/// The text beside a sign: lines are short, and say nothing twice.
fn beside(text: String, sign: Sign) -> String {
    match sign {
        Sign::Percent(percent) => text.replacen(&format!(", {percent} %"), "", 1),
        Sign::Still | Sign::Busy => text,
    }
}

/// What an object is doing, for people, and how to show it.
pub(super) fn doing(object: &Value) -> (String, Sign) {
    let status = &object["status"];
    let terminating = object["metadata"]["deletionTimestamp"].is_string();
    let phase = if terminating { "Terminating" } else { status["phase"].as_str().unwrap_or_default() };
    let phase = if phase.is_empty() { "Pending" } else { phase };
    let conditions = status["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let ready = conditions.iter().find(|condition| condition["type"] == "Ready");
    if !terminating && ready.is_some_and(|ready| ready["status"] == "True") {
        return (phase.to_owned(), Sign::Still);
    }
    let progress = status["progress"].as_str().or_else(|| ready?["message"].as_str()).unwrap_or_default();
    let text =
        if progress.is_empty() { phase.to_owned() } else { format!("{phase}: {}", printable(progress)) };
    let sign = match (percent(progress), phase) {
        (_, "Failed" | "Stopped") => Sign::Still,
        (Some(percent), "Pulling") => Sign::Percent(percent),
        _ => Sign::Busy,
    };
    (text, sign)
}

/// The `61` of `layer 3 of 4, 61 %`.
fn percent(progress: &str) -> Option<u8> {
    let before = progress.split_once('%')?.0.trim_end();
    before
        .rsplit(|character: char| !character.is_ascii_digit())
        .next()?
        .parse()
        .ok()
        .filter(|percent| *percent <= 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_says_what_the_text_need_not() {
        let text = || "layer 3 of 4, 61 %, 34 MiB/s, 12s left".to_owned();
        assert_eq!(beside(text(), Sign::Percent(61)), "layer 3 of 4, 34 MiB/s, 12s left");
        assert_eq!(beside(text(), Sign::Busy), text());
    }
}
