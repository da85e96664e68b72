//! `vmlet schema`.

use std::io::Write;

use clap::Args;

use super::error::{CliError, Outcome};
use crate::manifest;
use crate::object::Kind;

/// Print the JSON schemas of the manifests, for editors and checks
#[derive(Args, Debug)]
pub(super) struct Schema {
    /// The kind: vm or image; both when absent
    kind: Option<String>,

    /// As Kubernetes CustomResourceDefinitions
    #[arg(long)]
    crd: bool,
}

impl Schema {
    /// Runs the verb.
    pub(super) fn run(self) -> Outcome {
        let kinds = match &self.kind {
            Some(kind) => vec![kind.parse().map_err(CliError::usage)?],
            None => Kind::ALL.to_vec(),
        };
        let one = |kind: &Kind| if self.crd { manifest::crd(*kind) } else { manifest::schema(*kind) };
        let document = match (kinds.as_slice(), self.crd) {
            ([kind], _) => one(kind),
            (kinds, true) => {
                let items: Vec<_> = kinds.iter().map(one).collect();
                serde_json::json!({"apiVersion": "v1", "kind": "List", "items": items})
            }
            (kinds, false) => {
                let any: Vec<_> = kinds.iter().map(one).collect();
                serde_json::json!({"oneOf": any})
            }
        };
        writeln!(std::io::stdout(), "{document:#}")?;
        Ok(())
    }
}
