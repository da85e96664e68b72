//! `vmlet daemon`.

use std::path::Path;

use clap::Args;
use tracing_subscriber::EnvFilter;

use super::error::{CliError, Outcome};
use super::output;
use crate::config::{LogFormat, Settings};

/// Run the daemon: keep VMs and images as the manifests say
///
/// It runs in the foreground until SIGTERM or SIGINT. VMs go on running when it ends, and the next
/// daemon takes them over. Its log is on stderr; RUST_LOG chooses what is in it.
#[derive(Args, Debug)]
pub(super) struct Daemon {
    #[command(flatten)]
    settings: Settings,
}

impl Daemon {
    /// Runs it until it is asked to stop.
    pub(super) fn run(self, socket: &Path, verbose: u8) -> Outcome {
        let mut settings = self.settings;
        settings.socket = socket.to_owned();
        let level = ["info", "info,vmlet=debug", "debug"][usize::from(verbose.min(2))];
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
        let colour = output::colour(&std::io::stderr());
        let log =
            tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colour).with_writer(std::io::stderr);
        match settings.log_format {
            LogFormat::Text => log.init(),
            LogFormat::Json => log.json().init(),
        }
        let runtime = tokio::runtime::Runtime::new()
            .map_err(|error| CliError::new(format!("cannot start: {error}")))?;
        runtime.block_on(crate::daemon::run(settings)).map_err(|error| CliError::new(format!("{error:#}")))
    }
}
