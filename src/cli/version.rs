//! `vmlet version`.

use std::io::Write;

use clap::Args;

use super::client::{Client, JSON};
use super::error::Outcome;
use crate::api::types::VersionInfo;

/// Show the versions of this program and of the daemon
#[derive(Args, Debug)]
pub(super) struct Version {}

impl Version {
    /// Runs the verb. A daemon that does not run is no failure.
    pub(super) async fn run(self, client: &Client) -> Outcome {
        let mut out = std::io::stdout();
        writeln!(out, "vmlet:  v{}", env!("CARGO_PKG_VERSION"))?;
        match client.get::<VersionInfo>("/version", JSON).await {
            Ok(info) => writeln!(out, "daemon: {} ({})", info.git_version, info.platform)?,
            Err(error) => writeln!(out, "daemon: {error}")?,
        }
        Ok(())
    }
}
