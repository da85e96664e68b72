//! `vmlet why`.

use std::io::{self, Write};

use clap::Args;
use jiff::Timestamp;
use serde_json::json;

use super::client::{Client, JSON};
use super::error::{CliError, Outcome};
use super::output::Form;
use super::target::{Namespace, Targets, object_path};
use super::text::printable;
use crate::api::age;
use crate::api::types::{self, Blocker, Happened};

/// Say why objects are as they are: what they wait for, the last error, what comes next
#[derive(Args, Debug)]
pub(super) struct Why {
    /// KIND NAME… or KIND/NAME…
    #[arg(required = true)]
    targets: Vec<String>,

    #[command(flatten)]
    namespace: Namespace,

    /// The form of the answer
    #[arg(short, long, value_name = "FORM", default_value = "text")]
    output: Form,
}

impl Why {
    /// Runs the verb.
    pub(super) async fn run(self, client: &Client) -> Outcome {
        let Targets::Named(named) = Targets::parse(&self.targets)? else {
            return Err(CliError::usage("name the objects to explain").hint("for example: vmlet why vm/web"));
        };
        let mut answers: Vec<types::Why> = Vec::new();
        for (kind, name) in named {
            let path = format!("{}/why", object_path(kind, &self.namespace.namespace, &name));
            answers.push(client.get(&path, JSON).await?);
        }
        let mut out = io::stdout();
        match (self.output, answers.as_slice()) {
            (Form::Json, [one]) => writeln!(out, "{:#}", json!(one))?,
            (Form::Json, many) => writeln!(out, "{:#}", json!(many))?,
            (Form::Text, many) => {
                for why in many {
                    explain(&mut out, why, Timestamp::now())?;
                }
            }
        }
        Ok(())
    }
}

fn explain(out: &mut impl Write, why: &types::Why, now: Timestamp) -> io::Result<()> {
    let ready = if why.ready { "Ready" } else { "not Ready" };
    let shared = match why.shared_with.as_slice() {
        [] => String::new(),
        others => format!(", shared with {}", others.join(", ")),
    };
    writeln!(out, "{} is {ready}: {}{shared}", why.object, printable(&why.message))?;
    let seen = why.seen.map(|seen| format!(", seen {} ago", age(seen, now))).unwrap_or_default();
    let behind = if why.observed_generation == why.generation { "" } else { " (not acted upon yet)" };
    let declared = format!("{}, generation {}{behind}{seen}", why.declared, why.generation);
    line(out, "declared", &declared)?;
    line(out, "problem", why.problem.as_deref().unwrap_or_default())?;
    line(out, "reserved", &why.reserved.join(", "))?;
    line(out, "last step", &why.last_step.as_ref().map(|step| happened(step, now)).unwrap_or_default())?;
    for blocker in &why.blocked_by {
        line(out, "blocked by", &blocked(blocker, &why.message, now))?;
    }
    line(out, "last error", &why.last_error.as_ref().map(|error| happened(error, now)).unwrap_or_default())?;
    line(out, "next try", &why.next_try.map(|next| until(next, now)).unwrap_or_default())?;
    line(out, "then", &why.then.join(", "))
}

/// A named line; nothing if there is nothing to say.
fn line(out: &mut impl Write, name: &str, text: &str) -> io::Result<()> {
    if text.is_empty() { Ok(()) } else { writeln!(out, "  {name:<12}{}", printable(text)) }
}

/// `Started: the VMM runs, 8s ago`
fn happened(event: &Happened, now: Timestamp) -> String {
    let times = if event.count > 1 { format!(" ({} times)", event.count) } else { String::new() };
    format!("{}: {}{times}, {} ago", event.reason, event.message, age(event.at, now))
}

/// Without the sentence that stands above already.
fn blocked(blocker: &Blocker, said: &str, now: Timestamp) -> String {
    let mut text = blocker.what.clone();
    if blocker.message != said {
        text.push_str(&format!(": {}", blocker.message));
    }
    if let Some(error) = &blocker.last_error
        && error.message != blocker.message
    {
        text.push_str(&format!(", after {:?} {} ago", error.message, age(error.at, now)));
    }
    if let Some(next) = blocker.next_try {
        text.push_str(&format!(", next try {}", until(next, now)));
    }
    text
}

fn until(next: Timestamp, now: Timestamp) -> String {
    if next <= now { "at once".to_owned() } else { format!("in {}", age(now, next)) }
}
