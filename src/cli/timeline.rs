//! `vmlet timeline`.

use std::io::{self, Write};

use clap::{Args, ValueEnum};
use rustix::termios::tcgetwinsize;

use super::client::{Client, JSON};
use super::error::{CliError, Outcome};
use super::output::colour;
use super::target::Targets;
use crate::object::{DEFAULT_NAMESPACE, ObjectKey, Period};
use crate::timeline::{Chart, Timeline, svg, text};

/// Columns of output that goes to no terminal.
const COLUMNS: usize = 120;

/// Draw what overlapped with what: pulls, waits, boots, stops
///
/// The daemon remembers the last 8192 phases since it started. Pulls that the chosen objects waited
/// for are drawn too.
///
/// Examples:
///   vmlet timeline
///   vmlet timeline vm/web vm/db --since 10m
///   vmlet timeline -o svg > timeline.svg
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub(super) struct Draw {
    /// KIND [NAME…] or KIND/NAME…; without any, all objects
    targets: Vec<String>,

    /// The form of the output
    #[arg(short, long, value_name = "FORM", default_value = "text")]
    output: Format,

    /// Only what went on within this time: 30s, 5m, 1h30m
    #[arg(long, value_name = "TIME")]
    since: Option<Period>,

    /// The namespace
    #[arg(short, long, value_name = "NAMESPACE", default_value = DEFAULT_NAMESPACE)]
    namespace: String,

    /// All namespaces
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Letters and colours, as wide as the terminal
    Text,
    /// A picture
    Svg,
    /// The phases as JSON
    Json,
}

impl Draw {
    /// Runs the verb.
    pub(super) async fn run(self, client: &Client) -> Outcome {
        let wanted = self.wanted()?;
        let all: Timeline = client.get("/timeline", JSON).await?;
        if let Some(key) = wanted.missing(&all) {
            let error = CliError::new(format!("nothing is remembered of {key}"));
            return Err(error.hint("`vmlet timeline` draws everything, `vmlet get all` shows what there is"));
        }
        let now = all.now;
        let mut timeline = all.of(|key| wanted.holds(key));
        if let Some(since) = self.since {
            timeline = timeline.since(now.saturating_sub(since.get()).unwrap_or(jiff::Timestamp::MIN));
        }
        let mut out = io::stdout();
        if self.output == Format::Json {
            serde_json::to_writer_pretty(&mut out, &timeline).map_err(io::Error::from)?;
            return Ok(writeln!(out)?);
        }
        match Chart::new(&timeline) {
            None => eprintln!("Nothing happened."),
            Some(chart) if self.output == Format::Svg => out.write_all(svg(&chart).as_bytes())?,
            Some(chart) => {
                let size = tcgetwinsize(&out).ok().map(|size| usize::from(size.ws_col));
                let columns = size.filter(|columns| *columns > 0).unwrap_or(COLUMNS);
                out.write_all(text(&chart, columns, colour(&out)).as_bytes())?;
            }
        }
        Ok(())
    }

    fn wanted(&self) -> Result<Wanted, CliError> {
        let namespace = (!self.all_namespaces).then(|| self.namespace.clone());
        if self.targets.is_empty() {
            return Ok(Wanted { namespace, targets: None });
        }
        let targets = Targets::parse(&self.targets)?;
        if self.all_namespaces && matches!(targets, Targets::Named(_)) {
            return Err(CliError::usage("names are looked up in one namespace: drop -A"));
        }
        Ok(Wanted { namespace, targets: Some(targets) })
    }
}

/// Which objects are drawn.
struct Wanted {
    namespace: Option<String>,
    targets: Option<Targets>,
}

impl Wanted {
    fn holds(&self, key: &ObjectKey) -> bool {
        let here = self.namespace.as_ref().is_none_or(|namespace| *namespace == key.namespace);
        here && match &self.targets {
            None => true,
            Some(Targets::All(kinds)) => kinds.contains(&key.kind),
            Some(Targets::Named(named)) => {
                named.iter().any(|(kind, name)| *kind == key.kind && *name == key.name)
            }
        }
    }

    /// An object that was named and has no phases.
    fn missing(&self, all: &Timeline) -> Option<ObjectKey> {
        let Some(Targets::Named(named)) = &self.targets else { return None };
        let namespace = self.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
        let keys = named.iter().map(|(kind, name)| ObjectKey::new(*kind, namespace, name.clone()));
        keys.into_iter().find(|key| !all.mentions(key))
    }
}
