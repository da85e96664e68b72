//! `vmlet get`.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};

use clap::{Args, ValueEnum};
use indicatif::ProgressDrawTarget;
use serde_json::{Value, json};

use super::client::{Client, JSON, TABLE};
use super::error::{CliError, Outcome};
use super::feed::{Feed, News};
use super::live::{Board, Sign, doing};
use super::output::{Layout, print_lines, print_table};
use super::target::{Scope, Targets, object_path};
use crate::api::types::{List, Row, Table, WatchKind};
use crate::object::Kind;

/// List objects, or show some of them
///
/// Examples:
///   vmlet get vms
///   vmlet get all -A -o wide
///   vmlet get vm web -o yaml
///   vmlet get vms -l tier=front -w
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub(super) struct Get {
    /// KIND [NAME…], KIND/NAME… or all; the kinds are vms and images
    #[arg(required = true)]
    targets: Vec<String>,

    /// The form of the output
    #[arg(short, long, value_name = "FORM", default_value = "table")]
    output: Format,

    /// Go on with changes as they happen
    #[arg(short, long)]
    watch: bool,

    #[command(flatten)]
    scope: Scope,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// The usual columns
    Table,
    /// All columns
    Wide,
    /// The objects as JSON
    Json,
    /// The objects as YAML, which is a valid manifest
    Yaml,
    /// KIND/NAME, one a line
    Name,
}

impl Format {
    fn is_table(self) -> bool {
        matches!(self, Format::Table | Format::Wide)
    }
}

impl Get {
    /// Runs the verb.
    pub(super) async fn run(self, client: &Client) -> Outcome {
        let targets = Targets::parse(&self.targets)?;
        if let Targets::Named(_) = targets {
            if self.scope.all_namespaces {
                return Err(CliError::usage("names are looked up in one namespace: drop -A"));
            }
            if !self.scope.selector.is_empty() {
                return Err(CliError::usage("name objects or select them by labels, not both"));
            }
        }
        if self.watch {
            return self.watch(client, &targets).await;
        }
        if self.output.is_table() {
            self.tables(client, &targets).await
        } else {
            self.objects(client, &targets).await
        }
    }

    fn layout(&self) -> Layout {
        let mut layout = Layout::coloured();
        layout.wide = self.output == Format::Wide;
        layout.namespace = self.scope.all_namespaces;
        layout
    }

    async fn tables(&self, client: &Client, targets: &Targets) -> Outcome {
        let mut problem = None;
        let tables = match targets {
            Targets::All(kinds) => {
                let mut tables = Vec::new();
                for kind in kinds {
                    tables.push((*kind, client.get(&self.scope.list_path(*kind, &[]), TABLE).await?));
                }
                tables
            }
            Targets::Named(named) => {
                let mut tables: BTreeMap<Kind, Table> = BTreeMap::new();
                for (kind, name) in named {
                    let path = object_path(*kind, &self.scope.namespace, name);
                    match client.get::<Table>(&path, TABLE).await {
                        Ok(table) => match tables.get_mut(kind) {
                            Some(earlier) => earlier.rows.extend(table.rows),
                            None => drop(tables.insert(*kind, table)),
                        },
                        Err(error) => keep(&mut problem, error),
                    }
                }
                tables.into_iter().rev().collect()
            }
        };
        let filled: Vec<_> = tables.iter().filter(|(_, table)| !table.rows.is_empty()).collect();
        if filled.is_empty() && problem.is_none() {
            self.nothing();
        }
        let mut out = io::stdout();
        for (index, (kind, table)) in filled.iter().enumerate() {
            let mut layout = self.layout();
            if tables.len() > 1 {
                layout.prefix = format!("{}/", kind.singular());
            }
            if index > 0 {
                writeln!(out)?;
            }
            print_table(&mut out, &mut layout, table)?;
        }
        problem.map_or(Ok(()), Err)
    }

    /// Said on stderr, so that a program that reads stdout finds it empty.
    fn nothing(&self) {
        match self.scope.all_namespaces {
            true => eprintln!("No resources found."),
            false => eprintln!("No resources found in {} namespace.", self.scope.namespace),
        }
    }

    async fn objects(&self, client: &Client, targets: &Targets) -> Outcome {
        let mut problem = None;
        let mut items: Vec<Value> = Vec::new();
        match targets {
            Targets::All(kinds) => {
                for kind in kinds {
                    let list: List = client.get(&self.scope.list_path(*kind, &[]), JSON).await?;
                    items.extend(list.items);
                }
            }
            Targets::Named(named) => {
                for (kind, name) in named {
                    let object = client.get(&object_path(*kind, &self.scope.namespace, name), JSON).await;
                    object.map_or_else(|error| keep(&mut problem, error), |object| items.push(object));
                }
            }
        }
        let alone = matches!(targets, Targets::Named(named) if named.len() == 1);
        let mut out = io::stdout();
        if self.output == Format::Name {
            items.iter().try_for_each(|object| self.print(&mut out, object))?;
        } else if alone {
            items.first().map_or(Ok(()), |object| self.print(&mut out, object))?;
        } else {
            let list = json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": items});
            self.print(&mut out, &list)?;
        }
        problem.map_or(Ok(()), Err)
    }

    fn print(&self, out: &mut impl Write, object: &Value) -> Result<(), CliError> {
        match self.output {
            Format::Name => writeln!(out, "{}", full_name(object))?,
            Format::Yaml => write!(out, "{}", yaml(object)?)?,
            _ => writeln!(out, "{object:#}")?,
        }
        Ok(())
    }

    async fn watch(&self, client: &Client, targets: &Targets) -> Outcome {
        let path = match targets {
            Targets::All(kinds) if kinds.len() == 1 => self.watch_path(kinds[0], &[]),
            Targets::Named(named) if named.len() == 1 => {
                let field = format!("metadata.name={}", named[0].1);
                self.watch_path(named[0].0, &[("fieldSelector", &field)])
            }
            _ => {
                return Err(CliError::usage("one kind, or one object, can be watched at a time")
                    .hint("for example: vmlet get vms -w"));
            }
        };
        if !self.output.is_table() {
            return self.watch_objects(Feed::new(client, path, JSON)).await;
        }
        let feed = Feed::new(client, path, TABLE);
        if io::stdout().is_terminal() { self.watch_live(feed).await } else { self.watch_lines(feed).await }
    }

    fn watch_path(&self, kind: Kind, query: &[(&str, &str)]) -> String {
        // The live view shows progress, which is no column.
        let include: &[(&str, &str)] =
            if self.output.is_table() { &[("includeObject", "Object")] } else { &[] };
        self.scope.list_path(kind, &[query, include].concat())
    }

    async fn watch_objects(&self, mut feed: Feed) -> Outcome {
        let mut out = io::stdout();
        loop {
            let objects = match feed.next().await? {
                News::Listed(list) => list["items"].as_array().cloned().unwrap_or_default(),
                News::Changed(_, object) => vec![object],
            };
            for object in &objects {
                if self.output == Format::Yaml {
                    writeln!(out, "---")?;
                }
                self.print(&mut out, object)?;
            }
            out.flush()?;
        }
    }

    /// A line for each change, as kubectl prints them.
    async fn watch_lines(&self, mut feed: Feed) -> Outcome {
        let mut layout = self.layout();
        let mut out = io::stdout();
        let mut headed = false;
        loop {
            let table = table(feed.next().await?)?.1;
            layout.learn(&table);
            let header = (!headed && !table.rows.is_empty()).then(|| layout.header());
            headed |= header.is_some();
            let lines: Vec<_> =
                header.into_iter().chain(table.rows.iter().map(|row| layout.cells(row))).collect();
            print_lines(&mut out, &mut layout, &lines)?;
            out.flush()?;
        }
    }

    /// A line for each object, which changes in place.
    async fn watch_live(&self, mut feed: Feed) -> Outcome {
        let mut view = LiveTable {
            layout: self.layout(),
            board: Board::new(ProgressDrawTarget::stdout()),
            rows: BTreeMap::new(),
        };
        loop {
            let (kind, table) = table(feed.next().await?)?;
            view.apply(kind, &table);
        }
    }
}

struct LiveTable {
    layout: Layout,
    board: Board,
    rows: BTreeMap<String, (Vec<String>, String, Sign)>,
}

impl LiveTable {
    fn apply(&mut self, kind: Option<WatchKind>, table: &Table) {
        self.layout.learn(table);
        let named: Vec<(String, &Row)> = table.rows.iter().map(|row| (row_key(row), row)).collect();
        if kind.is_none() {
            let gone = |key: &String| !named.iter().any(|(name, _)| name == key);
            let gone: Vec<String> = self.rows.keys().filter(|key| gone(key)).cloned().collect();
            gone.iter().for_each(|key| self.remove(key));
        }
        for (key, row) in named {
            if kind == Some(WatchKind::Deleted) {
                self.remove(&key);
                continue;
            }
            let (text, sign) = doing(&row.object);
            let progress = text.split_once(": ").map(|(_, progress)| progress.to_owned()).unwrap_or_default();
            self.rows.insert(key, (self.layout.cells(row), progress, sign));
        }
        let header = self.layout.header();
        self.layout.fit(std::iter::once(&header).chain(self.rows.values().map(|(cells, ..)| cells)));
        // A space sorts before every name.
        self.board.set(" ", self.layout.line(&header), Sign::Still);
        for (key, (cells, progress, sign)) in &self.rows {
            let line = format!("{}   {progress}", self.layout.line(cells));
            self.board.set(key, line.trim_end().to_owned(), *sign);
        }
    }

    fn remove(&mut self, key: &str) {
        self.rows.remove(key);
        self.board.remove(key);
    }
}

fn row_key(row: &Row) -> String {
    let metadata = &row.object["metadata"];
    let part = |name: &str| metadata[name].as_str().unwrap_or_default().to_owned();
    format!("{}/{}", part("namespace"), part("name"))
}

/// The table in the news, and what happened to its rows; none if it is the whole list.
fn table(news: News) -> Result<(Option<WatchKind>, Table), CliError> {
    let (kind, value) = match news {
        News::Listed(list) => (None, list),
        News::Changed(kind, object) => (Some(kind), object),
    };
    let table = serde_json::from_value(value);
    let table = table.map_err(|error| CliError::new(format!("the daemon sent no table: {error}")))?;
    Ok((kind, table))
}

/// `vm/web`.
fn full_name(object: &Value) -> String {
    let kind = object["kind"].as_str().unwrap_or_default().to_ascii_lowercase();
    format!("{kind}/{}", object["metadata"]["name"].as_str().unwrap_or_default())
}

/// An object as YAML.
///
/// # Errors
/// Never for API objects, whose maps have text keys.
pub(super) fn yaml(object: &Value) -> Result<String, CliError> {
    serde_yaml::to_string(object)
        .map_err(|error| CliError::new(format!("cannot be written as YAML: {error}")))
}

/// Keeps an error for the end, and prints the one kept before.
fn keep(kept: &mut Option<CliError>, error: CliError) {
    if let Some(earlier) = kept.replace(error) {
        earlier.print();
    }
}
