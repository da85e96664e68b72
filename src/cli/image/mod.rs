//! `vmlet image`: the base disks of a host, one verb a file.

mod df;
mod find;
mod inspect;
mod ls;
mod prune;
mod pull;
mod rm;
#[cfg(test)]
mod tests;

use clap::{Args, Subcommand};

use super::client::{Client, JSON};
use super::error::{CliError, Outcome};
use crate::image::Digest;
use crate::storage::Report;

/// Base disks: list, pull, remove, and what takes disk space
///
/// A base disk is made of an image once, and shared by all VMs that run it. What no Image object and no VM
/// refers to is kept for a while (the daemon's --image-grace), less when the disk is nearly full.
#[derive(Args, Debug)]
pub(super) struct Image {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Ls(ls::Ls),
    Pull(pull::Pull),
    Inspect(inspect::Inspect),
    Rm(rm::Rm),
    Prune(prune::Prune),
    Df(df::Df),
}

impl Image {
    /// Runs the verb.
    pub(super) async fn run(self, client: &Client) -> Outcome {
        match self.verb {
            Verb::Ls(verb) => verb.run(client).await,
            Verb::Pull(verb) => verb.run(client).await,
            Verb::Inspect(verb) => verb.run(client).await,
            Verb::Rm(verb) => verb.run(client).await,
            Verb::Prune(verb) => verb.run(client).await,
            Verb::Df(verb) => verb.run(client).await,
        }
    }
}

async fn report(client: &Client) -> Result<Report, CliError> {
    client.get("/storage", JSON).await
}

/// A digest's first twelve digits: enough to tell disks apart, and to name one.
fn short(digest: &Digest) -> String {
    let text = digest.to_string();
    let digits = text.split_once(':').map_or(text.as_str(), |(_, digits)| digits);
    digits.chars().take(12).collect()
}
