//! `vmlet delete`.

use std::io::Write;

use clap::Args;

use super::client::Client;
use super::error::{CliError, Outcome};
use super::target::{Namespace, Targets, object_path};

/// Delete objects; those that files declare are deleted by removing them there
///
/// The daemon never writes manifests, so it refuses and names the file to edit. What is left of a manifests
/// folder that it does not read any more is deleted here.
#[derive(Args, Debug)]
pub(super) struct Delete {
    /// KIND NAME… or KIND/NAME…
    #[arg(required = true)]
    targets: Vec<String>,

    #[command(flatten)]
    namespace: Namespace,
}

impl Delete {
    /// Runs the verb.
    pub(super) async fn run(self, client: &Client) -> Outcome {
        let Targets::Named(named) = Targets::parse(&self.targets)? else {
            return Err(
                CliError::usage("name the objects to delete").hint("for example: vmlet delete vm/web")
            );
        };
        let mut failed = None;
        for (kind, name) in named {
            match client.delete(&object_path(kind, &self.namespace.namespace, &name)).await {
                Ok(()) => writeln!(std::io::stdout(), "{}/{name} deleted", kind.singular())?,
                Err(error) => {
                    // The last one is printed by the caller.
                    if let Some(earlier) = failed.replace(error) {
                        earlier.print();
                    }
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }
}
