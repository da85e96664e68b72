//! `vmlet describe`.

use std::io::{self, Write};

use clap::Args;
use jiff::Timestamp;
use serde_json::Value;

use super::client::{Client, JSON, TABLE};
use super::error::{CliError, Outcome};
use super::events::events_path;
use super::get::yaml;
use super::output::{Layout, print_lines, print_table};
use super::target::{Scope, Targets, object_path};
use super::text::printable;
use crate::api::types::{List, Table};
use crate::api::{DECLARED_IN, PROBLEM, age};
use crate::object::Kind;

/// Show everything about objects: declaration, state, conditions, timings, events
#[derive(Args, Debug)]
pub(super) struct Describe {
    /// KIND [NAME…] or KIND/NAME…
    #[arg(required = true)]
    targets: Vec<String>,

    #[command(flatten)]
    scope: Scope,
}

impl Describe {
    /// Runs the verb.
    pub(super) async fn run(self, client: &Client) -> Outcome {
        let mut objects: Vec<(Kind, Value)> = Vec::new();
        match Targets::parse(&self.targets)? {
            Targets::All(kinds) => {
                for kind in kinds {
                    let list: List = client.get(&self.scope.list_path(kind, &[]), JSON).await?;
                    objects.extend(list.items.into_iter().map(|object| (kind, object)));
                }
            }
            Targets::Named(_) if self.scope.all_namespaces => {
                return Err(CliError::usage("names are looked up in one namespace: drop -A"));
            }
            Targets::Named(named) => {
                for (kind, name) in named {
                    objects.push((
                        kind,
                        client.get(&object_path(kind, &self.scope.namespace, &name), JSON).await?,
                    ));
                }
            }
        }
        if objects.is_empty() {
            eprintln!("No resources found.");
        }
        let mut out = io::stdout();
        for (index, (kind, object)) in objects.iter().enumerate() {
            if index > 0 {
                writeln!(out, "\n")?;
            }
            let (namespace, name) = (text(object, "/metadata/namespace"), text(object, "/metadata/name"));
            let events: Table =
                client.get(&events_path(Some(&namespace), Some((*kind, &name))), TABLE).await?;
            describe(&mut out, object, &events)?;
        }
        Ok(())
    }
}

fn describe(out: &mut impl Write, object: &Value, events: &Table) -> Outcome {
    let now = Timestamp::now();
    let annotation =
        |name: &str| object["metadata"]["annotations"][name].as_str().unwrap_or_default().to_owned();
    field(out, "Name", &text(object, "/metadata/name"))?;
    field(out, "Namespace", &text(object, "/metadata/namespace"))?;
    field(out, "Kind", &text(object, "/kind"))?;
    field(out, "Labels", &pairs(&object["metadata"]["labels"]))?;
    field(out, "Declared in", &annotation(DECLARED_IN))?;
    field(out, "Problem", &annotation(PROBLEM))?;
    field(out, "Created", &time(object, "/metadata/creationTimestamp", now))?;
    field(out, "Deleted", &time(object, "/metadata/deletionTimestamp", now))?;
    let observed = text(object, "/status/observedGeneration");
    field(out, "Generation", &format!("{} (observed {observed})", text(object, "/metadata/generation")))?;
    field(out, "UID", &text(object, "/metadata/uid"))?;
    writeln!(out, "Spec:")?;
    for line in yaml(&object["spec"])?.lines() {
        writeln!(out, "  {line}")?;
    }
    writeln!(out, "Status:")?;
    status(out, object, now)?;
    conditions(out, object, now)?;
    if events.rows.is_empty() {
        return Ok(writeln!(out, "Events:          <none>")?);
    }
    writeln!(out, "Events:")?;
    let mut table = Vec::new();
    print_table(&mut table, &mut Layout::default(), events)?;
    indent(out, &table)
}

fn status(out: &mut impl Write, object: &Value, now: Timestamp) -> Outcome {
    let plain = [
        ("Phase", "/status/phase"),
        ("Progress", "/status/progress"),
        ("Reference", "/status/image/reference"),
        ("Digest", "/status/image/digest"),
        ("Digest", "/status/digest"),
        ("Disk", "/status/disk/path"),
        ("Disk size", "/status/disk/size"),
        ("Driver", "/status/driver"),
        ("PID", "/status/pid"),
        ("Restarts", "/status/restarts"),
    ];
    for (name, pointer) in plain {
        field(out, &format!("  {name}"), &text(object, pointer))?;
    }
    let status = &object["status"];
    let list = |value: &Value, show: &dyn Fn(&Value) -> String| -> String {
        let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
        items.iter().map(show).collect::<Vec<_>>().join(", ")
    };
    field(out, "  Addresses", &list(&status["addresses"], &|address| shown(address)))?;
    let port = |port: &Value| format!("{}:{}/{}", port["host"], port["guest"], shown(&port["protocol"]));
    field(out, "  Ports", &list(&status["ports"], &port))?;
    field(out, "  Started", &time(object, "/status/startedAt", now))?;
    if status["lastExit"].is_object() {
        let exit = &status["lastExit"];
        let code = exit["code"].as_i64().map_or_else(String::new, |code| format!(" with exit code {code}"));
        let finished = time(object, "/status/lastExit/finishedAt", now);
        field(out, "  Last exit", &format!("{}{code}, {finished}", shown(&exit["reason"])))?;
        field(out, "", &shown(&exit["message"]))?;
    }
    field(out, "  Next try", &text(object, "/status/nextRetryTime"))?;
    let steps = [
        ("image", "imageMs"),
        ("reserve", "reserveMs"),
        ("prepare", "prepareMs"),
        ("boot", "bootMs"),
        ("workload", "workloadMs"),
    ];
    let timings: Vec<String> = steps
        .iter()
        .filter_map(|(name, key)| Some(format!("{name} {} ms", status["timings"][key].as_u64()?)))
        .collect();
    field(out, "  Timings", &timings.join(", "))
}

fn conditions(out: &mut impl Write, object: &Value, now: Timestamp) -> Outcome {
    let conditions = object["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    if conditions.is_empty() {
        return Ok(writeln!(out, "Conditions:      <none>")?);
    }
    writeln!(out, "Conditions:")?;
    let mut lines: Vec<Vec<String>> =
        vec![["TYPE", "STATUS", "REASON", "AGE", "MESSAGE"].map(str::to_owned).to_vec()];
    for condition in conditions {
        let since: Option<Timestamp> =
            condition["lastTransitionTime"].as_str().and_then(|text| text.parse().ok());
        lines.push(vec![
            shown(&condition["type"]),
            shown(&condition["status"]),
            shown(&condition["reason"]),
            since.map_or_else(String::new, |since| age(since, now)),
            shown(&condition["message"]),
        ]);
    }
    let mut table = Vec::new();
    print_lines(&mut table, &mut Layout::coloured(), &lines)?;
    indent(out, &table)
}

fn indent(out: &mut impl Write, table: &[u8]) -> Outcome {
    for line in String::from_utf8_lossy(table).lines() {
        writeln!(out, "  {line}")?;
    }
    Ok(())
}

/// A named line; nothing if there is nothing to say.
fn field(out: &mut impl Write, name: &str, value: &str) -> Outcome {
    if !value.is_empty() {
        let colon = if name.is_empty() { "" } else { ":" };
        writeln!(out, "{:<17}{value}", format!("{name}{colon}"))?;
    }
    Ok(())
}

fn text(object: &Value, pointer: &str) -> String {
    object.pointer(pointer).map(shown).unwrap_or_default()
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => printable(text).into_owned(),
        other => other.to_string(),
    }
}

/// `2026-11-23T09:00:00Z (4m12s ago)`.
fn time(object: &Value, pointer: &str, now: Timestamp) -> String {
    let text = text(object, pointer);
    match text.parse::<Timestamp>() {
        Ok(since) => format!("{since:.0} ({} ago)", age(since, now)),
        Err(_) => text,
    }
}

fn pairs(map: &Value) -> String {
    let pairs = map.as_object().into_iter().flatten();
    pairs.map(|(key, value)| format!("{key}={}", shown(value))).collect::<Vec<_>>().join(", ")
}
