//! `vmlet simulate`.

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use tracing::subscriber::{NoSubscriber, with_default};

use super::error::{CliError, Outcome};
use super::output::{Form, Layout, print_lines, print_table};
use super::text::printable;
use super::validate::plural;
use crate::api;
use crate::object::{DEFAULT_NAMESPACE, Kind, ObjectKey};
use crate::testing::{Entry, Outcome as End, Scenario, Teller};

/// Try manifests on simulated time, with bad days, without a daemon
///
/// The real engine runs them in a scripted world: nothing is pulled and no VM is started. A scenario says
/// what goes wrong meanwhile and what is expected (docs/scenarios.md); without one, everything is to be
/// ready. Equal files and seeds give equal output. Exits with 0 if all is as expected, 1 if not, 2 if a
/// file is not valid.
///
/// Examples:
///   vmlet simulate manifests/
///   vmlet simulate manifests/ --scenario bad-day.yaml
///   vmlet simulate manifests/ --scenario bad-day.yaml --seeds 200
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub(super) struct Simulate {
    /// The folder of manifests
    #[arg(value_name = "DIR")]
    manifests: PathBuf,

    /// What goes wrong, and what is expected
    #[arg(long, value_name = "FILE")]
    scenario: Option<PathBuf>,

    /// Where chance starts from
    #[arg(long, value_name = "NUMBER", default_value = "1")]
    seed: u64,

    /// Try so many seeds, from the first one on, and tell of the first with a bad end
    #[arg(long, value_name = "COUNT", default_value = "1", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    seeds: u64,

    /// The form of the answer
    #[arg(short, long, value_name = "FORM", default_value = "text")]
    output: Form,
}

impl Simulate {
    /// Runs the verb.
    pub(super) fn run(self) -> Outcome {
        let scenario = self.load()?;
        let end = self.end(&scenario);
        let mut out = io::stdout();
        match (self.output, &end) {
            (Form::Json, end) => writeln!(out, "{:#}", self.json(end.as_ref()))?,
            (Form::Text, Some(end)) => self.text(&mut out, end)?,
            (Form::Text, None) => writeln!(out, "{} seeds, all as expected", self.seeds)?,
        }
        match end.filter(|end| !end.violations.is_empty()) {
            None => Ok(()),
            Some(_) if self.output == Form::Json => Err(CliError::silent(1)),
            Some(end) => Err(CliError::new(format!("not as expected with seed {}", end.seed))
                .hint(format!("replay it with: {}", self.replay(end.seed)))),
        }
    }

    fn load(&self) -> Result<Scenario, CliError> {
        Scenario::load(&self.manifests, self.scenario.as_deref()).map_err(|diagnostics| {
            for diagnostic in &diagnostics {
                eprintln!("{diagnostic}\n");
            }
            CliError::usage(format!("{}; nothing was simulated", plural(diagnostics.len(), "error")))
        })
    }

    /// What is told: of one seed its end, of several the first that is not as expected.
    fn end(&self, scenario: &Scenario) -> Option<End> {
        let seeds = self.seed..self.seed.saturating_add(self.seeds);
        let bar = self.progress();
        let next = AtomicU64::new(seeds.start);
        let told: Mutex<Option<End>> = Mutex::new(None);
        let told_now = || told.lock().unwrap_or_else(PoisonError::into_inner);
        let work = || loop {
            // All seeds below one that is tried are tried too, so the first bad one is found.
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= told_now().as_ref().map_or(seeds.end, |end| end.seed) {
                return;
            }
            let end = scenario.run(seed);
            bar.inc(1);
            let mut told = told_now();
            let first = told.as_ref().is_none_or(|told| end.seed < told.seed);
            if first && (self.seeds == 1 || !end.violations.is_empty()) {
                *told = Some(end);
            }
        };
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
        std::thread::scope(|scope| {
            for _ in 0..cores.min(self.seeds) {
                // What the engine logs here has happened to nobody.
                scope.spawn(|| with_default(NoSubscriber::new(), work));
            }
        });
        bar.finish_and_clear();
        told.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// A bar, if there is something to wait for and stderr is a terminal.
    fn progress(&self) -> ProgressBar {
        if self.seeds == 1 {
            return ProgressBar::hidden();
        }
        let style = ProgressStyle::with_template("{bar:40} {pos} of {len} seeds, {eta} left");
        let bar = ProgressBar::with_draw_target(Some(self.seeds), ProgressDrawTarget::stderr());
        bar.with_style(style.expect("the template is right"))
    }

    fn text(&self, out: &mut impl Write, end: &End) -> io::Result<()> {
        print_timeline(out, &end.timeline)?;
        for kind in [Kind::Vm, Kind::Image] {
            let records: Vec<_> =
                end.objects.iter().filter(|record| record.key().kind == kind).cloned().collect();
            if records.is_empty() {
                continue;
            }
            let mut layout = Layout::coloured();
            layout.prefix = format!("{}/", kind.singular());
            layout.namespace =
                end.objects.iter().any(|record| record.metadata().namespace != DEFAULT_NAMESPACE);
            writeln!(out)?;
            print_table(out, &mut layout, &api::table(kind, &records, end.ended))?;
        }
        writeln!(out)?;
        for violation in &end.violations {
            writeln!(out, "wrong: {}", printable(violation))?;
        }
        let verdict = match end.violations.len() {
            0 => "as expected".to_owned(),
            count => format!("{count} not as expected"),
        };
        let rest = match end.settled {
            Some(at) => format!("at rest since {:.3} s", at.as_secs_f64()),
            None => "not at rest".to_owned(),
        };
        writeln!(out, "{verdict}: {rest}, {} s simulated, seed {}", end.duration.as_secs_f64(), end.seed)
    }

    fn json(&self, end: Option<&End>) -> Value {
        json!({
            "asExpected": end.is_none_or(|end| end.violations.is_empty()),
            "seed": self.seed,
            "seeds": self.seeds,
            "end": end.map(|end| json!({
                "seed": end.seed,
                "replay": self.replay(end.seed),
                "violations": end.violations,
                "durationSeconds": end.duration.as_secs_f64(),
                "atRestSinceSeconds": end.settled.map(|at| at.as_secs_f64()),
                "timeline": end.timeline.iter().map(entry).collect::<Vec<_>>(),
                "objects": end.objects.iter().map(api::object).collect::<Vec<_>>(),
            })),
        })
    }

    /// The command line that shows one seed's end again.
    fn replay(&self, seed: u64) -> String {
        let mut words = vec!["vmlet simulate".to_owned(), quoted(&self.manifests.display().to_string())];
        if let Some(scenario) = &self.scenario {
            words.push(format!("--scenario {}", quoted(&scenario.display().to_string())));
        }
        words.push(format!("--seed {seed}"));
        words.join(" ")
    }
}

/// A line an entry. Of a status, what only goes on changing is left out.
fn print_timeline(out: &mut impl Write, timeline: &[Entry]) -> io::Result<()> {
    let mut layout = Layout::default();
    let mut last: HashMap<&ObjectKey, &str> = HashMap::new();
    let mut lines = Vec::new();
    for entry in timeline {
        if let (Teller::Status, Some(key)) = (entry.teller, &entry.object)
            && last.insert(key, entry.headline()) == Some(entry.headline())
        {
            continue;
        }
        let object = entry.object.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
        let at = format!("{:>10.3}s", entry.at.as_secs_f64());
        let teller = teller(entry.teller).to_owned();
        lines.push(vec![at, object, teller, printable(&entry.text).into_owned()]);
    }
    print_lines(out, &mut layout, &lines)
}

fn entry(entry: &Entry) -> Value {
    json!({
        "seconds": entry.at.as_secs_f64(),
        "object": entry.object.as_ref().map(ToString::to_string),
        "teller": teller(entry.teller),
        "text": entry.text,
    })
}

fn teller(teller: Teller) -> &'static str {
    match teller {
        Teller::Status => "status",
        Teller::Event => "event",
        Teller::World => "world",
        Teller::Script => "script",
    }
}

/// A word for a shell.
fn quoted(word: &str) -> String {
    let plain = |char: char| char.is_ascii_alphanumeric() || "/._-+=:,@%".contains(char);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}
