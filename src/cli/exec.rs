//! `vmlet exec`.

use std::io::{self, IsTerminal};

use clap::Args;

use super::client::{Client, with_query};
use super::error::{CliError, Outcome};
use super::session::{self, Session};
use super::target::{Namespace, object_path, vm_name};
use crate::object::Kind;

/// Run a command in a VM; its exit code is the command's
///
/// Examples:
///   vmlet exec web -- uname -a
///   vmlet exec -it web -- sh
///   tar c site | vmlet exec -i web -- tar x -C /srv
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub(super) struct Exec {
    /// The VM
    #[arg(value_name = "NAME")]
    vm: String,

    /// Pass stdin on to the command
    #[arg(short = 'i', long)]
    stdin: bool,

    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,

    #[command(flatten)]
    namespace: Namespace,

    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

impl Exec {
    /// Runs the verb.
    pub(super) async fn run(self, client: &Client) -> Outcome {
        let terminal = self.tty && io::stdin().is_terminal();
        if self.tty && !terminal {
            eprintln!("warning: stdin is not a terminal, so the command gets none");
        }
        let vm = object_path(Kind::Vm, &self.namespace.namespace, vm_name(&self.vm)?);
        let mut query: Vec<(&str, &str)> =
            self.command.iter().map(|word| ("command", word.as_str())).collect();
        query.extend([("stdout", "true"), ("stderr", if terminal { "false" } else { "true" })]);
        query.extend(self.stdin.then_some(("stdin", "true")));
        query.extend(terminal.then_some(("tty", "true")));
        let socket = client.session(&with_query(&format!("{vm}/exec"), query)).await?;
        let session = Session { stdin: self.stdin, terminal, escape: None };
        let status = session::run(socket, session).await?.ok_or_else(|| CliError::silent(1))?;
        match (status.status.as_str(), status.cause("ExitCode").and_then(|code| code.parse::<i32>().ok())) {
            ("Success", _) => Ok(()),
            // A code that no process can have is still a failure.
            (_, Some(code)) => Err(CliError::silent(u8::try_from(code).unwrap_or(1))),
            (_, None) => Err(CliError::new(status.message)),
        }
    }
}
