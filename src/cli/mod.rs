//! The command line: one verb a file. The doc comments of arguments are their help.
//!
//! Verbs talk to the daemon over its socket, as any client does; `validate`, `simulate`, `doctor`,
//! `schema` and `completions` need none. Exit codes: 0 done, 1 failure, 2 wrong use; `exec` gives its command's.

mod client;
mod completions;
mod console;
mod daemon;
mod delete;
mod describe;
mod diff;
mod doctor;
mod error;
mod events;
mod exec;
mod feed;
mod get;
mod image;
mod live;
mod logs;
mod output;
mod schema;
mod session;
mod simulate;
mod store;
mod target;
mod terminal;
mod text;
mod timeline;
mod validate;
mod version;
mod wait;
mod why;

#[cfg(test)]
mod tests;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::config::default_socket;
use client::Client;
use error::{CliError, Outcome};

/// A kubelet for microVMs: drop VM and Image manifests into a folder, get running VMs.
#[derive(Debug, Parser)]
#[command(
    name = "vmlet",
    version,
    propagate_version = false,
    disable_help_subcommand = true,
    max_term_width = 100
)]
struct Cli {
    /// The daemon's socket, a path or unix://PATH [default: /run/vmlet/vmlet.sock as root, else
    /// $XDG_RUNTIME_DIR/vmlet/vmlet.sock]
    #[arg(long, global = true, value_name = "PATH", env = "VMLET_HOST", hide_env_values = true)]
    socket: Option<String>,

    /// Say more about what is done; twice says all
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,

    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Get(get::Get),
    Describe(describe::Describe),
    Why(why::Why),
    Logs(logs::Logs),
    Console(console::Console),
    Exec(exec::Exec),
    Events(events::Events),
    Timeline(timeline::Draw),
    Wait(wait::Wait),
    Delete(delete::Delete),
    Image(image::Image),
    Validate(validate::Validate),
    Diff(diff::Diff),
    Simulate(simulate::Simulate),
    Schema(schema::Schema),
    Daemon(Box<daemon::Daemon>),
    Store(store::Store),
    Doctor(doctor::Doctor),
    Completions(completions::Completions),
    Version(version::Version),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error.print();
            ExitCode::from(error.code)
        }
    }
}

fn run(cli: Cli) -> Outcome {
    let socket = cli.socket.unwrap_or_else(|| default_socket().display().to_string());
    let client = Client::new(&socket);
    if let Verb::Daemon(daemon) = cli.verb {
        return daemon.run(client.socket(), cli.verbose);
    }
    let level = ["warn", "info", "trace"][usize::from(cli.verbose.min(2))];
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(level))
        .with_ansi(output::colour(&std::io::stderr()))
        .with_writer(std::io::stderr)
        .init();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::new(format!("cannot start: {error}")))?;
    let outcome = runtime.block_on(dispatch(cli.verb, &client));
    // A read of stdin may still wait for a key that nobody will press.
    runtime.shutdown_background();
    outcome
}

async fn dispatch(verb: Verb, client: &Client) -> Outcome {
    match verb {
        Verb::Get(verb) => verb.run(client).await,
        Verb::Describe(verb) => verb.run(client).await,
        Verb::Why(verb) => verb.run(client).await,
        Verb::Logs(verb) => verb.run(client).await,
        Verb::Console(verb) => verb.run(client).await,
        Verb::Exec(verb) => verb.run(client).await,
        Verb::Events(verb) => verb.run(client).await,
        Verb::Timeline(verb) => verb.run(client).await,
        Verb::Wait(verb) => verb.run(client).await,
        Verb::Delete(verb) => verb.run(client).await,
        Verb::Image(verb) => verb.run(client).await,
        Verb::Validate(verb) => verb.run(),
        Verb::Diff(verb) => verb.run(client).await,
        Verb::Simulate(verb) => verb.run(),
        Verb::Schema(verb) => verb.run(),
        Verb::Store(verb) => verb.run(client).await,
        Verb::Doctor(verb) => verb.run().await,
        Verb::Completions(verb) => verb.run(),
        Verb::Version(verb) => verb.run(client).await,
        Verb::Daemon(_) => unreachable!("the daemon has a runtime of its own"),
    }
}
