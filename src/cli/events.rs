//! `vmlet events`.

use std::io::{self, Write};

use clap::Args;

use super::client::{Client, TABLE, escape, with_query};
use super::error::{CliError, Outcome};
use super::feed::{Feed, News};
use super::output::{Layout, print_lines};
use super::target::Targets;
use crate::api::types::Table;
use crate::object::{DEFAULT_NAMESPACE, Kind};

/// Show what happened, oldest first
#[derive(Args, Debug)]
pub(super) struct Events {
    /// Only events of this object
    #[arg(long = "for", value_name = "KIND/NAME")]
    object: Option<String>,

    /// Go on with events as they happen
    #[arg(short, long)]
    watch: bool,

    /// The namespace
    #[arg(short, long, value_name = "NAMESPACE", default_value = DEFAULT_NAMESPACE)]
    namespace: String,

    /// All namespaces
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
}

impl Events {
    /// Runs the verb.
    pub(super) async fn run(self, client: &Client) -> Outcome {
        let namespace = (!self.all_namespaces).then_some(self.namespace.as_str());
        let object = match &self.object {
            None => None,
            Some(word) => match Targets::parse(std::slice::from_ref(word))? {
                Targets::Named(named) => named.into_iter().next(),
                Targets::All(_) => return Err(CliError::usage("--for takes KIND/NAME, for example vm/web")),
            },
        };
        let path = events_path(namespace, object.as_ref().map(|(kind, name)| (*kind, name.as_str())));
        let mut layout = Layout::coloured();
        layout.namespace = self.all_namespaces;
        let mut feed = Feed::new(client, path, TABLE);
        let mut out = io::stdout();
        let mut headed = false;
        loop {
            let (News::Listed(table) | News::Changed(_, table)) = feed.next().await?;
            let table: Table = serde_json::from_value(table)
                .map_err(|error| CliError::new(format!("the daemon sent no table: {error}")))?;
            layout.learn(&table);
            let header = (!headed && !table.rows.is_empty()).then(|| layout.header());
            headed |= header.is_some();
            let rows = table.rows.iter().map(|row| layout.cells(row));
            let lines: Vec<_> = header.into_iter().chain(rows).collect();
            print_lines(&mut out, &mut layout, &lines)?;
            out.flush()?;
            if !self.watch {
                if !headed {
                    eprintln!("No events found.");
                }
                return Ok(());
            }
        }
    }
}

/// The path of a list of events.
pub(super) fn events_path(namespace: Option<&str>, object: Option<(Kind, &str)>) -> String {
    let path = namespace.map_or_else(
        || "/api/v1/events".to_owned(),
        |namespace| format!("/api/v1/namespaces/{}/events", escape(namespace)),
    );
    let fields = object.map(|(kind, name)| format!("involvedObject.kind={kind},involvedObject.name={name}"));
    with_query(&path, fields.iter().map(|fields| ("fieldSelector", fields.as_str())))
}
