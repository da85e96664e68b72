//! `vmlet completions`.

use std::io::Write;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Cli;
use super::error::Outcome;

/// Print a completion script for a shell
///
/// For example: vmlet completions bash > /etc/bash_completion.d/vmlet
#[derive(Args, Debug)]
pub(super) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    /// Runs the verb.
    pub(super) fn run(self) -> Outcome {
        // Generated into memory first: the generator panics when stdout does not take it.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "vmlet", &mut script);
        std::io::stdout().write_all(&script)?;
        Ok(())
    }
}
