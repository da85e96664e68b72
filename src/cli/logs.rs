//! `vmlet logs`.

use std::io::{self, Write};

use clap::Args;

use super::client::{Client, with_query};
use super::error::Outcome;
use super::target::{Namespace, object_path, vm_name};
use crate::object::Kind;

/// Show what a VM's workload writes on its stdout and stderr
#[derive(Args, Debug)]
pub(super) struct Logs {
    /// The VM
    #[arg(value_name = "NAME")]
    vm: String,

    /// Go on as more is written
    #[arg(short, long)]
    follow: bool,

    /// Only so many of the last lines
    #[arg(long, value_name = "N")]
    tail: Option<u64>,

    /// The log before the current one, if it was rotated
    #[arg(short, long, conflicts_with = "follow")]
    previous: bool,

    #[command(flatten)]
    namespace: Namespace,
}

impl Logs {
    /// Runs the verb.
    pub(super) async fn run(self, client: &Client) -> Outcome {
        let tail = self.tail.map(|lines| lines.to_string());
        let mut query = Vec::new();
        query.extend(self.follow.then_some(("follow", "true")));
        query.extend(self.previous.then_some(("previous", "true")));
        query.extend(tail.as_deref().map(|lines| ("tailLines", lines)));
        let vm = object_path(Kind::Vm, &self.namespace.namespace, vm_name(&self.vm)?);
        print_stream(client, &with_query(&format!("{vm}/log"), query)).await
    }
}

/// Prints an answer as it comes, byte for byte.
pub(super) async fn print_stream(client: &Client, path: &str) -> Outcome {
    let mut stream = client.stream(path, "*/*").await?;
    let mut out = io::stdout();
    while let Some(chunk) = stream.chunk().await? {
        out.write_all(&chunk)?;
        out.flush()?;
    }
    Ok(())
}
