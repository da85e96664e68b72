//! `vmlet wait`.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use futures_util::StreamExt;
use futures_util::stream::{BoxStream, select_all, unfold};
use indicatif::ProgressDrawTarget;
use serde_json::Value;
use tokio::time::{sleep, timeout};

use super::client::{Client, JSON};
use super::error::{CliError, Outcome};
use super::feed::{Feed, News};
use super::live::{Board, Sign, doing};
use super::target::{Scope, Targets};
use crate::api::types::WatchKind;
use crate::object::{Kind, ObjectKey, Period};

/// How often a daemon that has just started is asked whether it knows what is declared.
const READY_PERIOD: Duration = Duration::from_millis(50);
/// How long what does not exist may take to appear: a manifest that was just dropped is not seen at
/// once.
const APPEARANCE: Duration = Duration::from_secs(5);

/// Wait until objects have a condition, or are gone
///
/// A daemon that has just started reads its manifests first; what does not exist then has 5 s to
/// appear: its manifest may have been dropped just now. Exits with 1 when the time is over, and says
/// what is missing.
///
/// Examples:
///   vmlet wait --for condition=Ready vm --all --timeout 5m
///   vmlet wait --for delete vm/web
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub(super) struct Wait {
    /// KIND NAME…, KIND/NAME…, or KIND with --all or -l
    #[arg(required = true)]
    targets: Vec<String>,

    /// condition=NAME[=True|False|Unknown] or delete
    #[arg(long = "for", value_name = "WHAT")]
    goal: Goal,

    /// Every object of the kind that there is when the wait begins; if there is none, those that
    /// appear first
    #[arg(long)]
    all: bool,

    /// How long to wait at most: 30s, 5m, 1h30m
    #[arg(long, value_name = "TIME", default_value = "30s")]
    timeout: Period,

    #[command(flatten)]
    scope: Scope,
}

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Goal {
    Condition { name: String, status: String },
    Delete,
}

impl FromStr for Goal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "delete" {
            return Ok(Goal::Delete);
        }
        let condition = text.strip_prefix("condition=").filter(|condition| !condition.is_empty());
        let condition = condition.ok_or("write condition=NAME, for example condition=Ready, or delete")?;
        let (name, status) = condition.split_once('=').unwrap_or((condition, "True"));
        Ok(Goal::Condition { name: name.to_owned(), status: status.to_owned() })
    }
}

impl Wait {
    /// Runs the verb.
    pub(super) async fn run(self, client: &Client) -> Outcome {
        let targets = Targets::parse(&self.targets)?;
        let select = self.all || !self.scope.selector.is_empty();
        let (kinds, named) = match targets {
            Targets::All(kinds) if select => (kinds, None),
            Targets::All(_) => {
                return Err(CliError::usage("name the objects to wait for, or say --all"));
            }
            Targets::Named(_) if select || self.scope.all_namespaces => {
                return Err(CliError::usage("name objects or select them, not both"));
            }
            Targets::Named(named) => {
                let mut kinds: Vec<Kind> = named.iter().map(|(kind, _)| *kind).collect();
                kinds.sort_unstable();
                kinds.dedup();
                (kinds, Some(named))
            }
        };
        let mut waiting = Waiting::new(self.goal.clone(), &kinds);
        for (kind, name) in named.into_iter().flatten() {
            waiting.expect(ObjectKey::new(kind, &self.scope.namespace, name));
        }
        let feeds = kinds.iter().map(|kind| feed(client, *kind, self.scope.list_path(*kind, &[])));
        let feeds = select_all(feeds);
        let done = timeout(self.timeout.get(), async {
            waiting.until_ready(client).await?;
            waiting.until_done(feeds).await
        });
        let done = done.await;
        if let Some(board) = &mut waiting.board {
            board.clear();
        }
        done.unwrap_or_else(|_| Err(waiting.timed_out(&self.targets)))
    }
}

type Feeds = BoxStream<'static, (Kind, Result<News, CliError>)>;

fn feed(client: &Client, kind: Kind, path: String) -> Feeds {
    let feed = Feed::new(client, path, JSON);
    unfold(feed, move |mut feed| async move {
        let news = feed.next().await;
        Some(((kind, news), feed))
    })
    .boxed()
}

/// What is still waited for.
struct Waiting {
    goal: Goal,
    /// By object: its uid once it was seen, and what it is doing.
    pending: BTreeMap<ObjectKey, Pending>,
    /// Kinds whose first list has not come.
    unlisted: Vec<Kind>,
    /// Whether the objects were named, or else are those of the first lists.
    named: bool,
    /// Whether what does not exist may still appear.
    appearing: bool,
    /// Whether all that appears is waited for: nobody was named, and nobody was there.
    open: bool,
    /// Whether any object was ever waited for.
    any: bool,
    /// Why the daemon does not know yet what is declared.
    unready: Option<String>,
    board: Option<Board>,
}

#[derive(Default)]
struct Pending {
    uid: Option<String>,
    doing: String,
}

impl Waiting {
    fn new(goal: Goal, kinds: &[Kind]) -> Self {
        let board = io::stderr().is_terminal().then(|| Board::new(ProgressDrawTarget::stderr()));
        let unlisted = kinds.to_vec();
        Waiting {
            goal,
            pending: BTreeMap::new(),
            unlisted,
            named: false,
            appearing: true,
            open: true,
            any: false,
            unready: None,
            board,
        }
    }

    fn expect(&mut self, key: ObjectKey) {
        self.pending.insert(key, Pending::default());
        (self.named, self.any, self.open) = (true, true, false);
    }

    /// Until then nobody knows which objects there are.
    async fn until_ready(&mut self, client: &Client) -> Outcome {
        while let Err(why) = client.ready().await? {
            self.unready = Some(why);
            sleep(READY_PERIOD).await;
        }
        self.unready = None;
        Ok(())
    }

    async fn until_done(
        &mut self,
        mut feeds: impl futures_util::Stream<Item = (Kind, Result<News, CliError>)> + Unpin,
    ) -> Outcome {
        let appearance = sleep(APPEARANCE);
        tokio::pin!(appearance);
        while !self.is_done() {
            let next = tokio::select! {
                next = feeds.next() => next,
                () = &mut appearance, if self.appearing => {
                    self.all_appeared()?;
                    continue;
                }
            };
            let Some((kind, news)) = next else { break };
            match news? {
                News::Listed(list) => {
                    self.listed(kind, list["items"].as_array().map(Vec::as_slice).unwrap_or_default())?
                }
                News::Changed(WatchKind::Deleted, object) => self.gone(&key_of(kind, &object))?,
                News::Changed(_, object) => self.seen(&key_of(kind, &object), &object)?,
            }
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.unlisted.is_empty() && self.pending.is_empty() && (self.any || self.goal == Goal::Delete)
    }

    /// What does not exist by now is not waited for any longer.
    fn all_appeared(&mut self) -> Outcome {
        (self.appearing, self.open) = (false, false);
        if self.goal == Goal::Delete {
            return Ok(());
        }
        if !self.any {
            return Err(CliError::new("no matching objects found"));
        }
        match self.pending.iter().find(|(_, pending)| pending.uid.is_none()) {
            Some((key, _)) => {
                Err(CliError::new(format!("{key} not found")).hint("`vmlet get all -A` shows what there is"))
            }
            None => Ok(()),
        }
    }

    fn listed(&mut self, kind: Kind, items: &[Value]) -> Outcome {
        let first = self.unlisted.contains(&kind);
        self.unlisted.retain(|other| *other != kind);
        if first && !self.named {
            for object in items {
                self.pending.insert(key_of(kind, object), Pending::default());
                (self.any, self.open) = (true, false);
            }
        }
        let present: BTreeMap<ObjectKey, &Value> =
            items.iter().map(|object| (key_of(kind, object), object)).collect();
        let pending: Vec<ObjectKey> = self.pending.keys().filter(|key| key.kind == kind).cloned().collect();
        for key in pending {
            match present.get(&key) {
                Some(object) => self.seen(&key, object)?,
                None => self.gone(&key)?,
            }
        }
        Ok(())
    }

    /// The object is there, and this is what it is like.
    fn seen(&mut self, key: &ObjectKey, object: &Value) -> Outcome {
        if self.open && self.goal != Goal::Delete {
            self.pending.insert(key.clone(), Pending::default());
            self.any = true;
        }
        let Some(pending) = self.pending.get_mut(key) else { return Ok(()) };
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        let replaced = pending.uid.as_ref().is_some_and(|earlier| *earlier != uid);
        pending.uid = Some(uid);
        let (text, sign) = doing(object);
        // Off a terminal a line for each new thing that it does, not for each percent of it.
        let steps = |text: &str| text.replace(|digit: char| digit.is_ascii_digit(), "");
        let news = steps(&pending.doing) != steps(&text);
        pending.doing.clone_from(&text);
        match &self.goal {
            Goal::Delete if replaced => return self.finish(key, "deleted"),
            Goal::Condition { name, status } if holds(object, name, status) => {
                return self.finish(key, "condition met");
            }
            _ => {}
        }
        match &mut self.board {
            Some(board) => board.set(&key.to_string(), format!("{key}  {text}"), sign),
            None if news => writeln!(io::stderr(), "{key}  {text}")?,
            None => {}
        }
        Ok(())
    }

    fn gone(&mut self, key: &ObjectKey) -> Outcome {
        if self.goal == Goal::Delete {
            return self.finish(key, "deleted");
        }
        if let Some(pending) = self.pending.get_mut(key) {
            "it does not exist".clone_into(&mut pending.doing);
            match &mut self.board {
                Some(board) => board.set(&key.to_string(), format!("{key}  does not exist"), Sign::Busy),
                None => writeln!(io::stderr(), "{key}  does not exist")?,
            }
        }
        Ok(())
    }

    fn finish(&mut self, key: &ObjectKey, how: &str) -> Outcome {
        if self.pending.remove(key).is_none() {
            return Ok(());
        }
        if let Some(board) = &mut self.board {
            board.remove(&key.to_string());
        }
        let mut out = io::stdout();
        writeln!(out, "{key} {how}")?;
        Ok(out.flush()?)
    }

    fn timed_out(&self, targets: &[String]) -> CliError {
        if let Some(why) = &self.unready {
            return CliError::new(format!("timed out waiting: {why}"));
        }
        let what = match &self.goal {
            Goal::Condition { name, status } if status.eq_ignore_ascii_case("true") => {
                format!("is not {name}")
            }
            Goal::Condition { name, status } => format!("has no condition {name}={status}"),
            Goal::Delete => "is still there".to_owned(),
        };
        let mut message = "timed out waiting".to_owned();
        for (key, pending) in &self.pending {
            message.push_str(&format!("\n  {key} {what}: {}", pending.doing));
        }
        let example = self.pending.keys().next().map_or_else(|| targets.join(" "), ToString::to_string);
        CliError::new(message).hint(format!("`vmlet describe {example}` and `vmlet events` say why"))
    }
}

fn key_of(kind: Kind, object: &Value) -> ObjectKey {
    let part = |name: &str| object["metadata"][name].as_str().unwrap_or_default();
    ObjectKey::new(kind, part("namespace"), part("name"))
}

/// Whether the object has the condition, and for its present generation.
fn holds(object: &Value, name: &str, status: &str) -> bool {
    let conditions = object["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let named =
        |condition: &&Value| condition["type"].as_str().is_some_and(|kind| kind.eq_ignore_ascii_case(name));
    let Some(condition) = conditions.iter().find(named) else { return false };
    let generation = object["metadata"]["generation"].as_i64().unwrap_or(0);
    let observed = condition["observedGeneration"].as_i64();
    observed.is_none_or(|observed| observed >= generation)
        && condition["status"].as_str().is_some_and(|is| is.eq_ignore_ascii_case(status))
}
