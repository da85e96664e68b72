//! A chart as text: a letter for each phase, as wide as the terminal.

use std::fmt::Write;

use super::chart::{Bar, Chart, Row, mark, seconds};
use super::{Outcome, Phase};

/// The least columns that bars get, however narrow the terminal is.
const LEAST: usize = 20;
/// Columns of a mark of the time axis, with some space.
const MARK: usize = 8;
/// The most columns of a label.
const MOST_LABEL: usize = 32;

/// Draws a chart on so many columns, with terminal colours or without.
pub fn text(chart: &Chart, columns: usize, colour: bool) -> String {
    let widest =
        |of: fn(&Row) -> &str| chart.rows.iter().map(|row| of(row).chars().count()).max().unwrap_or(0);
    let (label, note) = (widest(|row| &row.label).min(MOST_LABEL), widest(|row| &row.note));
    let width = columns.saturating_sub(label + note + 3).max(LEAST);
    let mut out = format!("{}\nfrom {:.0}\n\n", chart.summary(), chart.start);
    line(&mut out, label, "", &axis(chart, width), "");
    for row in &chart.rows {
        let cells = cells(&row.bars, chart.length, width);
        let bars: String =
            runs(&cells).map(|(index, length)| paint(&row.bars, index, length, colour)).collect();
        line(&mut out, label, &row.label, &bars, &row.note);
    }
    out.push('\n');
    legend(&mut out, chart, columns, colour);
    if chart.forgotten > 0 {
        let _ = writeln!(out, "{} older spans are forgotten", chart.forgotten);
    }
    out
}

fn line(out: &mut String, width: usize, label: &str, bars: &str, note: &str) {
    let short: String = label.chars().take(width).collect();
    let text = format!("{short:width$} {bars} {note}");
    out.push_str(text.trim_end());
    out.push('\n');
}

/// The marks of the time axis, each above its instant.
fn axis(chart: &Chart, width: usize) -> String {
    let mut axis = vec![' '; width];
    for micros in chart.marks(i64::try_from(width / MARK).unwrap_or(1)) {
        let column = column(micros, chart.length, width);
        let text = format!("|{}", mark(micros));
        let end = column + text.chars().count();
        if end <= width {
            axis.splice(column..end, text.chars());
        }
    }
    axis.into_iter().collect()
}

fn column(micros: i64, length: i64, width: usize) -> usize {
    let column = i128::from(micros) * width as i128 / i128::from(length.max(1));
    usize::try_from(column).unwrap_or(0).min(width - 1)
}

/// Which bar each column shows: the one that fills most of it. A bar too short for that gets the
/// column where it begins, unless that is another's only one.
fn cells(bars: &[Bar], length: i64, width: usize) -> Vec<Option<usize>> {
    let edge =
        |column: usize| i64::try_from(i128::from(length) * column as i128 / width as i128).unwrap_or(length);
    let mut cells: Vec<Option<usize>> = (0..width)
        .map(|column| {
            let (from, to) = (edge(column), edge(column + 1));
            let filled = |bar: &Bar| bar.to.min(to) - bar.from.max(from);
            let fullest = bars.iter().enumerate().max_by_key(|(_, bar)| filled(bar));
            fullest.filter(|(_, bar)| filled(bar) > 0).map(|(index, _)| index)
        })
        .collect();
    for (index, bar) in bars.iter().enumerate() {
        if cells.contains(&Some(index)) {
            continue;
        }
        let place = column(bar.from, length, width);
        let only = |other: usize| cells.iter().filter(|cell| **cell == Some(other)).count() < 2;
        if !cells[place].is_some_and(only) {
            cells[place] = Some(index);
        }
    }
    cells
}

/// What is shown, and on how many columns in a row.
fn runs(cells: &[Option<usize>]) -> impl Iterator<Item = (Option<usize>, usize)> {
    cells.chunk_by(|a, b| a == b).map(|run| (run[0], run.len()))
}

fn paint(bars: &[Bar], index: Option<usize>, length: usize, colour: bool) -> String {
    let Some(bar) = index.map(|index| &bars[index]) else { return " ".repeat(length) };
    let mut cells = letter(bar.phase).to_string().repeat(length);
    if bar.outcome == Some(Outcome::Failed) {
        cells.pop();
        cells.push('!');
    }
    painted(&cells, bar.phase, colour)
}

fn painted(text: &str, phase: Phase, colour: bool) -> String {
    if colour { format!("\x1b[48;5;{}m\x1b[38;5;16m{text}\x1b[0m", shade(phase)) } else { text.to_owned() }
}

fn legend(out: &mut String, chart: &Chart, columns: usize, colour: bool) {
    let mut used = 0;
    for phase in chart.phases() {
        let took =
            chart.longest(phase).map_or_else(String::new, |took| format!(" (up to {})", seconds(took)));
        let words = format!(" {}{took}", phase.words());
        let length = words.chars().count() + 1;
        if used > 0 && used + length + 3 > columns {
            out.push('\n');
            used = 0;
        }
        if used > 0 {
            out.push_str("   ");
        }
        out.push_str(&painted(&letter(phase).to_string(), phase, colour));
        out.push_str(&words);
        used += length + if used > 0 { 3 } else { 0 };
    }
    out.push('\n');
}

/// Work has letters, waits have points.
fn letter(phase: Phase) -> char {
    match phase {
        Phase::Resolve => 'r',
        Phase::ImageWait => '.',
        Phase::PullWait => ',',
        Phase::Pull => 'P',
        Phase::Install => 'I',
        Phase::Blocked => ';',
        Phase::Reserve => 'R',
        Phase::BootWait => ':',
        Phase::Prepare => 'p',
        Phase::Boot => 'B',
        Phase::Workload => 'W',
        Phase::Ready => '=',
        Phase::Stop => 'S',
        Phase::TearDown => 'T',
        Phase::Backoff => '~',
    }
}

/// A colour of the 256 that terminals have, light enough for black letters.
fn shade(phase: Phase) -> u8 {
    match phase {
        Phase::Resolve => 141,
        Phase::ImageWait | Phase::PullWait => 252,
        Phase::Blocked => 187,
        Phase::Pull => 75,
        Phase::Install => 111,
        Phase::Reserve => 176,
        Phase::BootWait => 223,
        Phase::Prepare => 220,
        Phase::Boot => 208,
        Phase::Workload => 148,
        Phase::Ready => 78,
        Phase::Stop => 246,
        Phase::TearDown => 243,
        Phase::Backoff => 217,
    }
}
