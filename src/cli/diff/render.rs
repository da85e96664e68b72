//! A difference as text and as JSON.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::Findings;
use crate::cli::output::{Layout, colour};
use crate::cli::text::printable;
use crate::cli::validate::plural;
use crate::diff::{Action, Difference, ObjectDifference, Outcome};
use crate::object::{Effect, FieldChange, Kind, ObjectKey};

/// The longest part of a value that is shown, in characters.
const VALUE: usize = 60;
/// The most names in a line.
const NAMES: usize = 3;

/// What is wrong and what else there is to know, on stderr.
pub(super) fn complain(difference: &Difference, findings: &Findings) {
    for diagnostic in &findings.diagnostics {
        eprintln!("{diagnostic}\n");
    }
    for error in findings.troubles.iter().chain(&difference.refused) {
        eprintln!("error: {}", printable(error));
    }
    for note in &difference.notes {
        eprintln!("note: {}", printable(note));
    }
}

/// One line a field, one an object that appears or goes, and the sum.
pub(super) fn text(out: &mut impl Write, difference: &Difference) -> io::Result<()> {
    let lines: Vec<Vec<String>> = difference.changes.iter().flat_map(lines_of).collect();
    let colour = colour(&io::stdout());
    let mut layout = Layout::default();
    layout.fit(&lines);
    for line in &lines {
        writeln!(out, "{}", paint(layout.line(line).trim_end(), colour))?;
    }
    writeln!(out, "{}", summary(difference))
}

/// Everything, with the sums and the findings.
pub(super) fn json(difference: &Difference, findings: &Findings) -> Value {
    let mut value = json!(difference);
    let counts = Counts::of(difference);
    value["diagnostics"] = json!(findings.diagnostics);
    value["errors"] = json!(findings.troubles);
    value["summary"] = json!({
        "created": counts.created, "changed": counts.changed, "deleted": counts.deleted,
        "heldBack": counts.held_back, "restarts": difference.restarts(),
    });
    value
}

fn paint(line: &str, colour: bool) -> String {
    let code = match line.chars().next() {
        Some('+') => 32,
        Some('-') => 31,
        _ => 33,
    };
    if colour { format!("\x1b[{code}m{line}\x1b[0m") } else { line.to_owned() }
}

fn lines_of(change: &ObjectDifference) -> Vec<Vec<String>> {
    let place = format!("{}:{}", printable(&change.path.display().to_string()), change.line);
    let line = |sign: char, what: String, then: String| vec![format!("{sign} {}", change.object), what, then];
    match change.action {
        Action::Create | Action::Recreate => vec![line('+', format!("({place})"), creation(change))],
        Action::Delete { file_exists: false, .. } => {
            vec![line('-', "(file removed)".to_owned(), deletion(change))]
        }
        Action::Delete { .. } => {
            let path = change.path.display().to_string();
            vec![line('-', format!("(removed from {})", printable(&path)), deletion(change))]
        }
        Action::Update => {
            change.fields.iter().map(|field| line('~', edit(field), consequence(change, field))).collect()
        }
    }
}

/// `memory 256Mi → 512Mi`; of references that differ in their tags only the tags.
fn edit(field: &FieldChange) -> String {
    let (mut from, mut to) = (value(&field.from), value(&field.to));
    let reference = field.field == "image.oci" || field.field.ends_with(".reference");
    if let (true, Some((old, _)), Some((new, _))) = (reference, from.rsplit_once(':'), to.rsplit_once(':'))
        && old == new
    {
        let repository = old.len();
        (from, to) = (from[repository..].to_owned(), to[repository..].to_owned());
    }
    format!("{} {from} → {to}", printable(&field.field))
}

fn value(value: &Value) -> String {
    let text = match value {
        Value::Null => "(unset)".to_owned(),
        Value::String(text) if text.is_empty() => "\"\"".to_owned(),
        Value::String(text) => printable(text).into_owned(),
        other => printable(&other.to_string()).into_owned(),
    };
    match text.char_indices().nth(VALUE) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn creation(change: &ObjectDifference) -> String {
    let mut text = match change.outcome {
        Outcome::Start => "start".to_owned(),
        Outcome::Pull => "pull".to_owned(),
        _ => "not started: runPolicy is Halted".to_owned(),
    };
    if change.action == Action::Recreate {
        text.push_str(", once the former one is gone");
    }
    if change.waits_for.is_some() { format!("{text}; {}", waiting(change)) } else { text }
}

fn deletion(change: &ObjectDifference) -> String {
    match (change.action, change.outcome) {
        (Action::Delete { held_back: true, .. }, _) => "held back for now".to_owned(),
        (_, Outcome::Stop) => "stop, root disk deleted".to_owned(),
        (_, Outcome::Held) => format!("stays while {} it", names(&change.vms, "names", "name")),
        _ if change.object.kind == Kind::Image => "base disk deleted unless a VM uses it".to_owned(),
        _ => "root disk deleted".to_owned(),
    }
}

fn consequence(change: &ObjectDifference, field: &FieldChange) -> String {
    match (change.object.kind, field.top()) {
        (Kind::Image, "source") if change.vms.is_empty() => "pull".to_owned(),
        (Kind::Image, "source") => {
            format!("pull; {} onto it, root disk anew", names(&change.vms, "restarts", "restart"))
        }
        (Kind::Image, "kernel") if change.vms.is_empty() => "the kernel is made ready".to_owned(),
        (Kind::Image, "kernel") => {
            format!("the kernel is made ready; {} onto it", names(&change.vms, "restarts", "restart"))
        }
        // A VM that runs goes on as it is until then.
        (Kind::Vm, "image") if change.waits_for.is_some() => waiting(change),
        (Kind::Vm, "image") => {
            let pull = if field.field == "image.oci" && !field.to.is_null() { "pull; " } else { "" };
            format!("{pull}{}", applied(change, field))
        }
        (Kind::Vm, "runPolicy") => match change.outcome {
            Outcome::Stop => "live: it stops".to_owned(),
            Outcome::Start => "live: it starts".to_owned(),
            _ => field.effect.to_string(),
        },
        _ => applied(change, field),
    }
}

/// When a field's effect comes: at once if the VM runs.
fn applied(change: &ObjectDifference, field: &FieldChange) -> String {
    match (field.effect, change.outcome) {
        (Effect::Live | Effect::Immutable, _) => field.effect.to_string(),
        (_, Outcome::Stop) => "stop".to_owned(),
        (_, Outcome::Start) => "start".to_owned(),
        (effect, Outcome::None) => format!("{effect}: when it next starts"),
        (effect, _) => effect.to_string(),
    }
}

fn waiting(change: &ObjectDifference) -> String {
    let wait = |image: &ObjectKey| format!("waits for {image}, which does not exist");
    change.waits_for.as_ref().map(wait).unwrap_or_default()
}

/// `vm/a restarts`, `vm/a, vm/b and 3 more restart`.
fn names(vms: &[ObjectKey], one: &str, many: &str) -> String {
    let mut text: Vec<String> = vms.iter().take(NAMES).map(ToString::to_string).collect();
    if vms.len() > NAMES {
        let last = text.pop().unwrap_or_default();
        text.push(format!("{last} and {} more", vms.len() - NAMES));
    }
    format!("{} {}", text.join(", "), if vms.len() == 1 { one } else { many })
}

/// How many lines of each sort there are.
#[derive(Default)]
struct Counts {
    created: usize,
    changed: usize,
    deleted: usize,
    held_back: usize,
}

impl Counts {
    fn of(difference: &Difference) -> Counts {
        let mut counts = Counts::default();
        for change in &difference.changes {
            match change.action {
                Action::Create | Action::Recreate => counts.created += 1,
                Action::Update => counts.changed += change.fields.len(),
                Action::Delete { held_back: true, .. } => counts.held_back += 1,
                Action::Delete { .. } => counts.deleted += 1,
            }
        }
        counts
    }
}

/// `3 changed, 1 deleted; 1 VM restarts`
fn summary(difference: &Difference) -> String {
    let Counts { created, changed, deleted, held_back } = Counts::of(difference);
    let parts = [(created, "created"), (changed, "changed"), (deleted, "deleted"), (held_back, "held back")];
    let parts: Vec<String> =
        parts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    if parts.is_empty() {
        return "nothing changes".to_owned();
    }
    let restarts = difference.restarts().len();
    let verb = if restarts == 1 { "restarts" } else { "restart" };
    let then = if restarts == 0 {
        "no VM restarts".to_owned()
    } else {
        format!("{} {verb}", plural(restarts, "VM"))
    };
    format!("{}; {then}", parts.join(", "))
}
