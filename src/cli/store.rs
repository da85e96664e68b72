//! `vmlet store`: the daemon's records, checked, copied, brought back.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;

use super::client::Client;
use super::error::{CliError, Outcome};
use super::output::Form;
use crate::config;
use crate::store::{ClosedStore, ClosedStoreError, Counts, Export, import};

/// Check, copy or bring back the daemon's records
///
/// What the daemon knows of objects, leases and disks is in its state folder, in `store`. Images and VMs'
/// disks are not part of it.
#[derive(Args, Debug)]
pub(super) struct Store {
    #[command(subcommand)]
    verb: StoreVerb,
}

#[derive(Debug, Subcommand)]
enum StoreVerb {
    Check(Check),
    Export(ExportVerb),
    Import(Import),
}

/// Read everything and verify every checksum, as a start of the daemon does
///
/// Changes nothing. Exits with 0 if the store is sound, with 1 if it is damaged, and with 2 if it cannot be
/// looked at: there is none, or a daemon has it open, which has checked it then.
#[derive(Args, Debug)]
struct Check {
    #[command(flatten)]
    folder: Folder,

    /// The form of the finding
    #[arg(short, long, value_name = "FORM", default_value = "text")]
    output: Form,
}

/// Write a readable copy, as JSON
///
/// Of the running daemon's store, or of one that is closed. The copy holds the VMs' environment: keep it to
/// yourself.
#[derive(Args, Debug)]
struct ExportVerb {
    #[command(flatten)]
    folder: Folder,

    /// The copy's place, readable by you alone; by default it goes to stdout
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Make a store of a copy
///
/// In a state folder that has none, while no daemon runs on it.
#[derive(Args, Debug)]
struct Import {
    /// The copy: of `vmlet store export`, or the daemon's own `export.json`
    #[arg(value_name = "FILE")]
    file: PathBuf,

    #[command(flatten)]
    folder: Folder,

    /// Replace the store that is there; it is kept aside
    #[arg(long)]
    replace: bool,
}

#[derive(Args, Debug)]
struct Folder {
    /// The folder of the daemon's own
    #[arg(long, value_name = "DIR", env = "VMLET_STATE", default_value_os_t = config::default_state(),
        hide_default_value = true)]
    state: PathBuf,
}

impl Folder {
    fn store(&self) -> PathBuf {
        self.state.join("store")
    }
}

impl Store {
    /// Runs the verb.
    pub(super) async fn run(self, client: &Client) -> Outcome {
        match self.verb {
            StoreVerb::Check(verb) => verb.run(),
            StoreVerb::Export(verb) => verb.run(client).await,
            StoreVerb::Import(verb) => verb.run(),
        }
    }
}

impl Check {
    fn run(self) -> Outcome {
        let dir = self.folder.store();
        let closed = ClosedStore::take(&dir).map_err(refusal)?;
        let mut out = io::stdout();
        match (closed.read(), self.output) {
            (Ok(export), Form::Json) => {
                let counts = export.counts();
                writeln!(out, "{:#}", json!({"sound": true, "store": dir, "counts": counts}))?;
            }
            (Ok(export), Form::Text) => {
                writeln!(out, "sound: {} in {}", shown(export.counts()), dir.display())?;
                match closed.exported_at() {
                    Ok(Some(at)) => writeln!(out, "its readable copy, export.json, is of {at:.0}")?,
                    Ok(None) => {}
                    Err(why) => writeln!(out, "its readable copy, export.json, cannot be read: {why}")?,
                }
            }
            (Err(error @ ClosedStoreError::Damaged(_)), Form::Json) => {
                let problem = error.to_string();
                writeln!(out, "{:#}", json!({"sound": false, "store": dir, "problem": problem}))?;
                return Err(CliError::silent(1));
            }
            (Err(error), _) => return Err(refusal(error)),
        }
        Ok(())
    }
}

impl ExportVerb {
    async fn run(self, client: &Client) -> Outcome {
        let dir = self.folder.store();
        let (export, whose) = match ClosedStore::take(&dir) {
            Ok(closed) => (closed.read().map_err(refusal)?, "the closed store"),
            Err(ClosedStoreError::InUse { holder, .. }) => {
                (of_daemon(client, &dir, &holder).await?, "the daemon")
            }
            Err(other) => return Err(refusal(other)),
        };
        match self.output {
            None => {
                let mut out = io::stdout();
                export.write(&mut out)?;
                writeln!(out)?;
            }
            Some(file) => {
                let failed = |error| CliError::new(format!("{} cannot be written: {error}", file.display()));
                export.save(&file).map_err(failed)?;
                println!("exported {} of {whose} to {}", shown(export.counts()), file.display());
            }
        }
        Ok(())
    }
}

/// Asks the daemon that has the store open, and no other.
async fn of_daemon(client: &Client, dir: &Path, holder: &str) -> Result<Export, CliError> {
    let held = format!("the store in {} is in use by process {holder}", dir.display());
    let pid = client.daemon_pid().await.map_err(|error| {
        CliError::new(format!("{held}, and {error}"))
            .hint("name that daemon's socket with --socket or VMLET_HOST")
    })?;
    if pid.is_none_or(|pid| pid.to_string() != holder) {
        let pid = pid.map_or_else(|| "another one".to_owned(), |pid| format!("process {pid}"));
        let socket = client.socket().display();
        return Err(CliError::usage(format!("{held}, but the daemon on {socket} is {pid}"))
            .hint("name the socket and the state folder of one daemon with --socket and --state"));
    }
    let copy = client.bytes("/store/export").await?;
    Export::read(&copy[..])
        .map_err(|why| CliError::new(format!("the daemon's copy is not understood: {why}")))
}

impl Import {
    fn run(self) -> Outcome {
        let file = self.file.display();
        let unreadable = |why: String| CliError::new(format!("{file} is no copy of a store: {why}"));
        let opened = File::open(&self.file);
        let opened = opened.map_err(|error| CliError::usage(format!("{file} cannot be read: {error}")))?;
        let export = Export::read(opened).map_err(unreadable)?;
        let aside = import(&self.folder.store(), &export, self.replace).map_err(refusal)?;
        let (counts, dir) = (shown(export.counts()), self.folder.store());
        println!("imported {counts} into {}, as of {:.0}", dir.display(), export.taken_at());
        if let Some(aside) = aside {
            println!("the store that was there is in {}", aside.display());
        }
        Ok(())
    }
}

fn refusal(error: ClosedStoreError) -> CliError {
    let message = error.to_string();
    match error {
        ClosedStoreError::Missing(_) => {
            CliError::usage(message).hint("name the daemon's state folder with --state")
        }
        ClosedStoreError::InUse { .. } => CliError::usage(message).hint(
            "a daemon checks its store when it starts; stop it first, or copy it with `vmlet store export`",
        ),
        ClosedStoreError::Exists(_) => CliError::usage(message)
            .hint("name an empty folder with --state, or add --replace, which keeps the old store aside"),
        ClosedStoreError::Damaged(_) | ClosedStoreError::Io(_) => CliError::new(message),
    }
}

/// `2 VMs, 1 image, 1 base disk, 9 events`
fn shown(counts: Counts) -> String {
    let Counts { vms, images, disks, events } = counts;
    let words = [(vms, "VM"), (images, "image"), (disks, "base disk"), (events, "event")];
    let words = words.map(|(count, noun)| format!("{count} {noun}{}", if count == 1 { "" } else { "s" }));
    words.join(", ")
}
