//! `vmlet image df`.

use std::io::{self, Write};

use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::json;

use super::report;
use crate::cli::client::Client;
use crate::cli::error::Outcome;
use crate::cli::output::{Layout, print_lines};
use crate::object::Bytes;
use crate::storage::{FileSystem, Report};

/// Show what takes disk space in the daemon's state folder
///
/// RECLAIMABLE is what `vmlet image prune --blobs` would give back.
#[derive(Args, Debug)]
pub(super) struct Df {
    /// The form of the output
    #[arg(short, long, value_name = "FORM", default_value = "table")]
    output: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
}

/// One kind of things; sizes in bytes.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Use {
    #[serde(rename = "type")]
    what: &'static str,
    count: usize,
    active: usize,
    size: u64,
    reclaimable: u64,
}

impl Df {
    pub(super) async fn run(self, client: &Client) -> Outcome {
        let report = report(client).await?;
        let (uses, filesystem) = (uses(&report), report.filesystem);
        let mut out = io::stdout();
        if self.output == Format::Json {
            writeln!(out, "{:#}", json!({"uses": uses, "filesystem": filesystem}))?;
            return Ok(());
        }
        let header = ["TYPE", "COUNT", "ACTIVE", "SIZE", "RECLAIMABLE"].map(ToOwned::to_owned).to_vec();
        let lines: Vec<_> = std::iter::once(header).chain(uses.iter().map(line)).collect();
        print_lines(&mut out, &mut Layout::coloured(), &lines)?;
        if let Some(filesystem) = filesystem {
            writeln!(out, "\n{}", room(filesystem))?;
        }
        Ok(())
    }
}

/// What takes space, by kind.
pub(super) fn uses(report: &Report) -> Vec<Use> {
    let (disks, vms) = (&report.disks, &report.vm_disks);
    vec![
        Use {
            what: "Base disks",
            count: disks.len(),
            active: disks.iter().filter(|disk| !disk.used_by.is_empty()).count(),
            size: disks.iter().map(|disk| disk.allocated).sum(),
            reclaimable: disks.iter().filter(|disk| disk.used_by.is_empty()).map(|disk| disk.allocated).sum(),
        },
        Use {
            what: "VM disks",
            count: vms.len(),
            active: vms.iter().filter(|vm| vm.running).count(),
            size: vms.iter().map(|vm| vm.allocated).sum(),
            reclaimable: 0,
        },
        Use {
            what: "Kept layers",
            count: report.blobs.len(),
            active: 0,
            size: report.blobs.iter().map(|blob| blob.size).sum(),
            reclaimable: report.blobs.iter().map(|blob| blob.size).sum(),
        },
        Use {
            what: "Staging",
            count: report.staging.count,
            active: report.staging.count,
            size: report.staging.allocated,
            reclaimable: 0,
        },
    ]
}

fn line(used: &Use) -> Vec<String> {
    let share = match (u128::from(used.reclaimable) * 100).checked_div(u128::from(used.size)) {
        None | Some(0) => String::new(),
        Some(percent) => format!(" ({percent} %)"),
    };
    vec![
        used.what.to_owned(),
        used.count.to_string(),
        used.active.to_string(),
        Bytes(used.size).to_string(),
        format!("{}{share}", Bytes(used.reclaimable)),
    ]
}

/// `61 GiB of 252 GiB are free (24 %)`
fn room(filesystem: FileSystem) -> String {
    let FileSystem { free, total } = filesystem;
    let percent = (u128::from(free) * 100).checked_div(u128::from(total)).unwrap_or(0);
    format!("{} of {} are free ({percent} %)", Bytes(free), Bytes(total))
}
