//! A chart as an SVG file of its own: a row for each subject, a colour for each phase.
//!
//! Work is drawn high, waits and lasting states low, so that what the host was busy with stands out.
//! Each bar says on hover what it is. Under the rows: how many pulls and boots there were at each moment.

use std::fmt::{self, Write};

use super::chart::{Bar, Chart, Row, mark, seconds};
use super::{Outcome, Phase};

/// All in the SVG's own units.
const WIDTH: f64 = 1180.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 92.0;
const ROW: f64 = 24.0;
const GAP: f64 = 12.0;
const HIGH: f64 = 16.0;
const LOW: f64 = 6.0;
const STRIP: f64 = 40.0;
/// Nothing that happened is narrower.
const THINNEST: f64 = 2.0;
/// Marks of the time axis, at most.
const MARKS: i64 = 12;
/// A character's width, more or less.
const LETTER: f64 = 6.8;

/// Draws a chart.
pub fn svg(chart: &Chart) -> String {
    let mut out = String::new();
    let label = chart.rows.iter().map(|row| row.label.chars().count()).max().unwrap_or(0);
    let left = (label as f64 * LETTER + 30.0).min(WIDTH / 3.0);
    let mut canvas = Canvas { out: &mut out, chart, left, y: TOP };
    canvas.draw().expect("writing to memory does not fail");
    out
}

struct Canvas<'a> {
    out: &'a mut String,
    chart: &'a Chart,
    left: f64,
    y: f64,
}

impl Canvas<'_> {
    fn draw(&mut self) -> fmt::Result {
        let strips: Vec<Phase> = [Phase::Pull, Phase::Boot]
            .into_iter()
            .filter(|phase| self.chart.most_at_once(*phase) > 0)
            .collect();
        let groups = self.chart.rows.chunk_by(|a, b| a.group == b.group).count() as f64;
        let body = TOP + ROW * self.chart.rows.len() as f64 + GAP * groups;
        let height = body + (STRIP + GAP) * strips.len() as f64 + 30.0;
        self.head(height)?;
        self.grid(TOP - 6.0, height - 26.0)?;
        let chart = self.chart;
        for rows in chart.rows.chunk_by(|a, b| a.group == b.group) {
            for (index, row) in rows.iter().enumerate() {
                self.row(row, index)?;
            }
            self.y += GAP;
        }
        for phase in strips {
            self.strip(phase)?;
        }
        self.marks(height - 10.0)?;
        self.out.write_str("</svg>\n")
    }

    fn head(&mut self, height: f64) -> fmt::Result {
        writeln!(
            self.out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" width=\"{WIDTH}\" \
             height=\"{height:.0}\" font-family=\"-apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif\" \
             font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>"
        )?;
        let title = escape(&self.chart.summary());
        writeln!(
            self.out,
            "<text x=\"16\" y=\"26\" font-size=\"16\" font-weight=\"600\" fill=\"#1b1f24\">{title}</text>"
        )?;
        let from = format!("from {:.0}", self.chart.start);
        writeln!(
            self.out,
            "<text x=\"{}\" y=\"26\" text-anchor=\"end\" fill=\"#6b7480\">{from}</text>",
            WIDTH - 16.0
        )?;
        self.legend()
    }

    fn legend(&mut self) -> fmt::Result {
        let (mut x, mut y) = (16.0, 48.0);
        for phase in self.chart.phases() {
            let words = phase.words();
            let width = words.chars().count() as f64 * LETTER + 34.0;
            if x + width > WIDTH - 16.0 {
                (x, y) = (16.0, y + 18.0);
            }
            let high = height_of(phase) * 0.75;
            let middle = y - 4.0;
            writeln!(
                self.out,
                "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"16\" height=\"{high:.1}\" rx=\"2\" fill=\"{}\"/><text \
                 x=\"{:.1}\" y=\"{y:.1}\" fill=\"#3d444d\">{words}</text>",
                middle - high / 2.0,
                colour(phase),
                x + 21.0,
            )?;
            x += width;
        }
        Ok(())
    }

    fn grid(&mut self, top: f64, bottom: f64) -> fmt::Result {
        self.marks(top - 6.0)?;
        for micros in self.chart.marks(MARKS) {
            let x = self.x(micros);
            writeln!(self.out, "<path d=\"M{x:.1} {top}V{bottom}\" stroke=\"#e6e9ed\"/>")?;
        }
        Ok(())
    }

    fn marks(&mut self, y: f64) -> fmt::Result {
        for micros in self.chart.marks(MARKS) {
            let (x, text) = (self.x(micros), mark(micros));
            writeln!(
                self.out,
                "<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\" fill=\"#6b7480\">{text}</text>"
            )?;
        }
        Ok(())
    }

    fn row(&mut self, row: &Row, index: usize) -> fmt::Result {
        if index.is_multiple_of(2) {
            writeln!(
                self.out,
                "<rect x=\"8\" y=\"{:.1}\" width=\"{}\" height=\"{ROW}\" fill=\"#f5f7f9\" opacity=\"0.7\"/>",
                self.y,
                WIDTH - 16.0
            )?;
        }
        let middle = self.y + ROW / 2.0;
        let (label, title) = (escape(&row.label), escape(&row.title));
        let text = middle + 4.0;
        writeln!(
            self.out,
            "<text x=\"16\" y=\"{text:.1}\" fill=\"#1b1f24\">{label}<title>{title}</title></text>"
        )?;
        for bar in &row.bars {
            self.bar(bar, &row.label, middle)?;
        }
        let x = WIDTH - RIGHT + 10.0;
        writeln!(self.out, "<text x=\"{x}\" y=\"{text:.1}\" fill=\"#3d444d\">{}</text>", escape(&row.note))?;
        self.y += ROW;
        Ok(())
    }

    fn bar(&mut self, bar: &Bar, of: &str, middle: f64) -> fmt::Result {
        let (x, end) = (self.x(bar.from), self.x(bar.to));
        let (width, high) = ((end - x).max(THINNEST), height_of(bar.phase));
        let failed = bar.outcome == Some(Outcome::Failed);
        let edge = if failed { " stroke=\"#d0342c\" stroke-width=\"2\"" } else { "" };
        let faded = if bar.outcome == Some(Outcome::Cancelled) { " opacity=\"0.45\"" } else { "" };
        writeln!(
            self.out,
            "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{high}\" rx=\"2\" fill=\"{}\"{edge}{faded}>\
             <title>{}</title></rect>",
            middle - high / 2.0,
            colour(bar.phase),
            escape(&title(bar, of)),
        )?;
        let inside = format!("{} {}", bar.phase.words(), seconds(bar.to - bar.from));
        let fits = inside.chars().count() as f64 * LETTER * 0.85 + 8.0 < width;
        if fits && high == HIGH && bar.outcome.is_some() {
            writeln!(
                self.out,
                "<text x=\"{:.1}\" y=\"{:.1}\" font-size=\"10.5\" fill=\"#ffffff\" pointer-events=\"none\">{inside}</text>",
                x + 5.0,
                middle + 3.8,
            )?;
        }
        Ok(())
    }

    /// How many of a phase there were at each moment, as steps.
    fn strip(&mut self, phase: Phase) -> fmt::Result {
        let most = self.chart.most_at_once(phase);
        let base = self.y + STRIP;
        let unit = (STRIP - 8.0) / most as f64;
        let mut path = format!("M{:.1} {base:.1}", self.x(0));
        for (micros, count) in self.chart.steps(phase) {
            let (x, y) = (self.x(micros), base - unit * count as f64);
            write!(path, "H{x:.1}V{y:.1}")?;
        }
        write!(path, "H{:.1}V{base:.1}Z", self.x(self.chart.length))?;
        let word = if phase == Phase::Pull { "pulling" } else { "booting" };
        writeln!(
            self.out,
            "<path d=\"{path}\" fill=\"{}\" opacity=\"0.75\"/><path d=\"M{:.1} {base:.1}H{:.1}\" stroke=\"#c9cfd6\"/>\
             <text x=\"16\" y=\"{:.1}\" fill=\"#1b1f24\">{word} at once</text>\
             <text x=\"{:.1}\" y=\"{:.1}\" fill=\"#3d444d\">up to {most}</text>",
            colour(phase),
            self.x(0),
            self.x(self.chart.length),
            base - STRIP / 2.0 + 8.0,
            WIDTH - RIGHT + 10.0,
            base - STRIP / 2.0 + 8.0,
        )?;
        self.y += STRIP + GAP;
        Ok(())
    }

    fn x(&self, micros: i64) -> f64 {
        let width = WIDTH - RIGHT - self.left;
        self.left + width * micros as f64 / self.chart.length as f64
    }
}

fn title(bar: &Bar, of: &str) -> String {
    let how = match bar.outcome {
        None => ", goes on",
        Some(Outcome::Done) => "",
        Some(Outcome::Failed) => ", failed",
        Some(Outcome::Cancelled) => ", cancelled",
    };
    let (from, took) = (seconds(bar.from), seconds(bar.to - bar.from));
    let mut title = format!("{of}: {}{how}\nat {from}, for {took}", bar.phase.words());
    if !bar.detail.is_empty() {
        title.push('\n');
        title.push_str(&bar.detail);
    }
    title
}

fn height_of(phase: Phase) -> f64 {
    if phase.waits() || phase.lasts() { LOW } else { HIGH }
}

fn colour(phase: Phase) -> &'static str {
    match phase {
        Phase::Resolve => "#8e6bc9",
        Phase::ImageWait => "#b8c9dc",
        Phase::PullWait => "#cfd6de",
        Phase::Pull => "#3b7fc4",
        Phase::Install => "#174f86",
        Phase::Blocked => "#dcc9a0",
        Phase::Reserve => "#c9388a",
        Phase::BootWait => "#efc98a",
        Phase::Prepare => "#c98a12",
        Phase::Boot => "#dd6b2f",
        Phase::Workload => "#8fa31e",
        Phase::Ready => "#35a35a",
        Phase::Stop => "#848c95",
        Phase::TearDown => "#4d545c",
        Phase::Backoff => "#eba9a4",
    }
}

/// Text in XML. Control characters have no place there.
fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\n' => safe.push('\n'),
            other if other.is_control() => safe.push('\u{fffd}'),
            other => safe.push(other),
        }
    }
    safe
}
