//! `vmlet image prune`.

use std::io::{self, IsTerminal, Write};

use clap::Args;
use serde_json::json;

use crate::cli::client::Client;
use crate::cli::error::{CliError, Outcome};
use crate::object::Bytes;
use crate::storage::{PruneOrder, Pruned};

/// Remove every base disk that nothing refers to
///
/// On a terminal it asks first.
#[derive(Args, Debug)]
pub(super) struct Prune {
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,

    /// Also the layers that are kept to save later pulls a download
    #[arg(long)]
    blobs: bool,

    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

impl Prune {
    pub(super) async fn run(self, client: &Client) -> Outcome {
        let order = |dry_run| json!(PruneOrder { dry_run, all: self.blobs });
        if self.dry_run || !self.force && io::stdin().is_terminal() {
            let planned: Pruned = client.post("/storage/prune", &order(true)).await?;
            if self.dry_run {
                return Ok(tell(&planned, "would be removed", "would be reclaimed")?);
            }
            if !agreed(&planned)? {
                return Err(CliError::new("nothing was removed"));
            }
        }
        let pruned: Pruned = client.post("/storage/prune", &order(false)).await?;
        Ok(tell(&pruned, "removed", "reclaimed")?)
    }
}

fn agreed(planned: &Pruned) -> io::Result<bool> {
    let layers = if planned.blobs > 0 { " and all kept layers" } else { "" };
    eprint!(
        "{} that nothing refers to{layers}: {} in all.\nRemove them? [y/N] ",
        count(planned),
        Bytes(planned.allocated)
    );
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn tell(pruned: &Pruned, done: &str, reclaimed: &str) -> io::Result<()> {
    let mut out = io::stdout();
    for disk in &pruned.disks {
        writeln!(out, "{} {done} ({})", disk.digest, Bytes(disk.allocated))?;
    }
    if pruned.blobs > 0 {
        writeln!(out, "kept layers {done} ({})", Bytes(pruned.blobs))?;
    }
    writeln!(out, "{} {reclaimed}", Bytes(pruned.allocated))
}

/// `2 base disks`
fn count(pruned: &Pruned) -> String {
    let count = pruned.disks.len();
    format!("{count} base disk{}", if count == 1 { "" } else { "s" })
}
