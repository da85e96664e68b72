//! `vmlet image ls`.

use std::io::{self, Write};

use clap::{Args, ValueEnum};
use jiff::Timestamp;

use super::{report, short};
use crate::api::age;
use crate::cli::client::Client;
use crate::cli::error::Outcome;
use crate::cli::get::yaml;
use crate::cli::output::{Layout, print_lines};
use crate::cli::text::printable;
use crate::object::Bytes;
use crate::storage::{DiskPhase, DiskReport};

/// The most users in a cell.
const USERS: usize = 3;

/// List base disks
///
/// SIZE is what a disk takes on the host, UNUSED-FOR how long nothing has referred to it.
#[derive(Args, Debug)]
#[command(visible_alias = "list")]
pub(super) struct Ls {
    /// The form of the output
    #[arg(short, long, value_name = "FORM", default_value = "table")]
    output: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// The usual columns
    Table,
    /// All columns
    Wide,
    /// As JSON
    Json,
    /// As YAML
    Yaml,
    /// Digests, one a line
    Name,
}

impl Ls {
    pub(super) async fn run(self, client: &Client) -> Outcome {
        let report = report(client).await?;
        let mut out = io::stdout();
        match self.output {
            Format::Json => writeln!(out, "{:#}", serde_json::json!(report.disks))?,
            Format::Yaml => write!(out, "{}", yaml(&serde_json::json!(report.disks))?)?,
            Format::Name => {
                report.disks.iter().try_for_each(|disk| writeln!(out, "{}", disk.digest))?;
            }
            Format::Table | Format::Wide if report.disks.is_empty() => eprintln!("No base disks found."),
            Format::Table | Format::Wide => {
                let wide = self.output == Format::Wide;
                let rows = report.disks.iter().flat_map(|disk| rows(disk, wide, report.now));
                let lines: Vec<_> = std::iter::once(header(wide)).chain(rows).collect();
                print_lines(&mut out, &mut Layout::coloured(), &lines)?;
            }
        }
        Ok(())
    }
}

fn header(wide: bool) -> Vec<String> {
    let usual = ["REFERENCE", "DIGEST", "SIZE", "USED-BY", "UNUSED-FOR"];
    let more: &[&str] = if wide { &["STATE", "LENGTH", "PATH"] } else { &[] };
    usual.iter().chain(more).map(|name| (*name).to_owned()).collect()
}

/// A row for each name of a disk.
pub(super) fn rows(disk: &DiskReport, wide: bool, now: Timestamp) -> Vec<Vec<String>> {
    let none = ["<none>".to_owned()];
    let names = if disk.sources.is_empty() { &none[..] } else { &disk.sources };
    let row = |name: &String| {
        let mut cells = vec![
            printable(name).into_owned(),
            if wide { disk.digest.to_string() } else { short(&disk.digest) },
            Bytes(disk.allocated).to_string(),
            users(disk),
            disk.unused_since.map_or_else(|| "-".to_owned(), |since| age(since, now)),
        ];
        if wide {
            let state = match disk.state {
                DiskPhase::Installing => "Installing",
                DiskPhase::Ready => "Ready",
                DiskPhase::Removing => "Removing",
            };
            let path = disk.path.as_deref().unwrap_or("-");
            cells.extend([state.to_owned(), Bytes(disk.size).to_string(), printable(path).into_owned()]);
        }
        cells
    };
    names.iter().map(row).collect()
}

fn users(disk: &DiskReport) -> String {
    match disk.used_by.as_slice() {
        [] => "-".to_owned(),
        users if users.len() <= USERS => users.join(","),
        users => format!("{},+{}", users[..USERS].join(","), users.len() - USERS),
    }
}
