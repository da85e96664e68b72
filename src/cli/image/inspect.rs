//! `vmlet image inspect`.

use std::io::{self, Write};

use clap::Args;
use serde_json::{Value, json};

use super::find::{find, missing};
use super::report;
use crate::cli::client::{Client, JSON};
use crate::cli::error::{CliError, Outcome};
use crate::cli::target::{Namespace, object_path};
use crate::object::Kind;

/// Show all that is known of a base disk, as JSON
///
/// Examples:
///   vmlet image inspect debian:12
///   vmlet image inspect 3f2a91
///   vmlet image inspect image/debian
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub(super) struct Inspect {
    /// A reference, a digest or its first six digits, or image/NAME for what an Image object stands for
    #[arg(value_name = "REFERENCE|DIGEST|image/NAME")]
    image: String,

    #[command(flatten)]
    namespace: Namespace,
}

impl Inspect {
    pub(super) async fn run(self, client: &Client) -> Outcome {
        let word = match self.image.strip_prefix("image/") {
            Some(name) => digest_of(client, &self.namespace.namespace, name).await?,
            None => self.image.clone(),
        };
        let report = report(client).await?;
        let disk = find(&report, &word)?.ok_or_else(|| missing(&self.image))?;
        writeln!(io::stdout(), "{:#}", json!(disk))?;
        Ok(())
    }
}

/// What an Image object stands for.
async fn digest_of(client: &Client, namespace: &str, name: &str) -> Result<String, CliError> {
    let object: Value = client.get(&object_path(Kind::Image, namespace, name), JSON).await?;
    object["status"]["digest"].as_str().map(ToOwned::to_owned).ok_or_else(|| {
        CliError::new(format!("image/{name} is not resolved yet"))
            .hint(format!("`vmlet why image/{name}` says what it waits for"))
    })
}
