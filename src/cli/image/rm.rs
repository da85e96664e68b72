//! `vmlet image rm`.

use clap::Args;

use super::find::{find, missing};
use super::report;
use crate::cli::client::{Client, escape};
use crate::cli::error::{CliError, Outcome};
use crate::object::Bytes;
use crate::storage::Removed;

/// Remove base disks that nothing refers to
///
/// One that an Image object or a VM refers to is refused: remove that object's manifest first.
#[derive(Args, Debug)]
#[command(visible_alias = "remove")]
pub(super) struct Rm {
    /// References, digests, or their first six digits
    #[arg(required = true, value_name = "REFERENCE|DIGEST")]
    images: Vec<String>,

    /// Do not fail for what is not there
    #[arg(long)]
    ignore_not_found: bool,
}

impl Rm {
    pub(super) async fn run(self, client: &Client) -> Outcome {
        let report = report(client).await?;
        let mut problem: Option<CliError> = None;
        for word in &self.images {
            let removed = match find(&report, word) {
                Ok(None) if self.ignore_not_found => continue,
                Ok(None) => Err(missing(word)),
                Ok(Some(disk)) => {
                    client
                        .remove::<Removed>(&format!("/storage/disks/{}", escape(&disk.digest.to_string())))
                        .await
                }
                Err(error) => Err(error),
            };
            match removed {
                Ok(removed) => println!("{} removed ({})", removed.digest, Bytes(removed.allocated)),
                Err(error) => {
                    if let Some(earlier) = problem.replace(error) {
                        earlier.print();
                    }
                }
            }
        }
        problem.map_or(Ok(()), Err)
    }
}
