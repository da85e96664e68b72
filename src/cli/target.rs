//! Which objects a verb is about: `vms`, `vm web db`, `vm/web image/debian`, `all`.

use clap::Args;

use super::client::{escape, with_query};
use super::error::CliError;
use crate::object::{API_VERSION, DEFAULT_NAMESPACE, Kind};

/// The namespace that a verb looks into.
#[derive(Args, Clone, Debug)]
pub(super) struct Namespace {
    /// The namespace
    #[arg(short, long, value_name = "NAMESPACE", default_value = DEFAULT_NAMESPACE)]
    pub(super) namespace: String,
}

/// The objects that a verb looks at.
#[derive(Args, Clone, Debug)]
pub(super) struct Scope {
    /// The namespace
    #[arg(short, long, value_name = "NAMESPACE", default_value = DEFAULT_NAMESPACE)]
    pub(super) namespace: String,

    /// All namespaces
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub(super) all_namespaces: bool,

    /// Only objects with these labels: tier=front, tier!=back, 'tier in (a,b)', 'tier notin (a,b)', tier, !tier
    #[arg(short = 'l', long, value_name = "LABELS", default_value = "", hide_default_value = true)]
    pub(super) selector: String,
}

impl Scope {
    /// The path of a list of a kind, with its query.
    pub(super) fn list_path(&self, kind: Kind, query: &[(&str, &str)]) -> String {
        let namespace = (!self.all_namespaces).then_some(self.namespace.as_str());
        let labels = Some(("labelSelector", self.selector.as_str())).filter(|_| !self.selector.is_empty());
        with_query(&list_path(kind, namespace), labels.into_iter().chain(query.iter().copied()))
    }
}

/// What was named on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Targets {
    /// Every object of these kinds.
    All(Vec<Kind>),
    /// These objects, in this order.
    Named(Vec<(Kind, String)>),
}

impl Targets {
    /// Reads `all`, `KIND`, `KIND NAME…` and `KIND/NAME…`.
    ///
    /// # Errors
    /// With exit code 2, when the words are of no such form.
    pub(super) fn parse(words: &[String]) -> Result<Targets, CliError> {
        let Some(first) = words.first() else {
            return Err(CliError::usage("name what to look at")
                .hint("for example: vms, images, all, vm web, vm/web image/debian"));
        };
        if words.iter().any(|word| word.contains('/')) {
            return words.iter().map(|word| named(word)).collect::<Result<_, _>>().map(Targets::Named);
        }
        if first == "all" && words.len() == 1 {
            // In the order in which people look: VMs first.
            return Ok(Targets::All(vec![Kind::Vm, Kind::Image]));
        }
        let kind = kind(first)?;
        Ok(match &words[1..] {
            [] => Targets::All(vec![kind]),
            names => Targets::Named(names.iter().map(|name| (kind, name.clone())).collect()),
        })
    }
}

fn named(word: &str) -> Result<(Kind, String), CliError> {
    match word.split_once('/') {
        Some((kind_name, name)) if !name.is_empty() => Ok((kind(kind_name)?, name.to_owned())),
        _ => Err(CliError::usage(format!("{word:?} is not of the form KIND/NAME"))
            .hint("do not mix the forms KIND NAME and KIND/NAME")),
    }
}

fn kind(text: &str) -> Result<Kind, CliError> {
    text.parse().map_err(CliError::usage)
}

/// The name in `web` or `vm/web`.
///
/// # Errors
/// With exit code 2, when another kind is named.
pub(super) fn vm_name(word: &str) -> Result<&str, CliError> {
    match word.split_once('/') {
        None => Ok(word),
        Some((kind_name, name)) if kind(kind_name)? == Kind::Vm => Ok(name),
        Some(_) => Err(CliError::usage(format!("{word} is not a VM"))),
    }
}

/// The path of a list.
pub(super) fn list_path(kind: Kind, namespace: Option<&str>) -> String {
    match namespace {
        Some(namespace) => format!("/apis/{API_VERSION}/namespaces/{}/{}", escape(namespace), kind.plural()),
        None => format!("/apis/{API_VERSION}/{}", kind.plural()),
    }
}

/// The path of an object.
pub(super) fn object_path(kind: Kind, namespace: &str, name: &str) -> String {
    format!("{}/{}", list_path(kind, Some(namespace)), escape(name))
}
