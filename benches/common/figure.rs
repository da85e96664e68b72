//! One line a figure.

use std::fmt::Display;

/// What a figure should be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    AtMost(f64),
    AtLeast(f64),
    /// Only for comparison.
    None,
}

/// Prints `name  measured  target  ok|short`. A bench is no test: short figures fail nothing.
pub(crate) fn figure(name: &str, measured: f64, unit: &str, target: Target) {
    let (target, verdict) = match target {
        Target::AtMost(most) => (format!("<= {}", shown(most, unit)), verdict(measured <= most)),
        Target::AtLeast(least) => (format!(">= {}", shown(least, unit)), verdict(measured >= least)),
        Target::None => ("-".to_owned(), "-"),
    };
    line(name, &shown(measured, unit), &target, verdict);
}

fn line(name: impl Display, measured: &str, target: &str, verdict: &str) {
    println!("{name:<52}  {measured:>14}  {target:>16}  {verdict}");
}

fn verdict(reached: bool) -> &'static str {
    if reached { "ok" } else { "short" }
}

fn shown(value: f64, unit: &str) -> String {
    let digits = match value.abs() {
        value if value >= 100.0 || value == 0.0 => 0,
        value if value >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.digits$} {unit}").trim_end().to_owned()
}
