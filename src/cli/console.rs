//! `vmlet console`.

use std::io::{self, IsTerminal};

use clap::Args;

use super::client::{Client, with_query};
use super::error::{CliError, Outcome};
use super::logs::print_stream;
use super::session::{self, Session};
use super::target::{Namespace, object_path, vm_name};
use crate::object::Kind;

/// Control and `]`: ends an attached session, as in telnet and virsh.
const ESCAPE: u8 = 0x1d;

/// Attach to a VM's console, or show what was written on it
///
/// On a terminal it attaches: what you type goes to the guest, and Ctrl-] ends it. Elsewhere, and
/// with --follow, it prints the console's log.
#[derive(Args, Debug)]
pub(super) struct Console {
    /// The VM
    #[arg(value_name = "NAME")]
    vm: String,

    /// Print the log, and go on as more is written
    #[arg(short, long, conflicts_with = "attach")]
    follow: bool,

    /// Attach even though stdin is not a terminal
    #[arg(long)]
    attach: bool,

    #[command(flatten)]
    namespace: Namespace,
}

impl Console {
    /// Runs the verb.
    pub(super) async fn run(self, client: &Client) -> Outcome {
        let vm = object_path(Kind::Vm, &self.namespace.namespace, vm_name(&self.vm)?);
        let path = format!("{vm}/console");
        if !self.attach && (self.follow || !io::stdin().is_terminal()) {
            let query = self.follow.then_some(("follow", "true"));
            return print_stream(client, &with_query(&path, query)).await;
        }
        let socket = client.session(&path).await?;
        let terminal = io::stdin().is_terminal();
        if terminal {
            eprintln!("Attached to the console of {}; Ctrl-] detaches.", self.vm);
        }
        let escape = terminal.then_some(ESCAPE);
        match session::run(socket, Session { stdin: true, terminal, escape }).await? {
            None => {
                eprintln!();
                Ok(())
            }
            Some(status) => Err(CliError::new(status.message)),
        }
    }
}
